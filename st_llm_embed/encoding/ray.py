"""Encoding by actors of Ray Data, on one machine or on a cluster whose machines share texts, model and folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from st_llm_embed.encoding.shards import Shard
from st_llm_embed.errors import InputError

EncodeShard = Callable[[Shard], None]


def encode_with_ray(
    start: Callable[[str | None], EncodeShard], todo: Sequence[Shard], processes: int, devices: Sequence[str]
) -> Iterator[Shard]:
    """Encode shards in actors; yield each shard when its file is there. Ray itself replaces actors that die.

    Args:
        start: loads the model onto a device in an actor, and returns what encodes a shard there.
        todo: the shards that are missing.
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
    on_gpu = any(device.startswith("cuda") for device in devices)
    rows = [{"number": shard.number, "rows": shard.rows, "digest": shard.digest} for shard in todo]
    done = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _Actor,
        fn_constructor_args=(start, "cuda" if on_gpu else next(iter(devices), None)),
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
    """Encodes shards; answers in Ray's columns."""

    def __init__(self, start: Callable[[str | None], EncodeShard], device: str | None) -> None:
        self._encode = start(device)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        refusal = ""
        try:
            self._encode(Shard(int(batch["number"][0]), int(batch["rows"][0]), str(batch["digest"][0])))
        except InputError as error:
            refusal = str(error)
        return {"number": batch["number"], "refusal": np.array([refusal])}
