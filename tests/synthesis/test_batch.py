from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from replay_server import Faults, ReplayServer, made_up_answer
from synthesis.running import (
    PRICE,
    answered,
    batch_answer_all,
    planned_keys,
    records,
    synthesis,
    without_probes,
)

from st_llm_embed.errors import InputError
from st_llm_embed.synthesis import batch
from st_llm_embed.synthesis.generate import generate
from st_llm_embed.synthesis.journal import Journal

KEY = "sk-recognisable-0123456789"


def recipe_for(server: ReplayServer | str, folder: Path, requests: int = 30, **changes: Any) -> Any:
    return without_probes(synthesis(server, requests, mode="batch", **changes), folder)


def billed_once(log: Path) -> list[str]:
    """Custom ids of the ledger; each must be there once."""
    names = Counter(json.loads(line)["custom_id"] for line in log.read_text(encoding="utf-8").splitlines())
    assert set(names.values()) == {1}
    return sorted(names)


def test_models_and_sizes_are_split_into_files_and_every_request_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "MAX_REQUESTS", 7)
    log = tmp_path / "ledger.jsonl"
    with ReplayServer(made_up_answer, log=log) as server:
        recipe = recipe_for(server, tmp_path, models={"a": 2, "b": 1})
        progress = batch_answer_all(recipe, tmp_path)
        assert batch_answer_all(recipe, tmp_path).done == 30
        with OpenAI(base_url=server.base_url, api_key="x", max_retries=0) as openai:
            lines = [openai.files.content(one.input_file_id).text.splitlines() for one in openai.batches.list()]
    assert progress.done == 30
    assert sorted(answered(tmp_path)) == billed_once(log) == planned_keys(recipe)
    assert 5 <= len(lines) <= 7
    assert all(len(file) <= 7 and len({json.loads(line)["body"]["model"] for line in file}) == 1 for file in lines)
    assert not list((tmp_path / "batches").iterdir())
    usage = [record["usage"] for record in records(tmp_path, "answered")]
    with Journal(tmp_path) as journal:
        expected = sum(
            one["prompt_tokens"] * PRICE["input"] + one["completion_tokens"] * PRICE["output"] for one in usage
        )
        assert journal.usd == pytest.approx(expected / 1e6)


def test_expired_batches_and_lines_with_errors_are_asked_again(tmp_path: Path) -> None:
    log = tmp_path / "ledger.jsonl"
    faults = Faults(batch_outcomes=("expired", "failed", "expired"), batch_polls=1)
    with ReplayServer(made_up_answer, faults=faults, log=log) as server:
        recipe = recipe_for(server, tmp_path, models={"a": 1, "b": 1})
        progress = batch_answer_all(recipe, tmp_path)
    assert progress.done == 30
    assert sorted(answered(tmp_path)) == billed_once(log) == planned_keys(recipe)


@pytest.mark.parametrize(
    ("faults", "expected", "kept"),
    [
        (Faults(batch_error_share=0.2), r"answered none of the \d+ requests that are left", range(16, 30)),
        (Faults(batch_outcomes=("failed",)), "This batch was drawn to fail validation", range(1)),
    ],
)
def test_batches_that_get_nowhere_end_with_one_message(
    faults: Faults, expected: str, kept: range, tmp_path: Path
) -> None:
    log = tmp_path / "ledger.jsonl"
    with ReplayServer(made_up_answer, faults=faults, log=log) as server:
        with pytest.raises(InputError, match=expected):
            batch_answer_all(recipe_for(server, tmp_path), tmp_path)
        assert len(answered(tmp_path)) == server.stats()["billed"]["requests"]
    assert len(answered(tmp_path)) in kept


