"""The score of one mteb task while a model trains."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mteb
from mteb.models import ModelMeta

from st_llm_embed.errors import InputError, explained
from st_llm_embed.evaluation.benchmark.models import LocalModel
from st_llm_embed.evaluation.benchmark.run import resolve_tasks
from st_llm_embed.modules import LLMSentenceTransformer

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask


class TaskScore:
    """Scores models on one task by the code of `evaluate`, with the paper's instructions; keeps the task's data.

    Args:
        name: of the task; ``Tatoeba:fra-eng`` for one subset.
        batch_size: texts per forward pass.

    Raises:
        InputError: of `scored_task`, or the data of the task cannot be loaded.
    """

    def __init__(self, name: str, *, batch_size: int) -> None:
        self._task = scored_task(name)
        self._batch_size = batch_size
        with explained(
            f"The data of the task {name} cannot be loaded", "Check the network, or take it out of evaluation.tasks."
        ):
            self._task.load_data()

    def __call__(self, model: LLMSentenceTransformer) -> float:
        """Give the task's main score."""
        meta = ModelMeta.create_empty(overwrites={"name": "local/in-training", "revision": "unsaved"})
        result = mteb.evaluate(
            LocalModel(model, meta, "paper"),
            self._task,
            # No step may get the scores of another one.
            cache=None,
            co2_tracker=False,
            encode_kwargs={"batch_size": self._batch_size, "show_progress_bar": False},
            show_progress_bar=False,
        )
        return result.task_results[0].get_score()


def scored_task(name: str) -> AbsTask:
    """Find a task of `evaluation.tasks`.

    Raises:
        InputError: there is no such task, or it is an aggregate, the mean of others.
    """
    *parts, task = resolve_tasks([name], None)
    if parts:
        raise InputError(
            f"evaluation.tasks has {name}, which is the mean of {len(parts)} tasks, and a model that trains is scored "
            f"on single ones. Name one of them, such as {parts[0].metadata.name}."
        )
    return task
