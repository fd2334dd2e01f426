"""OpenAI's files and batches. The folder is all the state there is, so a server can be stopped and started again."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path
from typing import Any
from uuid import uuid4

from st_llm_embed.synthesis.replay.chat import Chat, Reply, error_reply, json_reply
from st_llm_embed.synthesis.replay.faults import Faults
from st_llm_embed.synthesis.replay.http1 import Request

ENDPOINT = "/v1/chat/completions"
MAX_LINES = 50_000
ENDED = ("completed", "failed", "expired", "cancelled")


class Batches:
    """Files and batches of one server.

    A batch moves on when it is looked at: ``faults.batch_polls`` GETs after its creation (one after its cancellation)
    its lines are answered and billed, all at once.

    Args:
        folder: ``files/ID`` holds a file's content; ``files/ID.json`` and ``batches/ID.json`` what the API says.
        chat: answers the lines.
        faults: how batches end.
    """

    def __init__(self, folder: Path, chat: Chat, faults: Faults) -> None:
        self._files = folder / "files"
        self._batches = folder / "batches"
        self._files.mkdir(parents=True, exist_ok=True)
        self._batches.mkdir(exist_ok=True)
        self._chat = chat
        self._faults = faults

    def reply(self, request: Request, path: str, query: dict[str, str]) -> Reply:
        """Reply to a request on /v1/files or /v1/batches, or with 404 to one on anything else."""
        match path.removeprefix("/v1/").split("/"):
            case "files", *rest:
                reply = self._file_reply(request, query, rest)
            case "batches", *rest:
                reply = self._batch_reply(request, query, rest)
            case _:
                reply = None
        return reply or error_reply(404, f"Not found: {request.method} {path}")

    def _file_reply(self, request: Request, query: dict[str, str], rest: list[str]) -> Reply | None:
        match request.method, *rest:
            case ("POST",):
                return self._upload(request)
            case ("GET",):
                return _page(self._files, query)
            case "GET", name if self._exists(self._files, name):
                return json_reply(_read(self._files, name))
            case "GET", name, "content" if self._exists(self._files, name):
                return Reply(200, (self._files / name).read_bytes(), content_type="application/octet-stream")
            case "DELETE", name if self._exists(self._files, name):
                (self._files / f"{name}.json").unlink()
                (self._files / name).unlink()
                return json_reply({"id": name, "object": "file", "deleted": True})
        return None

    def _batch_reply(self, request: Request, query: dict[str, str], rest: list[str]) -> Reply | None:
        match request.method, *rest:
            case ("POST",):
                return self._create(request.body)
            case ("GET",):
                return _page(self._batches, query)
            case "GET", name if self._exists(self._batches, name):
                return json_reply(self._polled(_read(self._batches, name)))
            case "POST", name, "cancel" if self._exists(self._batches, name):
                return self._cancel(_read(self._batches, name))
        return None

    @staticmethod
    def _exists(folder: Path, name: str) -> bool:
        return re.fullmatch(r"[\w-]+", name) is not None and (folder / f"{name}.json").exists()

    def _upload(self, request: Request) -> Reply:
        fields = _multipart(request.headers.get("content-type", ""), request.body)
        if "file" not in fields or fields.get("purpose", ("", b""))[1] != b"batch":
            return error_reply(400, "A multipart form with a 'file' and the purpose 'batch' is required.")
        filename, content = fields["file"]
        return json_reply(self._store(_new_name(self._files, "file-"), filename, content, "batch"))

    def _store(self, name: str, filename: str, content: bytes, purpose: str) -> dict[str, Any]:
        """Write a file; its description comes last, because it is what makes the file exist."""
        described = {
            "id": name,
            "object": "file",
            "bytes": len(content),
            "created_at": int(time.time()),
            "filename": filename,
            "purpose": purpose,
            "status": "processed",
        }
        (self._files / name).write_bytes(content)
        _write(self._files, described)
        return described

    def _create(self, content: bytes) -> Reply:
        try:
            wanted = json.loads(content)
        except ValueError:
            wanted = None
        if not isinstance(wanted, dict):
            return error_reply(400, "The body of the request must be a JSON object.")
        if wanted.get("endpoint") != ENDPOINT or wanted.get("completion_window") != "24h":
            return error_reply(400, f"endpoint must be '{ENDPOINT}' and completion_window '24h'.")
        if not self._exists(self._files, str(wanted.get("input_file_id"))):
            return error_reply(400, f"No such File object: {wanted.get('input_file_id')}", param="input_file_id")
        batch: dict[str, Any] = {
            "id": _new_name(self._batches, "batch_"),
            "object": "batch",
            "endpoint": ENDPOINT,
            "errors": None,
            "input_file_id": wanted["input_file_id"],
            "completion_window": "24h",
            "status": "validating",
            "output_file_id": None,
            "error_file_id": None,
            "created_at": int(time.time()),
            "expires_at": int(time.time()) + 24 * 3600,
            "request_counts": {"total": 0, "completed": 0, "failed": 0},
            "metadata": wanted.get("metadata"),
            "polls": 0,
        }
        _write(self._batches, batch)
        return json_reply(batch)

    def _cancel(self, batch: dict[str, Any]) -> Reply:
        if batch["status"] in ENDED:
            return error_reply(400, f"Cannot cancel a batch with status '{batch['status']}'.")
        batch |= {"status": "cancelling", "cancelling_at": int(time.time())}
        _write(self._batches, batch)
        return json_reply(batch)

    def _polled(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Move a batch on by one look at it."""
        if batch["status"] in ENDED:
            return batch
        batch["polls"] += 1
        if batch["status"] == "cancelling":
            self._end(batch, "cancelled")
        elif batch["polls"] >= self._faults.batch_polls:
            number = int(batch["id"].split("_")[1][:8])
            outcomes = self._faults.batch_outcomes
            self._end(batch, outcomes[number] if number < len(outcomes) else "completed")
        else:
            batch["status"] = "in_progress"
        _write(self._batches, batch)
        return batch

    def _end(self, batch: dict[str, Any], outcome: str) -> None:
        """Answer the lines of a batch and fill in its end."""
        now = int(time.time())
        file = self._files / batch["input_file_id"]
        lines, errors = _checked(file.read_bytes().splitlines() if file.exists() else [])
        if outcome == "failed" and not errors:
            errors = [_line_error(None, "invalid_request", "This batch was drawn to fail validation.")]
        if errors:
            batch |= {"status": "failed", "failed_at": now, "errors": {"object": "list", "data": errors}}
            return
        answered: list[str] = []
        failed: list[str] = []
        # By hash, as the real one's are: out of order.
        for line in sorted(lines, key=lambda line: _drawn("order", line["custom_id"])):
            result = self._result(line, outcome)
            good = result["error"] is None and result["response"]["status_code"] == 200
            (answered if good else failed).append(json.dumps(result) + "\n")
        for what, results in (("output", answered), ("error", failed)):
            if results:
                # Named after the batch, so that a second attempt after a kill writes the same files.
                name = f"file-{what}-{batch['id'].removeprefix('batch_')}"
                content = "".join(results).encode()
                self._store(name, f"{batch['id']}_{what}.jsonl", content, "batch_output")
                batch[f"{what}_file_id"] = name
        counts = {"total": len(lines), "completed": len(answered), "failed": len(failed)}
        batch |= {"status": outcome, f"{outcome}_at": now, "request_counts": counts}

    def _result(self, line: dict[str, Any], outcome: str) -> dict[str, Any]:
        name = line["custom_id"]
        result: dict[str, Any] = {"id": f"batch_req_{uuid4().hex}", "custom_id": name, "response": None, "error": None}
        if outcome != "completed" and _drawn("unfinished", name) < self._faults.batch_unfinished_share:
            result["error"] = {
                "code": f"batch_{outcome}",
                "message": f"This request was not executed before the batch was {outcome}.",
            }
            return result
        if _drawn("error", name) < self._faults.batch_error_share:
            reply = error_reply(500, "The server had an error while processing your request.", kind="server_error")
        else:
            reply = self._chat.batch_line(line["body"], name)
        result["response"] = {
            "status_code": reply.status,
            "request_id": uuid4().hex,
            "body": json.loads(reply.body),
        }
        return result


