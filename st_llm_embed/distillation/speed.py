"""How fast models encode, measured side by side so that a busy machine slows all of them alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

QUERIES, IN_A_ROW, ROUNDS, DOCUMENTS = 50, 10, 3, 32
"""Single queries, some in a row of every model in turn, and batches of documents of which the fastest time counts."""


class Encoders(NamedTuple):
    """How one model encodes."""

    query: Callable[[list[str]], Any]
    document: Callable[[list[str]], Any]
    queries: Sequence[str]
    """As this model gets them, with an instruction or without."""


def measure_speed(models: Mapping[str, Encoders], documents: Sequence[str]) -> dict[str, dict[str, float]]:
    """Time single queries and batches of documents, each model after the other in every round.

    Args:
        models: by name; all have the same number of queries.
        documents: texts to take batches from.

    Returns:
        For each model `query_p50_ms`, `query_p95_ms` and `documents_per_second`.
    """
    queries: dict[str, list[float]] = {name: [] for name in models}
    batches: dict[str, list[float]] = {name: [] for name in models}
    for encoders in models.values():
        for text in encoders.queries[:3]:
            encoders.query([text])
    for first in range(0, QUERIES, IN_A_ROW):
        for name, encoders in models.items():
            # Right after a large model a small one finds the processor's caches full of the other's weights.
            for number in range(first, first + IN_A_ROW):
                text = encoders.queries[number % len(encoders.queries)]
                queries[name].append(_seconds(encoders.query, [text]))
    batch = [documents[number % len(documents)] for number in range(DOCUMENTS)]
    for _ in range(ROUNDS):
        for name, encoders in models.items():
            batches[name].append(_seconds(encoders.document, batch))
    return {
        name: {
            "query_p50_ms": float(np.percentile(queries[name], 50) * 1e3),
            "query_p95_ms": float(np.percentile(queries[name], 95) * 1e3),
            "documents_per_second": DOCUMENTS / min(batches[name]),
        }
        for name in models
    }


def _seconds(encode: Callable[[list[str]], Any], texts: list[str]) -> float:
    start = perf_counter()
    encode(texts)
    return perf_counter() - start
