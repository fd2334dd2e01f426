"""Encoding by actors of Ray Data, on one machine or on a cluster whose machines share texts, model and folder."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import datasets
import numpy as np
from transformers.utils import logging as transformers_logging

from st_llm_embed.encoding.encode import Embedder, Job
from st_llm_embed.encoding.shards import Shard, ShardReader
from st_llm_embed.errors import InputError


def encode_with_ray(
    job: Job, todo: Sequence[Shard], shards: int, processes: int, devices: Sequence[str]
) -> Iterator[Shard]:
    """Encode shards in actors; yield each shard when its file is there. Ray itself replaces actors that die.

    Args:
        job: what to encode; every machine has to find texts, model and folder under the same paths.
        todo: the shards that are missing.
        shards: number of all shards.
        processes: number of actors.
        devices: ``cuda`` gives each actor a GPU; without one it gets a core.

    Raises:
        InputError: an actor found that something of the user's cannot be used.
    """
    # Ray reports its use otherwise.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    import ray.data

    if not ray.is_initialized():
        # RAY_ADDRESS names a cluster; without it Ray starts on this machine.
        ray.init(**({} if "RAY_ADDRESS" in os.environ else {"include_dashboard": False}))
    by_number = {shard.number: shard for shard in todo}
    # Ray shows an actor its own GPU alone, under the number 0, whichever it is.
    on_gpu = any(one.startswith("cuda") for one in devices)
    device = "cuda" if on_gpu else next(iter(devices), None)
    rows = [{"number": shard.number, "rows": shard.rows, "digest": shard.digest} for shard in todo]
    done = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _Actor,
        fn_constructor_args=(job, shards, device),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=processes),
        num_cpus=1,
        num_gpus=1 if on_gpu else None,
    )
    for row in done.iter_rows():
        if row["refusal"]:
            raise InputError(row["refusal"])
        yield by_number[row["number"]]


class _Actor:
    """A loaded model that encodes shards; answers in Ray's columns."""

    def __init__(self, job: Job, shards: int, device: str | None) -> None:
        # These bars would run into each other, and into that of the command.
        datasets.disable_progress_bars()
        transformers_logging.disable_progress_bar()
        self._job, self._shards = job, shards
        self._embedder = Embedder(job.model, job.role, revision=job.revision, dimension=job.dimension, device=device)
        self._reader = ShardReader(job.texts, job.shard_size)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        refusal = ""
        shard = Shard(int(batch["number"][0]), int(batch["rows"][0]), str(batch["digest"][0]))
        try:
            ids, texts = self._reader.read(shard)
            vectors = self._embedder.encode(texts, self._job.batch_size)
            self._job.write(shard, self._shards, ids, texts, vectors)
        except InputError as error:
            refusal = str(error)
        return {"number": batch["number"], "refusal": np.array([refusal])}
