from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import Outcome, example_rows, write_rows

from st_llm_embed.recipe import shipped_recipes

RunCli = Callable[..., Outcome]


def refused(outcome: Outcome, *told: str) -> None:
    """One paragraph on stderr, exit code 2, no traceback."""
    assert outcome.code == 2
    assert outcome.err.startswith("Error: ")
    assert len(outcome.err.strip().splitlines()) == 1
    assert "Traceback" not in outcome.err
    for words in told:
        assert words in outcome.err


def test_recipes_are_listed_and_shown_with_their_comments(run_cli: RunCli) -> None:
    listed = run_cli("recipes", "list")
    assert listed.code == 0
    assert [line.split()[0] for line in listed.out.splitlines()] == shipped_recipes()
    shown = run_cli("recipes", "show", "e5-mistral-7b").out
    assert "# not stated in the paper" in shown
    resolved = yaml.safe_load(run_cli("recipes", "show", "demo", "--set", "seed=7").out)
    assert resolved["seed"] == 7
    assert resolved["base"]["random_init"] is False


def test_a_copied_recipe_is_an_equal_one_and_never_overwrites(
    run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_cli("recipes", "copy", "demo").code == 0
    assert run_cli("recipes", "show", "demo.yaml").out == run_cli("recipes", "show", "demo").out
    refused(run_cli("recipes", "copy", "demo"), "demo.yaml exists", "--to")


def test_run_without_a_recipe_says_what_to_do(run_cli: RunCli) -> None:
    refused(run_cli("run"), "st-llm-embed run demo", *shipped_recipes())


def test_a_dry_run_checks_and_prints_and_writes_nothing(run_cli: RunCli, tiny_recipe: Path, tmp_path: Path) -> None:
    outcome = run_cli("run", tiny_recipe, "--dry-run", "--output-dir", tmp_path / "out")
    assert outcome.code == 0
    assert yaml.safe_load(outcome.out)["name"] == "tiny"
    assert not (tmp_path / "out").exists()
    refused(run_cli("run", tiny_recipe, "--dry-run", "--set", "data.rows=nowhere.jsonl"), "nowhere.jsonl")


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["loss.temprature=1"], ["loss.temprature", "did you mean temperature"]),
        (["training.learning_rat=1"], ["learning_rat", "did you mean learning_rate"]),
        (["seed=many"], ["seed", "'many'"]),
        (["training.learning_rate=fast"], ["learning_rate", "'fast'"]),
        (["base.name_or_path=no/such-model"], ["no/such-model", "embedded"]),
        (["data.rows=nowhere.jsonl"], ["nowhere.jsonl", "embedded"]),
        (["data.validation_fraction=0.0000001"], ["validation_fraction", "another fraction"]),
    ],
)
def test_a_wrong_choice_ends_with_one_message_and_nothing_written(
    overrides: list[str], told: list[str], run_cli: RunCli, tiny_recipe: Path, tmp_path: Path
) -> None:
    options = [part for override in overrides for part in ("--set", override)]
    refused(run_cli("run", tiny_recipe, *options, "--output-dir", tmp_path / "out"), *told)
    assert not (tmp_path / "out").exists()


def test_an_unknown_recipe_lists_the_known(run_cli: RunCli, tmp_path: Path) -> None:
    refused(run_cli("run", "dmeo", "--output-dir", tmp_path / "out"), "'dmeo'", "did you mean demo", "recipes copy")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (None, "holds no rows"),
        ({"positive": ""}, "its positive is empty"),
        ({"negative": example_rows()[5]["positive"]}, "its negative equals its positive"),
    ],
)
def test_bad_rows_are_refused_before_anything_is_written(
    spoil: dict[str, str] | None, told: str, run_cli: RunCli, tiny_recipe: Path, tmp_path: Path
) -> None:
    rows = [] if spoil is None else example_rows()
    if spoil is not None:
        rows[5] |= spoil
    path = write_rows(tmp_path / "bad.jsonl", rows)
    outcome = run_cli("run", tiny_recipe, "--set", f"data.rows={path}", "--output-dir", tmp_path / "out")
    refused(outcome, "bad.jsonl", told)
    assert spoil is None or "line 6" in outcome.err
    assert not (tmp_path / "out").exists()


def test_a_base_without_a_tokenizer_is_refused(
    run_cli: RunCli, tiny_recipe: Path, tiny_base: Path, tmp_path: Path
) -> None:
    (tmp_path / "base").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "base" / name).write_bytes((tiny_base / name).read_bytes())
    override = f"base.name_or_path={tmp_path / 'base'}"
    refused(run_cli("run", tiny_recipe, "--set", override, "--output-dir", tmp_path / "out"), "holds no tokenizer")
    assert not (tmp_path / "out").exists()


def test_an_output_folder_that_cannot_be_written_is_refused(
    run_cli: RunCli, tiny_recipe: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    refused(
        run_cli("run", tiny_recipe, "--output-dir", tmp_path / "file" / "out"), "cannot be written to", "--output-dir"
    )


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="permissions do not bind root")
def test_a_folder_without_write_permission_is_refused(run_cli: RunCli, tiny_recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o555)
    refused(run_cli("run", tiny_recipe, "--output-dir", tmp_path / "closed" / "out"), "Permission denied")


def test_a_run_prints_the_table_and_where_everything_lies(run_cli: RunCli, tiny_recipe: Path, tmp_path: Path) -> None:
    outcome = run_cli("run", tiny_recipe, "--output-dir", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    report = json.loads((tmp_path / "out" / "evaluation" / "report.json").read_text(encoding="utf-8"))
    for key in ("retrieval_ndcg_at_10", "sts_triplet_accuracy", "bitext_accuracy"):
        assert f"{report['after'][key]:.3f}" in outcome.out
    for name in ("release", "evaluation/report.md", "training", "dataset", "recipe.yaml"):
        assert str(tmp_path / "out" / name) in outcome.out.replace("\n", "")
