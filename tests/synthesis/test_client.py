"""The client against the replay server and its faults; pauses are waited for on a clock that jumps."""

from __future__ import annotations

import json
import re
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from replay_server import Faults, ReplayServer, Reply, made_up_answer
from synthesis.running import (
    PRICE,
    Hours,
    always,
    answer_all,
    answered,
    asking,
    planned_keys,
    records,
    synthesis,
    without_probes,
)

from st_llm_embed.errors import InputError
from st_llm_embed.synthesis.generate import ask_again
from st_llm_embed.synthesis.journal import Journal

USAGE = {"prompt_tokens": 300, "completion_tokens": 300}
KEY = "sk-recognisable-0123456789"


def refusal(recipe: Any, folder: Path, hours: Hours | None = None) -> str:
    with pytest.raises(InputError) as error:
        answer_all(recipe, folder, hours)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def test_a_server_that_refuses_every_request_is_asked_no_more(tmp_path: Path) -> None:
    with ReplayServer(made_up_answer, faults=Faults(shares={"bad_request": 1.0})) as server:
        recipe = without_probes(synthesis(server, 200), tmp_path)
        assert "answers cannot be used (request refused 48)" in refusal(recipe, tmp_path)
        assert server.stats()["received"] < 48 + recipe.endpoint.concurrency
    with ReplayServer(made_up_answer, faults=Faults(shares={"bad_request": 0.8})) as server:
        recipe = without_probes(synthesis(server, 200), tmp_path / "some")
        assert answer_all(recipe, tmp_path / "some").done == 200


def test_every_planned_request_is_answered_once_and_a_rerun_sends_nothing(tmp_path: Path) -> None:
    with ReplayServer(made_up_answer) as server:
        recipe = synthesis(server)
        progress = answer_all(recipe, tmp_path)
        assert server.stats()["received"] == 40 + 1
        again = answer_all(recipe, tmp_path)
        assert server.stats()["received"] == 40 + 1
    assert sorted(answered(tmp_path)) == planned_keys(recipe)
    assert (progress.done, progress.done_before, progress.left) == (40, 0, 0)
    assert (again.done, again.done_before) == (40, 40)
    assert progress.texts.total() + progress.no_text.total() == 40
    record = records(tmp_path, "answered")[0]
    assert record["usage"]["total_tokens"] == record["tokens"]
    assert record["request_id"].startswith("req_")


@pytest.mark.parametrize("wait", [1.0, 300.0, None])
def test_a_storm_of_429_loses_nothing_and_is_not_answered_by_hammering(wait: float | None, tmp_path: Path) -> None:
    # With a third fewer in flight after each pause, 40 refusals take several bursts: 16, 11, 7, 5, 1.
    hours = Hours()
    with ReplayServer(made_up_answer, faults=Faults(storm=(20, 60), retry_after=wait)) as server:
        recipe = synthesis(server, 200, concurrency=16, give_up_after_minutes=10**4)
        answer_all(without_probes(recipe, tmp_path), tmp_path, hours)
        stats = server.stats()
    assert sorted(answered(tmp_path)) == planned_keys(recipe)
    assert (stats["received"], stats["billed"]["requests"]) == (240, 200)
    assert hours.now - 1000 >= 3 * (wait or 1)


def test_a_long_pause_that_the_server_asks_for_is_honoured(tmp_path: Path) -> None:
    class Waits(Hours):
        longest = 0.0

        async def sleep(self, seconds: float) -> None:
            self.longest = max(self.longest, seconds)
            await super().sleep(seconds)

    faults = Faults(storm=(1, 2), retry_after=7200)
    with ReplayServer(made_up_answer, faults=faults) as server:
        hours = Waits()
        answer_all(synthesis(server, 5, concurrency=1, give_up_after_minutes=1), tmp_path, hours)
        assert server.stats()["received"] == 1 + 1 + 5
    assert hours.longest > 7199


def test_a_spent_quota_ends_the_run_at_once_with_one_message(tmp_path: Path) -> None:
    with ReplayServer(made_up_answer, faults=Faults(quota_after=20)) as server:
        message = refusal(synthesis(server), tmp_path)
        assert server.stats()["received"] <= 20 + 8
    assert "insufficient_quota" in message
    assert len(answered(tmp_path)) == 19
    with ReplayServer(made_up_answer) as server:
        recipe = synthesis(server)
        answer_all(recipe, tmp_path)
    assert sorted(answered(tmp_path)) == planned_keys(recipe)


