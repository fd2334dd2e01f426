"""Answers of the loopback server, seen by the real openai client."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest
from synthesis.asking import KEYS, NESTED, ask, client, exchange, json_schema

from st_llm_embed.synthesis.replay import ReplayServer, made_up_answer


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
