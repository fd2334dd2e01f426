"""What responses mean, by status and body, without a server."""

from __future__ import annotations

import json
from typing import Any

import pytest

from st_llm_embed.api.budget import Cost, actual_cost, worst_case
from st_llm_embed.api.exchange import Response
from st_llm_embed.api.outcome import Outcome, classify
from st_llm_embed.recipe import Price
from st_llm_embed.synthesis.parsing import content_of

TEXT = json.dumps({"S1": "one", "S2": "two", "S3": "three"})
USAGE = {"prompt_tokens": 20, "completion_tokens": 30, "total_tokens": 50}
ZEROS = dict.fromkeys(USAGE, 0)


def said(content: Any, finish_reason: str | None = "stop", usage: Any = USAGE, **more: Any) -> dict[str, Any]:
    choice = {"message": {"role": "assistant", "content": content}, "finish_reason": finish_reason}
    return {"choices": [choice | more], "usage": usage}


def error(message: str, **fields: Any) -> dict[str, Any]:
    return {"error": {"message": message, **fields}}


def outcome(status: int, body: Any, *, heard: bool = True) -> Outcome:
    return classify(Response(status, body if isinstance(body, str) else json.dumps(body)), heard=heard)


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (200, said(TEXT), "answered"),
        (200, "\ufeff\n" + json.dumps(said(TEXT)), "answered"),
        (200, said(TEXT, usage=None), "answered"),
        (200, said(None, usage=None, message={"reasoning_content": TEXT}), "answered"),
        (200, said(None, usage=ZEROS, message={"tool_calls": [{"function": {"arguments": TEXT}}]}), "answered"),
        (200, said("", "content_filter", ZEROS), "answered"),
        (200, said(""), "answered"),
        (200, said("", usage=ZEROS), "failed"),
        (200, said(" \n", usage=ZEROS), "failed"),
        (200, said("", usage=USAGE | {"completion_tokens": 0}), "maybe paid"),
        (200, said("", usage=None), "maybe paid"),
        (200, {"choices": []}, "maybe paid"),
        (200, {"choices": None}, "maybe paid"),
        (200, "<html>Welcome</html>", "maybe paid"),
        (200, error("Rate limit exceeded", code=429), "too many"),
        (200, error("Rate limit exceeded"), "too many"),
        (200, {"choices": [], "error": {"message": "slow down", "code": "429"}}, "too many"),
        (200, {"choices": None, "error": {"message": "Provider returned error", "code": 502}}, "failed"),
        (200, error("upstream request timed out"), "maybe paid"),
        (200, {"code": 503, "message": "no capacity"}, "failed"),
        (200, {"errors": [{"message": "internal"}]}, "failed"),
        (200, {"detail": "Invalid API key"}, "hopeless"),
        (200, {"message": {"role": "assistant", "content": "an authentic recipe"}, "done": True}, "maybe paid"),
        (200, error("Insufficient credits", code=402), "hopeless"),
        (200, error("flagged", code="content_filter"), "rejected"),
        (200, said("", "error", ZEROS), "failed"),
        (200, said("half a te", "error"), "maybe paid"),
        (200, said("", None, ZEROS, error={"code": 429, "message": "overloaded"}), "too many"),
        (200, said("half a te", None, None, error={"code": 502}), "maybe paid"),
        (400, error("temperature"), "rejected"),
        (400, error("Failed to generate JSON.", code="json_validate_failed", failed_generation=TEXT), "answered"),
        (400, error("Failed to generate JSON.", code="json_validate_failed", failed_generation="{S1"), "maybe paid"),
        (400, error("Your credit balance is too low", type="invalid_request_error"), "hopeless"),
        (422, {"detail": [{"msg": "too long", "input": "my credit balance is too low, api key"}]}, "rejected"),
        (402, "", "hopeless"),
        (403, error("input was flagged by moderation", code=403), "rejected"),
        (403, "Forbidden", "rejected"),
        (404, "", "hopeless"),
        (407, "", "hopeless"),
        (408, "", "maybe paid"),
        (409, "", "failed"),
        (413, error("Request too large", code="rate_limit_exceeded"), "rejected"),
        (429, error("Rate limit reached", code="rate_limit_exceeded"), "too many"),
        (
            429,
            error("You exceeded your current quota, check plan and billing", status="RESOURCE_EXHAUSTED"),
            "too many",
        ),
        (429, error("You exceeded your current quota", type="insufficient_quota", code=None), "hopeless"),
        (429, error("", type="exceeded_current_quota_error"), "hopeless"),
        (451, "", "rejected"),
        (500, error("Request timed out"), "maybe paid"),
        (500, error("internal"), "failed"),
        (503, error("busy", type="rate_limit_error"), "too many"),
        (504, "<html>504</html>", "maybe paid"),
        (524, "", "maybe paid"),
        (529, error("Overloaded", type="overloaded_error"), "too many"),
        (307, "", "failed"),
    ],
)
def test_a_response_means_what_status_and_body_say(status: int, body: Any, kind: str) -> None:
    found = outcome(status, body)
    assert found.kind == kind
    assert not isinstance(body, str) or body in found.body