def _checked(lines: list[bytes]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The requests of an input file, and what OpenAI's validation would say about them."""
    requests: list[dict[str, Any]] = []
    errors: list[dict[str, Any]] = []
    seen: set[str] = set()
    if not 1 <= len(lines) <= MAX_LINES:
        errors.append(_line_error(None, "invalid_file", f"A file has 1 to {MAX_LINES} lines; this has {len(lines)}."))
    for number, line in enumerate(lines, 1):
        try:
            request = json.loads(line)
            name, body = request["custom_id"], dict(request["body"])
            sent_to = (request["method"], request["url"])
        except (ValueError, TypeError, KeyError):
            errors.append(_line_error(number, "invalid_json_line", "This line is not a request in JSON."))
            continue
        if sent_to != ("POST", ENDPOINT):
            errors.append(_line_error(number, "mismatched_url", f"This line is not a POST to {ENDPOINT}."))
        if not isinstance(name, str) or name in seen:
            errors.append(_line_error(number, "duplicate_custom_id", f"The custom_id {name!r} is used before."))
            continue
        if requests and body.get("model") != requests[0]["body"].get("model"):
            errors.append(_line_error(number, "mismatched_model", "All lines of a file have the same model."))
        seen.add(name)
        requests.append(request)
    return requests, errors


def _line_error(line: int | None, code: str, message: str) -> dict[str, Any]:
    return {"code": code, "message": message, "param": None, "line": line}


def _drawn(purpose: str, custom_id: str) -> float:
    return int.from_bytes(blake2b(f"{purpose} {custom_id}".encode(), digest_size=8).digest()) / 2**64


def _multipart(content_type: str, body: bytes) -> dict[str, tuple[str, bytes]]:
    """Fields of a form: name -> (file name, content)."""
    fields: dict[str, tuple[str, bytes]] = {}
    boundary = re.search(r'boundary="?([^";]+)', content_type)
    if boundary is None:
        return fields
    for part in (b"\r\n" + body).split(b"\r\n--" + boundary[1].encode("latin-1"))[1:-1]:
        head, _, content = part.partition(b"\r\n\r\n")
        names = dict(re.findall(r'(name|filename)="([^"]*)"', head.decode()))
        fields[names.get("name", "")] = (names.get("filename", ""), content)
    return fields


def _new_name(folder: Path, prefix: str) -> str:
    """A name that sorts after all in the folder and was never used before."""
    last = max(_names(folder, prefix + "0"), default=prefix + "00000000")
    taken = int(last.removeprefix(prefix)[:8]) + 1 if len(last) > len(prefix) + 8 else 0
    return f"{prefix}{taken:08d}{uuid4().hex[:16]}"


def _names(folder: Path, prefix: str = "") -> Iterable[str]:
    return [path.stem for path in folder.glob(f"{prefix}*.json")]


def _page(folder: Path, query: dict[str, str]) -> Reply:
    """One page of a list, newest first."""
    names = sorted(_names(folder), reverse=True)
    if "after" in query:
        names = [name for name in names if name < query["after"]]
    if not query.get("limit", "20").isdecimal():
        return error_reply(400, f"Invalid value for 'limit': {query['limit']!r}, expected an integer.")
    limit = int(query.get("limit", "20"))
    shown = [_read(folder, name) for name in names[:limit]]
    return json_reply(
        {
            "object": "list",
            "data": shown,
            "first_id": shown[0]["id"] if shown else None,
            "last_id": shown[-1]["id"] if shown else None,
            "has_more": len(names) > limit,
        }
    )


def _read(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


def _write(folder: Path, described: dict[str, Any]) -> None:
    path = folder / f"{described['id']}.json"
    unfinished = path.with_suffix(".part")
    unfinished.write_text(json.dumps(described), encoding="utf-8")
    unfinished.replace(path)
