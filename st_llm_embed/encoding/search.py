"""Exact search over a folder of shards: what an index of a database has to be compared with."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from st_llm_embed.encoding.shards import MANIFEST, read_manifest, shard_path
from st_llm_embed.errors import InputError

if TYPE_CHECKING:
    from st_llm_embed.encoding.embedder import Embedder

METRICS = {"cosine": "Cos", "dot": "IP"}
"""Similarity of sentence-transformers: name of usearch's MetricKind."""

VECTORS_AT_ONCE = 65_536


@dataclass(frozen=True)
class Hit:
    """One text that was found."""

    score: float
    """Cosine or dot product, as the model has it."""
    id: str
    text: str | None
    """None where the folder holds no texts."""


class VectorIndex:
    """A folder of shards that `encode` finished."""

    def __init__(self, folder: Path) -> None:
        """Open a folder.

        Raises:
            InputError: it is none, shards are missing, the model's similarity is neither cosine nor dot product, or
                usearch is not installed.
        """
        try:
            from usearch.index import MetricKind, search
        except ImportError:
            raise InputError(
                "search needs usearch, which is not installed. Install it with: pip install 'st_llm_embed[search]'."
            ) from None
        manifest = read_manifest(folder)
        if manifest is None:
            raise InputError(
                f"{folder} holds no {MANIFEST}, so it is no folder of vectors. Make one with: st-llm-embed encode "
                f"TEXTS --model MODEL --to {folder}"
            )
        paths = [shard_path(folder, number, manifest.shards) for number in range(manifest.shards)]
        missing = sum(not path.is_file() for path in paths)
        if missing:
            raise InputError(
                f"{folder} lacks {missing} of {manifest.shards} shards: encode has not ended, or they were moved. "
                "Give the command that made it again; finished shards are kept."
            )
        if manifest.similarity not in METRICS:
            raise InputError(
                f"The model of {folder} compares vectors by {manifest.similarity!r}; search has "
                f"{' and '.join(METRICS)}. Encode with a model that uses one of these."
            )
        self.folder, self.manifest = folder, manifest
        self._paths, self._search = paths, search
        self._metric: Any = getattr(MetricKind, METRICS[manifest.similarity])

    def search(self, query: NDArray[np.float32], k: int) -> list[Hit]:
        """Give the k texts nearest to a query vector of shape (dimension,), best first; every vector is compared.

        Raises:
            InputError: the vector has another dimension.
        """
        if len(query) != self.manifest.dimension:
            raise InputError(
                f"The query has {len(query)} numbers and the vectors of {self.folder} have {self.manifest.dimension}. "
                "Search with the model that made them, or with one of the same space."
            )
        query = query.astype(self.manifest.dtype)
        best: list[tuple[float, int, int]] = []
        for number, path in enumerate(self._paths):
            start = 0
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(VECTORS_AT_ONCE, columns=["vector"]):
                    vectors = batch.column("vector").flatten().to_numpy().reshape(len(batch), -1)
                    found = self._search(vectors, query, min(k, len(vectors)), self._metric, exact=True)
                    # usearch gives distances: 1 - similarity. The earlier of two equals comes first.
                    best += [(1 - float(one.distance), -number, -(start + int(one.key))) for one in found]
                    start += len(vectors)
            best = heapq.nlargest(k, best)
        records = self._records([(-number, -row) for _, number, row in best])
        return [
            Hit(score, record["id"], record.get("text")) for (score, _, _), record in zip(best, records, strict=True)
        ]

    def _records(self, places: list[tuple[int, int]]) -> list[dict[str, Any]]:
        """Read ids and texts by shard and row, each shard once."""
        columns = ["id", "text"] if self.manifest.keep_text else ["id"]
        found: dict[tuple[int, int], dict[str, Any]] = {}
        for number, group in groupby(sorted(places), key=itemgetter(0)):
            table = pq.read_table(self._paths[number], columns=columns)
            found |= {place: table.slice(place[1], 1).to_pylist()[0] for place in group}
        return [found[place] for place in places]


def query_embedder(index: VectorIndex, model: str | None) -> Embedder:
    """Load what encodes queries for a folder: the model that made it, or another one of the same space.

    Args:
        index: the folder.
        model: Hub id or folder; None for the one that the manifest names, which has to be what it was.

    Raises:
        InputError: the model cannot be loaded, its vectors are shorter, or it is no longer the one that made the
            folder.
    """
    from st_llm_embed.encoding.embedder import Embedder
    from st_llm_embed.modules.layout import model_identity

    made_by = index.manifest
    revision = None if model is not None or Path(made_by.model).is_dir() else made_by.model_revision
    dimension = made_by.dimension
    if model is None and Path(made_by.model).is_absolute() and not Path(made_by.model).is_dir():
        raise InputError(
            f"The model that made {index.folder} is no longer at {made_by.model}. Say where it is, or name another "
            "one of the same space, with --model."
        )
    embedder = Embedder(model or made_by.model, "query", revision=revision, dimension=dimension, device=None)
    if model is None and model_identity(made_by.model, revision=revision)[1] != made_by.model_revision:
        raise InputError(
            f"{made_by.model} is no longer the model that made {index.folder}: its files changed. Encode into another "
            "folder, or name the former model, or one of the same space, with --model."
        )
    return embedder
