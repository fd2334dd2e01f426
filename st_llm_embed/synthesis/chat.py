"""Requests as chat completions: what is sent, what it costs, what the journal gets, and the progress shown."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from st_llm_embed.api.budget import BATCH_SHARE, NOTHING, Cost, SpendingLimit, actual_cost, shipped_prices, worst_case
from st_llm_embed.api.client import Client
from st_llm_embed.api.exchange import json_object
from st_llm_embed.api.outcome import Outcome, bytes_said
from st_llm_embed.data.rows import content_hash
from st_llm_embed.errors import InputError
from st_llm_embed.recipe import REPLAY, Endpoint, Price, Synthesis
from st_llm_embed.synthesis.journal import Journal, request_record
from st_llm_embed.synthesis.parsing import Rejection, content_of
from st_llm_embed.synthesis.plan import Request, object_schema
from st_llm_embed.synthesis.usable import LatestAnswers

logger = logging.getLogger(__name__)

ResponseFormat = Literal["json_schema", "json_object", "prompt"]
"""How a server is made to answer in JSON; `prompt`: only by asking for it."""

BOUNDS = ("max_completion_tokens", "max_tokens")
"""Parameters of a request that bound its answer."""
SPARE_BYTES = 8 << 20
"""On the disk, for the answers that are in flight."""
SECONDS_BETWEEN_LINES = 10.0
"""Where no terminal shows a bar."""

ATTEMPTS_OF_A_PROBE = 3
PROBES: tuple[tuple[ResponseFormat, str], ...] = (
    ("json_schema", "Write one sentence about the sea."),
    ("json_object", 'Write one sentence about the sea as a JSON object: {"sentence": "..."}'),
    ("prompt", "Write one sentence about the sea."),
)
"""The first asks in words for a sentence and by schema for a colour: an answer in violet shows that it holds."""
PROBE_SCHEMA = object_schema({"colour": {"type": "string", "enum": ["violet"]}})


@dataclass
class Progress:
    """What one step has done so far."""

    step: str
    planned: int
    done: int = 0
    """Requests answered, those of earlier runs included."""
    done_before: int = 0
    texts: Counter[str] = field(default_factory=Counter)
    """Answers of this process that hold a text, by task type."""
    no_text: Counter[str] = field(default_factory=Counter)
    """Answers of this process that hold none, by reason."""
    left: int = 0
    """Requests given up for this run."""
    waiting: str = ""
    """What is waited for, if it is more than answers."""
    spent: str = ""
    started: float = field(default_factory=time.monotonic)

    def describe(self) -> str:
        """Return all of it in one line."""
        rate = (self.done - self.done_before) / max(1e-9, time.monotonic() - self.started)
        left = f"{(self.planned - self.done) / rate / 60:.0f} min left" if rate else "time left unknown"
        parts = [f"{self.step} {self.done:,}/{self.planned:,} ({rate:.1f}/s, {left})"]
        for what, counts in (("answers", sorted(self.texts.items())), ("without text", self.no_text.most_common())):
            if counts:
                parts.append(f"{what}: {', '.join(f'{name} {count:,}' for name, count in counts)}")
        if self.left:
            parts.append(f"put off: {self.left:,}")
        return "; ".join(filter(None, [*parts, self.spent, self.waiting]))


class ChatService:
    """The `st_llm_embed.api.client.Service` of chat completions: keeps the limits, writes the journal."""

    def __init__(
        self, synthesis: Synthesis, journal: Journal, show: Callable[[Progress], None] = lambda _: None
    ) -> None:
        """Read prices and limits; raise InputError as `model_prices` and `max_answer_tokens` do."""
        self._endpoint = synthesis.endpoint
        self._prices = model_prices(synthesis)
        self._max_answer_tokens = max_answer_tokens(synthesis.endpoint)
        self._latest = LatestAnswers(languages=synthesis.filters.languages)
        self._known: set[str] = set()
        """Models that have answered."""
        self.journal = journal
        self.show = show
        """Called with the progress twice a second."""
        self.limit = SpendingLimit(synthesis.budget.usd, synthesis.budget.tokens, journal.usd, journal.tokens)
        self.progress = Progress("probes", len(PROBES))

    def unanswered(self, requests: Iterable[Request]) -> Iterator[Request]:
        """Yield the requests that the journal has no answer to, and count the others as done.

        Raises:
            OSError: the disk has no room for the answers to more requests.
        """
        for request in requests:
            if self.journal.has(request):
                self.progress.done += 1
                self.progress.done_before += 1
                continue
            if shutil.disk_usage(self.journal.path).free < SPARE_BYTES:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            yield request

    def body(self, request: Request) -> dict[str, Any]:
        """Return the body of a request, with the response format that its model obeys."""
        if request.step == "probe":
            response_format = PROBES[request.index][0]
        else:
            response_format = self.journal.formats[self._endpoint.base_url, request.model]
        return request_body(request, self._endpoint.parameters, response_format)

    def worst_case(self, request: Request) -> Cost:
        """Return the most that a request can cost, as far as the server was seen to keep to it."""
        sent = json.dumps([request.messages, request.schema], ensure_ascii=False)
        worst = worst_case(self._prices.get(request.model), sent, self._max_answer_tokens)
        return worst + self.journal.excess.get(self._bound(request), NOTHING)

    def cost(self, request: Request, outcome: Outcome, worst: Cost) -> Cost:
        """Return what a response cost by the server's own count; the worst case where it does not count."""
        usage, price, said = outcome.answer.get("usage"), self._prices.get(request.model), bytes_said(outcome.answer)
        cost = actual_cost(price, usage, worst, self._max_answer_tokens, said)
        return cost if isinstance(usage, dict) or cost.per(worst) > 1 else worst

    def known(self, request: Request) -> bool:
        """Return whether the model has answered since this process started; probes are sent one by one anyway."""
        return request.step == "probe" or request.model in self._known

    async def begin(self, request: Request, worst: Cost) -> None:
        """Have it on the disk that a request is about to be sent."""
        self.journal.begin(request, worst, self._bound(request))
        await asyncio.to_thread(self.journal.sync)

    def _bound(self, request: Request) -> str:
        """Return what bounds an answer: "m with max_completion_tokens 4096"."""
        given = [f"{name} {self._endpoint.parameters[name]}" for name in BOUNDS if name in self._endpoint.parameters]
        return f"{request.model} with {' and '.join(given)}"

    def over_limit(self, worst: Cost) -> InputError:
        """Return the error for a request that does not fit into the limit."""
        return InputError(
            f"The limit is reached: spent are {self.limit.describe()}, and the next request can cost "
            f"${worst.usd:.4f} and {worst.tokens:,} tokens. Raise synthesis.budget to resume, or make the dataset of "
            f"the {self.progress.done:,} answers with st-llm-embed reparse."
        )

    def record(self, request: Request, outcome: Outcome, cost: Cost, seconds: float) -> None:
        """Write an outcome to the journal and count it.

        Raises:
            InputError: the answer cost more than any can by what the server was asked, or hardly one can be used.
        """
        if outcome.kind not in ("answered", "rejected", "maybe paid"):
            self.journal.append({"status": "not billed", "key": request.key, "body": outcome.said})
            return
        fields: dict[str, Any] = {"seconds": round(seconds, 3)}
        if outcome.kind == "answered":
            fields |= {"usage": outcome.answer.get("usage"), "request_id": outcome.headers.get("x-request-id")}
        elif outcome.kind == "rejected":
            fields["refused"] = True
        status = "maybe paid" if outcome.kind == "maybe paid" else "answered"
        worst = self.worst_case(request)
        self.journal.append(request_record(request, status, cost.tokens, cost.usd, body=outcome.body, **fields))
        if status == "answered":
            self._count(request, outcome)
        if cost.per(worst) > 1:
            raise InputError(
                f"{self._endpoint.base_url} billed {cost.tokens:,} tokens (${cost.usd:.4f}) for one answer of "
                f"{self._bound(request)}, where {worst.tokens:,} (${worst.usd:.4f}) are the most, prompt included: "
                "the server ignores that limit. Set max_tokens in synthesis.endpoint.parameters, which more servers "
                f"read; or run the same command again: then 1.5 times this cost is set aside, too, for each answer."
            )
        if status == "answered" and request.step != "probe":
            self._latest.add(request, outcome.answer)

    def _count(self, request: Request, outcome: Outcome) -> None:
        self.progress.done += 1
        if outcome.kind == "answered" and request.step != "probe":
            self._known.add(request.model)
        content = content_of(outcome.answer)
        if isinstance(content, Rejection):
            self.progress.no_text[content.reason] += 1
        else:
            self.progress.texts[request.about.get("task_type", request.step)] += 1

    def give_up(self, request: Request) -> None:  # noqa: ARG002
        """Count a request that is left for the next run."""
        self.progress.left += 1

    async def watch(self, waiting: str) -> None:
        """Show the progress, and have the disk write what was appended to the journal."""
        self.progress.waiting, self.progress.spent = waiting, self.limit.describe()
        self.show(self.progress)
        if self.journal.unsynced:
            await asyncio.to_thread(self.journal.sync)

    def find_format(self, client: Client[Request], model: str) -> None:
        """Find, once for each model, how it is made to answer in JSON: some servers take a schema and ignore it.

        Raises:
            InputError: the model does not answer, or refuses the recipe's parameters.
        """
        base_url = self._endpoint.base_url
        if (base_url, model) in self.journal.formats:
            return
        self.progress = Progress("probes", len(PROBES))
        for index, (response_format, prompt) in enumerate(PROBES):
            key = content_hash(model, response_format)
            request = Request("probe", index, key, model, [{"role": "user", "content": prompt}], PROBE_SCHEMA, {})
            outcome = client.ask(request, ATTEMPTS_OF_A_PROBE)
            if outcome is None:
                raise InputError(
                    f"{base_url} gives no answer for the model {model!r}: {client.trouble}. Check that "
                    "synthesis.endpoint.base_url is right (it usually ends in /v1) and the server up; run again."
                )
            content = content_of(outcome.answer)
            if response_format == "prompt" and outcome.kind == "rejected":
                raise InputError(
                    f"{base_url} refuses requests for the model {model!r}: {outcome.said}. Check "
                    "synthesis.endpoint.parameters, which are sent as they are."
                )
            answer = json_object(content) if isinstance(content, str) else {}
            obeyed = {"json_schema": answer == {"colour": "violet"}, "json_object": bool(answer), "prompt": True}
            if obeyed[response_format]:
                record = {"status": "format", "model": model, "format": response_format, "base_url": base_url}
                self.journal.append(record)
                return


