"""A real HTTP server in a daemon thread: connections, routes, and how a reply is delivered."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit

from st_llm_embed.synthesis.replay.batches import Batches
from st_llm_embed.synthesis.replay.chat import Chat, Reply, error_reply, json_reply
from st_llm_embed.synthesis.replay.faults import Faults
from st_llm_embed.synthesis.replay.http1 import MAX_HEAD_BYTES, BadRequestError, Request, head_bytes, read_request
from st_llm_embed.synthesis.replay.ledger import Ledger

CHAT = "/v1/chat/completions"
MODEL = "replay"


class ReplayServer:
    """Serve OpenAI's chat completions, files and batches on 127.0.0.1 while the ``with`` block runs.

    Args:
        answer: maps the JSON body of a chat request to the text of its answer. LookupError becomes a 404 that names
            the problem, ValueError a 400.
        port: 0 takes a free one.
        latency: seconds from a request to its answer.
        faults: what goes wrong.
        log: JSONL file that a line is appended to for each billed request.
        state: folder of files and batches; None forgets them at the end.
        require_key: the only API key that is let in; None lets all in.
        requests_per_minute: announced in x-ratelimit headers, not enforced.
        tokens_per_minute: announced in x-ratelimit headers, not enforced.

    Attributes:
        port: the port.
        base_url: what an OpenAI client takes as base_url.

    Raises:
        OSError: the port is taken, or ``log`` or ``state`` cannot be written.
    """

    def __init__(
        self,
        answer: Callable[[dict[str, Any]], str],
        *,
        port: int = 0,
        latency: float = 0.0,
        faults: Faults | None = None,
        log: Path | None = None,
        state: Path | None = None,
        require_key: str | None = None,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
    ) -> None:
        self.port = port
        self._answer = answer
        self._latency = latency
        self._faults = faults or Faults()
        self._log = log
        self._state = state
        self._require_key = require_key
        self._limits = {"requests": requests_per_minute, "tokens": tokens_per_minute}
        self._minute, self._used = 0, {"requests": 0, "tokens": 0}

    @property
    def base_url(self) -> str:
        """What an OpenAI client takes as base_url."""
        return f"http://127.0.0.1:{self.port}/v1"

    def stats(self) -> dict[str, Any]:
        """What GET /stats gives: requests received and answered, what was billed, faults, requests in flight."""
        return self._ledger.stats()

    def __enter__(self) -> Self:
        listening = socket.create_server(("127.0.0.1", self.port), backlog=1024)
        self.port = listening.getsockname()[1]
        self._ledger = Ledger(self._log)
        self._at_exit = ExitStack()
        self._at_exit.callback(self._ledger.close)
        state = self._state or Path(self._at_exit.enter_context(TemporaryDirectory()))
        self._chat = Chat(self._answer, self._faults, self._ledger)
        self._batches = Batches(state, self._chat, self._faults)
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, args=(listening,), name="replay-server", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._at_exit.close()

    def _run(self, listening: socket.socket) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve(listening))

    async def _serve(self, listening: socket.socket) -> None:
        server = await asyncio.start_server(self._connection, sock=listening, limit=MAX_HEAD_BYTES)
        await self._stop.wait()
        server.close()  # asyncio.Runner cancels the connections

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while (request := await read_request(reader, writer)) is not None:
                if request.target != CHAT:
                    await _deliver(self._other(request), writer)
                elif not await self._chat_request(request, reader, writer):
                    break
                if not request.keep_alive:
                    break
        except BadRequestError as error:
            with suppress(ConnectionError):
                await _deliver(error_reply(400, str(error)), writer)
        except ConnectionError:
            pass  # the client has gone
        finally:
            writer.close()

    async def _chat_request(
        self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """Answer one chat request; False when the connection is to be closed."""
        ledger = self._ledger
        number = ledger.received
        ledger.received += 1
        ledger.in_flight += 1
        ledger.peak_in_flight = max(ledger.peak_in_flight, ledger.in_flight)
        try:
            reply = self._refused_key(request) or self._chat_reply(request, number)
            if reply.late and self._latency:
                await asyncio.sleep(self._latency * reply.late)
            match reply.fault:
                case "hang":
                    while await reader.read(MAX_HEAD_BYTES):
                        pass
                    return False
                case "cut_before_headers":
                    return False
                case "cut_in_body":
                    head = head_bytes(reply.status, reply.headers, reply.content_type, len(reply.body))
                    writer.write(head + reply.body[: len(reply.body) // 2])
                    await writer.drain()
                    return False
            # Counted first: whoever has the answer may ask for the counts at once.
            ledger.answered += 1
            await _deliver(reply, writer)
        finally:
            ledger.in_flight -= 1
        return True

    def _chat_reply(self, request: Request, number: int) -> Reply:
        if request.method != "POST":
            return error_reply(405, f"Not allowed to {request.method} on {CHAT}.")
        before = self._ledger.billed_prompt_tokens + self._ledger.billed_completion_tokens
        reply = self._chat.reply(request.body, number)
        tokens = self._ledger.billed_prompt_tokens + self._ledger.billed_completion_tokens - before
        return reply._replace(headers=f"x-request-id: req_{number:08x}\r\n{reply.headers}{self._limit_lines(tokens)}")

    def _limit_lines(self, tokens: int) -> str:
        """The x-ratelimit headers; what is used is counted by the minute of the clock."""
        minute, second = divmod(time.time(), 60)
        if minute != self._minute:
            self._minute, self._used = minute, {"requests": 0, "tokens": 0}
        self._used["requests"] += 1
        self._used["tokens"] += tokens
        return "".join(
            f"x-ratelimit-limit-{what}: {limit}\r\n"
            f"x-ratelimit-remaining-{what}: {max(0, limit - self._used[what])}\r\n"
            f"x-ratelimit-reset-{what}: {60 - second:.3f}s\r\n"
            for what, limit in self._limits.items()
            if limit is not None
        )

    def _refused_key(self, request: Request) -> Reply | None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
        if self._require_key is None or given == self._require_key:
            return None
        if not given:
            return error_reply(401, "You didn't provide an API key.")
        shown = f"{given[:8]}{'*' * max(0, len(given) - 12)}{given[8:][-4:]}"
        return error_reply(401, f"Incorrect API key provided: {shown}.", code="invalid_api_key")

    def _other(self, request: Request) -> Reply:
        """Everything but chat requests, without latency and faults."""
        url = urlsplit(request.target)
        if url.path == "/stats":
            return json_reply(self.stats())
        refused = self._refused_key(request)
        if refused is not None:
            return refused
        if url.path == "/v1/models":
            model = {"id": MODEL, "object": "model", "created": 0, "owned_by": "st_llm_embed"}
            return json_reply({"object": "list", "data": [model]})
        return self._batches.reply(request, url.path, dict(parse_qsl(url.query)))


async def _deliver(reply: Reply, writer: asyncio.StreamWriter) -> None:
    writer.write(head_bytes(reply.status, reply.headers, reply.content_type, len(reply.body)) + reply.body)
    await writer.drain()