@pytest.mark.parametrize("kind", ["hang", "drip", "cut_before_headers", "cut_in_body", "html", "gateway_timeout"])
def test_what_may_have_been_paid_is_written_down_and_asked_once_more_at_the_most(kind: str, tmp_path: Path) -> None:
    with ReplayServer(made_up_answer, faults=Faults(shares={kind: 0.5}, seed=3)) as server:
        recipe = without_probes(synthesis(server, 30, timeout_seconds=0.3, concurrency=30), tmp_path)
        progress = answer_all(recipe, tmp_path)
        billed = server.stats()["billed"]
    lost = records(tmp_path, "maybe paid")
    assert kind != "cut_in_body" or all('"choices": [{"index"' in record["body"] for record in lost)
    by_key = Counter(record["key"] for record in lost)
    assert max(by_key.values()) == 2
    assert progress.left == sum(count == 2 for count in by_key.values()) > 0
    assert progress.done == 30 - progress.left == len(answered(tmp_path))
    assert billed["requests"] == len(lost) + progress.done
    with Journal(tmp_path) as journal:
        assert journal.usd >= (billed["prompt_tokens"] * 1 + billed["completion_tokens"] * 2) / 1e6


def test_server_errors_are_tried_again_and_then_left_for_the_next_run(tmp_path: Path) -> None:
    with ReplayServer(made_up_answer, faults=Faults(shares={"server_error": 0.5})) as server:
        recipe = without_probes(synthesis(server, 60), tmp_path)
        progress = answer_all(recipe, tmp_path)
        assert server.stats()["faults"]["server_error"] > 30
    assert progress.done == 60 - progress.left >= 57
    with ReplayServer(made_up_answer, faults=always("server_error")) as server:
        recipe = without_probes(synthesis(server, 12), tmp_path / "always")
        progress = answer_all(recipe, tmp_path / "always")
        assert server.stats()["received"] == 6 * progress.left == 6 * 12


def test_a_server_that_is_away_is_waited_for(tmp_path: Path) -> None:
    with ReplayServer(made_up_answer) as server:
        port = server.port
        answer_all(synthesis(server, 10), tmp_path)
    back = ExitStack()

    class Returns(Hours):
        back = False

        async def sleep(self, seconds: float) -> None:
            await super().sleep(seconds)
            if self.now > 1300 and not self.back:
                self.back = True
                back.enter_context(ReplayServer(made_up_answer, port=port))

    recipe = synthesis(f"http://127.0.0.1:{port}/v1", 30)
    with back:
        progress = answer_all(recipe, tmp_path, Returns())
    assert (progress.done, progress.left) == (30, 0)
    assert sorted(answered(tmp_path)) == planned_keys(recipe)
    assert not records(tmp_path, "maybe paid"), "nothing was sent"


def test_a_server_that_stays_away_ends_the_run_and_the_next_one_goes_on(tmp_path: Path) -> None:
    with ReplayServer(made_up_answer) as server:
        answer_all(synthesis(server, 10), tmp_path)
    message = refusal(synthesis(server, 30), tmp_path)
    assert "has given no answer for 15 minutes (ConnectError: " in message
    assert len(answered(tmp_path)) == 10
    with ReplayServer(made_up_answer, port=server.port) as server:
        answer_all(synthesis(server, 30), tmp_path)
        assert server.stats()["received"] == 20


def test_429_without_end_is_given_up_though_the_server_asks_for_patience(tmp_path: Path) -> None:
    faults = Faults(storm=(5, 10**9), retry_after=60)
    with ReplayServer(made_up_answer, faults=faults) as server:
        message = refusal(synthesis(server), tmp_path)
    assert "has given no answer for 15 minutes (" in message
    assert "Rate limit reached" in message
    assert len(answered(tmp_path)) == 4


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (401, '{"error": {"message": "wrong key KEY", "code": "invalid_api_key"}}', "refuses the key"),
        (403, '{"error": "KEY may not"}', "refuses the key with status 403"),
        (404, "<html>KEY</html>", "usually ends in /v1"),
        (200, "<html>Welcome KEY</html>", "status 200: <html>Welcome [key]</html>"),
        (200, '{"error": {"message": "upstream of KEY", "code": 502}}', "upstream of [key]"),
        (502, "<html>bad gateway of KEY</html>", "bad gateway of [key]"),
        (400, '{"detail": "temperature of KEY"}', "refuses requests for the model 'm'"),
        (422, "no KEY", "synthesis.endpoint.parameters"),
    ],
)
def test_a_server_that_cannot_be_used_ends_with_one_message_without_the_key(
    status: int, body: str, expected: str, tmp_path: Path
) -> None:
    with ReplayServer(lambda _: Reply(status, body.replace("KEY", KEY).encode())) as server:
        recipe = synthesis(server)
        with asking(recipe, tmp_path, key=KEY) as one, pytest.raises(InputError) as error:
            one.find_formats()
    assert expected in str(error.value)
    assert error.value.__cause__ is error.value.__context__ is None
    assert KEY not in str(error.value)
    assert KEY not in (tmp_path / "answers.jsonl").read_text()