def request_body(request: Request, parameters: dict[str, Any], response_format: ResponseFormat) -> dict[str, Any]:
    """Return the body of a chat completion request."""
    body = {"model": request.model, "messages": request.messages, **parameters}
    if response_format == "json_schema":
        wrapped = {"name": "answer", "strict": True, "schema": request.schema}
        body["response_format"] = {"type": "json_schema", "json_schema": wrapped}
    elif response_format == "json_object":
        body["response_format"] = {"type": "json_object"}
    return body


def max_answer_tokens(endpoint: Endpoint) -> int:
    """Return the most tokens an answer can have by the recipe; raise an InputError if nothing bounds them."""
    given = [endpoint.parameters[name] for name in BOUNDS if name in endpoint.parameters]
    if not given or not all(isinstance(value, int) and value > 0 for value in given):
        raise InputError(
            f"synthesis.endpoint.parameters has {given or 'no'} max_completion_tokens or max_tokens; a whole number "
            "above 0 is needed to limit what an answer can cost. The default is 4096."
        )
    return max(given)


def model_prices(synthesis: Synthesis) -> dict[str, Price]:
    """Return the price of each model of the recipe that has one.

    Raises:
        InputError: a model has no price, and nothing else limits what it may cost.
    """
    prices = shipped_prices(BATCH_SHARE if synthesis.endpoint.mode == "batch" else 1.0) | synthesis.budget.prices
    if synthesis.endpoint.base_url == REPLAY:
        prices |= dict.fromkeys(synthesis.endpoint.models, Price(input=0, output=0))
    models = [*synthesis.endpoint.models, *filter(None, [synthesis.filters.judge_model])]
    unknown = [name for name in models if name not in prices]
    if unknown and (synthesis.budget.usd is not None or synthesis.budget.tokens is None):
        raise InputError(
            f"No price is known for {', '.join(unknown)}. Set synthesis.budget.prices (USD per million tokens, "
            f"{{{unknown[0]}: {{input: 0.5, output: 1.5}}}}; 0 for a server of your own), or synthesis.budget.tokens "
            "alone."
        )
    return {name: prices[name] for name in models if name in prices}


@contextmanager
def shown_progress() -> Generator[Callable[[Progress], None]]:
    """Yield a function that shows a `Progress`: in place on a terminal, else as a line now and then."""
    last = time.monotonic()

    def log(progress: Progress) -> None:
        nonlocal last
        if time.monotonic() - last >= SECONDS_BETWEEN_LINES or progress.done == progress.planned:
            last = time.monotonic()
            logger.info("%s", progress.describe())

    if not sys.stderr.isatty():
        yield log
        return
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    with Live(console=Console(stderr=True), auto_refresh=False) as live:
        yield lambda progress: live.update(Text(progress.describe()), refresh=True)
