from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ablate import Grid, collect, differences_to, main, plot, run_grid, run_name, score_run, scores_after, to_markdown

from st_llm_embed import InputError

ROOT = Path(__file__).parents[2]

RANKS = {
    "name": "ranks",
    "description": "Which rank.",
    "recipe": "demo",
    "set": ["loss.temperature=0.05"],
    "axes": {
        "rank": {8: ["lora={r: 8}"], "16": ["lora={r: 16}"]},
        "base": {"pretrained": [], "fresh, wider": ["loss.temperature=0.1"]},
    },
    "seeds": [1, 2],
}

POOLINGS = Grid.model_validate(
    RANKS | {"name": "poolings", "set": [], "axes": {"pooling": {"last": [], "mean": ["base.pooling_mode=mean"]}}}
)


def test_every_combination_is_a_variant_and_overrides_apply_in_order() -> None:
    grid = Grid.model_validate(RANKS)
    variants = grid.variants()
    assert [variant.label for variant in variants] == [
        "8, pretrained",
        "8, fresh, wider",
        "16, pretrained",
        "16, fresh, wider",
    ]
    assert run_name(variants[1], 2) == "8-fresh-wider-seed2"
    assert grid.recipe_of(variants[0], 2).loss.temperature == 0.05
    recipe = grid.recipe_of(variants[-1], 2)
    assert (recipe.loss.temperature, recipe.lora, recipe.seed) == (0.1, {"r": 16}, 2)


def test_a_written_grid_is_read_back_equal(tmp_path: Path) -> None:
    (tmp_path / "grid.yaml").write_text(Grid.model_validate(RANKS).to_yaml(), encoding="utf-8")
    assert Grid.load(tmp_path / "grid.yaml") == Grid.model_validate(RANKS)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"axis": {}}, ["unknown key axis (did you mean axes?)", "name, description, recipe, set, axes, seeds"]),
        ({"axes": {}}, ["axes", "at least 1"]),
        ({"axes": {"rank": {}}}, ["axis rank has no setting"]),
        ({"axes": {"rank": {"a b": [], "a-b": []}}}, ["'a-b'", "rename one of them"]),
        ({"axes": {"rank": {"8": ["lora"]}}}, ["axes.rank.8.0", "pattern"]),
        ({"axes": {"rank": {"a|b": []}}}, ["axes.rank"]),
        ({"axes": {"lora": {True: []}}}, ["axes.lora", "as switches; put quotes"]),
        ({"seeds": [1, 1]}, ["seeds", "twice"]),
        ({"seeds": [True]}, ["seeds"]),
        ({"name": "a/b"}, ["name"]),
    ],
)
def test_a_faulty_grid_is_refused_in_one_line(changes: dict[str, object], said: list[str], tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump(RANKS | changes), encoding="utf-8")
    with pytest.raises(InputError) as error:
        Grid.load(path)
    message = str(error.value)
    assert len(message.splitlines()) == 1
    assert all(part in message for part in (str(path), *said)), message


@pytest.mark.parametrize("content", [b"- a\n", b"a: [", b"\xff\xfe", b"", None])
def test_a_file_without_a_mapping_is_refused(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "grid.yaml").write_bytes(content)
    with pytest.raises(InputError, match=r"The grid .*grid\.yaml.*docs/reproduction\.md has") as error:
        Grid.load(tmp_path / "grid.yaml")
    assert len(str(error.value).splitlines()) == 1


def test_the_grid_in_the_documentation_is_valid() -> None:
    document = (ROOT / "docs" / "reproduction.md").read_text(encoding="utf-8")
    [block] = re.findall(r"```yaml\n(.*?)```", document, flags=re.DOTALL)
    grid = Grid.model_validate(yaml.safe_load(block))
    assert [variant.label for variant in grid.variants()] == ["16, 0.02", "16, 0.05", "8, 0.02", "8, 0.05"]


def write_scores(folder: Path, label: str, seed: int, retrieval: float, *, recipe: str | None = None) -> None:
    [variant] = [variant for variant in POOLINGS.variants() if variant.label == label]
    scores = {
        "recipe": recipe or POOLINGS.recipe_of(variant, seed).to_yaml(),
        "before": {"held-out retrieval, nDCG@10": 0.1},
        "after": {"held-out retrieval, nDCG@10": retrieval},
        "open_sets": {"STS: one": retrieval, "STS: two": retrieval + 0.2, "bitext: three": 0.5},
    }
    run = folder / "runs" / run_name(variant, seed)
    run.mkdir(parents=True, exist_ok=True)
    (run / "scores.json").write_text(json.dumps(scores), encoding="utf-8")


