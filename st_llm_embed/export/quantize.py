"""Weights in fewer bits, and what that costs in retrieval."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from st_llm_embed.data import Row, read_rows
from st_llm_embed.doctor.runtimes import Runtime
from st_llm_embed.errors import InputError
from st_llm_embed.evaluation.held_out import load_held_out, ndcg_at_10, retrieval_ranks
from st_llm_embed.instructions import format_query

Vectors = NDArray[np.float32]
Encode = Callable[[Sequence[str]], Vectors]
"""Gives texts, each with its prompt in front, their embeddings of shape (texts, dimension)."""

BATCH = 16

FEWEST_QUERIES = 10


class Retrieval(NamedTuple):
    """Queries with one relevant document each."""

    queries: list[str]
    """With their instructions in front, if the model takes any."""
    documents: list[str]
    """Every distinct positive and negative."""
    positive: list[int]
    """Index of each query's relevant document."""


class Loss(NamedTuple):
    """Retrieval by the model and by its quantized export, over the same rows; scores in 0..1."""

    queries: int
    documents: int
    recall_at_10: float
    recall_at_10_quantized: float
    ndcg_at_10: float
    ndcg_at_10_quantized: float
    minimum_cosine: float
    """Of a text's two vectors."""


def read_retrieval(path: Path, *, instructed: bool) -> Retrieval:
    """Read rows, or the held-out rows of a dataset folder, as queries and documents.

    Args:
        path: file or folder.
        instructed: whether the row's instruction stands before a query.

    Raises:
        InputError: they cannot be read, or are too few to tell a loss.
    """
    if path.is_dir():
        held_out = load_held_out(path, "natural" if instructed else "none")
        found = Retrieval(held_out.queries, held_out.documents, held_out.positive.tolist())
    else:
        rows: Sequence[Row] = list(read_rows(path))
        texts = [text for row in rows for text in (row.positive, row.negative) if text]
        documents = list(dict.fromkeys(texts))
        place = {text: number for number, text in enumerate(documents)}
        queries = [format_query(row.instruction, row.anchor) if instructed else row.anchor for row in rows]
        found = Retrieval(queries, documents, [place[row.positive] for row in rows])
    if len(found.queries) < FEWEST_QUERIES or len(found.documents) <= FEWEST_QUERIES:
        raise InputError(
            f"{path} holds {len(found.queries)} queries and {len(found.documents)} documents. To tell what quantized "
            f"weights lose, at least {FEWEST_QUERIES} queries and more than as many documents are needed; some "
            "hundreds tell more. Give a larger file of rows, or the dataset folder of a run."
        )
    return found


def encoder(runtime: Runtime) -> Encode:
    """Make a runtime that embeds all texts as one batch into one that embeds many."""

    def encode(texts: Sequence[str]) -> Vectors:
        parts = [runtime(texts[start : start + BATCH]) for start in range(0, len(texts), BATCH)]
        return np.stack([one.vector for part in parts for one in part if one.vector is not None])

    return encode


def measure_loss(retrieval: Retrieval, full: Encode, quantized: Encode) -> Loss:
    """Compare retrieval by two encoders of the same model."""
    vectors = [(encode(retrieval.queries), encode(retrieval.documents)) for encode in (full, quantized)]
    (recall, ndcg), (recall_quantized, ndcg_quantized) = (
        _scores(queries, documents, retrieval.positive) for queries, documents in vectors
    )
    cosines = [np.sum(one * other, axis=1).min() for one, other in zip(*vectors, strict=True)]
    return Loss(
        len(retrieval.queries),
        len(retrieval.documents),
        recall,
        recall_quantized,
        ndcg,
        ndcg_quantized,
        float(min(cosines)),
    )


def quantize_onnx(path: Path) -> Path:
    """Write model_int8.onnx beside model.onnx: weights as int8, activations quantized as they come.

    Returns:
        The path of the new file.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantized = path.with_name("model_int8.onnx")
    has_data = path.with_name(f"{path.name}_data").exists()
    root, quiet = logging.getLogger(), logging.NullHandler()
    # onnxruntime warns by the root logger, which would get a handler of its own that stays.
    root.addHandler(quiet)
    try:
        quantize_dynamic(path, quantized, weight_type=QuantType.QInt8, use_external_data_format=has_data)
    finally:
        root.removeHandler(quiet)
    return quantized


def _scores(queries: Vectors, documents: Vectors, positive: Sequence[int]) -> tuple[float, float]:
    """Give recall@10 and nDCG@10."""
    ranks = retrieval_ranks(queries, documents, np.asarray(positive))
    return float((ranks < 10).mean()), float(ndcg_at_10(ranks).mean())
