"""What the processes of a run leave on disk, wait for and show: torchrun starts several, which train together."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from st_llm_embed.errors import InputError

if TYPE_CHECKING:
    from torch import distributed

logger = logging.getLogger(__name__)

LONGEST_WAIT = timedelta(days=30)
"""The first process may score a large model while the others wait; torch's own limit is half an hour."""


def is_first_process() -> bool:
    """Whether this process prints and writes: the only one, or rank 0 of those that torchrun started."""
    return int(os.environ.get("RANK", "0")) == 0


def process_count() -> int:
    """Return how many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_on_terminal() -> bool:
    """Whether somebody sees bars being drawn; in a file they would be drawn again and again, line after line."""
    return sys.stderr.isatty()


@contextmanager
def held_alone(folder: Path, alternative: str) -> Generator[None]:
    """Create a folder and hold it, so that no other process writes there until the block ends.

    Args:
        folder: gets a file `.lock`.
        alternative: what else to do, in a message: "choose another --output-dir".

    Raises:
        InputError: another process holds it, or it cannot be written to.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / ".lock", timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise InputError(f"Another process is writing to {folder}. Wait for it to end, or {alternative}.") from error
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written to: {error.strerror}. Change its permissions, or {alternative}."
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def written_beside(path: Path) -> Generator[Path]:
    """Yield a path to write a file or folder to, which is renamed to `path` at the end: a kill leaves nothing half.

    What an earlier block that did not end has left there is deleted. A folder can take the place of none.
    """
    partial = path.with_name(f".{path.name}.partial")
    if partial.is_dir():
        shutil.rmtree(partial)
    partial.unlink(missing_ok=True)
    yield partial
    partial.replace(path)


@contextmanager
def progress(title: str, total: int, done: int, unit: str) -> Generator[Callable[[int], object]]:
    """Show how far a long loop is: by a bar on a terminal, and in a file by a line for each tenth.

    Args:
        title: of the loop.
        total: how many there are.
        done: how many were done before.
        unit: what they are.

    Yields:
        What has to be called with the number of those that are newly done.
    """
    if is_on_terminal():
        from tqdm.auto import tqdm

        with tqdm(total=total, initial=done, desc=title, unit=f" {unit}") as bar:
            yield bar.update
        return

    def update(count: int) -> None:
        nonlocal done
        tenth = 10 * done // max(1, total)
        done += count
        if 10 * done // max(1, total) > tenth:
            logger.info("%s: %s of %s %s", title, f"{done:,}", f"{total:,}", unit)

    yield update


def wait_for_all_processes() -> None:
    """Wait until every process has come here. The trainer's arguments have connected them by then."""
    from torch import distributed

    if distributed.is_initialized():
        distributed.barrier(group=_waiting_group())


@cache
def _waiting_group() -> distributed.ProcessGroup:
    from torch import distributed

    # Apart from the group that trains, whose shorter limit shows when a process hangs.
    return distributed.new_group(backend="gloo", timeout=LONGEST_WAIT)
