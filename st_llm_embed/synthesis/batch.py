"""OpenAI's Batch API: the same requests and keys, cheaper, within 24 hours.

Every step of a batch is journaled before the next call: written, uploaded, submitted, collected. A killed process can
be resumed anywhere: an upload is repeated, which costs nothing; a batch that was submitted and not written down is
found by its metadata; collecting again skips what the journal has.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, Self
from uuid import uuid4

from st_llm_embed.api.budget import Cost
from st_llm_embed.api.exchange import json_object
from st_llm_embed.errors import InputError
from st_llm_embed.recipe import Endpoint
from st_llm_embed.synthesis.chat import ChatService
from st_llm_embed.synthesis.journal import RequestKeys, request_record
from st_llm_embed.synthesis.plan import Request

MAX_REQUESTS, MAX_BYTES = 50_000, 200_000_000
"""Of one batch file (openai.types.BatchCreateParams)."""
POLL_SECONDS = 30.0
ENDED = {"completed", "expired", "cancelled", "failed"}
URL: Final = "/v1/chat/completions"
METADATA_KEY = "st_llm_embed_batch"


@dataclass
class Batch:
    """Requests of one model, and how far they have come."""

    name: str
    """Sent as metadata, so that a submitted batch can be found again."""
    step: str
    file_id: str | None = None
    batch_id: str | None = None


@dataclass(frozen=True)
class Asked:
    """One request of a batch, as its .asked file keeps it: enough to journal the answer whatever the recipe is now."""

    request: Request
    """Without messages and schema."""
    worst: Cost


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

        Args:
            requests: returns the planned requests from the first one on.

        Raises:
            InputError: the limit is reached, or batches fail; what was answered is in the journal.
        """
        from httpx2 import TransportError
        from openai import OpenAI, OpenAIError

        with OpenAI(base_url=self._endpoint.base_url, api_key=self._api_key, max_retries=0) as self._openai:
            try:
                self._answer(requests)
            except (OpenAIError, TransportError) as error:
                said = " ".join(self._without_key(f"{error} {error.__cause__ or ''}").split())
            except KeyboardInterrupt:
                said = ""
            else:
                return
        # Outside of the handler, so that no traceback leads to the SDK's error, which may repeat the key.
        if not said:
            raise InputError("Stopped. The provider continues what was submitted; run the same command to collect it.")
        raise InputError(
            f"The Batch API of {self._endpoint.base_url} answers: {said[:500]}. Everything submitted is written down; "
            "run the same command again to resume."
        )

    def _answer(self, requests: Callable[[], Iterator[Request]]) -> None:
        progress = self._chat.progress
        self._delete_files(lambda name: name not in self._journal.batches)
        batches = [
            Batch(name, fields["step"], fields.get("file_id"), fields.get("batch_id"))
            for name, fields in self._journal.batches.items()
        ]
        for batch in batches:
            for asked in self._asked(batch):
                if not self._journal.has(asked.request):
                    self._limit.set_aside(asked.worst)
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
                    "limit, and run the same command again: it submits these requests again."
                )
            batches, resumed = [], False
        if over_limit is not None:
            raise self._chat.over_limit(over_limit)

    def _collect_all(self, batches: list[Batch]) -> None:
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
            left = [batch for batch in left if batch.name in self._journal.batches]
            progress.spent = self._limit.describe()
            self._chat.show(progress)
            if left and not ended:
                time.sleep(self._poll_seconds)

    def _write_batches(self, requests: Iterator[Request], step: str, batches: list[Batch]) -> Cost | None:
        """Write what is neither answered nor in a batch to batch files; return the first cost over the limit."""
        under_way = RequestKeys()
        for batch in batches:
            for asked in self._asked(batch):
                under_way.add(asked.request.step, asked.request.index, asked.request.key)
        self._folder.mkdir(exist_ok=True)
        with ExitStack() as stack:
            files: dict[str, _BatchFile] = {}  # the lines of a batch name one model
            over_limit = None
            for request in requests:
                if self._journal.has(request) or under_way.has(request):
                    continue
                worst = self._chat.worst_case(request)
                if not self._limit.fits(worst):
                    over_limit = worst
                    break
                self._limit.set_aside(worst)
                content = {"custom_id": request.key, "method": "POST", "url": URL, "body": self._chat.body(request)}
                line = json.dumps(content).encode() + b"\n"
                file = files.get(request.model)
                if file is not None and not file.has_room(len(line)):
                    batches.append(self._written(file, step))
                    file = None
                if file is None:
                    file = files[request.model] = stack.enter_context(_BatchFile(self._folder))
                file.add(line, request, worst)
            batches += [self._written(file, step) for file in files.values()]
        return over_limit

    def _written(self, file: _BatchFile, step: str) -> Batch:
        file.finish()
        batch = Batch(file.name, step)
        self._note(batch, "written")
        return batch

    def _submit(self, batch: Batch) -> None:
        """Upload and submit a batch unless that was done before."""
        if batch.batch_id is None and batch.file_id is not None:
            batch.batch_id = self._submitted_before(batch.name)
        if batch.file_id is None:
            with (self._folder / f"{batch.name}.jsonl").open("rb") as file:
                batch.file_id = self._openai.files.create(file=file, purpose="batch").id
            self._note(batch, "uploaded", file_id=batch.file_id)
        if batch.batch_id is None:
            batch.batch_id = self._openai.batches.create(
                input_file_id=batch.file_id,
                endpoint=URL,
                completion_window="24h",
                metadata={METADATA_KEY: batch.name},
            ).id
        if "batch_id" not in self._journal.batches[batch.name]:
            self._note(batch, "submitted", batch_id=batch.batch_id)

    def _submitted_before(self, name: str) -> str | None:
        for batch in self._openai.batches.list(limit=100):
            if (batch.metadata or {}).get(METADATA_KEY) == name:
                return batch.id
        return None

    def _collect(self, batch: Batch) -> bool:
        """Journal the answers of a batch if it has ended; return whether it has."""
        state = self._openai.batches.retrieve(str(batch.batch_id))
        if state.status not in ENDED:
            return False
        answers: dict[str, tuple[Path, int]] = {}
        for kind, file_id in (("output", state.output_file_id), ("errors", state.error_file_id)):
            if file_id:
                path = self._folder / f"{batch.name}.{kind}"
                self._download(file_id, path)
                answers |= {key: (path, offset) for key, offset in _offsets(path)}
        for asked in self._asked(batch):
            if not self._journal.has(asked.request):
                where = answers.get(asked.request.key)
                cost = self._journal_line(asked, *where) if where else None
                self._chat.progress.done += cost is not None and batch.step == self._chat.progress.step
                self._limit.settle(asked.worst, cost)
        self._note(batch, "collected")
        self._delete_files(lambda name: name == batch.name)
        if state.status == "failed":
            said = "; ".join(error.message or "" for error in (state.errors.data if state.errors else None) or [])
            self._problem = f", and the provider refused batch {batch.batch_id}: {self._without_key(said)[:500]}"
        return True

    def _download(self, file_id: str, path: Path) -> None:
        key, rest = self._api_key.encode(), b""
        with self._openai.files.with_streaming_response.content(file_id) as response, path.open("wb") as file:
            for part in response.iter_bytes():
                *lines, rest = (rest + part).split(b"\n")
                file.writelines(line.replace(key, b"[key]") + b"\n" for line in lines)
            file.write(rest.replace(key, b"[key]"))

    def _journal_line(self, asked: Asked, path: Path, offset: int) -> Cost | None:
        """Journal one line of an output or error file; None where it is to be asked again."""
        with path.open("rb") as file:
            file.seek(offset)
            line: dict[str, Any] = json.loads(file.readline())
        response = line.get("response") or {}
        body = json.dumps(response.get("body") or {"error": line.get("error")})
        status = response.get("status_code")
        fields: dict[str, Any] = {}
        if status == 200:
            usage = json_object(body).get("usage")
            cost = self._chat.cost(asked.request, usage, asked.worst)
            fields = {"usage": usage, "request_id": response.get("request_id")}
        elif status in (400, 413, 422):
            cost = Cost(0, 0.0)
        else:
            return None
        self._journal.append(request_record(asked.request, "answered", cost.tokens, cost.usd, body=body, **fields))
        return cost

    def _asked(self, batch: Batch) -> Iterator[Asked]:
        with (self._folder / f"{batch.name}.asked").open(encoding="utf-8") as lines:
            for line in lines:
                step, index, key, model, about, tokens, usd = json.loads(line)
                yield Asked(Request(step, index, key, model, [], {}, about), Cost(tokens, usd))

    def _note(self, batch: Batch, event: str, **fields: str) -> None:
        self._journal.append({"status": "batch", "event": event, "batch": batch.name, "step": batch.step, **fields})
        self._journal.sync()

    def _delete_files(self, of_batch: Callable[[str], bool]) -> None:
        for path in self._folder.glob("*.*"):
            if of_batch(path.stem):
                path.unlink()

    def _without_key(self, text: str) -> str:
        return text.replace(self._api_key, "[key]")


