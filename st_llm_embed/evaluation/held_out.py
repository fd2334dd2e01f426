"""Scores on the held-out rows, before, during and after training: retrieval, STS triplets, and bitext.

Each query has one relevant document. The scores are those of sentence-transformers' `InformationRetrievalEvaluator`
and `TripletEvaluator`, ties apart; those would encode the documents again for each group of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.model import BaseModel
from sentence_transformers.sentence_transformer.evaluation import SentenceEvaluator
from transformers.trainer_utils import IntervalStrategy

from st_llm_embed.data.dataset import load_split, negative_columns
from st_llm_embed.errors import InputError
from st_llm_embed.evaluation.ranking import Ranked, dot_products, finite, interval, rank
from st_llm_embed.instructions import format_query, instruction_of
from st_llm_embed.modules.model import LLMSentenceTransformer
from st_llm_embed.processes import is_on_terminal
from st_llm_embed.recipe import TASK_TYPES, Instructions, Recipe
from st_llm_embed.training.arguments import SCORES, training_arguments

LANGUAGES = ("English", "other languages", "unknown language")
"""What rows are told apart by: both sides English, one not, or `und`."""


class HeldOut(NamedTuple):
    """The held-out rows as queries and documents; all arrays have shape (number of queries,)."""

    queries: list[str]
    """Anchors under their instructions."""
    anchors: list[str]
    """The same without instructions."""
    documents: list[str]
    """Every distinct positive and negative."""
    positive: NDArray[np.int64]
    """Index of each query's positive in `documents`."""
    negative: NDArray[np.int64]
    """Index of each query's first negative in `documents`, -1 where it has none."""
    task_type: NDArray[np.str_]
    language: NDArray[np.str_]
    """One of `LANGUAGES`."""


class Scores(NamedTuple):
    """The scores of one model, and the similarities behind its histogram."""

    summary: dict[str, Any]
    """`retrieval_ndcg_at_10`, `retrieval_recall_at_1`, `sts_triplet_accuracy`, `bitext_accuracy` in 0..1 (None where
    there are no such rows), and the first two broken down in `by_task_type` and `by_language`, with the interval of
    the mean over queries that a sample of this size leaves open."""
    ranked: Ranked
    """Each query's own scores, and the documents nearest to it."""
    positive_similarity: NDArray[np.float32]
    """Cosine of each query with its positive, shape (number of queries,)."""
    negative_similarity: NDArray[np.float32]
    """Cosine of each query with its negative, shape (number of queries that have one,)."""
    random_similarity: NDArray[np.float32]
    """Cosine of each query with a document drawn from those that are not its own, shape (number of queries,); empty
    where there is only one document."""


def load_held_out(dataset_dir: Path, instructions: Instructions = "natural") -> HeldOut:
    """Load the validation rows of a written dataset, each query under the instruction that `instructions` selects."""
    rows = [row for dataset in load_split(dataset_dir, "validation").values() for row in dataset]
    negatives = [next((row[name] for name in negative_columns(row)), None) for row in rows]
    texts = [row["positive"] for row in rows] + [text for text in negatives if text is not None]
    documents = list(dict.fromkeys(texts))
    index = {text: position for position, text in enumerate(documents)}
    anchors = [row["anchor"] for row in rows]
    own = [instruction_of(instructions, row["instruction"], row["task_type"]) for row in rows]
    return HeldOut(
        queries=list(map(format_query, own, anchors)),
        anchors=anchors,
        documents=documents,
        positive=np.array([index[row["positive"]] for row in rows]),
        negative=np.array([-1 if text is None else index[text] for text in negatives]),
        task_type=np.array([row["task_type"] for row in rows]),
        language=np.array([_language(row["language"], row["target_language"]) for row in rows]),
    )


def _language(source: str, target: str) -> str:
    if "und" in (source, target):
        return LANGUAGES[2]
    return LANGUAGES[0] if source == target == "en" else LANGUAGES[1]


def evaluate_held_out(model: SentenceTransformer, rows: HeldOut, *, batch_size: int) -> Scores:
    """Encode queries and documents once, by any sentence-transformers model, and score them.

    Raises:
        InputError: a vector is not finite.
    """
    queries, documents = (_encode(model, texts, batch_size) for texts in (rows.queries, rows.documents))
    return score_held_out(rows, queries, documents)


