"""Runs in processes that are killed, and then run to their end: python killed.py live|batch URL FOLDER.

Prints a JSON line for each: the keys that are planned and answered, and what the kills left behind.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import httpx2
from synthesis.running import answer_all, answered, batch_answer_all, planned, synthesis, without_probes

from st_llm_embed.recipe import Synthesis
from st_llm_embed.synthesis import journal


def live(url: str, folder: Path) -> None:
    """One run that is killed twelve times, each time at a moment drawn at random."""
    recipe = synthesis(url, 200)
    path, before, lost, torn = folder / "answers.jsonl", b"", 0, 0
    generator = random.Random(7)  # noqa: S311
    for _ in range(12):
        assert killed(answer_all, recipe, folder, at=generator.randrange(60))
        now = path.read_bytes() if path.exists() else b""
        lost += not now.startswith(before)
        torn += not now.endswith(b"\n")
        before = now[: now.rfind(b"\n") + 1]
    answer_all(recipe, folder)
    lost += not path.read_bytes().startswith(before)
    counted = sum(json.loads(line).get("usd", 0.0) for line in path.read_bytes().splitlines())
    report(recipe, folder, lost=lost, torn=torn, counted=counted)


def batch(url: str, folder: Path) -> None:
    """For each moment a run with a plan of its own, killed at it; the last one is not killed any more."""
    for number in count():
        parameters = {"max_completion_tokens": 300, "seed": number}  # other keys than those of the other runs
        recipe = synthesis(url, 3, models={"a": 1, "b": 1}, mode="batch", parameters=parameters)
        run = folder / str(number)
        without_probes(recipe, run)
        survived = not killed(batch_answer_all, recipe, run, at=number)
        batch_answer_all(recipe, run)
        report(recipe, run, survived=survived, left=[path.name for path in (run / "batches").iterdir()])
        if survived:
            return


def report(recipe: Synthesis, folder: Path, **more: Any) -> None:
    keys = [request.key for request in planned(recipe)]
    print(json.dumps({"planned": keys, "answered": answered(folder), **more}), flush=True)  # noqa: T201


def killed(run: Callable[[Synthesis, Path], Any], recipe: Synthesis, folder: Path, *, at: int) -> bool:
    """Run in a process of its own that is killed at its moment number `at`; return whether it got there."""
    if not (child := os.fork()):
        die(at, torn=run is answer_all)
        run(recipe, folder)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, -signal.SIGKILL), code
    return code != 0


def die(at: int, *, torn: bool) -> None:
    """Kill this process before a request of the Batch API, or before or after (live: half of) a write."""
    moments = count()

    def moment() -> None:
        if next(moments) == at:
            os.kill(os.getpid(), signal.SIGKILL)

    class StumblingOs:
        def __getattr__(self, name: str) -> object:
            return getattr(os, name)

        def write(self, fd: int, line: bytes) -> int:
            moment()
            written = os.write(fd, line[: len(line) // 2] if torn else line)
            moment()
            return written

    send = httpx2.Client.send

    def stumbling_send(*arguments: Any, **options: Any) -> httpx2.Response:
        moment()
        return send(*arguments, **options)

    journal.os = StumblingOs()
    httpx2.Client.send = stumbling_send


if __name__ == "__main__":
    {"live": live, "batch": batch}[sys.argv[1]](sys.argv[2], Path(sys.argv[3]))