def test_the_limit_holds_and_raising_it_goes_on(tmp_path: Path) -> None:
    log = tmp_path / "ledger.jsonl"
    with ReplayServer(made_up_answer, log=log) as server:
        for limit in (0.005, 0.01):
            recipe = recipe_for(server, tmp_path, budget={"usd": limit})
            with pytest.raises(InputError, match=f"The limit is reached: .* of {limit:.2f}"):
                batch_answer_all(recipe, tmp_path)
            with Journal(tmp_path) as journal:
                assert limit / 2 < journal.usd <= limit
        recipe = recipe_for(server, tmp_path, budget={"usd": 9})
        batch_answer_all(recipe, tmp_path)
    assert sorted(answered(tmp_path)) == billed_once(log) == planned_keys(recipe)


class Stops(batch.BatchClient):
    """Is interrupted once the batches are submitted."""

    def _collect_all(self, *_: Any) -> None:
        raise KeyboardInterrupt


def test_what_was_submitted_is_collected_though_the_recipe_has_changed(tmp_path: Path) -> None:
    log = tmp_path / "ledger.jsonl"
    with ReplayServer(made_up_answer, log=log) as server:
        recipe = recipe_for(server, tmp_path, 10)
        with pytest.raises(InputError, match="Stopped"):
            batch_answer_all(recipe, tmp_path, kind=Stops)
        live = recipe.model_copy(update={"endpoint": recipe.endpoint.model_copy(update={"mode": "live"})})
        with pytest.raises(InputError, match="1 batches of an earlier run are not collected yet"):
            generate(live, tmp_path)
        changed = recipe_for(server, tmp_path, 10, parameters={"max_completion_tokens": 200})
        batch_answer_all(changed, tmp_path)
        batch_answer_all(recipe, tmp_path)
    assert sorted(answered(tmp_path)) == billed_once(log) == sorted(planned_keys(recipe) + planned_keys(changed))


def test_a_damaged_line_costs_that_line(tmp_path: Path) -> None:
    with ReplayServer(made_up_answer, faults=Faults(batch_outcomes=("damaged",), batch_polls=1)) as server:
        recipe = recipe_for(server, tmp_path, 10)
        assert batch_answer_all(recipe, tmp_path).done == 10
        assert server.stats()["billed"]["requests"] == 12
    assert sorted(answered(tmp_path)) == planned_keys(recipe)
    [cut, lost] = sorted(record["body"] for record in records(tmp_path, "maybe paid"))[::-1]
    assert cut.startswith('{"id": "batch_req_'), "the line is kept as far as it came"
    assert lost == "a line of the batch's output is damaged"


def test_batches_that_are_lost_are_given_up_on_request(tmp_path: Path) -> None:
    with ReplayServer(made_up_answer, faults=Faults(batch_polls=1)) as server:
        recipe = recipe_for(server, tmp_path, 10)
        with pytest.raises(InputError, match="Stopped"):
            batch_answer_all(recipe, tmp_path, kind=Stops)
    with ReplayServer(made_up_answer, faults=Faults(batch_polls=1), port=server.port) as server:  # knows of no batch
        with pytest.raises(InputError, match=r"answers: .*404.* --give-up-batches"):
            batch_answer_all(recipe, tmp_path)
        assert (batch.give_up_batches(tmp_path), batch.give_up_batches(tmp_path)) == (1, 0)
        assert batch_answer_all(recipe, tmp_path).done == 10
    assert sorted(answered(tmp_path)) == planned_keys(recipe)
    lost = records(tmp_path, "maybe paid")
    assert sorted(record["key"] for record in lost) == planned_keys(recipe)
    assert all(record["tokens"] > 1000 for record in lost)


def test_the_key_is_nowhere(tmp_path: Path) -> None:
    def echo(_: dict[str, Any]) -> str:
        return json.dumps({"user_query": KEY})

    with ReplayServer(echo) as server:
        batch_answer_all(recipe_for(server, tmp_path), tmp_path, KEY)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    assert "[key]" in (tmp_path / "answers.jsonl").read_text(encoding="utf-8")
    with ReplayServer(made_up_answer, require_key="other") as server:
        recipe = recipe_for(server, tmp_path / "refused")
        with pytest.raises(InputError, match=r"The Batch API of .* answers: .*401") as error:
            batch_answer_all(recipe, tmp_path / "refused", KEY)
    assert KEY not in str(error.value)
    assert error.value.__context__ is None
