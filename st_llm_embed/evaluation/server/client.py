"""The client of an OpenAI-compatible embeddings server: every vector goes to the journal before anything else.

Pace, retries and errors are those of the synthesis client. A request that the server refuses is halved, so that one
text, or a server's own limit on texts a request, is found and nothing else is held up by it.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from st_llm_embed.api.budget import Cost, token_count
from st_llm_embed.api.client import ATTEMPTS, ATTEMPTS_MAYBE_PAID, LONGEST_BACKOFF_SECONDS, graceful_shutdown
from st_llm_embed.api.exchange import Outcome, ServiceLabels, post, read_vectors
from st_llm_embed.api.pacing import Departure, Pacer, retry_after_seconds
from st_llm_embed.errors import InputError
from st_llm_embed.evaluation.server.cost import EmbeddingBudget
from st_llm_embed.evaluation.server.journal import VectorJournal
from st_llm_embed.recipe import is_plain_address
from st_llm_embed.synthesis.parsing import completion_of

WORDING = ServiceLabels("embeddings", "--base-url", "the model's name", "--api-key-env")
PROBE = "The quick brown fox jumps over the lazy dog."
"""Its vector tells whether a server still serves the model whose vectors are in the journal."""
SAME_MODEL = 0.99
"""Least cosine of the probe's vectors; those of one model in half precision differ by about 1e-3."""
KEPT = "The vectors that came and the finished scores are kept; run the same command again to go on."


@dataclass(frozen=True)
class Server:
    """An OpenAI-compatible embeddings server: OpenAI, vLLM, Text Embeddings Inference, llama.cpp, Ollama, ..."""

    base_url: str
    """Address of the API, such as `https://api.openai.com/v1`."""
    model: str
    """As the server names it."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of a request, sent as they are, such as `dimensions`."""
    texts_per_request: int = 32
    """What Text Embeddings Inference allows by default."""
    tokens_per_request: int = 250_000
    """OpenAI allows 300,000. Each byte of a text counts as one."""
    concurrency: int = 8
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    timeout_seconds: float = 300.0
    """Longest wait for one answer. What times out may have been paid; it is asked once more at the most."""
    give_up_after_minutes: float = 15.0
    """Stop, to be resumed later, when the server has given no answer for so long."""

    def __post_init__(self) -> None:
        """Check what can be checked without sending anything.

        Raises:
            InputError: the address is none, or may hold a secret; or a parameter is one that requests set themselves.
        """
        if not is_plain_address(self.base_url):
            # Not shown: it may hold a secret.
            raise InputError(
                "--base-url has to begin with http:// or https:// and to hold no user, password, query or fragment, "
                "since it is written to the report; the key goes into the variable that --api-key-env names."
            )
        if own := sorted(self.parameters.keys() & {"model", "input"}):
            raise InputError(f"{', '.join(own)} cannot be set as a parameter; each request sends its own.")


