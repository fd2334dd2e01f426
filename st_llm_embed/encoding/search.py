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
from st_llm_embed.encoding.shards import MANIFEST, read_manifest, shard_path
from st_llm_embed.errors import InputError, explained
from st_llm_embed.modules.layout import model_identity

VECTORS_AT_ONCE = 65_536


@dataclass(frozen=True)
class Hit:
    """One text that was found."""

    score: float
    """Similarity as the model has it, such as cosine."""
    id: str
    text: str | None
    """None where the folder holds no texts."""


class VectorIndex:
    """A folder of shards that `encode` finished."""

    def __init__(self, folder: Path) -> None:
        """Open a folder.

        Raises:
            InputError: it is not one, shards are missing, or the model's similarity is not known.
        """
        manifest = read_manifest(folder)
        if manifest is None:
            raise InputError(
                f"{folder} holds no {MANIFEST}, so it is not a folder of vectors. Make one with: st-llm-embed encode "
                f"TEXTS --model MODEL --to {folder}"
            )
        paths = [shard_path(folder, number, manifest.shards) for number in range(manifest.shards)]
        missing = sum(not path.is_file() for path in paths)
        if missing:
            raise InputError(
                f"{folder} lacks {missing} of {manifest.shards} shards: encode has not ended, or they were moved. "
                "Run the command that made it again; finished shards are kept."
            )
        with explained(f"The model of {folder} cannot be searched with", "Encode with another model."):
            self._similarity = SimilarityFunction.to_similarity_fn(manifest.similarity)
        self.folder, self.manifest, self._paths = folder, manifest, paths

    def search(self, query: NDArray[np.float32], k: int) -> list[Hit]:
        """Return the k texts nearest to a query vector of shape (dimension,), best first; every vector is compared.

        Raises:
            InputError: the vector has another dimension.
        """
        if len(query) != self.manifest.dimension:
            raise InputError(
                f"The query has {len(query)} numbers and the vectors of {self.folder} have {self.manifest.dimension}. "
                "Search with the model that made them, or with one of the same space."
            )
        columns = ["vector", "id", *(["text"] if self.manifest.keep_text else [])]
        best: list[tuple[float, int, int, Hit]] = []
        for number, path in enumerate(self._paths):
            with pq.ParquetFile(path) as file:
                for part, batch in enumerate(file.iter_batches(VECTORS_AT_ONCE, columns=columns)):
                    vectors = batch.column("vector").flatten().to_numpy().reshape(len(batch), -1)
                    [found] = semantic_search(
                        torch.from_numpy(query[None].astype(np.float32)),
                        torch.from_numpy(vectors.astype(np.float32)),
                        top_k=k,
                        score_function=self._similarity,
                    )
                    for one in found:
                        place = int(one["corpus_id"])
                        [record] = batch.slice(place, 1).select(columns[1:]).to_pylist()
                        # The earlier of two equals comes first.
                        hit = Hit(float(one["score"]), record["id"], record.get("text"))
                        best.append((hit.score, -number, -part * VECTORS_AT_ONCE - place, hit))
            best = heapq.nlargest(k, best)
        return [hit for *_, hit in best]


def query_embedder(index: VectorIndex, model: str | None) -> Embedder:
    """Load what encodes queries for a folder: the model that made it, or another one of the same space.

    Args:
        index: the folder.
        model: Hub id or folder; None for the one that the manifest names, which has to be unchanged.

    Raises:
        InputError: the model cannot be loaded, its vectors are shorter, or it is no longer the one that made the
            folder.
    """
    made_by = index.manifest
    if model is not None:
        return Embedder(model, "query", dimension=made_by.dimension)
    local = Path(made_by.model).is_dir()
    if Path(made_by.model).is_absolute() and not local:
        raise InputError(
            f"The model that made {index.folder} is no longer at {made_by.model}. Say where it is, or name another "
            "one of the same space, with --model."
        )
    revision = None if local else made_by.model_revision
    embedder = Embedder(made_by.model, "query", revision=revision, dimension=made_by.dimension)
    if model_identity(made_by.model, revision=revision)[1] != made_by.model_revision:
        raise InputError(
            f"{made_by.model} is no longer the model that made {index.folder}: its files changed. Encode into another "
            "folder, or name the former model, or one of the same space, with --model."
        )
    return embedder
