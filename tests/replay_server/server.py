"""A real HTTP server: chat completions with faults and a bill; every answer is computed under one lock."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from hashlib import blake2b
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

from replay_server.batches import Batches
from replay_server.faults import ANSWERS, NOT_BILLED, Answer, Faults
from replay_server.made_up import prompt_text

BYTES_PER_TOKEN = 4
HTML = b"<html><head><title>502 Bad Gateway</title></head><body><h1>502 Bad Gateway</h1></body></html>"


class Reply(NamedTuple):
    """A reply before it goes on the wire; ``fault`` says how it is delivered, ``late`` in units of the latency."""

    status: int
    body: bytes
    headers: Mapping[str, str] = MappingProxyType({})
    content_type: str = "application/json"
    fault: str | None = None
    late: float = 0.0


class ReplayServer:
    """Serve OpenAI's chat completions, files and batches on 127.0.0.1 while the ``with`` block runs.

    Args:
        answer: maps the JSON body of a chat request to the text of its answer, or to a whole reply, which is not
            billed; ValueError becomes a 400.
        port: 0 takes a free one.
        latency: seconds from a request to its answer.
        faults: what goes wrong.
        log: JSONL file that a line is appended to for each billed request.
        require_key: the only API key that is let in; None lets all in.
        requests_per_minute: announced in an x-ratelimit header, not enforced.
    """

    def __init__(
        self,
        answer: Callable[[dict[str, Any]], str | Reply],
        *,
        port: int = 0,
        latency: float = 0.0,
        faults: Faults | None = None,
        log: Path | None = None,
        require_key: str | None = None,
        requests_per_minute: int | None = None,
    ) -> None:
        self.port = port
        self._answer, self._latency, self._faults, self._log = answer, latency, faults or Faults(), log
        self._require_key, self._requests_per_minute = require_key, requests_per_minute
        self._lock, self._stopped = threading.Lock(), threading.Event()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def stats(self) -> dict[str, Any]:
        """What GET /stats answers: requests received, answered and in flight, what was billed, faults."""
        with self._lock:
            return {**self._counts, "billed": dict(self._billed), "faults": dict(self._faulty)}

    def __enter__(self) -> Self:
        self._counts = {"received": 0, "answered": 0, "in_flight": 0}
        self._billed = {"requests": 0, "prompt_tokens": 0, "completion_tokens": 0}
        self._faulty: Counter[str] = Counter()
        self._ledger = None if self._log is None else os.open(self._log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._batches = Batches(self._faults, self._batch_line)
        self._server = _Server(("127.0.0.1", self.port), _handler(self))
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._server.shutdown()
        self._server.cut_connections()
        self._server.server_close()
        if self._ledger is not None:
            os.close(self._ledger)

    def handle(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        url = urlsplit(handler.path)
        if url.path == "/stats":
            _deliver(handler, _json(200, self.stats()))
            return
        key = handler.headers.get("authorization", "").removeprefix("Bearer ")
        refused = self._require_key is not None and key != self._require_key
        if url.path == "/v1/chat/completions":
            self._chat(handler, body, refused=refused)
        elif refused:
            _deliver(handler, _wrong_key(key))
        else:
            with self._lock:
                found = self._batches.reply(handler, body, url.path)
            if isinstance(found, bytes):
                _deliver(handler, Reply(200, found, content_type="application/octet-stream"))
            else:
                _deliver(handler, _json(200, found) if found else _error(404, f"Not found: {url.path}"))

    def _chat(self, handler: BaseHTTPRequestHandler, body: bytes, *, refused: bool) -> None:
        with self._lock:
            number = self._counts["received"]
            self._counts["received"] += 1
            self._counts["in_flight"] += 1
            reply = _wrong_key(handler.headers["authorization"]) if refused else self._reply(body, number)
        if reply.late and self._latency:
            self._stopped.wait(self._latency * reply.late)
        if reply.fault == "hang":
            handler.rfile.read()
        # Counted first: whoever has the answer may ask for the counts at once.
        with self._lock:
            self._counts["answered"] += reply.fault not in ("hang", "cut_before_headers", "cut_in_body")
            self._counts["in_flight"] -= 1
        if reply.fault in ("hang", "cut_before_headers"):
            handler.close_connection = True
        else:
            drip = self._stopped.wait if reply.fault == "drip" else None
            _deliver(handler, reply, cut=reply.fault == "cut_in_body", drip=drip)

    def _reply(self, content: bytes, number: int) -> Reply:
        fault, within = self._faults.draw(number)
        if fault == "quota" or fault in NOT_BILLED:
            self._faulty[fault] += 1
            return self._turned_away(fault, within)
        reply = self._completed(json.loads(content), fault)
        if reply.status != 200:
            return reply
        headers = {"x-request-id": f"req_{number:08x}"}
        if self._requests_per_minute:
            headers["x-ratelimit-limit-requests"] = str(self._requests_per_minute)
        late = self._faults.straggler_factor if fault == "straggler" else 1.0
        reply = reply._replace(headers=headers, fault=fault, late=late)
        page = reply._replace(body=HTML, content_type="text/html")
        return {"html": page, "gateway_timeout": page._replace(status=504)}.get(str(fault), reply)

    def _turned_away(self, fault: str, within: float) -> Reply:
        match fault:
            case "quota":
                return _error(429, "You exceeded your current quota.", "insufficient_quota")
            case "rate_limit":
                wait = self._faults.retry_after
                headers = {} if wait is None else {"retry-after": f"{wait:g}"}
                return _error(429, "Rate limit reached for requests.", "rate_limit_exceeded")._replace(headers=headers)
            case "server_error":
                status = (500, 502, 503)[int(3 * within)]
                if status == 502:
                    return Reply(502, HTML, content_type="text/html")
                return _error(status, "The server had an error while processing your request.")
        return _error(400, "Invalid request: this one was drawn to be refused.")

    def _batch_line(self, body: dict[str, Any], custom_id: str) -> tuple[int, Any]:
        """Answer a line of a batch; of the faults drawn from its custom_id, those of the answer happen."""
        fault, _ = self._faults.draw(int.from_bytes(blake2b(custom_id.encode(), digest_size=4).digest()))
        reply = self._completed(body, fault if fault in ANSWERS else None, custom_id)
        return reply.status, json.loads(reply.body)

    def _completed(self, body: dict[str, Any], fault: str | None, custom_id: str | None = None) -> Reply:
        problem = next(_problems(body, self._faults.reject_response_format), None)
        if problem is not None:
            return _error(400, problem)
        ignored = {"response_format"} if self._faults.ignore_response_format else set()
        try:
            text = self._answer({name: value for name, value in body.items() if name not in ignored})
        except ValueError as error:
            return _error(400, str(error))
        if isinstance(text, Reply):
            return text
        thoughts, limit = self._faults.thoughts, body.get("max_completion_tokens")
        answer = _cut(text, limit - thoughts if limit and thoughts < limit else limit)
        if fault is not None:
            self._faulty[fault] += 1
            answer = ANSWERS[fault](text) if fault in ANSWERS else answer
        prompt_tokens = _tokens(prompt_text(body["messages"])) + 4 * len(body["messages"])
        completion_tokens = _tokens(answer.content or answer.refusal or "")
        self._bill({"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens + thoughts}, custom_id)
        usage = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
        usage["total_tokens"] = prompt_tokens + completion_tokens + thoughts
        message = {"role": "assistant", "content": answer.content, "refusal": answer.refusal}
        completion = {
            "id": f"chatcmpl-{time.time_ns():x}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": body["model"],
            "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": answer.finish_reason}],
            "usage": dict.fromkeys(usage, 0) if self._faults.zero_usage else usage,
        }
        return _json(200, completion)

    def _bill(self, usage: dict[str, int], custom_id: str | None) -> None:
        """Count a computed answer and append its line by one write, so that a kill leaves no half line."""
        self._billed["requests"] += 1
        for name, count in usage.items():
            self._billed[name] += count
        if self._ledger is not None:
            os.write(self._ledger, json.dumps({**usage, "custom_id": custom_id}).encode() + b"\n")


class _Server(ThreadingHTTPServer):
    request_queue_size = 1024
    daemon_threads = False  # joined by server_close

    def __init__(self, *arguments: Any) -> None:
        self._connections: set[socket.socket] = set()
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def cut_connections(self) -> None:
        for connection in list(self._connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # the client has gone


def _handler(server: ReplayServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # head and body leave together

        def do_POST(self) -> None:
            server.handle(self, self.rfile.read(int(self.headers["content-length"])))

        def do_GET(self) -> None:
            server.handle(self, b"")

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


def _deliver(
    handler: BaseHTTPRequestHandler,
    reply: Reply,
    *,
    cut: bool = False,
    drip: Callable[[float], bool] | None = None,
) -> None:
    handler.send_response(reply.status)
    for name, value in {"content-type": reply.content_type, **reply.headers}.items():
        handler.send_header(name, value)
    handler.send_header("content-length", str(len(reply.body)))
    handler.end_headers()
    for byte in reply.body if drip else b"":  # until the client has gone
        handler.wfile.write(bytes([byte]))
        handler.wfile.flush()
        drip(0.1)
    if not drip:
        handler.wfile.write(reply.body[: len(reply.body) // 2] if cut else reply.body)
    handler.close_connection = handler.close_connection or cut


def _json(status: int, value: Any) -> Reply:
    return Reply(status, json.dumps(value).encode())


def _error(status: int, message: str, code: str | None = None) -> Reply:
    return _json(status, {"error": {"message": message, "type": "invalid_request_error", "code": code}})


def _wrong_key(given: str) -> Reply:
    return _error(401, f"Incorrect API key provided: {given[:10]}****.", "invalid_api_key")


def _tokens(text: str) -> int:
    return max(1, -(-len(text.encode()) // BYTES_PER_TOKEN))


def _cut(text: str, limit: int | None) -> Answer:
    """The answer as far as ``limit`` tokens go."""
    if limit is None or _tokens(text) <= limit:
        return Answer(text)
    return Answer(text.encode()[: limit * BYTES_PER_TOKEN].decode(errors="ignore"), finish_reason="length")


def _problems(body: dict[str, Any], rejected: tuple[str, ...]) -> Iterator[str]:
    """What OpenAI would refuse about a request."""
    if not isinstance(body.get("model"), str) or not body.get("messages"):
        yield "you must provide a model and messages"
    wanted = body.get("response_format") or {"type": "text"}
    kind = wanted["type"]
    if kind in rejected or kind not in ("text", "json_object", "json_schema"):
        yield f"Invalid parameter: 'response_format' of type '{kind}' is not supported with this model."
    if kind == "json_object" and "json" not in prompt_text(body["messages"]).lower():
        yield "'messages' must contain the word 'json' in some form, to use 'response_format' of type 'json_object'."
    inside = [wanted["json_schema"]["schema"]] if kind == "json_schema" else []
    while inside:
        part = inside.pop()
        properties = part.get("properties", {})
        if part["type"] == "object" and part.get("additionalProperties") is not False:
            yield "Invalid schema: 'additionalProperties' is required to be supplied and to be false."
        if part["type"] == "object" and sorted(part.get("required", [])) != sorted(properties):
            yield "Invalid schema: 'required' is required to be supplied and to name every key in properties."
        inside += [*properties.values(), *([part["items"]] if "items" in part else [])]