def test_a_403_before_the_first_answer_is_about_the_key() -> None:
    assert outcome(403, "Forbidden", heard=False).kind == "hopeless"
    assert outcome(403, error("flagged by moderation"), heard=False).kind == "rejected"


def test_the_text_that_a_server_would_not_call_json_is_read() -> None:
    body = error("Failed to generate JSON.", code="json_validate_failed", failed_generation=TEXT)
    assert content_of(outcome(400, body).answer) == TEXT


def test_a_body_that_breaks_off_is_kept() -> None:
    whole = json.dumps(said(TEXT))
    half = classify(Response(200, whole[:60], problem="ReadError: gone"), heard=True)
    assert (half.kind, half.body) == ("maybe paid", whole[:60])
    assert classify(Response(200, whole, problem="ReadError: gone"), heard=True).kind == "answered"
    assert classify(Response(0, "", problem="no route", sent=False), heard=True).kind == "unreachable"


@pytest.mark.parametrize(
    ("usage", "answer_bytes", "prompt", "answer"),
    [
        (USAGE, 100, 20, 30),
        ({"prompt_tokens": 14, "completion_tokens": 7, "total_tokens": 1203}, 100, 14, 1189),
        ({"prompt_tokens": 21, "completion_tokens": 0, "total_tokens": 1621}, 100, 21, 1600),
        (USAGE | {"completion_tokens_details": {"reasoning_tokens": 25}}, 100, 20, 30),
        (USAGE | {"completion_tokens_details": {"reasoning_tokens": 500}}, 100, 20, 530),
        (USAGE | {"total_tokens": 3}, 100, 20, 30),
        (USAGE | {"prompt_tokens": 20.0}, 100, 20, 30),
        (ZEROS, 100, 68, 416),
        (USAGE | {"completion_tokens": 1, "total_tokens": 21}, 1000, 20, 416),
        (None, 100, 68, 416),
        (None, 40_000, 68, 40_000),
        ({"prompt_tokens": 10**400, "completion_tokens": float("nan"), "total_tokens": True}, 1, 68, 416),
    ],
)
def test_what_is_billed_is_never_less_than_what_can_be_known(
    usage: Any, answer_bytes: int, prompt: int, answer: int
) -> None:
    price = Price(input=1, output=2)
    worst = worst_case(price, "text", 400)
    assert worst == Cost(68 + 416, pytest.approx((68 + 2 * 416) / 1e6))
    cost = actual_cost(price, usage, worst, 400, answer_bytes)
    assert cost == Cost(prompt + answer, pytest.approx((prompt + 2 * answer) / 1e6))