def score_held_out(rows: HeldOut, queries: NDArray[np.float32], documents: NDArray[np.float32]) -> Scores:
    """Score vectors of the held-out rows: unit length, shapes (queries, dimension) and (documents, dimension)."""
    ranked = _ranked(queries, documents, rows.positive)
    positive_similarity = np.sum(queries * documents[rows.positive], axis=1)
    has_negative = rows.negative >= 0
    negative_similarity = np.sum(queries[has_negative] * documents[rows.negative[has_negative]], axis=1)

    several = len(queries) if len(rows.documents) > 1 else 0
    drawn = np.random.default_rng(0).integers(max(1, len(rows.documents) - 1), size=several)
    # The positive is skipped, so that every other document is as likely.
    drawn += drawn >= rows.positive[:several]
    random_similarity = np.sum(queries[:several] * documents[drawn], axis=1)

    sts = (rows.task_type[has_negative] == "sts").nonzero()[0]
    bitext = (rows.task_type == "bitext").nonzero()[0]
    # As in mteb's bitext mining: the nearest among the translations of all bitext rows.
    translations = _ranked(queries[bitext], documents[rows.positive[bitext]], np.arange(len(bitext)))
    summary = {
        **_retrieval(ranked, slice(None)),
        "sts_triplet_accuracy": _mean(positive_similarity[has_negative][sts] > negative_similarity[sts]),
        "bitext_accuracy": _mean(translations.scores["recall_at_1"]),
        "queries": len(rows.queries),
        "documents": len(rows.documents),
        "by_task_type": {
            name: _retrieval(ranked, rows.task_type == name) for name in TASK_TYPES if name in rows.task_type
        },
        "by_language": {
            name: _retrieval(ranked, rows.language == name) for name in LANGUAGES if name in rows.language
        },
    }
    return Scores(summary, ranked, positive_similarity, negative_similarity, random_similarity)


def _ranked(queries: NDArray[np.float32], documents: NDArray[np.float32], positive: NDArray[np.int64]) -> Ranked:
    return rank(dot_products(queries, documents), len(documents), [{place: 1} for place in positive.tolist()])


def _encode(model: SentenceTransformer, texts: list[str], batch_size: int) -> NDArray[np.float32]:
    # Neither encode_query nor encode_document: the queries carry their own instructions.
    options: dict[str, Any] = {"normalize_embeddings": True, "show_progress_bar": is_on_terminal()}
    return finite(model.encode(texts, batch_size=batch_size, **options), texts)


def _retrieval(ranked: Ranked, chosen: NDArray[np.bool_] | slice) -> dict[str, Any]:
    ndcg, recall = (ranked.scores[name][chosen] for name in ("ndcg_at_10", "recall_at_1"))
    return {
        "retrieval_ndcg_at_10": _mean(ndcg),
        "retrieval_ndcg_at_10_interval": list(interval(ndcg)) if len(ndcg) else None,
        "retrieval_recall_at_1": _mean(recall),
        "retrieval_queries": len(ndcg),
    }


def _mean(values: NDArray[Any]) -> float | None:
    return float(values.mean()) if len(values) else None


class HeldOutEvaluator(SentenceEvaluator):
    """Scores a model on held-out rows and mteb tasks; the trainer puts `eval_` before each name.

    With several processes the trainer calls it so that each encodes a share of the texts and all get the same scores.
    `tasks` are functions that return the main score of an mteb task, by its name.
    """

    def __init__(
        self, rows: HeldOut, tasks: Mapping[str, Callable[[LLMSentenceTransformer], float]], *, batch_size: int
    ) -> None:
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
        """Return those of `SCORES` that there are rows for, in 0..1, and the main score of each task.

        Raises:
            InputError: a vector is not finite.
        """
        embedder = cast(LLMSentenceTransformer, model)
        summary = evaluate_held_out(embedder, self.rows, batch_size=self.batch_size).summary
        scores = {name: summary[name] for name in SCORES if summary[name] is not None}
        return scores | {name: score(embedder) for name, score in self.tasks.items()}


def held_out_evaluator(recipe: Recipe, dataset_dir: Path) -> HeldOutEvaluator | None:
    """Return what scores a recipe's model while it trains; None where the recipe does not ask for it.

    Raises:
        InputError: the best checkpoint is asked for by a score that the held-out rows do not give, or there is no such
            task, or its data cannot be loaded.
    """
    if training_arguments(recipe, Path()).eval_strategy == IntervalStrategy.NO:
        return None
    rows = load_held_out(dataset_dir, recipe.base.instructions)
    check_best_score(recipe, set(rows.task_type[(rows.task_type != "sts") | (rows.negative >= 0)]))
    batch_size = recipe.evaluation.batch_size
    tasks: dict[str, Callable[[LLMSentenceTransformer], float]] = {}
    if recipe.evaluation.tasks:
        # Importing mteb takes seconds.
        from st_llm_embed.evaluation.mteb import task_score

        tasks = {name: task_score(name, batch_size=batch_size) for name in recipe.evaluation.tasks}
    return HeldOutEvaluator(rows, tasks, batch_size=batch_size)


def check_best_score(recipe: Recipe, task_types: Collection[str]) -> None:
    """Check that held-out rows of these task types (sts: with a negative) have the score that chooses a checkpoint.

    Raises:
        InputError: they do not have it.
    """
    metric = str(training_arguments(recipe, Path()).metric_for_best_model).removeprefix("eval_")
    needed = {"sts_triplet_accuracy": "sts", "bitext_accuracy": "bitext"}.get(metric)
    if needed is not None and needed not in task_types:
        negative = " with a negative" if needed == "sts" else ""
        raise InputError(
            f"Recipe {recipe.name}: training.metric_for_best_model is {metric}, and no {needed} row{negative} is held "
            f"out. Choose {SCORES[0]}, or provide such rows or a higher data.validation_fraction."
        )
