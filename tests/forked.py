"""Python processes, as `subprocess` starts them, forked from one that has imported the large libraries and no more.

The imports take longer than most of what the tests do in a process.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import runpy
import socket
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["st_llm_embed.pipeline", "st_llm_embed.training.train", "matplotlib.pyplot", "peft"])


class Outcome(NamedTuple):
    returncode: int
    """The exit status; minus the number of the signal that ended the process."""
    stdout: str
    stderr: str


class Python:
    """A process that runs `-m MODULE`, `-c CODE` or a script, with its arguments."""

    def __init__(
        self, *command: str | Path | int, cwd: Path | None = None, env: Mapping[str, str] | None = None
    ) -> None:
        self._printed = Path(tempfile.mkdtemp())
        self.process = CONTEXT.Process(
            target=_run, args=(list(map(str, command)), cwd or Path.cwd(), dict(env or os.environ), self._printed)
        )
        self.process.start()

    def running(self) -> bool:
        return self.process.is_alive()

    def kill(self) -> None:
        """Send SIGKILL and wait for the end."""
        self.process.kill()
        self.process.join()

    def wait(self) -> Outcome:
        self.process.join()
        out, err = ((self._printed / name).read_text(encoding="utf-8") for name in ("out", "err"))
        assert self.process.exitcode is not None
        return Outcome(self.process.exitcode, out, err)


def run(*command: str | Path | int, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> Outcome:
    """Run to the end; `command` is what a shell gives to `python`."""
    return Python(*command, cwd=cwd, env=env).wait()


def run_ranks(*command: str | Path | int, count: int = 2) -> list[Outcome]:
    """Run processes that train together, with torchrun's variables; when one fails the others are killed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [
        Python(*command, env=os.environ | world | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(count)
    ]
    running = {rank.process.sentinel: rank for rank in ranks}
    while running:
        for sentinel in multiprocessing.connection.wait(list(running)):
            ended = running.pop(sentinel)  # ty: ignore[invalid-argument-type]
            if ended.wait().returncode:
                for rank in running.values():
                    rank.kill()
    return [rank.wait() for rank in ranks]


def _run(command: list[str], cwd: Path, env: dict[str, str], printed: Path) -> None:
    for descriptor, name in ((1, "out"), (2, "err")):
        file = os.open(printed / name, os.O_WRONLY | os.O_CREAT)
        os.dup2(file, descriptor)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    option, program, arguments = (
        ("", *command[:1], command[1:]) if command[0][0] != "-" else (*command[:2], command[2:])
    )
    sys.argv = [program, *arguments]
    if option == "-m":
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    elif option == "-c":
        exec(compile(program, "<string>", "exec"), {"__name__": "__main__"})  # noqa: S102
    else:
        runpy.run_path(program, run_name="__main__")
