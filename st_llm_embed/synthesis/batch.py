"""OpenAI's Batch API: the same requests and keys, cheaper, within 24 hours.

Every step of a batch is journaled before the next call: written, uploaded, submitted, collected. A process killed
anywhere goes on: an upload is repeated, which costs nothing; a batch that was submitted and not written down is found by
its metadata; collecting again skips what the journal has.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from st_llm_embed.errors import InputError
from st_llm_embed.recipe import Endpoint
from st_llm_embed.synthesis.budget import Budget, Cost
from st_llm_embed.synthesis.exchange import format_fields
from st_llm_embed.synthesis.journal import Journal, read_journal, request_record
from st_llm_embed.synthesis.parsing import completion_of
from st_llm_embed.synthesis.plan import Request
from st_llm_embed.synthesis.progress import Progress

if TYPE_CHECKING:
    pass

MAX_REQUESTS, MAX_BYTES = 50_000, 200_000_000
"""Of one batch file (openai.types.BatchCreateParams)."""
POLL_SECONDS = 30.0
READ_RETRIES = 8
"""Calls that change nothing are repeated by the SDK."""
ENDED = {"completed", "expired", "cancelled", "failed"}
METADATA_KEY = "st_llm_embed_batch"


@dataclass
class Batch:
    """Requests of one model, and how far they have come."""

    name: str
    """Sent as metadata, so that a submitted batch can be found again."""
    step: str
    path: Path
    """The batch file, one request a line."""
    keys: set[str] = field(default_factory=set)
    file_id: str | None = None
    batch_id: str | None = None


class BatchClient:
    """Sends the requests of one run through the Batch API."""

    def __init__(
        self,
        endpoint: Endpoint,
        base_url: str,
        api_key: str,
        journal: Journal,
        budget: Budget,
        *,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        """Prepare; nothing is sent. The arguments are those of `Client`; batch files lie beside the journal."""
        self._endpoint, self._base_url, self._api_key = endpoint, base_url, api_key
        self._journal, self._budget = journal, budget
        self._folder = journal.path.parent / "batches"
        self._poll_seconds = poll_seconds

    def answer(
        self, requests: Callable[[], Iterator[Request]], progress: Progress, show: Callable[[Progress], None]
    ) -> None:
        """Have every request answered that the journal has no answer to; hours may pass.

        Args:
            requests: gives the planned requests from the first one on.
            progress: kept up to date.
            show: called with it whenever the batches were looked at.

        Raises:
            InputError: the limit is reached, or batches fail; what was answered is in the journal.
        """
        from openai import OpenAI, OpenAIError

        with OpenAI(base_url=self._base_url, api_key=self._api_key, max_retries=0) as self._openai:
            try:
                self._answer(requests, progress, show)
            except OpenAIError as error:
                said = " ".join(str(error).replace(self._api_key, "[key]").split())
                raise InputError(
                    f"The Batch API of {self._base_url} answers: {said}. Everything submitted is written down; run the "
                    "same command again to go on."
                ) from None

    def _answer(
        self, requests: Callable[[], Iterator[Request]], progress: Progress, show: Callable[[Progress], None]
    ) -> None:
        batches = self._open_batches(progress.step)
        under_way = set[str]().union(*(batch.keys for batch in batches))
        for request in requests():
            if request.key in under_way:
                self._budget.reserve_submitted(request)
            progress.done += self._has(request)
        progress.done_before = progress.done
        while True:
            left_out = self._write_batches(requests(), progress.step, batches)
            if not batches:
                break
            answered_before = progress.done
            for batch in batches:
                self._submit(batch)
            while batches:
                ended = [batch for batch in batches if self._collect(batch, requests, progress)]
                batches = [batch for batch in batches if batch not in ended]
                progress.spent = self._budget.describe()
                progress.waiting = f"{len(batches)} batches are being answered" if batches else ""
                show(progress)
                if batches and not ended:
                    time.sleep(self._poll_seconds)
            if progress.done == answered_before:
                raise InputError(
                    f"The last batches answered none of the {progress.planned - progress.done:,} requests that are left. "
                    "Look at them in the provider's console; the same command submits these requests anew."
                )
        if left_out is not None:
            raise self._budget.reached(left_out, progress)

    def _write_batches(self, requests: Iterator[Request], step: str, batches: list[Batch]) -> Request | None:
        """Write what is neither answered nor under way to batch files; give a request that the limit leaves out."""
        under_way = set[str]().union(*(batch.keys for batch in batches))
        lines: dict[str, list[bytes]] = defaultdict(list)
        sizes: dict[str, int] = defaultdict(int)
        for request in requests:
            if request.key in under_way or self._has(request):
                continue
            if self._budget.reserve(request) is None:
                break
            line = self._line(request)
            model = request.model  # the lines of a batch name one model
            if len(lines[model]) == MAX_REQUESTS or sizes[model] + len(line) > MAX_BYTES:
                batches.append(self._write_batch(lines.pop(model), step))
                sizes[model] = 0
            lines[model].append(line)
            sizes[model] += len(line)
        else:
            request = None
        batches += [self._write_batch(left, step) for left in lines.values() if left]
        return request

    def _line(self, request: Request) -> bytes:
        response_format = self._journal.formats[self._endpoint.base_url, request.model]
        body = {
            "model": request.model,
            "messages": request.messages,
            **self._endpoint.parameters,
            **format_fields(response_format, request.schema),
        }
        line = {"custom_id": request.key, "method": "POST", "url": "/v1/chat/completions", "body": body}
        return json.dumps(line).encode() + b"\n"

    def _write_batch(self, lines: list[bytes], step: str) -> Batch:
        self._folder.mkdir(exist_ok=True)
        first = json.loads(lines[0])["custom_id"]
        name = f"{len(list(self._folder.glob('*.jsonl'))):04d}-{first}"
        path = self._folder / f"{name}.jsonl"
        partial = path.with_suffix(".partial")
        partial.write_bytes(b"".join(lines))
        partial.replace(path)
        self._journal.append({"status": "batch", "event": "written", "batch": name, "step": step})
        return Batch(name, step, path, _keys(path))

    def _open_batches(self, step: str) -> list[Batch]:
        """Give the batches that the journal says were written and not collected."""
        batches: dict[str, Batch] = {}
        for record, _ in read_journal(self._journal.path):
            if record["status"] != "batch" or record["step"] != step:
                continue
            name = record["batch"]
            if record["event"] == "written":
                path = self._folder / f"{name}.jsonl"
                batches[name] = Batch(name, step, path, _keys(path))
            elif record["event"] == "uploaded":
                batches[name].file_id = record["file_id"]
            elif record["event"] == "submitted":
                batches[name].batch_id = record["batch_id"]
            else:
                del batches[name]
        return list(batches.values())

    def _submit(self, batch: Batch) -> None:
        """Upload and submit a batch unless that was done before."""
        if batch.batch_id is None and batch.file_id is not None:
            batch.batch_id = self._submitted_before(batch.name)
        if batch.file_id is None:
            with batch.path.open("rb") as file:
                batch.file_id = self._openai.files.create(file=file, purpose="batch").id
            self._note(batch, "uploaded", file_id=batch.file_id)
        if batch.batch_id is None:
            batch.batch_id = self._openai.batches.create(
                input_file_id=batch.file_id,
                endpoint="/v1/chat/completions",
                completion_window="24h",
                metadata={METADATA_KEY: batch.name},
            ).id
            self._note(batch, "submitted", batch_id=batch.batch_id)

    def _submitted_before(self, name: str) -> str | None:
        for batch in self._openai.with_options(max_retries=READ_RETRIES).batches.list(limit=100):
            if (batch.metadata or {}).get(METADATA_KEY) == name:
                return batch.id
        return None

    def _collect(self, batch: Batch, requests: Callable[[], Iterator[Request]], progress: Progress) -> bool:
        """Journal the answers of a batch if it has ended; say whether it has.

        Raises:
            InputError: the provider refused the batch as a whole.
        """
        openai = self._openai.with_options(max_retries=READ_RETRIES)
        state = openai.batches.retrieve(str(batch.batch_id))
        if state.status not in ENDED:
            return False
        answers: dict[str, tuple[Path, int]] = {}
        for kind, file_id in (("output", state.output_file_id), ("errors", state.error_file_id)):
            if file_id:
                path = batch.path.with_suffix(f".{kind}")
                with openai.files.with_streaming_response.content(file_id) as response:
                    response.stream_to_file(path)
                answers |= {key: (path, offset) for key, offset in _offsets(path)}
        for request in requests():
            if request.key in batch.keys:
                where = answers.get(request.key)
                cost = self._journal_line(request, *where) if where and not self._has(request) else None
                progress.done += cost is not None
                self._budget.settle(self._budget.worst_case(request), cost)
        self._note(batch, "collected")
        for path in self._folder.glob(f"{batch.name}.*"):
            if path != batch.path:
                path.unlink()
        if state.status == "failed":
            problems = "; ".join(error.message or "" for error in (state.errors.data if state.errors else None) or [])
            raise InputError(
                f"The provider refused batch {batch.batch_id}: {problems[:500]}. Nothing of it was billed. Mend "
                "synthesis.endpoint (model, parameters), or wait if it is a limit, and run the same command again."
            )
        return True

    def _journal_line(self, request: Request, path: Path, offset: int) -> Cost | None:
        """Journal one line of an output or error file; None where it is to be asked again."""
        with path.open("rb") as file:
            file.seek(offset)
            line: dict[str, Any] = json.loads(file.readline())
        response = line.get("response") or {}
        body = json.dumps(response.get("body") or {"error": line.get("error")})
        status = response.get("status_code")
        worst = self._budget.worst_case(request)
        if status == 200:
            usage = completion_of(body).get("usage")
            cost = self._budget.actual(request.model, usage, worst)
            fields = {"usage": usage, "request_id": response.get("request_id")}
        elif status in (400, 413, 422):
            cost, fields = Cost(0, 0.0), {}
        else:
            return None
        self._journal.append(request_record(request, "answered", cost.tokens, cost.usd, body=body, **fields))
        return cost

    def _note(self, batch: Batch, event: str, **fields: str) -> None:
        self._journal.append({"status": "batch", "event": event, "batch": batch.name, "step": batch.step, **fields})
        self._journal.sync()

    def _has(self, request: Request) -> bool:
        return self._journal.has(request.step, request.index, request.key)


def _keys(path: Path) -> set[str]:
    return {key for key, _ in _offsets(path)}


def _offsets(path: Path) -> Iterator[tuple[str, int]]:
    """Give the key of each line of a batch file and where the line begins."""
    offset = 0
    with path.open("rb") as lines:
        for line in lines:
            yield json.loads(line)["custom_id"], offset
            offset += len(line)
