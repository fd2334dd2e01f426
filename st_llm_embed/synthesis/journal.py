"""The journal: every answer that was paid for, written down before anything else happens to it.

One file of JSON lines, only ever appended to, one write per record; a killed process leaves at most a torn last line,
which is cut off when the journal is opened again. `sync` has the disk write what was appended; it is called before
each request is sent, so that neither a kill nor a loss of power hides what may have been paid.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Self

from st_llm_embed.api.budget import NOTHING, Cost
from st_llm_embed.errors import InputError
from st_llm_embed.processes import held_alone
from st_llm_embed.synthesis.plan import Request
from st_llm_embed.synthesis.prompts import PROMPT_VERSION

HEADROOM = 1.5
"""Times the dearest answer of a server that does not keep to a worst case is expected beyond one."""

_BODY = b',"body":"'
"""Begins the last field of a record; within a JSON string the quotes would be escaped."""


class Journal:
    """The answers in one folder; a context manager that holds the folder's lock.

    A record has ``status`` and, where they apply, ``step``, ``index``, ``key``, ``model``, ``usd``, ``tokens``,
    ``about`` and, always last, ``body``. Status `sent` is written before a request leaves, with the most it can cost;
    then comes `answered`, an answer, good or bad (``refused`` where the server would not), `maybe paid`, a request
    whose answer never came, or `not billed`. `format` is how a model is made to answer in JSON; `batch` how far a
    batch has come; `ask again` has what was refused up to there asked for again.
    """

    def __init__(self, folder: Path) -> None:
        """Name the folder; nothing is read or written before the context is entered."""
        self.path = folder / "answers.jsonl"
        self._held = ExitStack()
        """The folder's lock and the open file, while the context is entered."""
        self._answered: dict[str, str] = {}
        """The step of each request that has an answer, by its key."""
        self._refused: set[str] = set()
        self._sent: dict[str, dict[str, Any]] = {}
        """The records of requests in flight, by key."""
        self.excess: dict[str, Cost] = {}
        """By what bounds an answer, what to expect beyond its worst case where one has cost more, with headroom."""
        self._syncing = threading.Lock()
        self.unsynced = 0
        """Records appended since the last `sync`."""
        self.formats: dict[tuple[str, str], Any] = {}
        """By address and model, how it is made to answer in JSON."""
        self.batches: dict[str, dict[str, Any]] = {}
        """Batches that were written and not collected, by name: the fields of their records together."""
        self.usd = 0.0
        self.tokens = 0
        """Spent so far, for prompts and answers; what may have been paid counts with its worst case."""

    def __enter__(self) -> Self:
        """Take the lock, read the records, and cut off a torn last line.

        What was in flight when an earlier process was killed may have been paid: it is written down as such.

        Raises:
            InputError: another process has the journal, or a line inside it is damaged.
        """
        with ExitStack() as held:
            held.enter_context(held_alone(self.path.parent, "choose another folder"))
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            held.callback(os.close, self._fd)
            end = 0
            for record, size in read_journal(self.path):
                self._note(record)
                end += size
            os.ftruncate(self._fd, end)
            if end and os.pread(self._fd, 1, end - 1) != b"\n":  # whole but for its end
                os.write(self._fd, b"\n")
            for key, sent in list(self._sent.items()):
                killed = {name: sent[name] for name in ("step", "index", "model")}
                killed |= dict(zip(("tokens", "usd"), sent["at_most"], strict=True))
                self.append({"status": "maybe paid", "key": key, **killed, "body": "the process was killed"})
            # Until the context is left; what goes wrong before gives all back.
            self._held = held.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """Write everything to the disk and release the lock."""
        with self._held:
            self.sync()

    def append(self, record: dict[str, Any]) -> None:
        """Write one record; when this returns, a kill of the process cannot lose it.

        Raises:
            OSError: the disk is full; the journal is as it was.
        """
        line = json.dumps(record, separators=(",", ":")).encode() + b"\n"
        written = 0
        try:
            while written < len(line):
                written += os.write(self._fd, line[written:])
        except OSError:
            os.ftruncate(self._fd, os.fstat(self._fd).st_size - written)
            raise
        self.unsynced += 1
        self._note(record)

    def begin(self, request: Request, worst: Cost, bound: str) -> None:
        """Write down that a request is about to be sent; it counts as spent if nothing more is written of it.

        Args:
            request: what is sent.
            worst: the most that it can cost, `excess` included.
            bound: what bounds its answer, such as the model and a parameter.
        """
        named = {name: getattr(request, name) for name in ("key", "step", "index", "model")}
        self.append({"status": "sent", **named, "bound": bound, "at_most": [worst.tokens, worst.usd]})

    def sync(self) -> None:
        """Have the disk write what was appended; takes milliseconds. Of threads that call it, one writes for all."""
        with self._syncing:
            if self.unsynced:
                self.unsynced = 0
                os.fsync(self._fd)

    def has(self, request: Request) -> bool:
        """Return whether the request has been answered."""
        return request.key in self._answered

    def answers(self, step: str) -> int:
        """Return how many requests of a step have been answered, those of earlier recipes included."""
        return sum(one == step for one in self._answered.values())

    def ask_again(self) -> int:
        """Have what the server refused asked for again; return how many requests that are."""
        count = len(self._refused)
        if count:
            self.append({"status": "ask again"})
        return count

    def _note(self, record: dict[str, Any]) -> None:
        status = record["status"]
        if status == "sent":
            self._sent[record["key"]] = record
            return
        self.usd += record.get("usd", 0.0)
        self.tokens += record.get("tokens", 0)
        sent = self._sent.pop(record.get("key", ""), None)
        if sent and "tokens" in record:
            cost = Cost(record["tokens"], record["usd"])
            if cost.per(Cost(*sent["at_most"])) > 1:
                known = self.excess.get(sent["bound"], NOTHING)
                # Not in proportion to the prompt: thoughts are as long whatever it is.
                self.excess[sent["bound"]] = known.or_more(cost * HEADROOM)
        if status == "answered":
            self._answered[record["key"]] = record["step"]
            if record.get("refused"):
                self._refused.add(record["key"])
            else:
                self._refused.discard(record["key"])
        elif status == "ask again":
            for key in self._refused:
                del self._answered[key]
            self._refused.clear()
        elif status == "format":
            self.formats[record["base_url"], record["model"]] = record["format"]
        elif status == "batch" and record["event"] == "collected":
            self.batches.pop(record["batch"], None)
        elif status == "batch":
            self.batches.setdefault(record["batch"], {}).update(record)


