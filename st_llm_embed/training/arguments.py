"""From recipe to the upstream libraries' own arguments, each key and type checked."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from peft import LoraConfig
from sentence_transformers import SentenceTransformerTrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from st_llm_embed.errors import InputError, explained, shown
from st_llm_embed.recipe import Recipe
from st_llm_embed.recipe.upstream import LORA_CONFIG, check_arguments, check_training_section, half_precision_problem

SCORES = ("retrieval_ndcg_at_10", "retrieval_recall_at_1", "sts_triplet_accuracy", "bitext_accuracy")
"""What the held-out rows are scored by, the higher the better. The first, which any rows have, chooses the best
checkpoint where the recipe names no other."""


def training_arguments(recipe: Recipe, output_dir: Path) -> SentenceTransformerTrainingArguments:
    """Build the trainer's arguments from ``recipe.training``.

    Raises:
        InputError: a key is unknown or set by the run itself, a value has the wrong type, transformers refuses it, a
            batch has no row, or it would be open which checkpoint is the best.
    """
    where = f"Recipe {recipe.name}: training"
    checked = check_training_section(recipe.training, where, batches=recipe.batches is not None)
    if not torch.accelerator.is_available() and (problem := half_precision_problem(checked, where)):
        raise InputError(problem)
    # The trainer's own default pins memory, and warns where there is no GPU to pin it for.
    checked.setdefault("dataloader_pin_memory", torch.cuda.is_available())
    # accelerate joins the processes of a torchrun only if they have GPUs or were set to use the CPU.
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.accelerator.is_available():
        checked.setdefault("use_cpu", True)
    with explained(f"Recipe {recipe.name}: the training section is refused", "Change what the message names."):
        arguments = SentenceTransformerTrainingArguments(output_dir=str(output_dir), seed=recipe.seed, **checked)
    needs_a_best = arguments.metric_for_best_model is not None or arguments.save_strategy == SaveStrategy.BEST
    if "metric_for_best_model" not in checked and needs_a_best:
        # transformers would take the loss, which is not computed for rows that are held out.
        arguments.metric_for_best_model = SCORES[0]
        arguments.greater_is_better = checked.get("greater_is_better", True)
    if needs_a_best:
        _check_best(recipe, arguments)
    return arguments


def lora_config(recipe: Recipe) -> LoraConfig | None:
    """Build peft's configuration from ``recipe.lora``; None where all weights are trained.

    Raises:
        InputError: a key is unknown, a value has the wrong type, or peft refuses it.
    """
    if recipe.lora is None:
        return None
    checked = check_arguments(LORA_CONFIG, recipe.lora, f"Recipe {recipe.name}: lora")
    with explained(f"Recipe {recipe.name}: the lora section is refused", "Change what the message names."):
        return LoraConfig(**checked)


def _check_best(recipe: Recipe, arguments: SentenceTransformerTrainingArguments) -> None:
    """Refuse what would leave it open, or let chance decide, which checkpoint is the best."""
    where = f"Recipe {recipe.name}: training"
    metric = str(arguments.metric_for_best_model)
    if metric.removeprefix("eval_") not in (*SCORES, *recipe.evaluation.tasks):
        raise InputError(
            f"{where}.metric_for_best_model is {shown(metric)}, which is neither a score of the held-out rows nor "
            f"one of evaluation.tasks. Allowed: {', '.join((*SCORES, *recipe.evaluation.tasks))}; the default is "
            f"{SCORES[0]}."
        )
    if not arguments.greater_is_better:
        raise InputError(
            f"{where}.greater_is_better is false, and of {metric} more is better: the worst checkpoint would be kept. "
            "Remove the key."
        )
    if arguments.eval_strategy == IntervalStrategy.NO:
        raise InputError(
            f"{where} asks for the best checkpoint, and eval_strategy is no, so that none has a score. Set "
            "eval_strategy to steps or epoch."
        )
    by_steps = arguments.save_strategy == SaveStrategy.STEPS
    if arguments.load_best_model_at_end and by_steps and arguments.eval_steps != arguments.save_steps:
        raise InputError(
            f"{where}.eval_steps is {arguments.eval_steps:g} and save_steps {arguments.save_steps:g}: the best step "
            "could be one that no checkpoint was saved at. With load_best_model_at_end give both the same number."
        )