def test_an_answer_with_an_absurd_bill_is_kept_and_counted_with_its_worst_case(tmp_path: Path) -> None:
    counts = ["-5", "true", "NaN", "1e999", "9" * 400, '"3"', "0", "null", "[]"]
    usages = ['"many"', "[]", "null", *(f'{{"prompt_tokens": {n}, "completion_tokens": {n}}}' for n in counts)]
    choices = f'"choices": [{{"message": {{"content": "{KEY}"}}, "finish_reason": "stop"}}]'
    bodies = (f'{{{choices}, "usage": {usage}}}' for usage in usages)
    with ReplayServer(lambda _: Reply(200, next(bodies).encode())) as server:
        recipe = without_probes(synthesis(server, len(usages), concurrency=1), tmp_path)
        with asking(recipe, tmp_path, key=KEY) as one:
            one.answer()
    written = records(tmp_path, "answered")
    assert len(written) == len(usages)
    assert all(record["tokens"] > 1000 for record in written)
    assert all("[key]" in record["body"] for record in written)
    assert KEY not in (tmp_path / "answers.jsonl").read_text()


@pytest.mark.parametrize(
    ("faults", "expected", "calls"),
    [
        (Faults(), "json_schema", 1),
        (Faults(ignore_response_format=True), "json_object", 2),
        (Faults(reject_response_format=("json_schema",)), "json_object", 2),
        (Faults(reject_response_format=("json_schema", "json_object")), "prompt", 3),
        (Faults(ignore_response_format=True, reject_response_format=("json_object",)), "prompt", 3),
        (Faults(shares={"fenced": 1.0}), "prompt", 3),
        (Faults(shares={"refusal": 1.0}), "prompt", 3),
    ],
)
def test_how_a_server_is_made_to_answer_in_json_is_found_once(
    faults: Faults, expected: str, calls: int, tmp_path: Path
) -> None:
    with ReplayServer(made_up_answer, faults=faults) as server:
        recipe = synthesis(server)
        for _ in range(2):
            with asking(recipe, tmp_path) as one:
                one.find_formats()
                assert one.chat.journal.formats == {(server.base_url, "m"): expected}
            assert server.stats()["received"] == calls


def test_a_refused_prompt_costs_nothing_and_is_not_asked_again(tmp_path: Path) -> None:
    with ReplayServer(made_up_answer, faults=Faults(shares={"bad_request": 0.3}, seed=5)) as server:
        recipe = synthesis(server)
        progress = answer_all(recipe, tmp_path)
        received = server.stats()["received"]
        answer_all(recipe, tmp_path)
        assert server.stats()["received"] == received
    assert progress.no_text["request refused"] > 3
    assert {record["usd"] for record in records(tmp_path) if '"error"' in record.get("body", "")} == {0.0}


@pytest.mark.parametrize(
    ("faults", "least_share"),
    [
        (Faults(), 0.5),
        (Faults(shares={"hang": 0.1, "gateway_timeout": 0.2}), 0.2),
        (Faults(zero_usage=True), 0.1),
        (Faults(thoughts=100), 0.4),
    ],
)
def test_the_bill_never_passes_the_limit_whatever_is_in_flight_and_resumed(
    faults: Faults, least_share: float, tmp_path: Path
) -> None:
    log = tmp_path / "ledger.jsonl"
    for limit in (0.02, 0.05, 0.08):
        with ReplayServer(made_up_answer, faults=faults, log=log) as server:
            recipe = synthesis(server, 300, concurrency=64, timeout_seconds=0.5, budget={"usd": limit})
            message = refusal(recipe, tmp_path)
        assert "The limit is reached: spent are $" in message
        assert f"of {limit:.2f}" in message
        assert billed(log) <= limit
        assert billed(log) > least_share * limit
    with ReplayServer(made_up_answer, log=log) as server:
        recipe = synthesis(server, 300, concurrency=64, budget={"usd": 10})
        answer_all(recipe, tmp_path)
    assert sorted(answered(tmp_path)) == planned_keys(recipe)