def request_record(
    request: Request, status: str, tokens: int, usd: float, *, body: str, **fields: Any
) -> dict[str, Any]:
    """Return the record of what became of a request.

    `status` is `answered`, `maybe paid` or `not billed`, `tokens` are those of prompt and answer, `body` is the
    response's body as it came, or why there is none.
    """
    return {
        "step": request.step,
        "index": request.index,
        "key": request.key,
        "status": status,
        "model": request.model,
        "prompt_version": PROMPT_VERSION,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "tokens": tokens,
        "usd": usd,
        "about": request.about,
        **fields,
        "body": body,
    }


def read_journal(path: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """Read the records of a journal as they were written, each without its body and with its size in bytes.

    Bodies are most of a journal and are skipped unparsed; a torn last line is passed over. A damaged line raises an
    InputError.
    """
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            head, _, body = line.partition(_BODY)
            record = (_record(head + b"}") if body.endswith(b'"}\n') else None) or _record(line)
            if record is not None:
                yield record, len(line)
            elif line.endswith(b"\n"):
                raise _damaged(f"{path}, line {number}", line)


def answer_offsets(path: Path, step: str) -> dict[str, int]:
    """Return where the last answer to each request of a step begins in a journal, by the request's key."""
    offsets: dict[str, int] = {}
    offset = 0
    for record, size in read_journal(path):
        if record["status"] == "answered" and record["step"] == step:
            offsets[record["key"]] = offset
        offset += size
    return offsets


def read_answers(path: Path, step: str, requests: Iterable[Request]) -> Iterator[dict[str, Any]]:
    """Yield the whole records of the answers that a journal has to requests of one step, in their order."""
    offsets = answer_offsets(path, step)
    with path.open("rb") as journal:
        for request in requests:
            if not offsets:
                return
            offset = offsets.pop(request.key, None)
            if offset is not None:
                yield read_record(journal, offset)


def read_record(journal: BinaryIO, offset: int) -> dict[str, Any]:
    """Read the whole record at an offset of an open journal; raise an InputError if the line is damaged."""
    journal.seek(offset)
    line = journal.readline()
    record = _record(line)
    if record is None:
        raise _damaged(f"The line at byte {offset:,} of {journal.name}", line)
    return record


def _damaged(where: str, line: bytes) -> InputError:
    return InputError(
        f"{where} is damaged: {line[:80]!r}. Nothing but st-llm-embed may write to the journal; remove the line and "
        "run again to ask for what it held."
    )


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and isinstance(record.get("status"), str) else None
