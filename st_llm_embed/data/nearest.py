"""The nearest documents of each query, by brute force in tiles: exact, and never all scores at once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

QUERIES_AT_ONCE = 1_024
DOCUMENTS_AT_ONCE = 16_384
"""A tile of scores takes 64 MiB; its documents 16,384 x dimension x 4 bytes besides."""


def nearest_documents(
    queries: NDArray[np.float16],
    documents: NDArray[np.float16],
    excluded: tuple[NDArray[np.int64], NDArray[np.int64]],
    count: int,
    device: str = "cpu",
) -> Iterator[tuple[int, NDArray[np.float32], NDArray[np.int64]]]:
    """Search the documents with the highest dot product, for 1,024 queries at a time.

    Args:
        queries: shape (number of queries, dimension); read piece by piece, so np.memmap is welcome.
        documents: shape (number of documents, dimension); read once for each 1,024 queries.
        excluded: pairs (query, document) that are not to be found, as two arrays sorted by query.
        count: documents for each query.
        device: where torch computes.

    Yields:
        The first query; dot products, highest first, -inf where there are no more documents; positions of documents.
        Both arrays are of shape (queries, count).
    """
    for start in range(0, len(queries), QUERIES_AT_ONCE):
        tile = _on(queries[start : start + QUERIES_AT_ONCE], device)
        first, last = np.searchsorted(excluded[0], (start, start + len(tile)))
        rows, columns = excluded[0][first:last] - start, excluded[1][first:last]
        scores = torch.full((len(tile), count), -torch.inf, device=device)
        places = torch.zeros((len(tile), count), dtype=torch.int64, device=device)
        for offset in range(0, len(documents), DOCUMENTS_AT_ONCE):
            found = tile @ _on(documents[offset : offset + DOCUMENTS_AT_ONCE], device).T
            here = (columns >= offset) & (columns < offset + DOCUMENTS_AT_ONCE)
            found[torch.from_numpy(rows[here]), torch.from_numpy(columns[here] - offset)] = -torch.inf
            new_scores, new_places = found.topk(min(count, found.shape[1]), dim=1)
            scores, kept = torch.cat([scores, new_scores], dim=1).topk(count, dim=1)
            places = torch.cat([places, new_places + offset], dim=1).gather(1, kept)
        yield start, scores.cpu().numpy(), places.cpu().numpy()


def pair_scores(
    queries: NDArray[np.float16], documents: NDArray[np.float16], pairs: tuple[NDArray[np.int64], NDArray[np.int64]]
) -> NDArray[np.float32]:
    """Return the dot product of each pair (query, document), shape (pairs,); read 16,384 pairs at a time."""
    scores = np.empty(len(pairs[0]), dtype=np.float32)
    for start in range(0, len(scores), DOCUMENTS_AT_ONCE):
        part = slice(start, start + DOCUMENTS_AT_ONCE)
        left, right = queries[pairs[0][part]], documents[pairs[1][part]]
        scores[part] = np.einsum("ij,ij->i", left.astype(np.float32), right.astype(np.float32))
    return scores


def _on(vectors: NDArray[np.float16], device: str) -> torch.Tensor:
    # A copy: torch warns of arrays that it must not write to.
    return torch.from_numpy(np.array(vectors)).to(device).float()