def test_a_server_that_ignores_the_limit_of_an_answer_is_stopped_at_its_first_answer(tmp_path: Path) -> None:
    log = tmp_path / "ledger.jsonl"
    with ReplayServer(made_up_answer, faults=Faults(thoughts=3000), log=log) as server:
        recipe = without_probes(synthesis(server, 300, concurrency=64, budget={"usd": 0.2}), tmp_path)
        message = refusal(recipe, tmp_path)
        assert server.stats()["received"] == 1, "the first answer is waited for"
        assert re.search(r"m with max_completion_tokens 300, where 1,\d+ .* are the most.* Set max_tokens in", message)
        assert "The limit is reached" in refusal(recipe, tmp_path)
        assert server.stats()["received"] > 10, "the next run allows for it"
    assert 0.15 < billed(log) <= 0.2


@pytest.mark.parametrize(
    ("content", "finish_reason", "reason"),
    [("Here is what I think:", "stop", "not JSON"), ('{"user_query": "a', "length", "truncated")],
)
def test_answers_that_cannot_be_used_are_not_paid_to_the_end(
    content: str, finish_reason: str, reason: str, tmp_path: Path
) -> None:
    asked: list[int] = []

    def mostly(body: dict[str, Any]) -> str | Reply:
        asked.append(1)
        if len(asked) % 25 == 3:
            return made_up_answer(body)
        choice = {"message": {"content": content}, "finish_reason": finish_reason}
        return Reply(200, json.dumps({"choices": [choice], "usage": USAGE}).encode())

    with ReplayServer(mostly) as server:
        recipe = without_probes(synthesis(server, 300), tmp_path)
        message = refusal(recipe, tmp_path)
        assert re.search(rf"48 of the latest \d+ answers cannot be used \({reason} 4\d", message)
        assert 50 <= len(answered(tmp_path)) == len(asked) < 50 + recipe.endpoint.concurrency


def test_one_prompt_that_is_refused_ends_nothing_and_is_asked_again_on_request(tmp_path: Path) -> None:
    asked: list[int] = []

    def moderated(body: dict[str, Any]) -> str | Reply:
        asked.append(1)
        return Reply(403, b"Forbidden") if len(asked) in (5, 9) else made_up_answer(body)

    with ReplayServer(moderated) as server:
        recipe = without_probes(synthesis(server), tmp_path)
        for sent in (40, 40):
            assert answer_all(recipe, tmp_path).done == 40
            assert len(asked) == sent
        assert (ask_again(tmp_path), ask_again(tmp_path)) == (2, 0)
        answer_all(recipe, tmp_path)
        assert len(asked) == 42
    assert sorted(set(answered(tmp_path))) == planned_keys(recipe)


def test_waiting_for_our_own_limits_is_not_the_silence_of_the_server(tmp_path: Path) -> None:
    hours = Hours()
    with ReplayServer(made_up_answer) as server:
        recipe = synthesis(server, 6, requests_per_minute=1, give_up_after_minutes=0.5)
        assert answer_all(without_probes(recipe, tmp_path), tmp_path, hours).done == 6


def billed(log: Path) -> float:
    lines = map(json.loads, log.read_text(encoding="utf-8").splitlines())
    return (
        sum(line["prompt_tokens"] * PRICE["input"] + line["completion_tokens"] * PRICE["output"] for line in lines)
        / 1e6
    )


def test_a_limit_of_tokens_alone_holds_too(tmp_path: Path) -> None:
    with ReplayServer(made_up_answer) as server:
        recipe = synthesis(server, budget={"tokens": 6000, "prices": {}})
        assert "6,000 tokens" in refusal(recipe, tmp_path)
        spent = server.stats()["billed"]
    assert 3000 < spent["prompt_tokens"] + spent["completion_tokens"] <= 6000


def test_the_limits_that_the_server_states_are_kept(tmp_path: Path) -> None:
    hours = Hours()
    with ReplayServer(made_up_answer, requests_per_minute=30) as server:
        answer_all(synthesis(server, 40, parameters={"max_completion_tokens": 8}), tmp_path, hours)
    assert hours.now - 1000 > (40 - 2 * 8) * 2
