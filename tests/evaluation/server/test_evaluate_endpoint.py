from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Outcome
from embedding_server import EmbeddingServer
from things_tasks import ThingsSTS

import st_llm_embed.evaluation.benchmark.run as evaluation

RunCli = Callable[..., Outcome]


@pytest.fixture
def things(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "resolve_tasks", lambda *_: [ThingsSTS()])


@pytest.mark.usefixtures("things")
def test_a_served_model_is_evaluated_by_the_same_command(tmp_path: Path, run_cli: RunCli) -> None:
    with EmbeddingServer() as server:
        command = [
            "evaluate",
            "org/tiny",
            "--base-url",
            server.base_url,
            "--tasks",
            "ThingsSTS",
            "--output-dir",
            tmp_path,
        ]
        refused = run_cli(*command)
        assert (refused.code, server.requests) == (2, [])
        assert "No price is known for org/tiny" in refused.err
        dry = run_cli(*command, "--price", "0.5", "--dry-run")
        assert (dry.code, server.requests) == (0, [])
        assert "about $0.00; not counted, since mteb has no statistics of them: ThingsSTS" in " ".join(dry.out.split())
        outcome = run_cli(*command, "--price", "0.5", "--parameter", "dimensions=8")
        assert outcome.code == 0, outcome.err
        assert all(body["dimensions"] == 8 for body in server.bodies)
    run = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    assert run["model"] == f"127.0.0.1-{server.base_url.split(':')[2].split('/')[0]}/org__tiny"
    assert (run["parameters"], run["request_parameters"]) == (None, {"dimensions": 8})
    assert run["spent"]["tokens"] == sum(len(text.split()) for text in server.texts)
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert report["tasks"]["ThingsSTS"]["query"] == "Instruct: Find the same.\nQuery: "


@pytest.mark.usefixtures("things")
def test_a_parameter_without_a_value_is_refused(tmp_path: Path, run_cli: RunCli) -> None:
    where = ["--base-url", "http://localhost/v1", "--output-dir", tmp_path / "out"]
    options = ["--tasks", "ThingsSTS", "--price", "0", "--parameter", "dimensions"]
    outcome = run_cli("evaluate", "tiny", *where, *options)
    assert outcome.code == 2
    assert "--parameter is 'dimensions'; it has to look like dimensions=256" in outcome.err
    assert not (tmp_path / "out").exists()
