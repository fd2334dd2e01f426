"""The commands synthesize and reparse, and what stops them, against the replay server."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Outcome
from replay_server import Faults, ReplayServer, made_up_answer
from synthesis.running import (
    PRICE,
    answer_all,
    answered,
    asking,
    records,
    small_disk,
    synthesis,
    without_probes,
)

from st_llm_embed.errors import InputError
from st_llm_embed.pipeline import run_synthesis
from st_llm_embed.recipe import Recipe
from st_llm_embed.synthesis.generate import STAND_IN

RunCli = Callable[..., Outcome]
KEY = "sk-recognisable-0123456789"
PROGRESS = r"examples 40/40 \([\d.]+/s, .* left\); answers: .*sts \d+.*; \$0\.\d\d, [\d,]+ tokens"


def write_recipe(folder: Path, server: ReplayServer | str, requests: int = 40, **changes: Any) -> Path:
    content = Recipe.load("demo").model_dump(mode="json")
    section = synthesis(server, requests, **changes).model_dump(mode="json", exclude_defaults=True)
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(content | {"name": "mine", "synthesis": section}), encoding="utf-8")
    return path


@pytest.fixture
def server() -> Iterator[ReplayServer]:
    with ReplayServer(made_up_answer) as server:
        yield server


@pytest.mark.parametrize(("plan", "prompts"), [({}, 1), ({"tasks": None, "brainstorm_requests": 6}, 2)])
def test_a_dry_run_shows_a_prompt_of_each_step(
    plan: dict[str, Any], prompts: int, server: ReplayServer, tmp_path: Path, run_cli: RunCli
) -> None:
    outcome = run_cli("synthesize", write_recipe(tmp_path, server, plan=plan), "--dry-run")
    assert outcome.code == 0, outcome.err
    assert outcome.out.count("JSON") >= prompts
    assert (STAND_IN in outcome.out) == (prompts == 2)
    assert server.stats()["received"] == 0


def test_an_estimate_weighs_task_types_and_has_the_judge(tmp_path: Path, run_cli: RunCli) -> None:
    def answer(body: dict[str, Any]) -> str:
        if body["model"] == "j":
            return json.dumps({"score": 5})
        answer = json.loads(made_up_answer(body))
        long = "user_query" in answer  # short-long costs most and is rare
        return json.dumps({name: text * (8 if long and isinstance(text, str) else 1) for name, text in answer.items()})

    plan = {"tasks": None, "preset": "custom", "task_types": {"short-long": 1, "sts": 4, "short-short": 5}}
    with ReplayServer(answer) as server:
        filters = {"judge_model": "j", "near_duplicates": None, "languages": False}
        budget = {"prices": dict.fromkeys(("m", "j"), PRICE)}
        parameters = {"max_completion_tokens": 4000}
        options = {"plan": plan | {"brainstorm_requests": 6}, "filters": filters, "budget": budget}
        recipe = write_recipe(tmp_path, server, 100, parameters=parameters, **options)
        outcome = run_cli("synthesize", recipe, "--output-dir", tmp_path / "out", "--estimate", "12")
        assert outcome.code == 0, outcome.err
        assert run_cli("synthesize", recipe, "--output-dir", tmp_path / "out").code == 0
    real = records(tmp_path / "out" / "journal", "answered")
    for step in ("example", "judge"):
        [row] = [line for line in outcome.out.splitlines() if step in line]
        tokens = int(re.findall(r"[\w.,%]+", row)[3].replace(",", ""))
        spent = [one["tokens"] for one in real if one["step"] == step]
        assert tokens == pytest.approx(sum(spent[-100:]), rel=0.25), step
    assert "minutes" in outcome.out


def refused(outcome: Outcome, *expected: str) -> None:
    assert outcome.code == 2, outcome.err
    [message] = [line for line in outcome.err.splitlines() if line.startswith("Error: ")]
    assert "Traceback" not in outcome.err
    for words in expected:
        assert words in message


def test_a_finished_run_asks_nothing_again_whatever_is_filtered(
    server: ReplayServer, tmp_path: Path, run_cli: RunCli
) -> None:
    # Brainstormed tasks come first and are frozen.
    plan = {"tasks": None, "brainstorm_requests": 6}
    recipe = write_recipe(tmp_path, server, plan=plan, parameters={"max_completion_tokens": 2000})
    out = tmp_path / "out"
    first = run_cli("synthesize", recipe, "--output-dir", out)
    assert first.code == 0, first.err
    assert re.search(PROGRESS, first.err)
    assert "\x1b" not in first.err, "no terminal"
    received = server.stats()["received"]
    assert received == 1 + 6 + 40
    for arguments in (
        ("synthesize",),
        ("synthesize", "--set", "synthesis.filters.near_duplicates=0.5"),
        ("reparse",),
        ("reparse", "--set", "synthesis.filters.near_duplicates=null"),
    ):
        again = run_cli(arguments[0], recipe, "--output-dir", out, *arguments[1:])
        assert again.code == 0, again.err
    assert server.stats()["received"] == received
    more = run_cli("synthesize", recipe, "--output-dir", out, "--set", "synthesis.plan.requests=50")
    assert more.code == 0, more.err
    assert (
        "examples: 10 to ask, 40 answered already, 0 answers set aside because settings changed; at most $" in more.err
    )
    assert server.stats()["received"] == received + 10
    changed = ["--set", "synthesis.endpoint.parameters.temperature=0.5", "--estimate", "6"]
    assert run_cli("synthesize", recipe, "--output-dir", out, *changed).code == 0
    changed[-2:] = ["--set", "synthesis.plan.requests=10"]
    other = run_cli("synthesize", recipe, "--output-dir", out, *changed)
    assert re.search(r"examples: \d+ to ask, \d answered already, 5\d answers set aside", other.err)


def test_an_estimate_sends_k_requests_a_step_and_the_run_uses_their_answers(
    server: ReplayServer, tmp_path: Path, run_cli: RunCli
) -> None:
    recipe, out = write_recipe(tmp_path, server, 200, parameters={"max_completion_tokens": 2000}), tmp_path / "out"
    outcome = run_cli("synthesize", recipe, "--output-dir", out, "--estimate", "40")
    assert outcome.code == 0, outcome.err
    assert server.stats()["received"] == 1 + 40
    [row] = [line for line in outcome.out.splitlines() if "example" in line]
    _, requests, usable, tokens, usd, _ = re.findall(r"[\w.,%]+", row)
    assert run_cli("synthesize", recipe, "--output-dir", out).code == 0
    rows = json.loads((out / "dataset" / "statistics.json").read_text(encoding="utf-8"))["rows"]
    assert requests == "200"
    assert int(usable.rstrip("%")) == pytest.approx(rows / 2, abs=12), "kept by the filters"
    assert server.stats()["received"] == 1 + 200
    real = records(out / "journal", "answered")
    assert int(tokens.replace(",", "")) == pytest.approx(sum(record["tokens"] for record in real), rel=0.15)
    assert float(usd) == pytest.approx(sum(record["usd"] for record in real), rel=0.15)
    plan = {"tasks": None, "brainstorm_requests": 50}
    other = write_recipe(tmp_path, server, 200, plan=plan, parameters={"max_completion_tokens": 2000})
    assert "brainstorm" in run_cli("synthesize", other, "--output-dir", tmp_path / "other", "--estimate", "5").out
    assert server.stats()["received"] == 201 + 1 + 5 + 6, "one of each task type at least"


@pytest.mark.parametrize("option", [("--dry-run",), ("--estimate", "5")])
def test_a_dry_run_and_an_estimate_load_no_library_of_models(
    option: tuple[str, ...], server: ReplayServer, tmp_path: Path
) -> None:
    program = """