def test_tables_have_means_spread_and_differences_with_the_same_seed(tmp_path: Path) -> None:
    for label, seed, retrieval in (("last", 1, 0.2), ("last", 2, 0.4), ("mean", 1, 0.3), ("mean", 2, 0.35)):
        write_scores(tmp_path, label, seed, retrieval)
    runs = collect(POOLINGS, tmp_path)
    text = to_markdown(POOLINGS, runs)
    lines = text.splitlines()
    assert "|  | last | mean |" in lines
    assert "| held-out retrieval, nDCG@10 | 0.300 (0.200 to 0.400) | 0.325 (0.300 to 0.350) |" in lines
    assert "| open STS, mean of 2 sets | 0.400 (0.300 to 0.500) | 0.425 (0.400 to 0.450) |" in lines
    assert "| held-out retrieval, nDCG@10 | +0.025 (-0.050 to +0.100) |" in lines
    assert "| STS: two | 0.500 (0.400 to 0.600) | 0.525 (0.500 to 0.550) |" in lines
    assert "Recipe demo, 4 of 4 runs, seeds 1, 2" in text
    plot(scores_after(runs), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    write_scores(tmp_path, "mean", 1, 0.9, recipe="name: another")
    assert list(collect(POOLINGS, tmp_path)["mean"]) == [2], "a run of another recipe does not count"


def test_unfinished_runs_are_empty_cells_and_not_compared(tmp_path: Path) -> None:
    plot(scores_after(collect(POOLINGS, tmp_path)), tmp_path / "plot.png")
    assert not (tmp_path / "plot.png").exists()
    write_scores(tmp_path, "mean", 2, 0.3)
    text = to_markdown(POOLINGS, collect(POOLINGS, tmp_path))
    assert "1 of 4 runs" in text
    assert "| held-out retrieval, nDCG@10 |  | 0.300 |" in text
    assert "Difference" not in text
    write_scores(tmp_path, "last", 1, 0.3)
    after = scores_after(collect(POOLINGS, tmp_path))
    assert differences_to(after["last"], after["mean"])["held-out retrieval, nDCG@10"] == {}


def test_a_release_is_scored_again_only_on_other_open_sets(open_sets: Path, tmp_path: Path) -> None:
    run, calls = tmp_path / "run", []
    scores = {"retrieval_ndcg_at_10": 0.5, "sts_triplet_accuracy": None, "bitext_accuracy": 0.25}
    report = {"before": scores, "after": scores, "training": {"steps": 2, "seconds": 1.0}}
    for name, content in (("evaluation/report.json", report), ("manifests/release.json", {"fingerprint": "abc"})):
        (run / name).parent.mkdir(parents=True)
        (run / name).write_text(json.dumps(content), encoding="utf-8")
    (run / "recipe.yaml").write_text("name: tiny", encoding="utf-8")

    def call(*arguments: Any) -> None:
        calls.append(arguments)
        arguments[-1].write_text(json.dumps({"STS: one": len(calls)}), encoding="utf-8")

    first = score_run(run, open_sets, call)
    assert first["after"] == {"held-out retrieval, nDCG@10": 0.5, "held-out bitext, accuracy": 0.25}
    assert score_run(run, open_sets, call) == first
    assert len(calls) == 1
    changed = next(open_sets.rglob("*.jsonl.gz"))
    changed.write_bytes(changed.read_bytes() + b"\n")
    assert score_run(run, open_sets, call)["open_sets"] == {"STS: one": 2}
    assert score_run(run, None, call)["open_sets"] == {}


@pytest.fixture
def grid(tiny_recipe: Path, tmp_path: Path) -> Path:
    content = {
        "name": "poolings",
        "description": "Which pooling.",
        "recipe": str(tiny_recipe),
        "set": ["training.max_steps=2", "training.save_strategy='no'"],
        "axes": {"pooling": {"mean": ["base.pooling_mode=mean"]}},
        "seeds": [1],
    }
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def with_setting(grid: Path, label: str, *overrides: str) -> Path:
    content = yaml.safe_load(grid.read_text(encoding="utf-8"))
    content["axes"]["pooling"][label] = list(overrides)
    grid.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return grid


@pytest.mark.integration
def test_a_grid_runs_in_processes_and_finished_runs_are_kept(grid: Path, open_sets: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "1 of 1 runs" in run_grid(Grid.load(grid), out, open_sets=open_sets)
    for name in ("grid.yaml", "table.md", "table.json", "plot.png", "runs/mean-seed1/release/README.md"):
        assert (out / name).is_file(), name
    [run] = json.loads((out / "table.json").read_text(encoding="utf-8"))["runs"]
    assert (run["setting"], len(run["open_sets"])) == ("mean", 11)
    report = json.loads((out / "runs" / "mean-seed1" / "evaluation" / "report.json").read_text(encoding="utf-8"))
    assert run["after"]["held-out retrieval, nDCG@10"] == report["after"]["retrieval_ndcg_at_10"]

    manifests = {path: path.stat().st_mtime_ns for path in out.rglob("manifests/*.json")}
    two_stages = ("training.learning_rate=1e30", "training.max_grad_norm=1e30", "stages=[{name: one}, {name: two}]")
    with pytest.raises(InputError, match=r"The run diverging-seed1 ended with code 2: .*Set training\.learning_rate"):
        run_grid(Grid.load(with_setting(grid, "diverging", *two_stages)), out, jobs=2)
    assert not (out / "runs" / "diverging-seed1" / "release").exists()
    assert all(path.stat().st_mtime_ns == moment for path, moment in manifests.items())


def test_the_command_lists_runs_and_reports_slips_in_one_line(
    grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["ablate.py", str(grid), "--output-dir", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", [*command, "--dry-run"])
    main()
    listed = "mean-seed1  training.max_steps=2 training.save_strategy='no' base.pooling_mode=mean"
    assert listed in capsys.readouterr().out
    with_setting(grid, "wrong", "base.pooling_mode=cls")
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit, match="2"):
        main()
    assert re.match(r"Error: .*base\.pooling_mode is 'cls'", capsys.readouterr().err.splitlines()[-1])
    assert not (tmp_path / "out").exists()


def test_faulty_folders_and_sets_are_refused_before_anything_is_written(grid: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"lacks stsb_multi_mt/en/test\.jsonl\.gz"):
        run_grid(Grid.load(grid), tmp_path / "out", open_sets=tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "table.md").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="was not written by an ablation"):
        run_grid(Grid.load(grid), tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["table.md"]
    assert not (tmp_path / "out").exists()
