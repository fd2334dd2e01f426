"""The loopback server, seen by the real openai client and by raw sockets."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletion

from st_llm_embed.errors import InputError
from st_llm_embed.synthesis.replay import Faults, ReplayServer, made_up_answer, messages_hash

KEYS = 'Write a JSON object: {"user_query": "a string", "tasks": ["a string"]}.'
NESTED = {
    "type": "object",
    "additionalProperties": False,
    "required": ["text", "score", "count", "sure", "level", "tasks", "inner"],
    "properties": {
        "text": {"type": "string"},
        "score": {"type": "number", "minimum": 2, "maximum": 3},
        "count": {"type": "integer", "minimum": 5, "maximum": 7},
        "sure": {"type": "boolean"},
        "level": {"type": "string", "enum": ["low", "high"]},
        "tasks": {"type": "array", "items": {"type": "string"}, "minItems": 3},
        "inner": {
            "type": "object",
            "additionalProperties": False,
            "required": ["name"],
            "properties": {"name": {"type": "string"}},
        },
    },
}
CHAT_BODY = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hello"}]}).encode()


def client(server: ReplayServer | str, key: str = "sk-right", **options: Any) -> OpenAI:
    base_url = server if isinstance(server, str) else server.base_url
    return OpenAI(base_url=base_url, api_key=key, max_retries=0, **options)


def ask(server: ReplayServer | str, text: str = KEYS, **body: Any) -> ChatCompletion:
    with client(server) as one:
        return one.chat.completions.create(model="m", messages=[{"role": "user", "content": text}], **body)


def json_schema(schema: dict[str, Any], *, strict: bool = True) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "row", "strict": strict, "schema": schema}}


def always(kind: str, **fields: Any) -> Faults:
    return Faults(shares={kind: 1.0}, **fields)


@contextmanager
def process(*options: str) -> Iterator[str]:
    """The server as a process; gives its base_url, ends it with SIGTERM, which must end it cleanly."""
    command = [sys.executable, "-m", "st_llm_embed.synthesis.replay", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        try:
            yield running.stdout.readline().strip()
        finally:
            running.send_signal(signal.SIGTERM)
            _, errors = running.communicate()
    assert (running.returncode, errors) == (0, "")


def exchange(server: ReplayServer, *segments: bytes) -> bytes:
    """Send segments one by one, each on the wire before the next; all that comes until the server closes."""
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for segment in segments:
            connection.sendall(segment)
        received = b""
        while part := connection.recv(65536):
            received += part
        return received


def test_answers_what_the_function_answers() -> None:
    seen: list[dict[str, Any]] = []
    with ReplayServer(lambda body: seen.append(body) or "an answer") as server:
        completion = ask(server, "a question", temperature=0.5)
        stats = server.stats()
    assert completion.choices[0].message.content == "an answer"
    assert completion.choices[0].message.refusal is None
    assert completion.choices[0].finish_reason == "stop"
    assert (completion.object, completion.model) == ("chat.completion", "m")
    assert completion.usage.total_tokens == completion.usage.prompt_tokens + completion.usage.completion_tokens
    assert completion.usage.prompt_tokens_details.cached_tokens == 0
    assert seen == [{"messages": [{"role": "user", "content": "a question"}], "model": "m", "temperature": 0.5}]
    assert stats["received"] == stats["answered"] == stats["billed"]["requests"] == 1
    assert stats["billed"]["completion_tokens"] == completion.usage.completion_tokens


def test_an_unknown_question_is_404_and_names_the_problem() -> None:
    def answer(body: dict[str, Any]) -> str:
        raise LookupError(f"No recorded answer for {body['messages'][0]['content']!r}.")

    with ReplayServer(answer) as server:
        with pytest.raises(openai.NotFoundError, match="No recorded answer for 'what'"):
            ask(server, "what")
        assert server.stats()["billed"]["requests"] == 0


def test_models_request_ids_and_unknown_urls() -> None:
    with ReplayServer(made_up_answer) as server, client(server) as one:
        assert [model.id for model in one.models.list()] == ["replay"]
        raw = [
            one.chat.completions.with_raw_response.create(model="m", messages=[{"role": "user", "content": "x"}])
            for _ in range(2)
        ]
        assert raw[0].headers["x-request-id"] != raw[1].headers["x-request-id"]
        with pytest.raises(openai.NotFoundError, match="/v1/nothing"):
            one.get("/nothing", cast_to=object)


def test_only_the_required_key_is_let_in() -> None:
    with ReplayServer(made_up_answer, require_key="sk-right") as server:
        assert ask(server).choices
        wrong = client(server, key="sk-wrong-and-secret-1234")
        with wrong, pytest.raises(openai.AuthenticationError) as refused:
            wrong.models.list()
        assert refused.value.code == "invalid_api_key"
        assert "sk-wrong-and-secret-1234" not in str(refused.value)
        assert b"401 Unauthorized" in exchange(server, b"GET /v1/models HTTP/1.1\r\nConnection: close\r\n\r\n")


def test_limits_are_announced() -> None:
    with ReplayServer(made_up_answer, requests_per_minute=500, tokens_per_minute=100_000) as server:
        with client(server) as one:
            raw = one.chat.completions.with_raw_response.create(model="m", messages=[{"role": "user", "content": "x"}])
        assert raw.headers["x-ratelimit-limit-requests"] == "500"
        assert raw.headers["x-ratelimit-remaining-requests"] == "499"
        used = raw.parse().usage.total_tokens
        assert raw.headers["x-ratelimit-remaining-tokens"] == str(100_000 - used)
        assert raw.headers["x-ratelimit-reset-tokens"].endswith("s")


def test_made_up_answers_satisfy_the_schema() -> None:
    with ReplayServer(made_up_answer) as server:
        values = [
            json.loads(ask(server, f"{n}", response_format=json_schema(NESTED)).choices[0].message.content)
            for n in range(20)
        ]
    for value in values:
        assert list(value) == NESTED["required"]
        assert 20 <= len(value["text"].split()) <= 100
        assert 2 <= value["score"] <= 3
        assert value["count"] in (5, 6, 7)
        assert isinstance(value["count"], int)
        assert isinstance(value["sure"], bool)
        assert value["level"] in ("low", "high")
        assert len(set(value["tasks"])) == 3
        assert isinstance(value["inner"]["name"], str)
    assert len({value["text"] for value in values}) == 20
    assert {value["level"] for value in values} == {"low", "high"}


def test_made_up_answers_have_the_keys_that_the_prompt_names() -> None:
    with ReplayServer(made_up_answer) as server:
        for options in ({}, {"response_format": {"type": "json_object"}}):
            value = json.loads(ask(server, KEYS, **options).choices[0].message.content)
            assert list(value) == ["user_query", "tasks"]
            assert len(value["tasks"]) == 5
        prose = ask(server, "Tell me something.").choices[0].message.content
        assert prose == ask(server, "Tell me something.").choices[0].message.content
        assert prose != ask(server, "Tell me something else.").choices[0].message.content
        assert 20 <= len(prose.split()) <= 100


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"response_format": {"type": "json_object"}}, "must contain the word 'json'"),
        ({"response_format": json_schema({"type": "object", "properties": {}})}, "additionalProperties"),
        (
            {
                "response_format": json_schema(
                    {"type": "object", "additionalProperties": False, "properties": {"a": {"type": "string"}}}
                )
            },
            "'required'",
        ),
        ({"response_format": json_schema({"type": "mystery"}, strict=False)}, "not a type"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}}, "json_schema.name"),
        ({"response_format": {"type": "xml"}}, "Invalid value for 'response_format'"),
        ({"max_completion_tokens": 0}, "at least 1"),
        ({"stream": True}, "not supported"),
        ({"messages": []}, "'messages'"),
        ({"model": None}, "model parameter"),
    ],
)
def test_what_openai_refuses_is_refused(body: dict[str, Any], message: str) -> None:
    with ReplayServer(made_up_answer) as server:
        with pytest.raises(openai.BadRequestError, match=message):
            ask(server, "Tell me something.", extra_body=body)
        assert server.stats()["billed"]["requests"] == 0


@pytest.mark.parametrize("name", ["max_completion_tokens", "max_tokens"])
def test_answers_are_cut_at_the_token_limit(name: str) -> None:
    with ReplayServer(lambda _: "üü" * 100) as server:
        completion = ask(server, **{name: 7})
    assert completion.choices[0].finish_reason == "length"
    assert completion.choices[0].message.content == "ü" * 14
    assert completion.usage.completion_tokens == 7


@pytest.mark.parametrize(
    ("kind", "content", "refusal", "finish_reason"),
    [
        ("malformed", '{"a" "b"}', None, "stop"),
        ("fenced", '```json\n{"a": "b"}\n```', None, "stop"),
        ("prose", "Of course. A good", None, "stop"),
        ("refusal", None, "I'm sorry", "stop"),
        ("refusal_text", "I'm sorry", None, "stop"),
        ("empty_content", "", None, "stop"),
        ("truncated", '{"a"', None, "length"),
        ("content_filter", "", None, "content_filter"),
        ("wrong_content_type", '{"a": "b"}', None, "stop"),
    ],
)
def test_wrong_answers(kind: str, content: str | None, refusal: str | None, finish_reason: str) -> None:
    with ReplayServer(lambda _: '{"a": "b"}', faults=always(kind)) as server:
        with client(server) as one:
            raw = one.chat.completions.with_raw_response.create(model="m", messages=[{"role": "user", "content": "x"}])
        choice = json.loads(raw.text)["choices"][0]
        assert choice["finish_reason"] == finish_reason
        for name, expected in (("content", content), ("refusal", refusal)):
            given = choice["message"][name]
            assert given is expected or (given or "").startswith(expected or "\0") or given == expected
        assert raw.headers["content-type"] == ("text/plain" if kind == "wrong_content_type" else "application/json")
        stats = server.stats()
    assert stats["faults"] == {kind: 1}
    assert stats["billed"]["requests"] == 1


def test_empty_choices_and_html() -> None:
    with ReplayServer(made_up_answer, faults=always("empty_choices")) as server:
        assert ask(server).choices == []
    with ReplayServer(made_up_answer, faults=always("html")) as server:
        assert str(ask(server)).startswith("<html>")
        assert server.stats()["billed"]["requests"] == 1


@pytest.mark.parametrize(
    ("given", "header"),
    [
        ("seconds", "retry-after"),
        ("ms", "retry-after-ms"),
        ("date", "retry-after"),
        ("none", None),
    ],
)
def test_rate_limit(given: Any, header: str | None) -> None:
    faults = always("rate_limit", retry_after=(30, 40), retry_after_as=given)
    with ReplayServer(made_up_answer, faults=faults) as server:
        with pytest.raises(openai.RateLimitError) as refused:
            ask(server)
        assert server.stats()["billed"]["requests"] == 0
    assert refused.value.code == "rate_limit_exceeded"
    sent = {name: value for name, value in refused.value.response.headers.items() if name.startswith("retry-after")}
    if header is None:
        assert sent == {}
        return
    assert list(sent) == [header]
    value = sent[header]
    seconds = parsedate_to_datetime(value).timestamp() - time.time() if given == "date" else float(value)
    assert 30 <= seconds / (1000 if given == "ms" else 1) <= 41 or given == "date"
    assert seconds > 0


def test_storm_and_quota_follow_arrival_numbers() -> None:
    faults = Faults(storm=(1, 3), quota_after=4)
    outcomes: list[str | None] = []
    with ReplayServer(made_up_answer, faults=faults) as server:
        for _ in range(6):
            try:
                ask(server)
                outcomes.append(None)
            except openai.RateLimitError as error:
                outcomes.append(error.code)
        stats = server.stats()
    limited, quota = "rate_limit_exceeded", "insufficient_quota"
    assert outcomes == [None, limited, limited, None, quota, quota]
    assert stats["faults"] == {"rate_limit": 2, "quota": 2}
    assert (stats["received"], stats["billed"]["requests"]) == (6, 2)


def test_server_errors_come_in_three_kinds_one_of_them_html() -> None:
    seen: dict[int, str] = {}
    with ReplayServer(made_up_answer, faults=always("server_error")) as server:
        for _ in range(30):
            with pytest.raises(openai.InternalServerError) as failed:
                ask(server)
            seen[failed.value.status_code] = failed.value.response.headers["content-type"]
        assert server.stats()["billed"]["requests"] == 0
    assert seen == {500: "application/json", 502: "text/html", 503: "application/json"}


def test_bad_request_share() -> None:
    with (
        ReplayServer(made_up_answer, faults=always("bad_request")) as server,
        pytest.raises(openai.BadRequestError),
    ):
        ask(server)


@pytest.mark.parametrize("kind", ["cut_before_headers", "cut_in_body"])
def test_cut_connections_are_billed(kind: str) -> None:
    with ReplayServer(made_up_answer, faults=always(kind)) as server:
        with pytest.raises((openai.APIConnectionError, httpx2.RemoteProtocolError)):
            ask(server)
        stats = server.stats()
    assert stats["billed"]["requests"] == 1
    assert stats["answered"] == 0
    assert stats["faults"] == {kind: 1}


def test_a_hang_is_billed_and_never_answered() -> None:
    with ReplayServer(made_up_answer, faults=always("hang")) as server:
        with client(server, timeout=0.2) as one, pytest.raises(openai.APITimeoutError):
            one.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])
        stats = server.stats()
    assert stats["billed"]["requests"] == 1
    assert stats["answered"] == 0


def test_stragglers_take_a_multiple_of_the_latency() -> None:
    faults = always("straggler", straggler_factor=10**6)
    with ReplayServer(made_up_answer, faults=faults, latency=0.001) as server:
        with client(server, timeout=0.2) as one, pytest.raises(openai.APITimeoutError):
            one.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])
        assert server.stats()["in_flight"] == 1


def test_response_formats_can_be_rejected_or_ignored() -> None:
    schema = json_schema(NESTED)
    with ReplayServer(made_up_answer, faults=Faults(reject_response_format=("json_schema",))) as server:
        with pytest.raises(openai.BadRequestError, match="'response_format' of type 'json_schema'") as refused:
            ask(server, response_format=schema)
        assert refused.value.param == "response_format"
        assert ask(server, response_format={"type": "json_object"}).choices
    with ReplayServer(made_up_answer, faults=Faults(ignore_response_format=True)) as server:
        text = ask(server, "Tell me something.", response_format=schema).choices[0].message.content
        assert not text.startswith("{")


def test_faults_are_drawn_by_share_and_repeat() -> None:
    faults = Faults(seed=5, shares={"rate_limit": 0.1, "hang": 0.2})
    drawn = [faults.draw(number)[0] for number in range(10_000)]
    assert 900 < drawn.count("rate_limit") < 1100
    assert 1900 < drawn.count("hang") < 2100
    assert drawn == [faults.draw(number)[0] for number in range(10_000)]
    assert drawn != [Faults(seed=6, shares=faults.shares).draw(number)[0] for number in range(10_000)]


def test_faults_are_read_from_json(tmp_path: Path) -> None:
    path = tmp_path / "faults.json"
    path.write_text('{"shares": {"hang": 0.5}, "storm": [0, 5], "retry_after_as": "ms"}')
    assert Faults.from_json(path) == Faults(shares={"hang": 0.5}, storm=(0, 5), retry_after_as="ms")
    for text, message in [
        ('{"sharse": {}}', "sharse"),
        ('{"shares": {"hnag": 1}}', "hnag.*fault kinds are rate_limit"),
        ('{"shares": {"hang": 1.5}}', "together at most 1"),
        ('{"batch_polls": 0}', "at least 1"),
        ("[", "the whole"),
    ]:
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            Faults.from_json(path)
    with pytest.raises(InputError, match="cannot be read"):
        Faults.from_json(tmp_path / "missing.json")


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

    with ReplayServer(lambda body: body["messages"][0]["content"], latency=0.2) as server:
        assert asyncio.run(run(server.base_url)) == [str(number) for number in range(200)]
        stats = server.stats()
    assert stats["answered"] == 200
    assert stats["peak_in_flight"] > 32
    assert stats["in_flight"] == 0


def test_the_server_stops_with_requests_in_flight_and_can_start_again() -> None:
    server = ReplayServer(made_up_answer, faults=always("hang"))
    with server:
        with client(server, timeout=0.2) as one, pytest.raises(openai.APITimeoutError):
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
