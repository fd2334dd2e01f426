"""The client: sends requests to an OpenAI-compatible server and has every answer written down.

C workers pull from one iterator, so no answer waits for a slower one.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import re
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from st_llm_embed.api.budget import Cost, SpendingLimit
from st_llm_embed.api.exchange import Response, post
from st_llm_embed.api.outcome import WRONG_ADDRESS, WRONG_KEY, Outcome, classify
from st_llm_embed.api.pacing import Departure, Pacer, retry_after_seconds
from st_llm_embed.errors import InputError
from st_llm_embed.recipe import Endpoint

if TYPE_CHECKING:
    from httpx2 import AsyncBaseTransport

ATTEMPTS = 6
"""Server errors after which a request is left for the next run."""
ATTEMPTS_MAYBE_PAID = 2
"""The same for requests that may have been paid without an answer."""
LONGEST_BACKOFF_SECONDS = 60.0
WATCH_SECONDS = 0.5
INTERRUPTED = "Stopped. Every answer that came is kept; run the same command again to resume."
STOPPING = "stopping once the answers in flight have come; interrupt again to stop at once"
TYPICAL_SHARE = 0.25
"""Share of a worst case's tokens that requests have, before the first answers have come."""
SHARE_LEARNT = 0.05
"""Weight of one answer in that share."""

R = TypeVar("R")
R_contra = TypeVar("R_contra", contravariant=True)


class Service(Protocol[R_contra]):
    """What the client asks about requests of one type, and reports about them."""

    limit: SpendingLimit

    def body(self, request: R_contra) -> dict[str, Any]:
        """Return the body of a request."""
        ...

    def worst_case(self, request: R_contra) -> Cost:
        """Return the most that a request can cost."""
        ...

    def cost(self, request: R_contra, outcome: Outcome, worst: Cost) -> Cost:
        """Return what a response cost that is, or may be, paid for."""
        ...

    def known(self, request: R_contra) -> bool:
        """Return whether an answer like the one to this request has come, so that its worst case can be relied on."""
        ...

    async def begin(self, request: R_contra, worst: Cost) -> None:
        """Write down that a request is about to be sent, with its worst case, so that a kill cannot hide it."""
        ...

    def over_limit(self, worst: Cost) -> InputError:
        """Return the error for a request that does not fit into the limit."""
        ...

    def record(self, request: R_contra, outcome: Outcome, cost: Cost, seconds: float) -> None:
        """Write down what became of a request, before anything else happens to it.

        Args:
            request: what was sent.
            outcome: of any kind.
            cost: what it cost, or may have cost.
            seconds: from sending it to its outcome.

        Raises:
            InputError: it shows that nothing more should be sent.
            OSError: it cannot be written.
        """
        ...

    def give_up(self, request: R_contra) -> None:
        """Note that a request is left for the next run."""
        ...

    async def watch(self, waiting: str) -> None:
        """Do what is done twice a second, given what is waited for besides answers; an error stops the client."""
        ...


