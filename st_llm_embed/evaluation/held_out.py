"""Scores on the held-out rows: retrieval over all their documents, STS triplets, and bitext.

Each query has one relevant document. Its rank counts every other document that scores at least as high, so that a
model that gives all texts the same vector gets nothing for it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from st_llm_embed.data import load_split, negative_columns
from st_llm_embed.errors import InputError
from st_llm_embed.instructions import format_query, instruction_of
from st_llm_embed.recipe import TASK_TYPES, Instructions

QUERIES_AT_ONCE = 512
"""Rows of the similarity matrix in memory at a time."""


class HeldOut(NamedTuple):
    """The held-out rows as queries and documents; all arrays have shape (number of queries,)."""

    queries: list[str]
    """Anchors with what stands before them."""
    anchors: list[str]
    """The same without."""
    instructions: list[str]
    """Of each query; empty where there is none."""
    documents: list[str]
    """Every distinct positive and negative."""
    positive: NDArray[np.int64]
    """Index of each query's positive in `documents`."""
    negative: NDArray[np.int64]
    """Index of each query's first negative in `documents`, -1 where it has none."""
    task_type: NDArray[np.str_]
    english: NDArray[np.bool_]
    """Whether both sides are English."""


class Scores(NamedTuple):
    """The scores of one model, and the similarities behind its histogram."""

    summary: dict[str, Any]
    """`retrieval_ndcg_at_10`, `retrieval_recall_at_1`, `sts_triplet_accuracy`, `bitext_accuracy` in 0..1 (None where
    there are no such rows), and the first two broken down in `by_task_type` and `by_language`."""
    positive_similarity: NDArray[np.float32]
    """Cosine of each query with its positive, shape (number of queries,)."""
    negative_similarity: NDArray[np.float32]
    """Cosine of each query with its negative, shape (number of queries that have one,)."""
    random_similarity: NDArray[np.float32]
    """Cosine of each query with a document drawn from those that are not its own, shape (number of queries,); empty
    where there is one document alone."""


def load_held_out(dataset_dir: Path, instructions: Instructions = "natural") -> HeldOut:
    """Load the validation rows of a written dataset, each query under what `instructions` has for it."""
    rows = [row for dataset in load_split(dataset_dir, "validation").values() for row in dataset]
    negatives = [next((row[name] for name in negative_columns(row)), None) for row in rows]
    texts = [row["positive"] for row in rows] + [text for text in negatives if text is not None]
    documents = list(dict.fromkeys(texts))
    index = {text: position for position, text in enumerate(documents)}
    anchors = [row["anchor"] for row in rows]
    own = [instruction_of(instructions, row["instruction"], row["task_type"]) for row in rows]
    return HeldOut(
        queries=[format_query(instruction, anchor) for instruction, anchor in zip(own, anchors, strict=True)],
        anchors=anchors,
        instructions=own,
        documents=documents,
        positive=np.array([index[row["positive"]] for row in rows]),
        negative=np.array([-1 if text is None else index[text] for text in negatives]),
        task_type=np.array([row["task_type"] for row in rows]),
        english=np.array([row["language"] == "en" and row["target_language"] == "en" for row in rows]),
    )


def evaluate_held_out(model: SentenceTransformer, rows: HeldOut, *, batch_size: int) -> Scores:
    """Encode queries and documents once and score them.

    Args:
        model: any sentence-transformers model; documents are encoded as they are.
        rows: what to score it on.
        batch_size: texts per forward pass.

    Raises:
        InputError: the model gives vectors with numbers that are not finite.
    """
    queries = _encode(model, rows.queries, batch_size)
    documents = _encode(model, rows.documents, batch_size)
    return score_held_out(rows, queries, documents)


def score_held_out(rows: HeldOut, queries: NDArray[np.float32], documents: NDArray[np.float32]) -> Scores:
    """Score vectors of the held-out rows.

    Args:
        rows: what was encoded.
        queries: vectors of unit length, shape (queries, dimension).
        documents: the same, shape (documents, dimension).
    """
    ranks = retrieval_ranks(queries, documents, rows.positive)
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
    bitext_ranks = similarity_ranks(queries[bitext] @ documents[rows.positive[bitext]].T, np.arange(len(bitext)))
    summary = {
        **_retrieval(ranks),
        "sts_triplet_accuracy": _mean(positive_similarity[has_negative][sts] > negative_similarity[sts]),
        "bitext_accuracy": _mean(bitext_ranks == 0),
        "queries": len(rows.queries),
        "documents": len(rows.documents),
        "by_task_type": {
            name: _retrieval(ranks[rows.task_type == name]) for name in TASK_TYPES if name in rows.task_type
        },
        "by_language": {
            "English": _retrieval(ranks[rows.english]),
            "other languages": _retrieval(ranks[~rows.english]),
        },
    }
    return Scores(summary, positive_similarity, negative_similarity, random_similarity)


def retrieval_ranks(
    queries: NDArray[np.float32], documents: NDArray[np.float32], relevant: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Give the rank, from 0, of each query's relevant document by the dot product, some queries at a time."""
    return np.concatenate(
        [
            similarity_ranks(
                queries[start : start + QUERIES_AT_ONCE] @ documents.T, relevant[start : start + QUERIES_AT_ONCE]
            )
            for start in range(0, len(queries), QUERIES_AT_ONCE)
        ]
    )


def similarity_ranks(similarity: NDArray[np.float32], relevant: NDArray[np.int64]) -> NDArray[np.int64]:
    """Give the rank, from 0, of each query's relevant document; similarity has shape (queries, documents)."""
    own = np.take_along_axis(similarity, relevant[:, None], axis=1)
    return (similarity >= own).sum(axis=1) - 1


def ndcg_at_10(ranks: NDArray[np.int64]) -> NDArray[np.float64]:
    """Give the nDCG@10 of each query, which has one relevant document, from that document's rank."""
    return np.where(ranks < 10, 1 / np.log2(ranks + 2), 0)


def _encode(model: SentenceTransformer, texts: list[str], batch_size: int) -> NDArray[np.float32]:
    # Neither encode_query nor encode_document: the queries carry their own instructions.
    vectors = model.encode(texts, batch_size=batch_size, normalize_embeddings=True, show_progress_bar=True)
    broken = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(broken):
        raise InputError(
            f"The model gives {len(broken)} of {len(texts)} texts a vector that is not finite (NaN or infinity), the "
            f"first of them {texts[broken[0]][:60]!r}. Training has diverged, or the numbers do not fit into float16: "
            "lower training.learning_rate, use bf16 instead of fp16, and train again."
        )
    return vectors


def _retrieval(ranks: NDArray[np.int64]) -> dict[str, Any]:
    return {
        "retrieval_ndcg_at_10": _mean(ndcg_at_10(ranks)),
        "retrieval_recall_at_1": _mean(ranks == 0),
        "retrieval_queries": len(ranks),
    }


def _mean(values: NDArray[Any]) -> float | None:
    return float(values.mean()) if len(values) else None
