"""Every fault of the loopback server, seen by the real openai client."""

from __future__ import annotations

import json
import time
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from synthesis.asking import NESTED, always, ask, client, json_schema

from st_llm_embed.errors import InputError
from st_llm_embed.synthesis.replay import Faults, ReplayServer, made_up_answer


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
    before = time.time()
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
    if given == "date":
        assert before + 30 <= parsedate_to_datetime(value).timestamp() <= time.time() + 41
    else:
        assert 30 <= float(value) / (1000 if given == "ms" else 1) <= 40


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
        with client(server, timeout=1) as one, pytest.raises(openai.APITimeoutError):
            one.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])
        stats = server.stats()
    assert stats["billed"]["requests"] == 1
    assert stats["answered"] == 0


def test_stragglers_take_a_multiple_of_the_latency() -> None:
    faults = always("straggler", straggler_factor=10**6)
    with ReplayServer(made_up_answer, faults=faults, latency=0.001) as server:
        with client(server, timeout=1) as one, pytest.raises(openai.APITimeoutError):
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