import sys
from st_llm_embed import cli
try:
    cli.main()
except SystemExit as stop:
    assert not stop.code
assert not {'torch', 'transformers', 'sentence_transformers'} & set(sys.modules), 'slow'
"""
    arguments = ["synthesize", str(write_recipe(tmp_path, server)), "--output-dir", str(tmp_path / "out"), *option]
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "JSON object" in done.stdout or "example" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("synthesize", "--estimate", "0"), ["--estimate is 0"]),
        (("synthesize", "--estimate", "3", "--dry-run"), ["--estimate", "--dry-run"]),
        (("reparse",), ["holds no answers"]),
        (("synthesize", "--set", "data.rows=embedded"), ["takes its rows from embedded"]),
        (
            ("synthesize", "--set", "synthesis.budget.prices={}"),
            ["No price is known for m", "synthesis.budget.tokens"],
        ),
        (("synthesize", "--set", "synthesis.endpoint.parameters={}"), ["max_completion_tokens"]),
        (
            ("synthesize", "--set", "synthesis.endpoint={base_url: replay, models: {m: 1}, mode: batch}"),
            ["mode batch needs the address of a server"],
        ),
        (("synthesize", "--set", "synthesis.endpoint.parameters.n=2"), ["n cannot be set here"]),
        (("synthesize", "--set", "synthesis.endpoint.base_url=api.openai.com/v1"), ["base_url has to be replay or"]),
        (("synthesize", "--set", "synthesis.endpoint.base_url=https://api.example/v1"), ["OPENAI_API_KEY is not set"]),
        (("synthesize", "--set", "synthesis.endpoint.api_key_env=QUOTED"), ["QUOTED holds something that no key has"]),
        *(
            (("synthesize", "--set", f"synthesis.endpoint.base_url=https://{url}"), ["user, password, query"])
            for url in (f"{KEY}@api.example/v1", f"me:{KEY}@api.example/v1", f"api.example/v1?key={KEY}")
        ),
    ],
)
def test_what_cannot_be_used_ends_with_one_message_and_nothing_written(
    *,
    arguments: tuple[str, ...],
    expected: list[str],
    server: ReplayServer,
    tmp_path: Path,
    run_cli: RunCli,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("QUOTED", f"\u201c{KEY}\u201d")
    recipe = write_recipe(tmp_path, server)
    outcome = run_cli(arguments[0], recipe, "--output-dir", tmp_path / "out", *arguments[1:])
    refused(outcome, *expected)
    assert KEY not in outcome.err + outcome.out
    assert not (tmp_path / "out" / "journal").exists()
    assert server.stats()["received"] == 0


def test_the_key_is_in_no_file_and_no_output(
    tmp_path: Path, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def echo(body: dict[str, Any]) -> str:
        answer = json.loads(made_up_answer(body))
        if "colour" not in answer:  # the probe's
            answer = {name: f"{text} {KEY}" for name, text in answer.items()}
        return json.dumps(answer)

    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    caplog.set_level(0)
    out = tmp_path / "out"
    with ReplayServer(echo, require_key=KEY) as server:
        recipe = write_recipe(tmp_path, server, parameters={"max_completion_tokens": 2000})
        outcome = run_cli("synthesize", recipe, "--output-dir", out)
    assert outcome.code == 0, outcome.err
    assert "[key]" in (out / "journal" / "answers.jsonl").read_text(encoding="utf-8")
    with ReplayServer(made_up_answer, require_key="other") as server:
        wrong = run_cli("synthesize", write_recipe(tmp_path, server, 50), "--output-dir", out)
        refused(wrong, "refuses the key with status 401")
    for text in (outcome.out, outcome.err, wrong.out, wrong.err, caplog.text):
        assert KEY not in text
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_waits_for_what_is_in_flight(number: signal.Signals, tmp_path: Path, run_cli: RunCli) -> None:
    calls: list[int] = []

    def interrupts(body: dict[str, Any]) -> str:
        calls.append(1)
        if len(calls) == 15:
            os.kill(os.getpid(), number)
        return made_up_answer(body)

    out = tmp_path / "out"
    with ReplayServer(interrupts, latency=0.05) as server:
        recipe = write_recipe(tmp_path, server, 2000)
        refused(run_cli("synthesize", recipe, "--output-dir", out), "Stopped. Every answer that came is kept")
        stats = server.stats()
        assert stats["received"] == stats["answered"] < 100
        assert len(answered(out / "journal")) == stats["received"] - 1
    assert not records(out / "journal", "maybe paid")


def test_a_second_interrupt_stops_at_once(tmp_path: Path) -> None:
    with ReplayServer(made_up_answer, faults=Faults(shares={"hang": 1.0}, spared=1)) as server:
        recipe = without_probes(synthesis(server), tmp_path)

        def interrupt_twice() -> None:
            while server.stats()["in_flight"] < 8:
                pass
            os.kill(os.getpid(), signal.SIGINT)
            while not one.client._stopping:
                pass
            os.kill(os.getpid(), signal.SIGINT)

        with asking(recipe, tmp_path) as one, pytest.raises(InputError, match="Stopped"):  # noqa: PT012
            threading.Thread(target=interrupt_twice, daemon=True).start()
            one.answer()
    assert len(records(tmp_path, "maybe paid")) == 8


def test_a_full_disk_stops_the_run_and_it_goes_on_when_there_is_room(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", "9m") as small, ReplayServer(made_up_answer) as server:
        recipe = Recipe.load(str(write_recipe(tmp_path, server, 6000, parameters={"max_completion_tokens": 2000})))
        with pytest.raises(InputError, match=r"The disk that holds .* is full"):
            run_synthesis(recipe, small / "out")
        stats = server.stats()
        assert stats["received"] == stats["answered"] == len(answered(small / "out" / "journal")) + 1
        assert 0 < stats["received"] < 6000
        subprocess.run(["mount", "-o", "remount,size=200m", str(small)], check=True)
        more = recipe.synthesis.plan.model_copy(update={"requests": stats["received"] + 20})
        answer_all(recipe.synthesis.model_copy(update={"plan": more}), small / "out" / "journal")
        assert server.stats()["received"] == stats["received"] + 21


def test_a_disk_that_fills_up_with_the_last_answer_spoils_nothing(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", "20m") as small:
        asked: list[int] = []

        def fills_up(body: dict[str, Any]) -> str:
            asked.append(1)
            if len(asked) == 40:
                (small / "filler").write_bytes(bytes(15 << 20))
            return made_up_answer(body)

        with ReplayServer(fills_up) as server:
            progress = answer_all(without_probes(synthesis(server), small / "journal"), small / "journal")
    assert (progress.done, progress.left) == (40, 0)


def test_progress_says_everything_in_one_line(server: ReplayServer, tmp_path: Path) -> None:
    recipe = synthesis(server, budget={"usd": 5})
    progress = answer_all(recipe, tmp_path)
    progress.waiting = "paused for 3 s, the server asked for it"
    line = progress.describe()
    assert re.match(r"examples 40/40 \([\d.]+/s, .* left\); answers: .*sts \d+.*; without text: truncated \d+; ", line)
    assert re.search(r"; \$0\.0\d of 5\.00, [\d,]+ tokens; paused for 3 s, the server asked for it$", line)