class Client(Generic[R]):
    """Sends requests to one server."""

    def __init__(
        self,
        service: Service[R],
        endpoint: Endpoint,
        base_url: str,
        api_key: str,
        *,
        transport: AsyncBaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Prepare; nothing is sent.

        Args:
            service: what is asked for, and where answers go.
            endpoint: how fast, and how long to wait.
            base_url: the server's address.
            api_key: kept in memory only.
            transport: answers in place of a server.
            clock: seconds, for limits per minute, pauses and giving up.
            sleep: waits for seconds of that clock.
        """
        self._service, self._endpoint = service, endpoint
        self._base_url, self._api_key, self._transport = base_url, api_key, transport
        self._clock, self._sleep = clock, sleep
        self._patience = endpoint.give_up_after_minutes * 60
        self._heard = False
        self.trouble = ""
        """Why the latest request that got no answer got none."""

    def send(self, requests: Iterator[R]) -> None:
        """Have every request answered, refused or given up.

        Args:
            requests: pulled one by one, so that a long plan is never in memory.

        Raises:
            InputError: the limit is reached, the key or model is refused, or the server does not answer.
            OSError: an answer cannot be written down, for example because the disk is full.
        """
        first = next(requests, None)
        if first is not None:
            pending = itertools.chain([first], requests)
            asyncio.run(self._connected([self._work(pending) for _ in range(self._endpoint.concurrency)]))

    def ask(self, request: R, attempts: int) -> Outcome | None:
        """Send one request; return what became of it, or None if no attempt was answered. Raises as `send`."""
        outcomes: list[Outcome | None] = []

        async def ask() -> None:
            outcomes.append(await self._answer(request, attempts))

        asyncio.run(self._connected([ask()]))
        return outcomes[0]

    async def _connected(self, work: list[Coroutine[Any, Any, None]]) -> None:
        """Run workers on one connection pool until all have ended."""
        from httpx2 import AsyncClient, Limits, Timeout

        endpoint = self._endpoint
        per_minute = endpoint.requests_per_minute, endpoint.tokens_per_minute
        self._pacer = Pacer(endpoint.concurrency, *per_minute, clock=self._clock, sleep=self._sleep)
        self._share = TYPICAL_SHARE
        self._settled = asyncio.Event()
        self._sending: set[asyncio.Task[Any] | None] = set()
        self._stopping = self.trouble = ""
        self._answer_by = self._clock() + self._patience
        limits = Limits(max_connections=endpoint.concurrency, max_keepalive_connections=endpoint.concurrency)
        timeout = Timeout(endpoint.timeout_seconds, connect=min(30.0, endpoint.timeout_seconds / 2))
        async with AsyncClient(
            limits=limits, timeout=timeout, transport=self._transport, follow_redirects=True
        ) as self._http:
            # On the first interrupt stop when the answers in flight have come, on the second at once.
            with graceful_shutdown(lambda: self._stop(INTERRUPTED, at_once=bool(self._stopping))):
                await self._until_ended([asyncio.create_task(worker) for worker in work])

    async def _until_ended(self, workers: list[asyncio.Task[None]]) -> None:
        """Wait for the workers; the first error ends all, once the answers in flight have come."""
        self._workers = workers
        watch = asyncio.create_task(self._watch())
        running: set[asyncio.Task[None]] = {watch, *workers}
        failure: BaseException | None = None
        while running - {watch}:
            ended, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in ended:
                error = None if task.cancelled() else task.exception()
                if error is not None:
                    self._stop(str(error))
                    failure = failure or (None if isinstance(error, InputError) else error)
        watch.cancel()
        if failure is not None:
            raise failure
        await self._service.watch(self._waiting())
        if self._stopping:
            raise InputError(self._stopping)

    def _stop(self, message: str, *, at_once: bool = False) -> None:
        """Send nothing more; wait for the answers in flight unless everything is to end at once."""
        self._stopping = self._stopping or message or "an error"
        for task in self._workers:
            if at_once or task not in {*self._sending, asyncio.current_task()}:
                task.cancel()

    async def _work(self, pending: Iterator[R]) -> None:
        while not self._stopping:
            request = next(pending, None)
            if request is None:
                return
            if await self._answer(request) is None and not self._stopping:
                self._service.give_up(request)

    async def _answer(self, request: R, attempts: int | None = None) -> Outcome | None:
        """Send one request until it is answered; None when it is left for another run.

        A server that cannot be reached at all is not the request's fault: `_watch` gives up on it.
        """
        tries: Counter[str] = Counter()
        while not self._stopping:
            outcome = await self._send(request)
            if outcome.kind in ("answered", "rejected"):
                return outcome
            self.trouble = outcome.said
            if outcome.kind == "too many":
                continue
            tries[outcome.kind] += 1
            if tries["failed"] == ATTEMPTS or tries["maybe paid"] == ATTEMPTS_MAYBE_PAID or tries.total() == attempts:
                break
            await self._sleep(random.uniform(0, min(LONGEST_BACKOFF_SECONDS, 2.0 ** tries.total())))  # noqa: S311
        return None

    async def _send(self, request: R) -> Outcome:
        """Send one request when budget and pace allow it, and have what came of it written down."""
        worst = await self._reserve(request)
        service, task = self._service, asyncio.current_task()
        cost: Cost | None = None
        try:
            departure = await self._pacer.admit(int(worst.tokens * self._share))
            if not self._sending and not self.trouble:  # waiting for our own limits is not the server's silence
                self._answer_by = max(self._answer_by, self._clock() + self._patience)
            self._sending.add(task)
            started = time.monotonic()
            try:
                await service.begin(request, worst)
                response = await self._post(service.body(request))
            except asyncio.CancelledError:
                cost = worst
                stopped = Outcome("maybe paid", body="stopped before the answer came")
                service.record(request, stopped, worst, time.monotonic() - started)
                raise
            finally:
                self._sending.discard(task)
                self._pacer.done()
            outcome = classify(response, heard=self._heard)
            if outcome.kind in ("answered", "maybe paid"):
                cost = service.cost(request, outcome, worst)
                self._share += SHARE_LEARNT * (min(1.0, cost.tokens / worst.tokens) - self._share)
            service.record(request, outcome, cost or Cost(0, 0.0), time.monotonic() - started)
            self._pacer.spent(departure, cost.tokens if cost else 0)
            self._apply_rate_limits(outcome, departure)
        except InputError as error:
            self._stop(str(error))  # before another worker sends in its place
            raise
        finally:
            service.limit.settle(worst, cost)
            self._settled.set()
        return outcome

    async def _post(self, body: dict[str, Any]) -> Response:
        return await post(
            self._http,
            f"{self._base_url.rstrip('/')}/chat/completions",
            body,
            key=self._api_key,
            seconds=self._endpoint.timeout_seconds,
        )

    async def _reserve(self, request: R) -> Cost:
        """Set the worst case aside, waiting for requests in flight to cost less than theirs where it does not fit.

        Nothing is sent beside the first answer of a model, which shows whether the server keeps to a worst case.
        """
        service, limit, worst = self._service, self._service.limit, self._service.worst_case(request)
        while not limit.fits(worst) or (limit.in_flight and not service.known(request)):
            if not limit.in_flight:
                raise service.over_limit(worst)
            self._settled.clear()
            await self._settled.wait()
        limit.set_aside(worst)
        return worst

    def _hopeless(self, outcome: Outcome) -> str:
        """Return the message for what no request can get past."""
        if outcome.status in WRONG_KEY:
            advice = (
                f"refuses the key with {outcome.said}. Set the environment variable that "
                "synthesis.endpoint.api_key_env names to a key that may use the model."
            )
        elif outcome.status in WRONG_ADDRESS:
            advice = (
                f"has no chat completions, or not for this model ({outcome.said}). Check synthesis.endpoint.base_url, "
                "which usually ends in /v1, and the names in synthesis.endpoint.models."
            )
        else:
            advice = f"answers with {outcome.said}. Run the same command again when the account has credit."
        return f"{self._base_url} {advice}"

    def _apply_rate_limits(self, outcome: Outcome, departure: Departure) -> None:
        """Adapt to what the server says about its limits; raise an InputError if no request can succeed."""
        if outcome.kind == "hopeless":
            raise InputError(self._hopeless(outcome))
        retry_after = retry_after_seconds(outcome.headers)
        if outcome.kind == "too many" or (outcome.kind in ("failed", "maybe paid") and retry_after):
            self._pacer.refused(departure, retry_after)
            if self._pacer.refusals <= 1:
                # The first pause that a server asks for, however long, is not silence; pauses without end are.
                self._answer_by = max(self._answer_by, self._pacer.paused_until + self._patience)
        elif outcome.kind in ("answered", "rejected"):
            self.trouble = ""
            self._heard |= outcome.kind == "answered"
            self._pacer.succeeded()
            self._answer_by = self._clock() + self._patience
            for what in ("requests", "tokens"):
                limit = outcome.headers.get(f"x-ratelimit-limit-{what}", "")
                if re.fullmatch("[1-9][0-9]{0,11}", limit) and getattr(self._endpoint, f"{what}_per_minute") is None:
                    setattr(self._pacer, f"{what}_per_minute", int(limit))

    async def _watch(self) -> None:
        """Twice a second: call the service's `watch`, and give up on a server that does not answer."""
        while True:
            await self._service.watch(self._waiting())
            if self._clock() > self._answer_by and (self._sending or self.trouble):
                self._stop(
                    f"{self._base_url} has given no answer for {self._endpoint.give_up_after_minutes:g} minutes "
                    f"({self.trouble or 'requests hang'}). Run the same command again later.",
                    at_once=True,
                )
            await asyncio.sleep(WATCH_SECONDS)

    def _waiting(self) -> str:
        return (self._stopping and STOPPING) or self._pacer.waiting() or self.trouble


@contextmanager
def graceful_shutdown(interrupted: Callable[[], None]) -> Generator[None]:
    """Call a function on SIGINT and SIGTERM, in the running event loop, instead of breaking off."""
    loop = asyncio.get_running_loop()
    # Signals reach the main thread alone.
    signals, unsupported = (signal.SIGINT, signal.SIGTERM), (ValueError, RuntimeError, NotImplementedError)
    with suppress(*unsupported):
        for number in signals:
            loop.add_signal_handler(number, interrupted)
    try:
        yield
    finally:
        with suppress(*unsupported):
            for number in signals:
                loop.remove_signal_handler(number)
