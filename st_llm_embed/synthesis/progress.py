"""What a run has done so far, and how it is shown."""

from __future__ import annotations

import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 10.0
"""Where no terminal shows a bar."""


@dataclass
class Progress:
    """What one step has done so far."""

    step: str
    planned: int
    done: int = 0
    """Requests answered, those of earlier runs included."""
    done_before: int = 0
    sent: int = 0
    """Requests sent by this process, repeated ones included."""
    usable: Counter[str] = field(default_factory=Counter)
    """Answers of this process that hold what was asked for, by task type."""
    rejected: Counter[str] = field(default_factory=Counter)
    """Answers of this process that do not, by reason."""
    left: int = 0
    """Requests given up for this run."""
    waiting: str = ""
    """What is waited for, if it is more than answers."""
    spent: str = ""
    started: float = field(default_factory=time.monotonic)

    def per_second(self) -> float:
        """Answers per second of this process."""
        return (self.done - self.done_before) / max(1e-9, time.monotonic() - self.started)

    def describe(self) -> str:
        """Say all of it in one line."""
        rate = self.per_second()
        minutes = (self.planned - self.done) / rate / 60 if rate else None
        left = "time left unknown" if minutes is None else f"{minutes:.0f} min left"
        if minutes is not None and minutes >= 120:
            left = f"{minutes / 60:.0f} h left"
        kinds = ", ".join(f"{name} {count:,}" for name, count in sorted(self.usable.items())) or "none yet"
        rejects = f"; rejected: {', '.join(f'{name} {count:,}' for name, count in self.rejected.most_common())}"
        return (
            f"{self.step} {self.done:,}/{self.planned:,} ({rate:.1f}/s, {left}); usable: {kinds}"
            f"{rejects if self.rejected else ''}{f'; put off: {self.left:,}' if self.left else ''}; {self.spent}"
            f"{f'; {self.waiting}' if self.waiting else ''}"
        )


@contextmanager
def shown_progress() -> Generator[Callable[[Progress], None]]:
    """Give a function that shows a `Progress`: in place on a terminal, else as a line now and then."""
    if not sys.stderr.isatty():
        last = time.monotonic()

        def log(progress: Progress) -> None:
            nonlocal last
            if time.monotonic() - last >= SECONDS_BETWEEN_LINES or progress.done == progress.planned:
                last = time.monotonic()
                logger.info("%s", progress.describe())

        yield log
        return

    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    with Live(console=Console(stderr=True), auto_refresh=False) as live:
        yield lambda progress: live.update(Text(progress.describe()), refresh=True)
