"""A set of queries and documents searched by BM25 and by models, one in memory at a time."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.util import SimilarityFunction

from st_llm_embed.data.beir import RetrievalSet
from st_llm_embed.evaluation.bm25 import bm25_similarity
from st_llm_embed.evaluation.embedders import saved_prompt, takes_instructions
from st_llm_embed.evaluation.ranking import Ranked, Similarity, dot_products, finite, rank
from st_llm_embed.instructions import instruction_prompt
from st_llm_embed.modules.lengths import Lengths, text_lengths
from st_llm_embed.modules.model import LLMSentenceTransformer
from st_llm_embed.processes import is_on_terminal

OWN_INSTRUCTIONS = "the row's own instruction"
"""In place of a query prompt, where each query has another one."""


class Found(NamedTuple):
    """What one system found in a set, and how it was asked."""

    ranked: Ranked
    query_prompt: str
    """What stood before every query; empty for nothing."""
    lengths: Lengths | None
    """Of queries and documents; None for BM25, which cuts nothing."""


def compare(
    rows: RetrievalSet,
    models: Mapping[str, Callable[[], LLMSentenceTransformer]],
    *,
    instruction: str | None = None,
    batch_size: int = 32,
) -> dict[str, Found]:
    """Return what BM25 and each model finds; a model is loaded when it is its turn.

    Raises:
        InputError: a model cannot be loaded, or a vector is not finite.
    """
    words = bm25_similarity(list(rows.queries.values()), list(rows.corpus.values()))
    found = {"BM25": Found(search(rows, words), "", None)}
    for name, load in models.items():
        found[name] = search_with_model(rows, load(), instruction=instruction, batch_size=batch_size)
        gc.collect()  # A SentenceTransformer and its card refer to each other.
    return found


def search(rows: RetrievalSet, similarity: Similarity) -> Ranked:
    """Rank the corpus for every query; a document that is the query itself is omitted, as in BEIR (ArguAna)."""
    place = {name: number for number, name in enumerate(rows.corpus)}
    relevant = [{place[name]: grade for name, grade in rows.relevance[query].items()} for query in rows.queries]
    own = [
        place[name] if name in place and text in rows.corpus[name] and name not in rows.relevance[name] else None
        for name, text in rows.queries.items()
    ]

    def without_own(start: int, stop: int) -> NDArray[np.float32]:
        found = similarity(start, stop)
        for row, itself in zip(found, own[start:stop], strict=True):
            if itself is not None:
                row[itself] = -np.inf
        return found

    return rank(without_own, len(rows.corpus), relevant)


def search_with_model(
    rows: RetrievalSet, model: LLMSentenceTransformer, *, instruction: str | None = None, batch_size: int = 32
) -> Found:
    """Search by a model's own similarity, its queries under an instruction if the model takes any.

    That is `instruction`, or else the queries' own, or else the prompt that is saved with the model.

    Raises:
        InputError: a vector is not finite.
    """
    options: dict[str, Any] = {"batch_size": batch_size, "show_progress_bar": is_on_terminal()}
    queries, corpus = list(rows.queries.values()), list(rows.corpus.values())
    prompt = query_prompt = saved_prompt(model, "query")
    if takes_instructions(model) and instruction is not None:
        prompt = query_prompt = instruction_prompt(instruction)
    elif takes_instructions(model) and rows.instructions:
        prompt, query_prompt = "", OWN_INSTRUCTIONS
        queries = [instruction_prompt(rows.instructions[name]) + text for name, text in rows.queries.items()]
    query_vectors = finite(model.encode_query(queries, prompt=prompt, **options), queries)
    vectors = finite(model.encode_document(corpus, **options), corpus)
    lengths = text_lengths(model, queries, prompt) + text_lengths(model, corpus, saved_prompt(model, "document"))
    return Found(search(rows, model_similarity(model, query_vectors, vectors)), query_prompt, lengths)


def model_similarity(
    model: SentenceTransformer, queries: NDArray[np.float32], documents: NDArray[np.float32]
) -> Similarity:
    """Return the model's own similarity of vectors."""
    name = SimilarityFunction(model.similarity_fn_name)
    if name == SimilarityFunction.COSINE:
        # Divided by their lengths once, not again for each lot of queries.
        return dot_products(
            *(
                vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
                for vectors in (queries, documents)
            )
        )
    if name == SimilarityFunction.DOT_PRODUCT:
        return dot_products(queries, documents)
    compute, whole = SimilarityFunction.to_similarity_fn(name), torch.from_numpy(documents)
    return lambda start, stop: compute(torch.from_numpy(queries[start:stop]), whole).numpy()
