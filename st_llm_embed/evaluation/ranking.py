"""Retrieval scores in one place: of held-out rows, BEIR folders, BM25; each query's own, their means and intervals.

A relevant document's rank counts every other document that scores at least as high and is not more relevant, so a
model that returns one vector for all texts scores 0. Ties apart, the scores are those of trec_eval and mteb.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from st_llm_embed.data.vectors import check_vectors

MEASURES = {
    "ndcg_at_10": "nDCG@10",
    "recall_at_1": "recall@1",
    "recall_at_10": "recall@10",
    "recall_at_100": "recall@100",
    "mrr": "MRR",
}
"""Each in 0..1, the higher the better, and what tables call them."""

TOP = 3
"""Documents of each query that are kept to be shown."""

SIMILARITIES_AT_ONCE = 2**25
"""Of some queries with all documents, in memory at a time: 128 MiB."""

RESAMPLES = 1_000

Similarity = Callable[[int, int], NDArray[np.float32]]
"""Takes the first query and the one after the last; returns similarities of shape (queries, documents)."""


class Ranked(NamedTuple):
    """What one system found."""

    scores: dict[str, NDArray[np.float64]]
    """For each of `MEASURES`, each query's own; shape (queries,)."""
    top: NDArray[np.int64]
    """The nearest documents of each query, best first; shape (queries, at most TOP)."""


def rank(similarity: Similarity, documents: int, relevant: Sequence[Mapping[int, int]]) -> Ranked:
    """Rank documents for queries, some at a time.

    Args:
        similarity: computes similarities.
        documents: their number.
        relevant: for each query, positions of relevant documents with grades above 0; at least one.
    """
    scores = {name: np.empty(len(relevant)) for name in MEASURES}
    top = np.empty((len(relevant), min(TOP, documents)), dtype=np.int64)
    at_once = max(1, SIMILARITIES_AT_ONCE // max(1, documents))
    for start in range(0, len(relevant), at_once):
        stop = min(start + at_once, len(relevant))
        for number, row in enumerate(similarity(start, stop), start=start):
            for name, value in _measured(*_ranks(row, relevant[number])).items():
                scores[name][number] = value
            nearest = np.argpartition(-row, top.shape[1] - 1)[: top.shape[1]]
            top[number] = nearest[np.argsort(-row[nearest], kind="stable")]
    return Ranked(scores, top)


def _ranks(row: NDArray[np.float32], relevant: Mapping[int, int]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the ranks, from 0, of a query's relevant documents, and their grades, in the order of the ranks."""
    places, grades = np.array(list(relevant)), np.array(list(relevant.values()))
    # Of equally near ones the less relevant comes first.
    order = np.lexsort((grades, -row[places]))
    own, grades = row[places][order], grades[order]
    behind = np.searchsorted(-own, -own, side="right") - 1 - np.arange(len(own))
    at_least = np.array([(row >= value).sum() for value in own])
    return at_least - 1 - behind, grades


def _measured(ranks: NDArray[np.int64], grades: NDArray[np.int64]) -> dict[str, float]:
    ideal = np.sort(grades)[::-1][:10] / np.log2(np.arange(len(grades))[:10] + 2)
    gained = np.where(ranks < 10, grades / np.log2(ranks + 2), 0)
    recalls = {f"recall_at_{count}": float((ranks < count).mean()) for count in (1, 10, 100)}
    return {"ndcg_at_10": float(gained.sum() / ideal.sum()), **recalls, "mrr": float(1 / (1 + ranks.min()))}


def summarized(scores: Mapping[str, NDArray[np.float64]]) -> dict[str, dict[str, float]]:
    """Return mean, low and high of each measure; the two bound the 95 % interval of the mean over queries."""
    return {
        name: {"mean": float(values.mean()), **dict(zip(("low", "high"), interval(values), strict=True))}
        for name, values in scores.items()
    }


def interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of a mean over queries; given differences of two systems, of their mean."""
    random = np.random.default_rng(0)
    means = [values[random.integers(len(values), size=len(values))].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def dot_products(queries: NDArray[np.float32], documents: NDArray[np.float32]) -> Similarity:
    """Return the dot product of vectors of shapes (queries, dimension) and (documents, dimension)."""
    return lambda start, stop: queries[start:stop] @ documents.T


def finite(vectors: NDArray[np.floating], texts: Sequence[str]) -> NDArray[np.float32]:
    """Return vectors of shape (texts, dimension) in float32; raise an InputError if one is not finite."""
    advice = (
        "Training has diverged, or the numbers do not fit into float16: lower training.learning_rate, use bf16 "
        "instead of fp16, and train again."
    )
    check_vectors(vectors, texts, "The model's vectors", advice)
    return vectors.astype(np.float32, copy=False)
