"""Training: the stock trainer on a recipe's rows, resumed from its last complete checkpoint if there is one."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import cast

from datasets import DatasetDict
from sentence_transformers.sentence_transformer.evaluation import SentenceEvaluator

from st_llm_embed.data.dataset import load_split, negative_columns, to_training
from st_llm_embed.errors import InputError
from st_llm_embed.instructions import format_query, instruction_of
from st_llm_embed.modules.lengths import Lengths, longest_text, text_lengths
from st_llm_embed.modules.model import LLMSentenceTransformer
from st_llm_embed.modules.transformer import DecoderTransformer
from st_llm_embed.processes import is_first_process
from st_llm_embed.recipe import Instructions, Recipe, TrainingStage
from st_llm_embed.training.adapter import merge_adapter, prepare_adapter, save_adapter, starting_model
from st_llm_embed.training.arguments import training_arguments
from st_llm_embed.training.check import (
    check_same_vectors,
    check_saved_adapter,
    check_trained,
    vectors_of,
    write_reference_vectors,
)
from st_llm_embed.training.interrupt import train_from
from st_llm_embed.training.reporting import reporting_into
from st_llm_embed.training.sections import check_batches
from st_llm_embed.training.trainer import build_trainer

logger = logging.getLogger(__name__)

FIRST_ROWS = 500
"""Rows of each configuration whose texts are counted in tokens."""


def train(
    recipe: Recipe,
    dataset_dirs: Sequence[Path],
    output_dir: Path,
    *,
    evaluator: SentenceEvaluator | None = None,
    configurations: Collection[str] | None = None,
    hard_negatives: bool = True,
) -> None:
    """Fine-tune the recipe's base and save it. Under torchrun all processes call this; the first one saves.

    Writes ``checkpoints/`` on the way, and at the end ``log.json`` (the trainer's records: step, loss, scores, ...),
    ``adapter/`` where LoRA was trained, ``model/`` (stock sentence-transformers, adapter merged) and
    ``reference_vectors.json`` (what that model returned for a few texts); ``logs/`` where TensorBoard or W&B is asked
    for. No model is loaded after the last step, except where weights are sharded or quantized.

    Args:
        recipe: all choices.
        dataset_dirs: folders of the rows to train on.
        output_dir: an interrupted training in this folder is resumed.
        evaluator: scores the model on the way, as often as the recipe's ``eval_strategy`` says.
        configurations: those to train on; None for all.
        hard_negatives: whether the rows' own negatives are used.

    Raises:
        InputError: a row lacks a text, rows cannot fill a batch, or the trained model is broken.
        KeyboardInterrupt: Ctrl-C; a checkpoint of the last step was written.
    """
    rows = training_set(dataset_dirs, configurations, recipe.base.instructions)
    if not hard_negatives:
        rows = DatasetDict(
            {name: part.remove_columns(negative_columns(part.column_names)) for name, part in rows.items()}
        )
    arguments = training_arguments(recipe, output_dir / "checkpoints")
    check_batches(
        {name: getattr(arguments, name) for name in ("per_device_train_batch_size", "dataloader_drop_last")},
        {str(name): len(part) for name, part in rows.items()},
        {str(name): len(negative_columns(part.column_names)) for name, part in rows.items()},
        f"Recipe {recipe.name}: training",
        batches=recipe.batches is not None,
        processes=arguments.world_size,
    )
    model = starting_model(recipe)
    _log_lengths(model, rows)
    before = vectors_of(model)
    adapted = prepare_adapter(model, recipe)
    with reporting_into(output_dir / "logs", arguments):
        trainer = build_trainer(recipe, model, rows, arguments, evaluator)
        train_from(trainer, last_complete_checkpoint(output_dir / "checkpoints"))
    if arguments.load_best_model_at_end and trainer.state.best_model_checkpoint is None:
        raise InputError(
            f"Recipe {recipe.name}: the training ended without a score, so that no checkpoint is the best. Lower "
            "training.eval_delay, or set load_best_model_at_end to false."
        )
    weights = trainer.gathered_weights() if trainer.is_sharded() else None
    if not is_first_process():
        return
    (output_dir / "log.json").write_text(json.dumps(trainer.state.log_history, indent=1), encoding="utf-8")
    # The trainer holds the model and the optimizer's states.
    del trainer
    if weights is not None:
        del model
        model = starting_model(recipe)
        prepare_adapter(model, recipe)
        model.load_state_dict(weights)
    vectors = check_trained(model, before)
    if adapted:
        save_adapter(model, recipe, output_dir / "adapter")
        check_saved_adapter(model, output_dir / "adapter")
        if recipe.base.quantization is not None:
            # Quantized weights cannot be merged into: the adapter goes on the originals.
            del model
            original = {"adapter": str(output_dir / "adapter"), "quantization": None}
            model = starting_model(recipe.model_copy(update={"base": recipe.base.model_copy(update=original)}))
            vectors = vectors_of(model)
        merge_adapter(model)
        merged = vectors_of(model)
        check_same_vectors("the merged model", merged, "the adapter", vectors, recipe.base.dtype)
        vectors = merged
    _write_dimensions(model, recipe.loss.matryoshka_dims)
    model.save_pretrained(str(output_dir / "model"), create_model_card=False)
    write_reference_vectors(vectors, output_dir)


def _log_lengths(model: LLMSentenceTransformer, rows: DatasetDict) -> None:
    """Say what share of the texts is cut, by the first rows of each configuration."""
    lengths = Lengths()
    for part in rows.values():
        first = part.select(range(min(FIRST_ROWS, len(part))))
        lengths += text_lengths(model, list(map(format_query, first["instruction"], first["anchor"])))
        for column in ("positive", *negative_columns(part.column_names)):
            lengths += text_lengths(model, list(first[column]))
    logger.info("training: at most %s tokens a text: %s", longest_text(model), lengths)


def _write_dimensions(model: LLMSentenceTransformer, dimensions: Sequence[int]) -> None:
    """Put into config.json which leading dimensions are vectors of their own; vLLM refuses to cut to any other."""
    config = cast(DecoderTransformer, model[0]).config
    if dimensions:
        config.matryoshka_dimensions = sorted(dimensions, reverse=True)
    elif hasattr(config, "matryoshka_dimensions"):
        # Of the base, or of an earlier stage, and not of this training.
        del config.matryoshka_dimensions


def training_set(
    folders: Iterable[Path], configurations: Collection[str] | None = None, instructions: Instructions = "natural"
) -> DatasetDict:
    """Load the training rows of datasets by configuration, all or some, with the recipe's kind of instructions.

    Raises:
        InputError: a row lacks a text.
    """
    parts = {
        name: rows
        for folder in folders
        for name, rows in load_split(folder, "train").items()
        if configurations is None or name in configurations
    }
    texts = DatasetDict({name: to_training(rows) for name, rows in parts.items()})
    if instructions != "natural":
        for name, rows in parts.items():
            pairs = zip(rows["instruction"], rows["task_type"], strict=True)
            own = [instruction_of(instructions, *pair) for pair in pairs]
            texts[name] = texts[name].remove_columns("instruction").add_column("instruction", own)
    return texts


def last_complete_checkpoint(checkpoints: Path) -> Path | None:
    """Return the newest checkpoint that was written to its end; a killed process can leave a torn one behind it."""
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


def configurations_of(stage: TrainingStage, names: Iterable[str]) -> list[str]:
    """Return those of a dataset's configurations that a stage trains on.

    Raises:
        InputError: the stage names one that is not there.
    """
    names = sorted(set(names))
    if unknown := [begin for begin in stage.configurations if not any(name.startswith(begin) for name in names)]:
        raise InputError(
            f"Stage {stage.name} names the configurations {', '.join(unknown)}, of which there are no rows; there are "
            f"{', '.join(names)}. Give beginnings of these names, or omit the key for all."
        )
    return [name for name in names if takes(stage, name)]


def takes(stage: TrainingStage, configuration: str) -> bool:
    """Whether a stage trains on a configuration of that name."""
    return not stage.configurations or configuration.startswith(stage.configurations)
