"""The client: sends requests to an OpenAI-compatible server and journals every answer.

C workers pull from one iterator, so no answer waits for a slower one. The SDK's own retries are off: it sends a
request again after a time-out, which may pay three times, and gives up on a Retry-After of more than two minutes.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import json
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from st_llm_embed.api.budget import Budget, Cost
from st_llm_embed.api.exchange import Outcome, ResponseFormat, exchange
from st_llm_embed.api.pacing import Departure, Pacer, retry_after_seconds
from st_llm_embed.data.rows import content_hash
from st_llm_embed.errors import InputError
from st_llm_embed.recipe import Endpoint
from st_llm_embed.synthesis.journal import Journal, request_record
from st_llm_embed.synthesis.parsing import Rejection, content_of, parse_answer
from st_llm_embed.synthesis.plan import Request
from st_llm_embed.synthesis.progress import Progress

ATTEMPTS = 6
"""Server errors after which a request is left for the next run."""
ATTEMPTS_MAYBE_PAID = 2
"""The same for requests that may have been paid without an answer."""
ATTEMPTS_OF_A_PROBE = 3
REFUSED_IN_A_ROW = 50
"""Requests refused as wrong, with no answer between them, after which the server and not the request is to blame."""

LONGEST_BACKOFF_SECONDS = 60.0
WATCH_SECONDS = 0.5
INTERRUPTED = "Stopped. Every answer that came is in the journal; run the same command again to go on."
SPARE_BYTES = 8 << 20
"""On the disk, for the answers that are in flight."""
TYPICAL_ANSWER_TOKENS = 500
"""Before the first answers have come."""


class Client:
    """Sends the requests of one run."""

    def __init__(
        self,
        endpoint: Endpoint,
        base_url: str,
        api_key: str,
        journal: Journal,
        budget: Budget,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Prepare; nothing is sent.

        Args:
            endpoint: the recipe's section.
            base_url: the address to use; not the recipe's where that is `replay`.
            api_key: kept in memory only.
            journal: where every answer goes.
            budget: what may be spent.
            clock: seconds, for limits per minute, pauses and giving up.
            sleep: waits for seconds of that clock.
        """
        self._endpoint, self._base_url, self._api_key = endpoint, base_url, api_key
        self._journal, self._budget = journal, budget
        self._clock, self._sleep = clock, sleep

    def answer(
        self, requests: Callable[[], Iterator[Request]], progress: Progress, show: Callable[[Progress], None]
    ) -> None:
        """Have every request answered that the journal has no answer to.

        Args:
            requests: gives the planned requests; they are pulled one by one, so that a long plan is never in memory.
            progress: kept up to date.
            show: called with it twice a second.

        Raises:
            InputError: the limit is reached, the key or model is refused, or the server does not answer; what was
                answered until then is in the journal, and running again goes on from there.
            OSError: the disk is full; likewise.
        """
        self._progress, self._show = progress, show
        self._pending = self._without_answer(requests())
        first = next(self._pending, None)
        if first is not None:
            self._pending = itertools.chain([first], self._pending)
            asyncio.run(self._connected([self._work() for _ in range(self._endpoint.concurrency)]))

    def find_formats(self, models: Iterable[str]) -> None:
        """Find, once for each model, how it is made to answer in JSON.

        Raises:
            InputError: a model does not answer, or refuses the recipe's parameters.
        """
        self._progress, self._show = Progress("probes", 0), lambda _: None
        for model in models:
            if (self._endpoint.base_url, model) not in self._journal.formats:
                asyncio.run(self._connected([self._find_format(model)]))

    def _without_answer(self, requests: Iterator[Request]) -> Iterator[Request]:
        for request in requests:
            if self._journal.has(request):
                self._progress.done += 1
                self._progress.done_before += 1
            else:
                yield request

    async def _connected(self, work: list[Coroutine[Any, Any, None]]) -> None:
        """Run workers on one connection pool until all have ended."""
        from httpx2 import Limits, Timeout
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient

        endpoint = self._endpoint
        self._pacer = Pacer(
            endpoint.concurrency,
            endpoint.requests_per_minute,
            endpoint.tokens_per_minute,
            clock=self._clock,
            sleep=self._sleep,
        )
        self._answer_tokens: float = TYPICAL_ANSWER_TOKENS
        self._settled = asyncio.Event()
        self._sending: set[asyncio.Task[Any] | None] = set()
        self._stopping = self._trouble = ""
        self._refused = 0
        self._answer_by = self._clock() + endpoint.give_up_after_minutes * 60
        async with AsyncOpenAI(
            base_url=self._base_url,
            api_key=self._api_key,
            max_retries=0,
            timeout=Timeout(endpoint.timeout_seconds, connect=min(30.0, endpoint.timeout_seconds)),
            http_client=DefaultAsyncHttpxClient(
                limits=Limits(max_connections=endpoint.concurrency, max_keepalive_connections=endpoint.concurrency)
            ),
        ) as self._openai:
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
        self._show_progress()
        if failure is not None:
            raise failure
        if self._stopping:
            raise InputError(self._stopping)

    def _stop(self, message: str, *, at_once: bool = False) -> None:
        """Send nothing more; wait for the answers in flight unless everything is to end at once."""
        self._stopping = self._stopping or message or "an error"
        for task in self._workers:
            if at_once or task not in self._sending:
                task.cancel()

    async def _work(self) -> None:
        while not self._stopping:
            request = next(self._pending, None)
            if request is None:
                return
            response_format = self._journal.formats[self._endpoint.base_url, request.model]
            outcome = await self._ask(request, response_format)
            if outcome is None:
                self._progress.left += not self._stopping
                continue
            self._progress.done += 1
            content = content_of(outcome.completion)
            parsed = content if isinstance(content, Rejection) else parse_answer(content, request.schema)
            if isinstance(parsed, Rejection):
                self._progress.rejected[parsed.reason] += 1
            else:
                self._progress.usable[request.about.get("task_type", request.step)] += 1

    async def _ask(self, request: Request, response_format: ResponseFormat) -> Outcome | None:
        """Send one request until it is answered; None when it is left for another run.

        A server that cannot be reached at all is no request's fault: `_watch` gives up on it.
        """
        tries: Counter[str] = Counter()
        while not self._stopping:
            outcome = await self._send(request, response_format)
            if outcome.kind in ("answered", "rejected"):
                return outcome
            self._trouble = outcome.body
            if outcome.kind == "too many":
                continue
            tries[outcome.kind] += 1
            if (
                tries["failed"] == ATTEMPTS
                or tries["maybe paid"] == ATTEMPTS_MAYBE_PAID
                or (request.step == "probe" and tries.total() == ATTEMPTS_OF_A_PROBE)
            ):
                break
            await self._sleep(random.uniform(0, min(LONGEST_BACKOFF_SECONDS, 2.0 ** tries.total())))  # noqa: S311
        return None

    async def _send(self, request: Request, response_format: ResponseFormat) -> Outcome:
        """Send one request when budget and pace allow it, and write down what came of it."""
        worst = await self._reserve(request)
        task = asyncio.current_task()
        cost: Cost | None = None
        expected = int((worst.tokens - self._budget.max_answer_tokens) / 3 + self._answer_tokens)
        try:
            departure = await self._pacer.admit(expected)
            self._sending.add(task)
            self._progress.sent += 1
            started = time.monotonic()
            try:
                outcome = await exchange(self._openai, request, self._endpoint.parameters, response_format)
            except asyncio.CancelledError:
                cost = worst
                self._write(request, "maybe paid", worst, started, body="stopped before the answer came")
                raise
            finally:
                self._sending.discard(task)
                self._pacer.done()
            if outcome.kind == "answered":
                usage = outcome.completion.get("usage")
                cost = self._budget.actual(request.model, usage, worst)
                request_id = outcome.headers.get("x-request-id")
                self._write(request, "answered", cost, started, body=outcome.body, usage=usage, request_id=request_id)
                self._answer_tokens += 0.05 * (cost.tokens - expected)
            elif outcome.kind == "rejected":
                self._write(request, "answered", Cost(0, 0.0), started, body=outcome.body)
            elif outcome.kind == "maybe paid":
                cost = worst
                self._write(request, "maybe paid", worst, started, body=outcome.body)
            self._apply_rate_limits(outcome, departure)
            self._pacer.spent(departure, cost.tokens if cost else 0)
        finally:
            self._budget.settle(worst, cost)
            self._settled.set()
        return outcome

    async def _reserve(self, request: Request) -> Cost:
        """Set the worst case aside, waiting for requests in flight to cost less than theirs where it does not fit."""
        while (worst := self._budget.reserve(request)) is None:
            if not self._budget.in_flight:
                raise self._budget.reached(request, self._progress)
            self._settled.clear()
            await self._settled.wait()
        return worst

    def _write(self, request: Request, status: str, cost: Cost, started: float, *, body: str, **fields: Any) -> None:
        seconds = round(time.monotonic() - started, 3)
        self._journal.append(
            request_record(request, status, cost.tokens, cost.usd, body=body, seconds=seconds, **fields)
        )

    def _apply_rate_limits(self, outcome: Outcome, departure: Departure) -> None:
        """Adapt to what the server says about its limits."""
        patience = self._endpoint.give_up_after_minutes * 60
        retry_after = retry_after_seconds(outcome.headers)
        if outcome.kind == "too many" or (outcome.kind == "failed" and retry_after):
            self._pacer.refused(departure, retry_after)
            if self._pacer.refusals <= 1:
                # The first pause that a server asks for, however long, is no silence; pauses without end are.
                self._answer_by = max(self._answer_by, self._pacer.paused_until + patience)
        elif outcome.kind in ("answered", "rejected"):
            self._trouble = ""
            self._refused = self._refused + 1 if outcome.kind == "rejected" else 0
            if self._refused == REFUSED_IN_A_ROW:
                self._stop(
                    f"{self._base_url} has refused {REFUSED_IN_A_ROW} requests in a row: {outcome.body[:300]}. Check "
                    "the server, synthesis.endpoint.parameters and the topics; what was refused is in the journal and "
                    "is not asked again, run the same command again for the rest."
                )
            self._pacer.succeeded()
            self._answer_by = self._clock() + patience
            for what in ("requests", "tokens"):
                limit = outcome.headers.get(f"x-ratelimit-limit-{what}", "")
                if limit.isdecimal() and int(limit) > 0 and getattr(self._endpoint, f"{what}_per_minute") is None:
                    setattr(self._pacer, f"{what}_per_minute", int(limit))

    async def _find_format(self, model: str) -> None:
        """Find how a model is made to answer in JSON: some servers take a schema and silently ignore it.

        The probe asks for one thing in words and for another by schema.

        Raises:
            InputError: the model does not answer at all.
        """
        for response_format, prompt in PROBES:
            key = content_hash(model, response_format)
            request = Request("probe", 0, key, model, [{"role": "user", "content": prompt}], PROBE_SCHEMA, {})
            outcome = await self._ask(request, response_format)
            if outcome is None:
                raise InputError(
                    f"{self._base_url} gives no answer for the model {model!r}: {self._trouble}. Check that "
                    "synthesis.endpoint.base_url is right (it usually ends in /v1) and the server up; run again."
                )
            content = content_of(outcome.completion)
            if response_format == "prompt" and outcome.kind == "rejected":
                raise InputError(
                    f"{self._base_url} refuses requests for the model {model!r}: {outcome.body[:300]}. Check "
                    "synthesis.endpoint.parameters, which are sent as they are."
                )
            if response_format == "prompt" or (isinstance(content, str) and _follows_schema(content, response_format)):
                record = {"status": "format", "model": model, "format": response_format}
                self._journal.append(record | {"base_url": self._endpoint.base_url})
                return

    async def _watch(self) -> None:
        """Twice a second: show the progress, have the disk write, and give up on a server that gives no answer."""
        while True:
            self._show_progress()
            if self._journal.unsynced:
                await asyncio.to_thread(self._journal.sync)
            if shutil.disk_usage(self._journal.path).free < SPARE_BYTES:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if self._clock() > self._answer_by:
                self._stop(
                    f"{self._base_url} has given no answer for {self._endpoint.give_up_after_minutes:g} minutes "
                    f"({self._trouble or 'requests hang'}). Every answer that came is in the journal; run the same "
                    "command again later.",
                    at_once=True,
                )
            await asyncio.sleep(WATCH_SECONDS)

    def _show_progress(self) -> None:
        stopping = "stopping once the answers in flight have come; interrupt again to stop at once"
        self._progress.waiting = (self._stopping and stopping) or self._pacer.waiting() or self._trouble
        self._progress.spent = self._budget.describe()
        self._show(self._progress)


def _follows_schema(content: str, response_format: ResponseFormat) -> bool:
    """Whether a probe's answer shows that the server enforces the format."""
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError):
        return False
    return isinstance(answer, dict) and (response_format == "json_object" or answer == {"colour": "violet"})


PROBE_SCHEMA = {
    "type": "object",
    "properties": {"colour": {"type": "string", "enum": ["violet"]}},
    "required": ["colour"],
    "additionalProperties": False,
}
PROBES: tuple[tuple[ResponseFormat, str], ...] = (
    ("json_schema", "Write one sentence about the sea."),
    ("json_object", 'Write one sentence about the sea as a JSON object: {"sentence": "..."}'),
    ("prompt", "Write one sentence about the sea."),
)
"""The first asks in words for a sentence and by schema for a colour: an answer in violet shows that it holds."""


@contextmanager
def graceful_shutdown(interrupted: Callable[[], None]) -> Generator[None]:
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
