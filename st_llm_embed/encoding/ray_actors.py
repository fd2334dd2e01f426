"""Encoding by actors of Ray Data, on one machine or on a cluster whose machines share the folder."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from st_llm_embed.encoding.texts import Shard
from st_llm_embed.encoding.worker import Job, Worker
from st_llm_embed.errors import InputError


def require_ray() -> None:
    """Check that Ray Data is there.

    Raises:
        InputError: it is not.
    """
    if importlib.util.find_spec("ray") is None:
        raise InputError(
            "--engine ray needs Ray Data, which is not installed. Install it with: pip install 'st_llm_embed[ray]', "
            "or leave --engine away."
        )


def device_of_actors(devices: Sequence[str]) -> str | None:
    """Give the device that every actor is told; None for the best there is.

    Ray shows an actor its own GPU alone, under the number 0, whichever it is.
    """
    if any(device.startswith("cuda") for device in devices):
        return "cuda"
    return devices[0] if devices else None


def encode_with_ray(
    job: Job, todo: Sequence[Shard], shards: int, processes: int, devices: Sequence[str]
) -> Iterator[Shard]:
    """Encode shards in actors; give each shard when its file is there. Ray itself replaces actors that die.

    Args:
        job: what to encode; every machine has to find texts, model and folder under the same paths.
        todo: the shards that are missing.
        shards: number of all shards.
        processes: number of actors.
        devices: ``cuda`` gives each actor a GPU; without one it gets a core.

    Raises:
        InputError: an actor found that something of the user's cannot be used.
    """
    # Ray reports its use unless it is told not to.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    import ray.data

    if not ray.is_initialized():
        # RAY_ADDRESS names a cluster; without it Ray starts on this machine.
        ray.init(**({} if "RAY_ADDRESS" in os.environ else {"include_dashboard": False}))
    by_number = {shard.number: shard for shard in todo}
    device = device_of_actors(devices)
    rows = [{"number": shard.number, "rows": shard.rows, "digest": shard.digest} for shard in todo]
    done = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _Actor,
        fn_constructor_args=(job, shards, device),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=processes),
        num_cpus=1,
        num_gpus=1 if device == "cuda" else None,
    )
    for row in done.iter_rows():
        if row["refusal"]:
            raise InputError(row["refusal"])
        yield by_number[row["number"]]


class _Actor:
    """A worker that answers in Ray's columns."""

    def __init__(self, job: Job, shards: int, device: str | None) -> None:
        self._worker = Worker(job, shards, device)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        refusal = ""
        try:
            self._worker.encode(Shard(int(batch["number"][0]), int(batch["rows"][0]), str(batch["digest"][0])))
        except InputError as error:
            refusal = str(error)
        return {"number": batch["number"], "refusal": np.array([refusal])}
