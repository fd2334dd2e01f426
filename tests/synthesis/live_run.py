"""A run in processes that are killed: python live_run.py URL FOLDER KILLS.

Each process dies at a record drawn at random: before it, in the midst of writing it, or after it. The last one ends.
Prints a JSON line: the keys that are planned and answered, and how often the journal lost what had been in it.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from itertools import count
from pathlib import Path

from synthesis.running import answer_all, answered, planned, synthesis

from st_llm_embed.synthesis import journal

CONCURRENCY = 8


def main() -> None:
    url, folder, kills = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    recipe = synthesis(url, 200, concurrency=CONCURRENCY)
    path, before, lost, torn = folder / "answers.jsonl", b"", 0, 0
    generator = random.Random(7)  # noqa: S311
    for _ in range(kills):
        number, moment = generator.randrange(20), generator.choice(("before", "amidst", "after"))
        if not (child := os.fork()):
            die_at(number, moment)
            answer_all(recipe, folder)
            os._exit(1)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
        now = path.read_bytes()
        lost += not now.startswith(before)
        torn += not now.endswith(b"\n")
        before = now[: now.rfind(b"\n") + 1]
    answer_all(recipe, folder)
    lost += not path.read_bytes().startswith(before)
    keys = [request.key for request in planned(recipe)]
    print(json.dumps({"planned": keys, "answered": answered(folder), "lost": lost, "torn": torn}))  # noqa: T201


def die_at(number: int, moment: str) -> None:
    """Kill this process at a record."""
    numbers, write = count(), os.write

    class DyingOs:
        def __getattr__(self, name: str) -> object:
            return getattr(os, name)

        def write(self, fd: int, line: bytes) -> int:
            if next(numbers) != number:
                return write(fd, line)
            write(fd, {"before": b"", "amidst": line[: len(line) // 2], "after": line}[moment])
            os.kill(os.getpid(), signal.SIGKILL)
            raise AssertionError("dead")

    journal.os = DyingOs()


if __name__ == "__main__":
    main()
