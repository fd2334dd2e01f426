"""Training: the stock trainer on a recipe's dataset, from its last complete checkpoint if there is one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import cast

import torch
from datasets import DatasetDict
from peft import PeftModel
from sentence_transformers import SentenceTransformerTrainer
from sentence_transformers.sentence_transformer.modules import Transformer
from transformers import set_seed

from st_llm_embed.data import load_split, to_training
from st_llm_embed.errors import explained
from st_llm_embed.modules import LLMSentenceTransformer
from st_llm_embed.recipe import EMBEDDED, Dtype, Recipe
from st_llm_embed.training.arguments import lora_config, training_arguments
from st_llm_embed.training.loss import build_losses
from st_llm_embed.training.processes import is_first_process

BASE_ADVICE = (
    f"Allowed are {EMBEDDED!r} and the Hub id or local folder of a decoder-only transformers model, complete with its "
    "weights and tokenizer. Set it with --set base.name_or_path=..."
)


def untrained_embedder(recipe: Recipe, *, dtype: Dtype | None = None) -> LLMSentenceTransformer:
    """Build the embedder that training starts from; the same weights each time, fresh ones included.

    Args:
        recipe: gives the base, the text length and the seed.
        dtype: data type of the weights where it is not the recipe's.

    Raises:
        InputError: the base cannot be loaded.
    """
    set_seed(recipe.seed)
    with explained(f"The base model {recipe.base.name_or_path!r} cannot be loaded", BASE_ADVICE):
        return LLMSentenceTransformer.from_base(
            recipe.base.name_or_path,
            max_seq_length=recipe.base.max_seq_length,
            revision=recipe.base.revision,
            random_init=recipe.base.random_init,
            dtype=dtype or recipe.base.dtype,
        )


def training_set(folders: Iterable[Path]) -> DatasetDict:
    """Load the training rows of datasets by configuration. A batch comes from one: its rows are of one task type."""
    return DatasetDict(
        {name: to_training(rows) for folder in folders for name, rows in load_split(folder, "train").items()}
    )


def train(recipe: Recipe, dataset_dirs: Sequence[Path], output_dir: Path) -> None:
    """Fine-tune the recipe's base and save it. Under torchrun all processes call this; the first one saves.

    Writes ``checkpoints/`` on the way, and at the end ``model/`` (stock sentence-transformers, adapter merged),
    ``adapter/`` where LoRA was trained, and ``log.json`` (the trainer's records: step, loss, learning rate, ...).
    """
    model = untrained_embedder(recipe)
    adapter = lora_config(recipe)
    if adapter is not None:
        model.add_adapter(adapter)
    arguments = training_arguments(recipe, output_dir / "checkpoints")
    rows = training_set(dataset_dirs)
    trainer = SentenceTransformerTrainer(
        model=model, args=arguments, train_dataset=rows, loss=build_losses(model, recipe.loss, rows.column_names)
    )
    checkpoint = last_complete_checkpoint(output_dir / "checkpoints")
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if not is_first_process():
        return
    if adapter is not None:
        model.save_pretrained(str(output_dir / "adapter"), create_model_card=False)
        model = merge_adapter(recipe, output_dir / "adapter")
    model.save_pretrained(str(output_dir / "model"), create_model_card=False)
    (output_dir / "log.json").write_text(json.dumps(trainer.state.log_history, indent=1), encoding="utf-8")


def last_complete_checkpoint(checkpoints: Path) -> Path | None:
    """Give the newest checkpoint that was written to its end; a killed process can leave a torn one behind it."""
    steps = {folder: folder.name.removeprefix("checkpoint-") for folder in checkpoints.glob("checkpoint-*")}
    numbered = [folder for folder, step in steps.items() if step.isdecimal()]
    for folder in sorted(numbered, key=lambda folder: int(steps[folder]), reverse=True):
        try:
            # The trainer writes this file last.
            json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        return folder
    return None


def merge_adapter(recipe: Recipe, adapter_dir: Path) -> LLMSentenceTransformer:
    """Add a trained LoRA adapter to the weights of the recipe's base, in float32, then cast to the recipe's dtype.

    Merging in bfloat16 would round twice.
    """
    model = untrained_embedder(recipe, dtype="float32")
    transformer = cast(Transformer, model[0])
    transformer.model = PeftModel.from_pretrained(transformer.model, str(adapter_dir)).merge_and_unload()
    return model.to(getattr(torch, recipe.base.dtype))
