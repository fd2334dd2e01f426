"""Training: the stock trainer on a recipe's dataset, from its last complete checkpoint if there is one."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

from datasets import Dataset, DatasetDict
from sentence_transformers import SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.evaluation import SentenceEvaluator
from transformers.trainer_utils import IntervalStrategy

from st_llm_embed.data import is_text_column, load_split, to_training
from st_llm_embed.data.dataset import negative_columns
from st_llm_embed.errors import InputError
from st_llm_embed.instructions import instruction_of
from st_llm_embed.modules import DecoderTransformer, LLMSentenceTransformer
from st_llm_embed.processes import is_first_process
from st_llm_embed.recipe import Instructions, Recipe
from st_llm_embed.training.adapter import merge_adapter, prepare_adapter, save_adapter
from st_llm_embed.training.arguments import training_arguments
from st_llm_embed.training.batches import TaskBatchSampler, TellEpoch
from st_llm_embed.training.loss import build_losses
from st_llm_embed.training.reporting import reporting_into
from st_llm_embed.training.starting_model import untrained_embedder
from st_llm_embed.training.trainer import EmbedderTrainer, FindBestCheckpoint
from st_llm_embed.training.verify import check_trained, probe


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

    Writes ``checkpoints/`` on the way, and at the end ``log.json`` (the trainer's records: step, loss, learning rate,
    scores, ...), ``adapter/`` where LoRA was trained, and ``model/`` (stock sentence-transformers, adapter merged);
    ``logs/`` where TensorBoard or W&B is asked for. The weights are those of the best checkpoint where the recipe says
    ``load_best_model_at_end``, else the last ones.

    Args:
        recipe: all choices.
        dataset_dirs: folders of the rows to train on.
        output_dir: what an earlier, killed call left there is gone on with.
        evaluator: scores the model on the way, as often as the recipe's ``eval_strategy`` says.
        configurations: those to train on; None for all.
        hard_negatives: whether the rows' own negatives are used.

    Raises:
        InputError: a row lacks a text, rows cannot fill a batch, or the trained model is not in order.
    """
    rows = training_set(dataset_dirs, configurations, recipe.base.instructions)
    if not hard_negatives:
        rows = DatasetDict(
            {name: part.remove_columns(negative_columns(part.column_names)) for name, part in rows.items()}
        )
    model = untrained_embedder(recipe)
    before = probe(model)
    adapted = prepare_adapter(model, recipe)
    arguments = training_arguments(recipe, output_dir / "checkpoints")
    with reporting_into(output_dir / "logs", arguments):
        trainer = build_trainer(recipe, model, rows, arguments, evaluator)
        checkpoint = last_complete_checkpoint(output_dir / "checkpoints")
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if arguments.load_best_model_at_end and trainer.state.best_model_checkpoint is None:
        raise InputError(
            f"Recipe {recipe.name}: the training ended without a score, so that no checkpoint is the best. Lower "
            "training.eval_delay, or set load_best_model_at_end to false."
        )
    weights = trainer.gathered_weights() if trainer.is_sharded() else None
    if not is_first_process():
        return
    (output_dir / "log.json").write_text(json.dumps(trainer.state.log_history, indent=1), encoding="utf-8")
    if weights is not None:
        model = untrained_embedder(recipe)
        prepare_adapter(model, recipe)
        model.load_state_dict(weights)
    after = check_trained(model, before)
    if adapted:
        save_adapter(model, recipe, output_dir / "adapter")
        model = merge_adapter(recipe, output_dir / "adapter", after)
    _state_dimensions(model, recipe.loss.matryoshka_dims)
    model.save_pretrained(str(output_dir / "model"), create_model_card=False)


def _state_dimensions(model: LLMSentenceTransformer, dimensions: Sequence[int]) -> None:
    """Put into config.json which leading dimensions are vectors of their own; vLLM refuses to cut to any other."""
    config = cast(DecoderTransformer, model[0]).config
    if dimensions:
        config.matryoshka_dimensions = sorted(dimensions, reverse=True)
    elif hasattr(config, "matryoshka_dimensions"):
        # Of the base, or of an earlier stage: this training took no care of them.
        del config.matryoshka_dimensions


def training_set(
    folders: Iterable[Path], configurations: Collection[str] | None = None, instructions: Instructions = "natural"
) -> DatasetDict:
    """Load the training rows of datasets by configuration, all or some, checked.

    Args:
        folders: of the datasets.
        configurations: those to load; None for all.
        instructions: what the column `instruction` gets.

    Raises:
        InputError: a row lacks a text.
    """
    return DatasetDict(
        {
            name: _instructed(to_training(rows), rows, instructions)
            for folder in folders
            for name, rows in load_split(folder, "train").items()
            if configurations is None or name in configurations
        }
    )


def _instructed(texts: Dataset, rows: Dataset, instructions: Instructions) -> Dataset:
    if instructions == "natural":
        return texts
    own = [
        instruction_of(instructions, instruction, task_type)
        for instruction, task_type in zip(rows["instruction"], rows["task_type"], strict=True)
    ]
    return texts.remove_columns("instruction").add_column("instruction", own)


def build_trainer(
    recipe: Recipe,
    model: LLMSentenceTransformer,
    rows: DatasetDict,
    arguments: SentenceTransformerTrainingArguments,
    evaluator: SentenceEvaluator | None = None,
) -> EmbedderTrainer:
    """Put together the trainer, with the recipe's losses and batches.

    Raises:
        InputError: what the recipe asks for cannot be done with weights that are spread over the processes.
    """
    texts = {
        str(name): [column for column in part.column_names if is_text_column(column)] for name, part in rows.items()
    }
    losses = build_losses(model, recipe.loss, texts)
    if recipe.batches is not None:
        arguments.multi_dataset_batch_sampler = partial(
            TaskBatchSampler,
            choices=recipe.batches,
            configurations=[str(name) for name in rows],
            losses=[str(cast(Any, losses[str(name)]).get_config_dict()) for name in rows],
            processes=arguments.world_size,
        )
    trainer = EmbedderTrainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        loss=losses,
        evaluator=evaluator,
        callbacks=[TellEpoch(), FindBestCheckpoint()],
    )
    if trainer.is_sharded() and arguments.eval_strategy != IntervalStrategy.NO:
        raise InputError(
            f"Recipe {recipe.name}: training.eval_strategy is {IntervalStrategy(arguments.eval_strategy).value}, and "
            "what FSDP or DeepSpeed has spread over the processes cannot be scored on the way. Set it to no; the "
            "report has the scores of the end."
        )
    if trainer.is_deepspeed_enabled and recipe.loss.mini_batch_num_tokens is not None:
        # GradCache goes back several times in a step; DeepSpeed 0.19 (zero/stage3.py) stops at the second.
        raise InputError(
            f"loss.mini_batch_num_tokens is {recipe.loss.mini_batch_num_tokens}, and GradCache does not train with "
            "DeepSpeed. Set it to null with a smaller per_device_train_batch_size, or use FSDP2 (docs/training.md)."
        )
    return trainer


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
