"""When the next request may leave: limits per minute, pauses that the server asks for, and how many are in flight."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable
from email.utils import parsedate_to_datetime

MINUTE = 60.0
DECREASE = 0.7
"""Share of the requests in flight that is kept when the server says they are too many."""
FIRST_BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS = 1.0, 60.0


class Pacer:
    """Admits requests one by one.

    Requests leave evenly spaced, so that no window of a minute, wherever it begins, holds more than the limits. The
    number in flight halves or so when the server says there are too many and grows by one per round of answers
    (additive increase, multiplicative decrease: Chiu and Jain 1989).
    """

    def __init__(
        self,
        concurrency: int,
        requests_per_minute: int | None,
        tokens_per_minute: int | None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._most = concurrency
        self._limit = float(concurrency)
        self.requests_per_minute = requests_per_minute
        self.tokens_per_minute = tokens_per_minute
        self._clock, self._sleep = clock, sleep
        self._next_by_requests = self._next_by_tokens = self._paused_until = clock()
        self._pause_reason = ""
        self._backoff = FIRST_BACKOFF_SECONDS
        self._decreased_at = clock()
        self._waiting: deque[asyncio.Future[None]] = deque()
        self.in_flight = 0

    async def admit(self, tokens: int) -> float:
        """Wait until a request of so many tokens, its answer included, may leave; give the time it does."""
        while True:
            while self.in_flight >= int(self._limit):
                place = asyncio.get_running_loop().create_future()
                self._waiting.append(place)
                await place
            now = self._clock()
            wait = max(self._paused_until, self._next_by_requests, self._next_by_tokens) - now
            if wait <= 0:
                break
            await self._sleep(wait)
        self.in_flight += 1
        if self.requests_per_minute:
            self._next_by_requests = max(now, self._next_by_requests) + MINUTE / self.requests_per_minute
        self.spent(tokens)
        return now

    def spent(self, tokens: int) -> None:
        """Count tokens, or give them back when negative, once their number is known better."""
        if self.tokens_per_minute:
            self._next_by_tokens = max(self._clock(), self._next_by_tokens) + tokens * MINUTE / self.tokens_per_minute

    def done(self) -> None:
        """Free the place of a request in flight."""
        self.in_flight -= 1
        free = int(self._limit) - self.in_flight
        while self._waiting and free > 0:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(None)
                free -= 1

    def succeeded(self) -> None:
        """Let one more be in flight after a round of answers."""
        self._backoff = FIRST_BACKOFF_SECONDS
        self._limit = min(float(self._most), self._limit + 1 / self._limit)

    def refused(self, admitted_at: float, retry_after: float | None) -> None:
        """Pause everything, since the server says there is too much: as long as it asks, or ever longer.

        Args:
            admitted_at: when the refused request left; refusals of one burst count once.
            retry_after: seconds, if the server gave them.
        """
        now = self._clock()
        burst = admitted_at < self._decreased_at
        if not burst:
            self._decreased_at = now
            self._limit = max(1.0, self._limit * DECREASE)
        if retry_after is not None:
            self._pause(now + retry_after, "the server asked for it")
        elif not burst:
            self._pause(now + self._backoff, "the server gets too many requests")
            self._backoff = min(self._backoff * 2, LONGEST_BACKOFF_SECONDS)

    def waiting(self) -> str:
        """Say what is being waited for, if it is more than the answers themselves."""
        now = self._clock()
        if self._paused_until > now:
            return f"paused for {self._paused_until - now:.0f} s, {self._pause_reason}"
        if max(self._next_by_requests, self._next_by_tokens) > now + 1:
            return "the limits per minute are used up"
        if int(self._limit) < self._most:
            return f"{int(self._limit)} of {self._most} in flight after refusals"
        return ""

    def _pause(self, until: float, reason: str) -> None:
        if until > self._paused_until:
            self._paused_until, self._pause_reason = until, reason


def retry_after_seconds(headers: dict[str, str], now: float | None = None) -> float | None:
    """Read how long the server wants to be left alone: ``retry-after-ms``, or ``retry-after`` in seconds or as a date.

    Args:
        headers: with lower-case names.
        now: seconds since 1970, the time of day by default.
    """
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            seconds = float(value) / unit
        except ValueError:
            try:
                seconds = parsedate_to_datetime(value).timestamp() - (time.time() if now is None else now)
            except ValueError:
                continue
        if math.isfinite(seconds):
            return max(0.0, seconds)
    return None
