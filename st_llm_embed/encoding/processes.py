"""Encoding by processes of this machine, each of which may die without taking a shard with it."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

import torch

from st_llm_embed.encoding.texts import Shard
from st_llm_embed.encoding.worker import Job, Worker
from st_llm_embed.errors import InputError

logger = logging.getLogger(__name__)


def encode_in_processes(
    job: Job, todo: Sequence[Shard], shards: int, processes: int, devices: Sequence[str]
) -> Iterator[Shard]:
    """Encode shards in processes of their own; give each shard when its file is there.

    What a process was doing when it died, by a kill for memory for instance, is done by the others.

    Args:
        job: what to encode.
        todo: the shards that are missing.
        shards: number of all shards.
        processes: how many.
        devices: where they run, in turn; empty for the best there is.

    Raises:
        InputError: a process found that something of the user's cannot be used, or all of them died.
    """
    # Spawned: a forked process has threads and CUDA in a state that neither torch nor tokenizers can use.
    context = get_context("spawn")
    workers: dict[Connection, BaseProcess] = {}
    at_work: dict[Connection, Shard] = {}
    idle: set[Connection] = set()
    waiting = deque(todo)
    try:
        for number in range(processes):
            ours, theirs = context.Pipe()
            device = devices[number % len(devices)] if devices else None
            worker = context.Process(target=_work, args=(theirs, job, shards, device, processes), daemon=True)
            worker.start()
            # Held by the worker alone, so that its death closes the pipe.
            theirs.close()
            workers[ours] = worker
        while waiting or at_work:
            for connection in wait(list(workers)):
                assert isinstance(connection, Connection)  # noqa: S101
                try:
                    refusal = connection.recv()
                except (EOFError, ConnectionResetError):
                    idle.discard(connection)
                    lost = at_work.pop(connection, None)
                    waiting.extendleft([lost] if lost else [])
                    _mourn(workers.pop(connection), lost, len(workers))
                    continue
                if refusal is not None:
                    raise InputError(refusal)
                idle.add(connection)
                if connection in at_work:
                    yield at_work.pop(connection)
            while waiting and idle:
                connection, shard = idle.pop(), waiting.popleft()
                at_work[connection] = shard
                try:
                    connection.send(shard)
                except OSError:
                    # Died idle; the next round reads the end of its pipe and gives the shard to another.
                    logger.debug("a process died before it got shard %d", shard.number)
        for connection, worker in workers.items():
            with suppress(OSError):  # it died idle
                connection.send(None)
            worker.join()
    finally:
        for worker in workers.values():
            worker.kill()
            worker.join()


def _mourn(worker: BaseProcess, lost: Shard | None, left: int) -> None:
    worker.join()
    exit_code = worker.exitcode or 0
    cause = f"was killed by {signal.Signals(-exit_code).name}" if exit_code < 0 else f"ended with code {exit_code}"
    doing = f"while it had shard {lost.number}" if lost else "before it had a shard"
    if not left:
        raise InputError(
            f"All processes died; the last {cause} {doing}. SIGKILL mostly means that memory ran out; other causes "
            "are printed above. Finished shards are kept: give the command again, with fewer --processes or a "
            "smaller --batch-size or --shard-size (this one for another folder)."
        )
    logger.warning("A process %s %s; %d go on. SIGKILL mostly means that memory ran out.", cause, doing, left)


def _work(connection: Connection, job: Job, shards: int, device: str | None, processes: int) -> None:
    """Encode shards from the pipe until None comes; answer None when ready for one, or what cannot be used."""
    # Ctrl-C reaches all processes of a terminal; the first one ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(max(1, torch.get_num_threads() // processes))
    try:
        worker = Worker(job, shards, device)
        connection.send(None)
        for shard in iter(connection.recv, None):
            worker.encode(shard)
            connection.send(None)
    except InputError as error:
        connection.send(str(error))


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None  # noqa: S101
    parent.join()
    os._exit(1)
