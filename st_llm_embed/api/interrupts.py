"""Interrupts while requests are in flight: what was paid for is waited for."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress


@contextmanager
def interrupts_heeded(interrupted: Callable[[], None]) -> Generator[None]:
    """Call a function on SIGINT and SIGTERM, in the running event loop, instead of breaking off."""
    loop = asyncio.get_running_loop()
    # Signals reach the main thread alone.
    with suppress(ValueError, RuntimeError, NotImplementedError):
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, interrupted)
    try:
        yield
    finally:
        with suppress(ValueError, RuntimeError, NotImplementedError):
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)
