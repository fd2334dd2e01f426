from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from open_sets import write_open_sets

from st_llm_embed import InputError, LLMSentenceTransformer
from st_llm_embed.ablation import Grid, run_grid
from st_llm_embed.ablation.scores import HELD_OUT, score_run
from st_llm_embed.evaluation.open_sets import STS


@pytest.fixture
def grid(tiny_recipe: Path, tmp_path: Path) -> Path:
    content = {
        "name": "poolings",
        "description": "Which pooling.",
        "recipe": str(tiny_recipe),
        "set": ["training.max_steps=2", "training.save_strategy='no'"],
        "axes": {"pooling": {"last": [], "mean": ["base.pooling_mode=mean"]}},
        "seeds": [1],
    }
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


@pytest.mark.integration
def test_a_grid_is_run_in_processes_and_not_again(grid: Path, tmp_path: Path, run_cli: Callable[..., Any]) -> None:
    out = tmp_path / "out"
    first = run_cli("ablate", grid, "--output-dir", out, "--jobs", "2")
    assert first.code == 0, first.err
    assert "2 of 2 runs" in first.out
    assert {path.name for path in (out / "runs").iterdir()} == {"last-seed1", "mean-seed1"}
    for name in ("grid.yaml", "table.md", "table.json", "plot.png", "runs/mean-seed1/release/README.md"):
        assert (out / name).is_file(), name
    last, mean = json.loads((out / "table.json").read_text(encoding="utf-8"))["runs"]
    assert (last["setting"], mean["setting"]) == ("last", "mean")
    assert last["after"] != mean["after"]
    report = json.loads((out / "runs" / "mean-seed1" / "evaluation" / "report.json").read_text(encoding="utf-8"))
    assert mean["after"]["held-out retrieval, nDCG@10"] == report["after"]["retrieval_ndcg_at_10"]

    manifests = {path: path.stat().st_mtime_ns for path in out.rglob("manifests/*.json")}
    content = yaml.safe_load(grid.read_text(encoding="utf-8"))
    stages = "stages=[{name: one}, {name: two}]"
    content["axes"]["pooling"]["weighted mean"] = ["base.pooling_mode=weightedmean", stages]
    grid.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    second = run_cli("ablate", grid, "--output-dir", out)
    assert second.code == 0, second.err
    assert "3 of 3 runs" in second.out
    assert "weighted-mean-seed1: finished, 1 of 3" in second.err, "the longest begins first"
    assert all(path.stat().st_mtime_ns == moment for path, moment in manifests.items())

    command = [sys.executable, "-m", "st_llm_embed.ablation", out / "logs" / "last-seed1.yaml"]
    unscored = subprocess.run(
        [*command, out / "runs" / "last-seed1", tmp_path / "nowhere"], check=False, capture_output=True, text=True
    )
    assert unscored.returncode == 2
    assert unscored.stderr.splitlines()[-1].startswith("Error: The folder of open evaluation sets")


def test_a_dry_run_lists_the_runs_and_writes_nothing(grid: Path, tmp_path: Path, run_cli: Callable[..., Any]) -> None:
    outcome = run_cli("ablate", grid, "--output-dir", tmp_path / "out", "--dry-run")
    assert outcome.code == 0, outcome.err
    assert "mean-seed1  training.max_steps=2 training.save_strategy='no' base.pooling_mode=mean" in outcome.out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("base.pooling_mode=cls", "base.pooling_mode is 'cls'"),
        ("training.optimm=sgd", "training.optimm is no argument"),
        ("base.name_or_path=nowhere/at-all", "nowhere/at-all"),
    ],
)
def test_a_setting_that_cannot_be_run_is_told_before_anything_is_written(
    override: str, told: str, grid: Path, tmp_path: Path, run_cli: Callable[..., Any]
) -> None:
    content = yaml.safe_load(grid.read_text(encoding="utf-8"))
    content["axes"]["pooling"]["wrong"] = [override]
    grid.write_text(yaml.safe_dump(content), encoding="utf-8")
    outcome = run_cli("ablate", grid, "--output-dir", tmp_path / "out")
    assert outcome.code == 2
    assert told in outcome.err
    assert not (tmp_path / "out").exists()


@pytest.mark.integration
def test_a_run_that_fails_is_told_with_its_reason_and_the_others_are_kept(grid: Path, tmp_path: Path) -> None:
    content = yaml.safe_load(grid.read_text(encoding="utf-8"))
    content["axes"]["pooling"]["diverging"] = ["training.learning_rate=1e30", "training.max_grad_norm=1e30"]
    failing = Grid.model_validate(content)
    with pytest.raises(InputError, match=r"The run diverging-seed1 ended with code 2: .*Set training\.learning_rate"):
        run_grid(failing, tmp_path / "out")
    table = json.loads((tmp_path / "out" / "table.json").read_text(encoding="utf-8"))
    assert [run["setting"] for run in table["runs"]] == ["last", "mean"]


def test_a_folder_that_holds_what_no_ablation_wrote_is_left_as_it_is(grid: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "table.md").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="was not written by an ablation"):
        run_grid(Grid.load(grid), out)
    assert [path.name for path in out.iterdir()] == ["table.md"]


def test_open_sets_that_are_not_there_are_named(grid: Path, tmp_path: Path) -> None:
    (tmp_path / "sets").mkdir()
    with pytest.raises(InputError, match=r"lacks stsb_multi_mt/en/test\.jsonl\.gz"):
        run_grid(Grid.load(grid), tmp_path / "out", open_sets=tmp_path / "sets")
    assert not (tmp_path / "out").exists()


def test_kept_scores_are_those_of_the_open_sets_that_were_given(tiny_base: Path, tmp_path: Path) -> None:
    run, sets, task = tmp_path / "run", write_open_sets(tmp_path / "sets"), f"STS: {STS[0]}"
    model = LLMSentenceTransformer.from_base(str(tiny_base), max_seq_length=48)
    model.save_pretrained(str(run / "release"), create_model_card=False)
    (run / "manifests").mkdir()
    (run / "manifests" / "release.json").write_text('{"fingerprint": "abc"}', encoding="utf-8")
    (run / "recipe.yaml").write_text("name: tiny", encoding="utf-8")
    scores = dict.fromkeys(HELD_OUT, 0.5)
    report = {"before": scores, "after": scores, "training": {"steps": 2, "seconds": 1.0}}
    first = score_run(run, report, sets)
    (run / "release").rename(run / "moved")
    assert score_run(run, report, sets) == first, "the model is not loaded again"
    (run / "moved").rename(run / "release")
    other = score_run(run, report, write_open_sets(tmp_path / "others", falling=True))
    assert other.open_sets[task] == pytest.approx(-first.open_sets[task]) != 0
    assert score_run(run, report, None).open_sets == {}
