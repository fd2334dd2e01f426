"""What one process of either engine does: it has a model, and makes shards of the texts that it reads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import datasets
import numpy as np
from transformers.utils import logging as transformers_logging

from st_llm_embed.encoding.embedder import Embedder, Role
from st_llm_embed.encoding.shards import VectorType, shard_path, write_shard
from st_llm_embed.encoding.texts import Shard, Texts, digest_of
from st_llm_embed.errors import InputError


@dataclass(frozen=True)
class Job:
    """What to encode and how, the same for all processes."""

    texts: Texts
    model: str
    revision: str | None
    role: Role
    dimension: int | None
    dtype: VectorType
    keep_text: bool
    shard_size: int
    """Texts per shard; the last has what is left."""
    batch_size: int
    """Texts per forward pass."""
    folder: Path


class Worker:
    """A loaded model, and a place in the texts, which only moves on while shards come in order."""

    def __init__(self, job: Job, shards: int, device: str | None) -> None:
        """Load the model.

        Args:
            job: what to encode.
            shards: number of all shards, those included that were finished before.
            device: where the model runs; None for the best there is.
        """
        # These bars would run into each other, and into that of the command.
        datasets.disable_progress_bars()
        transformers_logging.disable_progress_bar()
        self._job, self._shards = job, shards
        self._embedder = Embedder(job.model, job.role, revision=job.revision, dimension=job.dimension, device=device)
        self._rows: Iterator[tuple[str, str]] = iter(())
        self._next = 0

    def encode(self, shard: Shard) -> None:
        """Read, encode and write one shard.

        Raises:
            InputError: its texts are not those of before, a vector is not finite, or the file cannot be written.
        """
        rows = self._read(shard)
        ids, texts = [name for name, _ in rows], [text for _, text in rows]
        vectors = self._embedder.encode(texts, self._job.batch_size).astype(self._job.dtype)
        if not np.isfinite(vectors).all():
            raise InputError(
                f"Vectors of {self._job.model!r} have numbers above 65,504, the largest of {self._job.dtype}. Encode "
                "with --dtype float32 into another folder."
            )
        path = shard_path(self._job.folder, shard.number, self._shards)
        write_shard(path, ids, texts if self._job.keep_text else None, vectors)

    def _read(self, shard: Shard) -> list[tuple[str, str]]:
        start = shard.number * self._job.shard_size
        if start < self._next or self._next == 0:
            self._rows, self._next = self._job.texts.rows(), 0
        rows = list(islice(self._rows, start - self._next, start - self._next + shard.rows))
        self._next = start + shard.rows
        if digest_of(rows) != shard.digest:
            raise InputError(
                f"The texts of {self._job.texts.path} changed while they were encoded (shard {shard.number}). Put "
                "them back as they were and give the command again, or encode them into another folder."
            )
        return rows
