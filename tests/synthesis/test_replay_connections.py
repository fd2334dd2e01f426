"""The loopback server as a process and on the wire: many, broken and hostile connections."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from openai import AsyncOpenAI
from synthesis.asking import CHAT_BODY, KEYS, always, ask, client, exchange, process

from st_llm_embed.synthesis.replay import ReplayServer, made_up_answer, messages_hash


def test_the_ledger_has_what_a_killed_client_never_got(tmp_path: Path) -> None:
    log, port_file = tmp_path / "ledger.jsonl", tmp_path / "port"
    messages = [{"role": "user", "content": KEYS}]
    (tmp_path / "faults.json").write_text(json.dumps({"storm": [0, 1], "shares": {"cut_before_headers": 1.0}}))
    options = ["--log", str(log), "--port-file", str(port_file), "--faults", str(tmp_path / "faults.json")]
    with process(*options) as base_url:
        assert base_url == f"http://127.0.0.1:{port_file.read_text().strip()}/v1"
        with pytest.raises(openai.RateLimitError):
            ask(base_url)
        with pytest.raises(openai.APIConnectionError):
            ask(base_url)
        stats = httpx2.get(base_url.replace("/v1", "/stats")).json()
    (line,) = [json.loads(line) for line in log.read_text().splitlines()]
    assert line["messages"] == messages_hash(messages)
    assert (line["model"], line["fault"]) == ("m", "cut_before_headers")
    assert line["completion_tokens"] == stats["billed"]["completion_tokens"] > 0
    assert line["prompt_tokens"] == stats["billed"]["prompt_tokens"] > 0
    assert (stats["received"], stats["answered"], stats["billed"]["requests"]) == (2, 1, 1)


def test_a_taken_port_and_bad_faults_end_with_code_2(tmp_path: Path) -> None:
    (tmp_path / "faults.json").write_text("{}x")
    with ReplayServer(made_up_answer) as server:
        for options in (["--port", str(server.port)], ["--faults", str(tmp_path / "faults.json")]):
            command = [sys.executable, "-m", "st_llm_embed.synthesis.replay", *options]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 2
            assert "Traceback" not in done.stderr


def test_many_connections_are_kept_alive_side_by_side() -> None:
    async def run(base_url: str) -> list[str | None]:
        async with AsyncOpenAI(base_url=base_url, api_key="x", max_retries=0) as one:

            async def chat(number: int) -> str | None:
                messages: Any = [{"role": "user", "content": f"{number}"}]
                completion = await one.chat.completions.create(model="m", messages=messages)
                return completion.choices[0].message.content

            return list(await asyncio.gather(*(chat(number) for number in range(200))))

    with ReplayServer(lambda body: body["messages"][0]["content"], latency=1.0) as server:
        assert asyncio.run(run(server.base_url)) == [str(number) for number in range(200)]
        stats = server.stats()
    assert stats["answered"] == 200
    assert stats["peak_in_flight"] > 16
    assert stats["in_flight"] == 0


def test_the_server_stops_with_requests_in_flight_and_can_start_again() -> None:
    server = ReplayServer(made_up_answer, faults=always("hang"))
    with server:
        with client(server, timeout=1) as one, pytest.raises(openai.APITimeoutError):
            one.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])
        idle = socket.create_connection(("127.0.0.1", server.port))
        waiting = socket.create_connection(("127.0.0.1", server.port))
        head = b"POST /v1/chat/completions HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
        waiting.sendall(head % len(CHAT_BODY))
        assert waiting.recv(100).startswith(b"HTTP/1.1 100")
        waiting.sendall(CHAT_BODY)
    with idle, waiting:
        assert idle.recv(1) == waiting.recv(1) == b""
    assert [thread.name for thread in threading.enumerate() if "replay" in thread.name] == []
    with server:
        assert server.stats()["received"] == 0


def test_requests_in_pieces() -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    whole = head + b"Content-Length: %d\r\n\r\n" % len(CHAT_BODY) + CHAT_BODY
    with ReplayServer(lambda _: "fine") as server:
        assert b'"content": "fine"' in exchange(server, *(whole[at : at + 1] for at in range(len(whole))))
        chunks = b"".join(b"%x;x=y\r\n%b\r\n" % (len(part), part) for part in (CHAT_BODY[:9], CHAT_BODY[9:]))
        chunked = head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\nTrailer: x\r\n\r\n"
        assert b'"content": "fine"' in exchange(server, chunked[:150], chunked[150:])
        assert server.stats()["answered"] == 2


def test_expect_100_continue() -> None:
    with (
        ReplayServer(lambda _: "fine") as server,
        socket.create_connection(("127.0.0.1", server.port)) as connection,
    ):
        head = b"POST /v1/chat/completions HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
        connection.sendall(head % len(CHAT_BODY))
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(CHAT_BODY)
        assert connection.recv(100).startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01 this is TLS\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nno colon here\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: many\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nConnection: close\r\nContent-Length: 3\r\n\r\n\xff{]",
        b"POST /v1/chat/completions HTTP/1.1\r\nConnection: close\r\nContent-Length: 2\r\n\r\n[]",
    ],
)
def test_garbage_is_400_and_the_server_lives(garbage: bytes) -> None:
    with ReplayServer(made_up_answer) as server:
        assert exchange(server, garbage).startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert ask(server).choices


def test_a_client_that_leaves_in_the_middle_is_no_problem() -> None:
    with ReplayServer(made_up_answer) as server:
        for part in (b"", b"POST /v1/ch", b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 9\r\n\r\n{"):
            with socket.create_connection(("127.0.0.1", server.port)) as connection:
                connection.sendall(part)
        assert ask(server).choices
        assert server.stats()["received"] == 1
