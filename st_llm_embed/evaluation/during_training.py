"""Scores while training, on the held-out rows and on mteb tasks: by the code of the report and of `evaluate`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

from sentence_transformers import SentenceTransformer
from sentence_transformers.base.model import BaseModel
from sentence_transformers.sentence_transformer.evaluation import SentenceEvaluator
from transformers.trainer_utils import IntervalStrategy

from st_llm_embed.errors import InputError
from st_llm_embed.evaluation.held_out import HeldOut, evaluate_held_out, load_held_out
from st_llm_embed.modules import LLMSentenceTransformer
from st_llm_embed.recipe import Recipe
from st_llm_embed.training import SCORES, training_arguments

if TYPE_CHECKING:
    from st_llm_embed.evaluation.benchmark.task_score import TaskScore


class HeldOutEvaluator(SentenceEvaluator):
    """Scores a model on held-out rows and mteb tasks; the trainer puts `eval_` before each name.

    With several processes the trainer calls it so that each encodes a share of the texts and all get the same scores.

    Args:
        rows: what to score it on.
        tasks: mteb tasks by the name of the score.
        batch_size: texts per forward pass.
    """

    def __init__(self, rows: HeldOut, tasks: Mapping[str, TaskScore], *, batch_size: int) -> None:
        super().__init__()
        self.rows, self.tasks = rows, tasks
        self.batch_size = batch_size
        self.primary_metric = SCORES[0]

    def __call__(
        self,
        model: BaseModel,
        output_path: str | None = None,  # noqa: ARG002
        epoch: int = -1,  # noqa: ARG002
        steps: int = -1,  # noqa: ARG002
    ) -> dict[str, float]:
        """Give those of `SCORES` that there are rows for, in 0..1, and the main score of each task.

        Raises:
            InputError: the model gives vectors with numbers that are not finite.
        """
        summary = evaluate_held_out(cast(SentenceTransformer, model), self.rows, batch_size=self.batch_size).summary
        scores = {name: summary[name] for name in SCORES if summary[name] is not None}
        embedder = cast(LLMSentenceTransformer, model)
        return scores | {name: score(embedder) for name, score in self.tasks.items()}


def held_out_evaluator(recipe: Recipe, dataset_dir: Path) -> HeldOutEvaluator | None:
    """Give what scores a recipe's model while it trains; None where the recipe does not ask for it.

    Raises:
        InputError: the best checkpoint is asked for by a score that the held-out rows do not give, or there is no such
            task, or its data cannot be loaded.
    """
    if training_arguments(recipe, Path()).eval_strategy == IntervalStrategy.NO:
        return None
    rows = load_held_out(dataset_dir, recipe.base.instructions)
    check_best_score(recipe, set(rows.task_type[(rows.task_type != "sts") | (rows.negative >= 0)]))
    tasks: dict[str, TaskScore] = {}
    if recipe.evaluation.tasks:
        # Importing mteb takes seconds.
        from st_llm_embed.evaluation.benchmark.task_score import TaskScore

        tasks = {name: TaskScore(name, batch_size=recipe.evaluation.batch_size) for name in recipe.evaluation.tasks}
    return HeldOutEvaluator(rows, tasks, batch_size=recipe.evaluation.batch_size)


def check_best_score(recipe: Recipe, task_types: Collection[str]) -> None:
    """Check that held-out rows give the score by which the best checkpoint is chosen.

    Args:
        recipe: names the score.
        task_types: of the held-out rows; sts only where such a row has a negative.

    Raises:
        InputError: they do not give it.
    """
    metric = str(training_arguments(recipe, Path()).metric_for_best_model).removeprefix("eval_")
    needed = {"sts_triplet_accuracy": "sts", "bitext_accuracy": "bitext"}.get(metric)
    if needed is not None and needed not in task_types:
        negative = " with a negative" if needed == "sts" else ""
        raise InputError(
            f"Recipe {recipe.name}: training.metric_for_best_model is {metric}, and no {needed} row{negative} is held "
            f"out. Choose {SCORES[0]}, or give such rows or a higher data.validation_fraction."
        )
