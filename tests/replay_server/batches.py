"""OpenAI's files and batches, kept in memory."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from email.parser import BytesParser
from hashlib import blake2b
from http.server import BaseHTTPRequestHandler
from typing import Any

from replay_server.faults import Faults

ENDPOINT = "/v1/chat/completions"
MAX_LINES = 50_000
UNFINISHED_SHARE = 0.5
"""Of the lines of an expired batch."""
ENDED = ("completed", "failed", "expired")


class Batches:
    """Files and batches of one server.

    A batch moves on when it is looked at: ``faults.batch_polls`` GETs after its creation its lines are answered and
    billed, all at once.

    Args:
        faults: how batches end.
        answer: maps the body and custom_id of a line to status and body of its answer.
    """

    def __init__(self, faults: Faults, answer: Callable[[dict[str, Any], str], tuple[int, Any]]) -> None:
        self._faults, self._answer = faults, answer
        self._files: dict[str, bytes] = {}
        self._batches: dict[str, dict[str, Any]] = {}
        self._polls: dict[str, int] = {}

    def reply(self, request: BaseHTTPRequestHandler, body: bytes, path: str) -> dict[str, Any] | bytes | None:
        """Reply to a request on /v1/files or /v1/batches; None to one on anything else."""
        match [request.command, *path.removeprefix("/v1/").split("/")]:
            case ["POST", "files"]:
                head = f"Content-Type: {request.headers['content-type']}\r\n\r\n".encode()
                form = BytesParser().parsebytes(head + body)
                fields = {part.get_param("name", header="content-disposition"): part for part in form.get_payload()}
                assert fields["purpose"].get_payload() == "batch"
                return self._store(fields["file"].get_payload(decode=True))
            case ["GET", "files", name, "content"] if name in self._files:
                return self._files[name]
            case ["POST", "batches"]:
                return self._create(json.loads(body))
            case ["GET", "batches"]:
                return {"object": "list", "data": [*reversed(self._batches.values())], "has_more": False}
            case ["GET", "batches", name] if name in self._batches:
                return self._polled(self._batches[name])
        return None

    def _store(self, content: bytes) -> dict[str, Any]:
        name = f"file-{len(self._files):08d}"
        self._files[name] = content
        return self._described(name)

    def _described(self, name: str) -> dict[str, Any]:
        size = len(self._files[name])
        described = {"id": name, "object": "file", "bytes": size, "created_at": 0, "filename": f"{name}.jsonl"}
        return described | {"purpose": "batch", "status": "processed"}

    def _create(self, wanted: dict[str, Any]) -> dict[str, Any]:
        assert (wanted["endpoint"], wanted["completion_window"]) == (ENDPOINT, "24h")
        assert wanted["input_file_id"] in self._files
        name = f"batch_{len(self._batches):08d}"
        self._polls[name] = 0
        self._batches[name] = {
            **wanted,
            "id": name,
            "object": "batch",
            "errors": None,
            "status": "validating",
            "output_file_id": None,
            "error_file_id": None,
            "created_at": int(time.time()),
        }
        return self._batches[name]

    def _polled(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Move a batch on by one look at it."""
        if batch["status"] not in ENDED:
            self._polls[batch["id"]] += 1
            batch["status"] = "in_progress"
            if self._polls[batch["id"]] >= self._faults.batch_polls:
                number, outcomes = int(batch["id"].removeprefix("batch_")), self._faults.batch_outcomes
                self._end(batch, outcomes[number] if number < len(outcomes) else "completed")
        return batch

    def _end(self, batch: dict[str, Any], outcome: str) -> None:
        """Answer the lines of a batch and fill in its end."""
        lines = [json.loads(line) for line in self._files[batch["input_file_id"]].splitlines()]
        problem = _problem(lines) or ("This batch was drawn to fail validation." if outcome == "failed" else None)
        if problem:
            error = {"code": "invalid_request", "message": problem, "param": None, "line": None}
            batch |= {"status": "failed", "errors": {"object": "list", "data": [error]}}
            return
        results: dict[str, list[dict[str, Any]]] = {"output": [], "error": []}
        # By hash, as the real one's are: out of order.
        for line in sorted(lines, key=lambda line: _drawn("order", line["custom_id"])):
            result = self._result(line, outcome)
            good = result["response"] is not None and result["response"]["status_code"] == 200
            results["output" if good else "error"].append(result)
        for what, found in results.items():
            if found:
                content = [json.dumps(result) for result in found]
                if outcome == "damaged":
                    content[:2] = [content[0][: len(content[0]) // 2], "\0"]
                batch[f"{what}_file_id"] = self._store("".join(f"{line}\n" for line in content).encode())["id"]
        batch["status"] = "completed" if outcome == "damaged" else outcome

    def _result(self, line: dict[str, Any], outcome: str) -> dict[str, Any]:
        name = line["custom_id"]
        result: dict[str, Any] = {"id": f"batch_req_{name}", "custom_id": name, "response": None, "error": None}
        if outcome == "expired" and _drawn("unfinished", name) < UNFINISHED_SHARE:
            error = {"code": "batch_expired", "message": "This request was not executed before the batch expired."}
            return result | {"error": error}
        if _drawn("error", name) < self._faults.batch_error_share:
            status, body = 500, {"error": {"message": "The server had an error while processing your request."}}
        else:
            status, body = self._answer(line["body"], name)
        return result | {"response": {"status_code": status, "request_id": f"req_{name}", "body": body}}


def _problem(lines: list[dict[str, Any]]) -> str | None:
    """What OpenAI's validation would say about an input file."""
    if not 1 <= len(lines) <= MAX_LINES:
        return f"A file has 1 to {MAX_LINES} lines; this has {len(lines)}."
    if any((line["method"], line["url"]) != ("POST", ENDPOINT) for line in lines):
        return f"A line is not a POST to {ENDPOINT}."
    if len({line["custom_id"] for line in lines}) < len(lines):
        return "A custom_id is used twice."
    if len({line["body"]["model"] for line in lines}) > 1:
        return "All lines of a file have the same model."
    return None


def _drawn(purpose: str, custom_id: str) -> float:
    return int.from_bytes(blake2b(f"{purpose} {custom_id}".encode(), digest_size=8).digest()) / 2**64
