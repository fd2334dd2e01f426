"""When the next request may be sent: limits per minute, pauses that the server asks for, and requests in flight."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

MINUTE = 60.0
SPACING = 1.01
"""Requests are sent 1 % further apart than the limit allows, since not all take equally long to the server."""
DECREASE = 0.7
"""Share of the requests in flight that is kept when the server reports too many."""
FIRST_BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS = 1.0, 60.0
LONGEST_RETRY_AFTER_SECONDS = 2 * 3600.0
"""A server that asks for more patience is asked again after this time."""


@dataclass(slots=True)
class Departure:
    """A request that has been sent."""

    at: float
    tokens: int
    """Expected ones, its answer included."""


class Pacer:
    """Admits requests one by one.

    No window of a minute, wherever it begins, holds more requests or tokens than the limits; requests are evenly
    spaced. The number in flight falls by about a third when the server reports too many, and grows by one per round of
    answers (additive increase, multiplicative decrease: Chiu and Jain 1989).
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
        self._next_by_requests = self.paused_until = clock()
        self._last_minute: deque[Departure] = deque()
        self._tokens = 0
        self._pause_reason = ""
        self.refusals = 0
        """Bursts of refusals since the last success."""
        self._decreased_at = -math.inf
        self._places: deque[asyncio.Future[None]] = deque()
        self._in_flight = 0

    async def admit(self, tokens: int) -> Departure:
        """Wait until a request of this many tokens, its answer included, may be sent."""
        while True:
            while self._in_flight >= int(self._limit):
                place = asyncio.get_running_loop().create_future()
                self._places.append(place)
                await place
            now = self._clock()
            wait = max(self.paused_until, self._next_by_requests, self._next_by_tokens(now, tokens)) - now
            if wait <= 0:
                break
            await self._sleep(wait)
        self._in_flight += 1
        if self.requests_per_minute:
            self._next_by_requests = now + SPACING * MINUTE / self.requests_per_minute
        departure = Departure(now, tokens)
        if self.tokens_per_minute:
            self._last_minute.append(departure)
            self._tokens += tokens
        return departure

    def spent(self, departure: Departure, tokens: int) -> None:
        """Correct the tokens of a request once they are known better."""
        if self._last_minute and departure.at >= self._last_minute[0].at:
            self._tokens += tokens - departure.tokens
            departure.tokens = tokens

    def done(self) -> None:
        """Free the place of a request in flight."""
        self._in_flight -= 1
        free = int(self._limit) - self._in_flight
        while self._places and free > 0:
            place = self._places.popleft()
            if not place.done():
                place.set_result(None)
                free -= 1

    def succeeded(self) -> None:
        """Let one more be in flight after a round of answers."""
        self.refusals = 0
        self._limit = min(float(self._most), self._limit + 1 / self._limit)

    def refused(self, departure: Departure, retry_after: float | None) -> None:
        """Pause everything, since the server reports too much: as long as it asks, and longer each time.

        Args:
            departure: the refused request; refusals of one burst count once.
            retry_after: seconds, if the server stated them.
        """
        now = self._clock()
        if departure.at > self._decreased_at:
            self._decreased_at = now
            self._limit = max(1.0, self._limit * DECREASE)
            self.refusals += 1
            if retry_after is None or self.refusals > 1:  # the pause that the server asked for did not help
                backoff = min(FIRST_BACKOFF_SECONDS * 2.0 ** (self.refusals - 1), LONGEST_BACKOFF_SECONDS)
                self._pause(now + backoff, "the server gets too many requests")
        if retry_after is not None:
            self._pause(now + retry_after, "the server asked for it")

    def waiting(self) -> str:
        """Return what is being waited for, if it is more than the answers themselves."""
        now = self._clock()
        if self.paused_until > now:
            return f"paused for {self.paused_until - now:.0f} s, {self._pause_reason}"
        if max(self._next_by_requests, self._next_by_tokens(now, 1)) > now + 1:
            return "the limits per minute are used up"
        if int(self._limit) < self._most:
            return f"{int(self._limit)} of {self._most} in flight after refusals"
        return ""

    def _next_by_tokens(self, now: float, tokens: int) -> float:
        """Return when this many more tokens fit into the minute; a request above the limit is sent alone."""
        if not self.tokens_per_minute:
            return now
        while self._last_minute and self._last_minute[0].at <= now - SPACING * MINUTE:
            self._tokens -= self._last_minute.popleft().tokens
        left = self._tokens
        for departure in self._last_minute:
            if left + tokens <= self.tokens_per_minute:
                break
            left -= departure.tokens
            now = departure.at + SPACING * MINUTE
        return now

    def _pause(self, until: float, reason: str) -> None:
        if until > self.paused_until:
            self.paused_until, self._pause_reason = until, reason


def retry_after_seconds(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Read how long the server asks to wait: ``retry-after-ms``, or ``retry-after`` in seconds or as a date; bounded.

    `now` is in seconds since 1970, the time of day by default.
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
            except (ValueError, OverflowError):
                continue
        if not math.isnan(seconds):
            return min(max(0.0, seconds), LONGEST_RETRY_AFTER_SECONDS)
    return None
