"""What an index of vectors takes, and what is still found in it: by length and by precision of the numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sentence_transformers.util.quantization import quantize_embeddings

from st_llm_embed.evaluation.held_out import ndcg_at_10, retrieval_ranks

RANGES_FILE = "int8_ranges.json"
"""In a student's folder: for each length of its vectors the smallest and largest number of every dimension, from
documents of the training set. int8 without such ranges depends on what else is quantized in the same call."""

PRECISIONS = {"float32": 32, "int8": 8, "binary": 1}
"""Bits of a number."""

Ranges = Mapping[str, Sequence[Sequence[float]]]


def cut(vectors: NDArray[np.float32], length: int) -> NDArray[np.float32]:
    """Give the leading numbers of vectors, of unit length again."""
    leading = vectors[:, :length]
    return leading / np.maximum(np.linalg.norm(leading, axis=1, keepdims=True), 1e-12)


def int8_ranges(vectors: NDArray[np.float32], lengths: Iterable[int]) -> dict[str, list[list[float]]]:
    """Give what `quantize_embeddings(..., "int8", ranges=...)` needs, by the length of the vectors.

    Args:
        vectors: of documents as they will be indexed, shape (documents, dimension).
        lengths: numbers of leading dimensions.
    """
    found = {}
    for length in lengths:
        shorter = cut(vectors, length)
        found[str(length)] = [shorter.min(axis=0).tolist(), shorter.max(axis=0).tolist()]
    return found


def index_costs(
    queries: NDArray[np.float32], documents: NDArray[np.float32], relevant: NDArray[np.int64], ranges: Ranges
) -> list[dict[str, Any]]:
    """Score retrieval from indexes of the same documents at several lengths and precisions.

    Queries stay float32, as in sentence-transformers' search with rescoring: int8 documents are read back to the
    middle of their step, binary ones to -1 and 1.

    Args:
        queries: vectors of unit length, shape (queries, dimension).
        documents: the same, shape (documents, dimension).
        relevant: index of each query's document.
        ranges: what RANGES_FILE holds.

    Returns:
        For each `length` and `precision`: `bytes_per_document` and `ndcg_at_10`.
    """
    rows = []
    for name in sorted(ranges, key=int, reverse=True):
        length, limits = int(name), np.asarray(ranges[name], dtype=np.float32)
        asked, kept = cut(queries, length), cut(documents, length)
        for precision, bits in PRECISIONS.items():
            ranks = retrieval_ranks(asked, _read_back(kept, precision, limits), relevant)
            rows.append(
                {
                    "length": length,
                    "precision": precision,
                    "bytes_per_document": (length * bits + 7) // 8,
                    "ndcg_at_10": float(ndcg_at_10(ranks).mean()),
                }
            )
    return rows


def _read_back(vectors: NDArray[np.float32], precision: str, limits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Quantize vectors with sentence-transformers and give what the index then knows of them."""
    if precision == "float32":
        return vectors
    if precision == "int8":
        steps = (limits[1] - limits[0]) / 255
        quantized = np.asarray(quantize_embeddings(vectors, "int8", ranges=limits), dtype=np.float32)
        return limits[0] + (quantized + 128.5) * steps
    bits = np.unpackbits(np.asarray(quantize_embeddings(vectors, "ubinary")), axis=1)[:, : vectors.shape[1]]
    return bits.astype(np.float32) * 2 - 1