class EmbeddingClient:
    """Has texts embedded and journaled."""

    def __init__(
        self,
        server: Server,
        api_key: str,
        journal: VectorJournal,
        budget: EmbeddingBudget,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Prepare; nothing is sent.

        Args:
            server: whom to ask, and how.
            api_key: kept in memory only.
            journal: where every vector goes.
            budget: what may be spent.
            clock: seconds, for limits per minute, pauses and giving up.
            sleep: waits for seconds of that clock.
        """
        self.server, self.budget = server, budget
        self._api_key, self._journal = api_key, journal
        self._clock, self._sleep = clock, sleep
        self._known_to_be_same = False
        self._failure: Exception | None = None

    def embed(self, texts: Iterable[str], title: str) -> None:
        """Have every text embedded that has no vector in the journal.

        Args:
            texts: as they are sent; none is empty.
            title: of the progress bar.

        Raises:
            InputError: the limit is reached, the key or model or a text is refused, the server does not answer, or
                answers with something that is no vector or not of the dimension and model of those before. What came
                until then is in the journal.
        """
        missing = self._journal.missing(texts)
        if not missing:
            return
        self._failure = None
        if not self._known_to_be_same:
            self._check_model()
        with tqdm(total=len(missing), desc=title, unit=" texts", leave=False) as self._bar:
            asyncio.run(self._answered(deque(self._batches(missing))))

    def _check_model(self) -> None:
        """Ask for the probe's vector; it is journaled by the first run and compared by every later one."""
        earlier = [PROBE] if not self._journal.missing([PROBE]) else []
        self._probe: NDArray[np.float32] | None = None
        with tqdm(disable=True) as self._bar:
            asyncio.run(self._answered(deque([[PROBE]])))
        now = self._probe
        if earlier and now is not None:
            [before] = self._journal.vectors(earlier)
            cosine = float(before @ now / (np.linalg.norm(before) * np.linalg.norm(now)))
            if cosine < SAME_MODEL:
                raise InputError(
                    f"{self.server.base_url} serves another model as {self.server.model!r} than the one whose "
                    f"vectors are in {self._journal.path}: for one and the same text their cosine is {cosine:.3f}. "
                    "Scores of two models must not be mixed: choose another --output-dir."
                )
        self._known_to_be_same = True

    def _batches(self, texts: list[str]) -> Iterator[list[str]]:
        batch: list[str] = []
        for text in texts:
            full = len(batch) == self.server.texts_per_request
            if batch and (full or self.budget.worst_case([*batch, text]).tokens > self.server.tokens_per_request):
                yield batch
                batch = []
            batch.append(text)
        yield batch

    async def _answered(self, batches: deque[list[str]]) -> None:
        """Have batches answered on one connection pool."""
        from httpx2 import Limits, Timeout
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient

        server = self.server
        self._pacer = Pacer(
            server.concurrency,
            server.requests_per_minute,
            server.tokens_per_minute,
            clock=self._clock,
            sleep=self._sleep,
        )
        self._batches_left, self._settled = batches, asyncio.Event()
        self._sending: set[asyncio.Task[Any] | None] = set()
        self._answer_by = self._clock() + server.give_up_after_minutes * 60
        async with AsyncOpenAI(
            base_url=server.base_url,
            api_key=self._api_key,
            max_retries=0,
            timeout=Timeout(server.timeout_seconds, connect=min(30.0, server.timeout_seconds)),
            http_client=DefaultAsyncHttpxClient(limits=Limits(max_connections=server.concurrency)),
        ) as self._openai:
            self._workers = [asyncio.create_task(self._work()) for _ in range(min(server.concurrency, len(batches)))]
            stopped = InputError(f"Stopped. {KEPT}")
            with graceful_shutdown(lambda: self._stop(stopped, at_once=self._failure is not None)):
                ended = await asyncio.gather(*self._workers, return_exceptions=True)
        failures = [one for one in ended if isinstance(one, Exception)]
        if self._failure or failures:
            raise self._failure or failures[0]

    def _stop(self, failure: Exception, *, at_once: bool = False) -> None:
        """Send nothing more; wait for the answers in flight unless everything is to end at once."""
        self._failure = self._failure or failure
        for task in self._workers:
            if task is not asyncio.current_task() and (at_once or task not in self._sending):
                task.cancel()

    async def _work(self) -> None:
        try:
            while self._batches_left and self._failure is None:
                await self._ask(self._batches_left.popleft())
        except Exception as error:  # noqa: BLE001
            self._stop(error)

    async def _ask(self, batch: list[str]) -> None:
        """Send one batch until its vectors are in the journal, or it is halved.

        Raises:
            InputError: it cannot be had.
        """
        tries: Counter[str] = Counter()
        while self._failure is None:
            outcome = await self._send(batch)
            if outcome.kind == "answered":
                self._answer_by = self._clock() + self.server.give_up_after_minutes * 60
                self._bar.update(len(batch))
                return
            if outcome.kind == "rejected":
                self._halve(batch, outcome.body)
                return
            tries[outcome.kind] += 1
            if self._clock() > self._answer_by or (
                tries["failed"] == ATTEMPTS or tries["maybe paid"] == ATTEMPTS_MAYBE_PAID
            ):
                raise InputError(f"{self.server.base_url} gives no vectors: {outcome.body}. {KEPT}")
            if outcome.kind != "too many":
                wait = min(LONGEST_BACKOFF_SECONDS, 2.0 ** tries.total())
                await self._sleep(random.uniform(0, wait))  # noqa: S311

    def _halve(self, batch: list[str], refusal: str) -> None:
        if len(batch) == 1:
            raise InputError(
                f"{self.server.base_url} refuses a text of {len(batch[0]):,} characters, {batch[0][:60]!r}...: "
                f"{refusal[:300]}. If it is too long, have texts cut with --max-seq-length and --tokenizer, or by the "
                f"server with a parameter of its own (vLLM: truncate_prompt_tokens, TEI: truncate). {KEPT}"
            )
        half = len(batch) // 2
        self._batches_left.extendleft([batch[half:], batch[:half]])

    async def _send(self, batch: list[str]) -> Outcome:
        """Send one batch when budget and pace allow it, and write down what came of it."""
        worst = await self._reserve(batch)
        task = asyncio.current_task()
        cost: Cost | None = None
        try:
            departure = await self._pacer.admit(worst.tokens // 3)
            self._sending.add(task)
            body = {"encoding_format": "base64", **self.server.parameters}
            body |= {"model": self.server.model, "input": batch}
            try:
                outcome = await post(self._openai, "/embeddings", body, _of_success, WORDING)
            except asyncio.CancelledError:
                cost = worst
                self._journal.append("maybe paid", batch, None, worst)
                raise
            finally:
                self._sending.discard(task)
                self._pacer.done()
            if outcome.kind == "answered":
                usage = outcome.completion.get("usage")
                counts = [token_count(usage, name) for name in ("prompt_tokens", "total_tokens")]
                counted = next((count for count in counts if count is not None), None)
                cost = worst if counted is None else self.budget.cost(counted)
                self._keep(batch, outcome.completion["data"], cost)
            elif outcome.kind == "maybe paid":
                cost = worst
                self._journal.append("maybe paid", batch, None, worst)
            self._heed(outcome, departure)
            self._pacer.spent(departure, cost.tokens if cost else 0)
        finally:
            self.budget.settle(worst, cost)
            self._settled.set()
        return outcome

    async def _reserve(self, batch: list[str]) -> Cost:
        """Set the worst case aside, waiting for requests in flight to cost less than theirs where it does not fit."""
        worst = self.budget.worst_case(batch)
        while not self.budget.fits(worst):
            if not self.budget.in_flight:
                raise InputError(
                    f"The limit is reached: spent are {self.budget.describe()}, and the next request can cost "
                    f"${worst.usd:.4f} and {worst.tokens:,} tokens. Raise --max-usd or --max-tokens to go on. {KEPT}"
                )
            self._settled.clear()
            await self._settled.wait()
        self.budget.set_aside(worst)
        return worst

    def _keep(self, batch: list[str], data: list[Any], cost: Cost) -> None:
        """Check the vectors of an answer and journal them.

        Raises:
            InputError: they are no vectors, or not of this model; the cost is journaled all the same.
        """
        server = f"{self.server.base_url} (model {self.server.model!r})"
        vectors = read_vectors(data, len(batch))
        dimension = self._journal.dimension()
        problem = vectors if isinstance(vectors, str) else ""
        if not isinstance(vectors, str) and dimension not in (None, vectors.shape[1]):
            problem = (
                f"vectors of dimension {vectors.shape[1]}, and all before had {dimension}: it serves another model "
                "now, or with other parameters. Serve the model of before and run again, or choose another "
                "--output-dir"
            )
        if problem or isinstance(vectors, str):
            self._journal.append("unusable", batch, None, cost)
            raise InputError(f"{server} answers with {problem}. {KEPT}")
        if batch == [PROBE]:
            [self._probe] = vectors
        self._journal.append("answered", batch, vectors, cost)

    def _heed(self, outcome: Outcome, departure: Departure) -> None:
        """Adapt to what the server says about its limits."""
        retry_after = retry_after_seconds(outcome.headers)
        if outcome.kind == "too many" or (outcome.kind == "failed" and retry_after):
            self._pacer.refused(departure, retry_after)
            if self._pacer.refusals <= 1:
                # The first pause that a server asks for, however long, is no silence; pauses without end are.
                patience = self.server.give_up_after_minutes * 60
                self._answer_by = max(self._answer_by, self._pacer.paused_until + patience)
        elif outcome.kind == "answered":
            self._pacer.succeeded()


def _of_success(body: str, headers: Mapping[str, str]) -> Outcome:
    answer = completion_of(body)
    if isinstance(answer.get("data"), list):
        return Outcome("answered", "", answer, headers)
    return Outcome("maybe paid", f"status 200 without vectors: {' '.join(body.split())[:300]}")
