"""The score of one mteb task while a model trains."""

from __future__ import annotations

import mteb
from mteb.models import ModelMeta

from st_llm_embed.errors import explained
from st_llm_embed.evaluation.benchmark.models import LocalModel
from st_llm_embed.evaluation.benchmark.run import resolve_tasks
from st_llm_embed.modules import LLMSentenceTransformer


class TaskScore:
    """Scores models on one task by the code of `evaluate`, with the paper's instructions; keeps the task's data.

    Args:
        name: of the task; ``Tatoeba:fra-eng`` for one subset.
        batch_size: texts per forward pass.

    Raises:
        InputError: there is no such task, or its data cannot be loaded.
    """

    def __init__(self, name: str, *, batch_size: int) -> None:
        [self._task] = resolve_tasks([name], None)
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
