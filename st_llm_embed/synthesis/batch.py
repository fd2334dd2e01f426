"""OpenAI's Batch API: the same requests and keys, cheaper, within 24 hours.

Every step of a batch is journaled before the next call: written, uploaded, submitted, collected. A killed process can
be resumed anywhere: an upload is repeated, which costs nothing; a batch that was submitted and not written down is
found by its metadata; collecting again skips what the journal has.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Final
from uuid import uuid4

from st_llm_embed.api.budget import Cost
from st_llm_embed.api.exchange import Response, json_object
from st_llm_embed.api.outcome import Outcome, classify
from st_llm_embed.errors import InputError
from st_llm_embed.recipe import Endpoint
from st_llm_embed.synthesis.chat import ChatService
from st_llm_embed.synthesis.journal import Journal, request_record
from st_llm_embed.synthesis.plan import Request

MAX_REQUESTS, MAX_BYTES = 50_000, 200_000_000
"""Of one batch file (openai.types.BatchCreateParams)."""
POLL_SECONDS = 30.0
ENDED = {"completed", "expired", "cancelled", "failed"}
URL: Final = "/v1/chat/completions"
METADATA_KEY = "st_llm_embed_batch"
GIVE_UP = (
    "What is lost or never ends is given up with st-llm-embed synthesize --give-up-batches: what such batches ask for "
    "counts as paid and is asked again; cancel them in the provider's console first."
)

_CUSTOM_ID = re.compile(rb'"custom_id"\s*:\s*"([0-9a-f]{16})"')


class BatchClient:
    """Sends the requests of one run through the Batch API."""

    def __init__(
        self, chat: ChatService, endpoint: Endpoint, api_key: str, *, poll_seconds: float = POLL_SECONDS
    ) -> None:
        """Prepare; nothing is sent. Batch files are beside the journal of `chat`."""
        self._chat, self._journal, self._limit = chat, chat.journal, chat.limit
        self._endpoint, self._api_key = endpoint, api_key
        self._folder = chat.journal.path.parent / "batches"
        self._poll_seconds = poll_seconds

    def answer(self, requests: Callable[[], Iterator[Request]]) -> None:
        """Have every request answered that the journal has no answer to; hours may pass.

        `requests` returns the planned ones from the first on. An InputError says that the limit is reached or batches
        fail; what was answered is in the journal.
        """
        from httpx2 import TransportError
        from openai import OpenAI, OpenAIError

        with OpenAI(base_url=self._endpoint.base_url, api_key=self._api_key, max_retries=0) as self._openai:
            try:
                self._answer(requests)
            except (OpenAIError, TransportError) as error:
                said = " ".join(f"{error} {error.__cause__ or ''}".replace(self._api_key, "[key]").split())
            except KeyboardInterrupt:
                said = ""
            else:
                return
        # Outside of the handler, so that no traceback leads to the SDK's error, which may repeat the key.
        if not said:
            raise InputError(
                f"Stopped. The provider continues what was submitted; run the same command to collect it. {GIVE_UP}"
            )
        raise InputError(
            f"The Batch API of {self._endpoint.base_url} answers: {said[:500]}. Run the same command again to resume. "
            f"{GIVE_UP}"
        )

    def _answer(self, requests: Callable[[], Iterator[Request]]) -> None:
        progress = self._chat.progress
        self._delete_files(lambda name: name not in self._journal.batches)
        batches = list(self._journal.batches)
        for batch in batches:
            for request, worst in _asked(self._folder, batch):
                if not self._journal.has(request):
                    self._limit.set_aside(worst)
        progress.done = progress.done_before = sum(map(self._journal.has, requests()))
        resumed = bool(batches)  # all of their answers may be journaled already
        while True:
            over_limit = self._write_batches(requests(), progress.step, batches)
            if not batches:
                break
            done_before, self._problem = progress.done, ""
            for batch in batches:
                self._submit(batch)
            self._collect_all(batches)
            progress.done = sum(map(self._journal.has, requests()))
            if progress.done == done_before and not resumed:
                left = progress.planned - progress.done
                raise InputError(
                    f"The last batches answered none of the {left:,} requests that are left{self._problem}. Look at "
                    "them in the provider's console, fix synthesis.endpoint (model, parameters) or wait if it is a "
                    "limit, and run the same command again, which submits these requests again."
                )
            batches, resumed = [], False
        if over_limit is not None:
            raise self._chat.over_limit(over_limit)

    def _collect_all(self, batches: list[str]) -> None:
        """Wait for batches to end and journal their answers; an outage of the server is waited out for a while."""
        from httpx2 import TransportError
        from openai import APIConnectionError, InternalServerError, RateLimitError

        progress = self._chat.progress
        heard = time.monotonic()
        left = list(batches)
        while left:
            progress.waiting = f"{len(left)} batches are being answered"
            try:
                ended = [batch for batch in left if self._collect(batch)]
                heard = time.monotonic()
            except (APIConnectionError, InternalServerError, RateLimitError, TransportError) as error:
                if time.monotonic() - heard > self._endpoint.give_up_after_minutes * 60:
                    raise
                ended = []
                progress.waiting = f"the Batch API does not answer ({type(error).__name__})"
            left = [batch for batch in left if batch in self._journal.batches]
            progress.spent = self._limit.describe()
            self._chat.show(progress)
            if left and not ended:
                time.sleep(self._poll_seconds)

    def _write_batches(self, requests: Iterator[Request], step: str, batches: list[str]) -> Cost | None:
        """Write what is neither answered nor in a batch to batch files; return the first cost over the limit."""
        under_way = {request.key for batch in batches for request, _ in _asked(self._folder, batch)}
        self._folder.mkdir(exist_ok=True)
        with ExitStack() as stack:
            files: dict[str, _BatchFile] = {}  # the lines of a batch name one model
            over_limit = None
            for request in requests:
                if self._journal.has(request) or request.key in under_way:
                    continue
                worst = self._chat.worst_case(request)
                if not self._limit.fits(worst):
                    over_limit = worst
                    break
                self._limit.set_aside(worst)
                content = {"custom_id": request.key, "method": "POST", "url": URL, "body": self._chat.body(request)}
                line = json.dumps(content).encode() + b"\n"
                file = files.get(request.model)
                if file is None or not file.has_room(len(line)):
                    if file is not None:
                        batches.append(self._written(file, step))
                    file = files[request.model] = _BatchFile(self._folder, stack)
                file.add(line, request, worst)
            batches += [self._written(file, step) for file in files.values()]
        return over_limit

    def _written(self, file: _BatchFile, step: str) -> str:
        """Have a batch file on the disk before the journal says so; return the batch's name."""
        for one in file.files:
            one.flush()
            os.fsync(one.fileno())
            one.close()
        self._note(file.name, "written", step=step)
        return file.name

    def _submit(self, batch: str) -> None:
        """Upload and submit a batch unless that was done before."""
        known, batches, batch_id = self._journal.batches[batch], self._openai.batches, None
        if "batch_id" in known:
            return
        if "file_id" in known:  # perhaps submitted and not written down
            named = (one.id for one in batches.list(limit=100) if (one.metadata or {}).get(METADATA_KEY) == batch)
            batch_id = next(named, None)
        else:
            with (self._folder / f"{batch}.jsonl").open("rb") as file:
                self._note(batch, "uploaded", file_id=self._openai.files.create(file=file, purpose="batch").id)
        if batch_id is None:
            metadata = {METADATA_KEY: batch}
            batch_id = batches.create(
                input_file_id=known["file_id"], endpoint=URL, completion_window="24h", metadata=metadata
            ).id
        self._note(batch, "submitted", batch_id=batch_id)

    def _collect(self, batch: str) -> bool:
        """Journal the answers of a batch if it has ended; return whether it has."""
        known, progress = self._journal.batches[batch], self._chat.progress
        state = self._openai.batches.retrieve(known["batch_id"])
        if state.status not in ENDED:
            return False
        answers: dict[str, tuple[Path, int]] = {}
        self._damaged = False
        for kind, file_id in (("output", state.output_file_id), ("errors", state.error_file_id)):
            if file_id:
                answers |= self._download(file_id, self._folder / f"{batch}.{kind}")
        for request, worst in _asked(self._folder, batch):
            if not self._journal.has(request):
                where = answers.get(request.key)
                self._limit.settle(worst, self._journal_answer(request, worst, where))
                progress.done += self._journal.has(request) and known["step"] == progress.step
        self._note(batch, "collected")
        self._delete_files(lambda name: name == batch)
        if state.status == "failed":
            said = "; ".join(error.message or "" for error in (state.errors.data if state.errors else None) or [])
            self._problem = (
                f", and the provider refused batch {known['batch_id']}: {said.replace(self._api_key, '[key]')[:500]}"
            )
        return True

    def _download(self, file_id: str, path: Path) -> dict[str, tuple[Path, int]]:
        """Write an output or error file; return by key where the line of each request begins.

        The key is found in a damaged line, too, unless it is the key that is damaged.
        """
        key, rest = self._api_key.encode(), b""
        places = {}
        with self._openai.files.with_streaming_response.content(file_id) as response, path.open("wb") as file:
            for part in chain(response.iter_bytes(), [b"\n"]):
                *lines, rest = (rest + part).split(b"\n")
                for line in filter(None, map(bytes.strip, lines)):
                    if found := _CUSTOM_ID.search(line):
                        places[found[1].decode()] = path, file.tell()
                    self._damaged |= found is None
                    file.write(line.replace(key, b"[key]") + b"\n")
        return places

    def _journal_answer(self, request: Request, worst: Cost, where: tuple[Path, int] | None) -> Cost | None:
        """Journal what a batch says of a request, and return its cost; None where it is not billed."""
        if where is None:
            if not self._damaged:
                return None
            outcome = Outcome("maybe paid", body="a line of the batch's output is damaged")
        else:
            outcome = _outcome(*where)
        if outcome.kind not in ("answered", "rejected", "maybe paid"):
            return None
        cost = Cost(0, 0.0) if outcome.kind == "rejected" else self._chat.cost(request, outcome, worst)
        fields = {"refused": True} if outcome.kind == "rejected" else {"usage": outcome.answer.get("usage")}
        status = "maybe paid" if outcome.kind == "maybe paid" else "answered"
        self._journal.append(request_record(request, status, cost.tokens, cost.usd, body=outcome.body, **fields))
        return cost

    def _note(self, batch: str, event: str, **fields: str) -> None:
        self._journal.append({"status": "batch", "event": event, "batch": batch, **fields})
        self._journal.sync()

    def _delete_files(self, of_batch: Callable[[str], bool]) -> None:
        for path in self._folder.glob("*.*"):
            if of_batch(path.stem):
                path.unlink()


