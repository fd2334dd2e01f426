"""Exact search over a folder of shards: what an approximate index of a database has to be compared with."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from sentence_transformers.util import SimilarityFunction, semantic_search

from st_llm_embed.encoding.encode import Embedder
from st_llm_embed.encoding.shards import MANIFEST, document_of, read_lengths, read_manifest, reading_shard, shard_path
from st_llm_embed.errors import InputError
from st_llm_embed.modules.layout import model_identity

VECTORS_AT_ONCE = 65_536


@dataclass(frozen=True)
class Hit:
    """One text that was found, and its similarity by the model's own function."""

    score: float
    id: str
    text: str | None
    """None where the folder holds no texts."""
    document: str | None
    """Id of the document that a passage is from; None where whole texts were encoded."""


class VectorIndex:
    """A folder of shards that `encode` finished."""

    def __init__(self, folder: Path) -> None:
        """Open a folder.

        Raises:
            InputError: it is not one, or shards are missing.
        """
        manifest = read_manifest(folder)
        if manifest is None:
            raise InputError(
                f"{folder} holds no {MANIFEST}. Make one with: st-llm-embed encode TEXTS --model MODEL --to {folder}"
            )
        paths = [shard_path(folder, number, manifest.shards) for number in range(manifest.shards)]
        missing = sum(not path.is_file() for path in paths)
        if missing:
            raise InputError(
                f"{folder} lacks {missing} of {manifest.shards} shards. Run the encode command that made it again."
            )
        self.folder, self.manifest, self._paths = folder, manifest, paths
        self.lengths = read_lengths(folder, manifest.shards)
        self._similarity = SimilarityFunction.to_similarity_fn(manifest.similarity)

    def search(self, query: NDArray[np.float32], k: int) -> list[Hit]:
        """Return the k texts nearest to a query vector of shape (dimension,), best first; every vector is compared.

        Raises:
            InputError: a shard is damaged.
        """
        columns = ["vector", "id", *(["text"] if self.manifest.keep_text else [])]
        chunked = self.manifest.chunk_tokens is not None
        best: list[Hit] = []
        for path in self._paths:
            with reading_shard(path), pq.ParquetFile(path) as file:
                for batch in file.iter_batches(VECTORS_AT_ONCE, columns=columns):
                    vectors = batch.column("vector").flatten().to_numpy().reshape(len(batch), -1)
                    [found] = semantic_search(
                        torch.from_numpy(query[None].astype(np.float32)),
                        torch.from_numpy(vectors.astype(np.float32)),
                        top_k=k,
                        score_function=self._similarity,
                    )
                    for one in found:
                        [record] = batch.slice(int(one["corpus_id"]), 1).select(columns[1:]).to_pylist()
                        document = document_of(record["id"]) if chunked else None
                        best.append(Hit(float(one["score"]), record["id"], record.get("text"), document))
            # Of equal ones the first comes first.
            best = heapq.nlargest(k, best, key=lambda hit: hit.score)
        return best

    def embedder(self, model: str | None = None) -> Embedder:
        """Load what encodes queries: a model of the same space by its Hub id or folder, or the one of the manifest.

        Raises:
            InputError: it cannot be loaded, has shorter vectors, or is no longer the model that made the folder.
        """
        made_by = self.manifest
        if model is not None:
            return Embedder(model, "query", dimension=made_by.dimension)
        revision = None if Path(made_by.model).is_absolute() else made_by.model_revision
        embedder = Embedder(made_by.model, "query", revision, made_by.dimension)
        if model_identity(made_by.model, revision=revision)[1] != made_by.model_revision:
            raise InputError(
                f"{made_by.model} is no longer the model that made {self.folder}: its files changed. Encode into "
                "another folder, or name the former model, or one of the same space, with --model."
            )
        return embedder