class _BatchFile:
    """A batch file that is being written, and its .asked file."""

    def __init__(self, folder: Path) -> None:
        self.name = uuid4().hex
        self._paths = folder / f"{self.name}.jsonl", folder / f"{self.name}.asked"
        self._count = self._size = 0

    def __enter__(self) -> Self:
        self._files: tuple[IO[bytes], ...] = tuple(path.open("wb") for path in self._paths)
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.close()

    def has_room(self, size: int) -> bool:
        return self._count < MAX_REQUESTS and self._size + size <= MAX_BYTES

    def add(self, line: bytes, request: Request, worst: Cost) -> None:
        """Add a request."""
        self._count += 1
        self._size += len(line)
        asked = request.step, request.index, request.key, request.model, request.about, worst.tokens, worst.usd
        for file, content in zip(self._files, (line, json.dumps(asked).encode() + b"\n"), strict=True):
            file.write(content)

    def finish(self) -> None:
        """Have everything on the disk, before the journal says so."""
        for file in self._files:
            file.flush()
            os.fsync(file.fileno())
            file.close()


def _offsets(path: Path) -> Iterator[tuple[str, int]]:
    """Yield the key of each line of a batch file and where the line begins."""
    offset = 0
    with path.open("rb") as lines:
        for line in lines:
            yield json.loads(line)["custom_id"], offset
            offset += len(line)