def give_up_batches(folder: Path) -> int:
    """Wait no more for the batches of a journal's folder; what they ask for may have been paid and is asked again.

    Returns:
        How many batches that are.
    """
    with Journal(folder) as journal:
        batches = dict(journal.batches)
        for batch, known in batches.items():
            if "file_id" in known:  # else never submitted
                for request, worst in _asked(folder / "batches", batch):
                    if not journal.has(request):
                        why = "its batch was given up"
                        journal.append(request_record(request, "maybe paid", worst.tokens, worst.usd, body=why))
            journal.append({"status": "batch", "event": "collected", "batch": batch})
    return len(batches)


def _asked(folder: Path, batch: str) -> Iterator[tuple[Request, Cost]]:
    """Yield the requests of a batch, without messages and schema, and the most that each can cost."""
    with (folder / f"{batch}.asked").open(encoding="utf-8") as lines:
        for line in lines:
            step, index, key, model, about, tokens, usd = json.loads(line)
            yield Request(step, index, key, model, [], {}, about), Cost(tokens, usd)


def _outcome(path: Path, offset: int) -> Outcome:
    """Read one line of an output or error file; a damaged one costs that line."""
    with path.open("rb") as file:
        file.seek(offset)
        text = file.readline().decode(errors="replace")
    line = json_object(text)
    if not line:
        return Outcome("maybe paid", body=text)
    response = line.get("response")
    if not isinstance(response, dict):
        return classify(Response(0, json.dumps({"error": line.get("error")})), heard=True)
    status = response.get("status_code")
    return classify(Response(status if isinstance(status, int) else 0, json.dumps(response.get("body"))), heard=True)


class _BatchFile:
    """A batch file that is being written, and its .asked file: what it takes to journal the answers.

    The latter does not depend on what the recipe has become when they are collected.
    """

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.name = uuid4().hex
        self.files = [stack.enter_context((folder / f"{self.name}.{kind}").open("wb")) for kind in ("jsonl", "asked")]
        self._count = self._size = 0

    def has_room(self, size: int) -> bool:
        return self._count < MAX_REQUESTS and self._size + size <= MAX_BYTES

    def add(self, line: bytes, request: Request, worst: Cost) -> None:
        self._count += 1
        self._size += len(line)
        asked = request.step, request.index, request.key, request.model, request.about, worst.tokens, worst.usd
        self.files[0].write(line)
        self.files[1].write(json.dumps(asked).encode() + b"\n")
