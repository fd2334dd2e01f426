from __future__ import annotations

import json
from pathlib import Path

import pytest

from st_llm_embed.ablation.grid import Grid, run_name
from st_llm_embed.ablation.plots import plot_table
from st_llm_embed.ablation.scores import SCORES_FILE, RunScores
from st_llm_embed.ablation.table import collect

GRID = Grid.model_validate(
    {
        "name": "poolings",
        "description": "Which pooling.",
        "recipe": "demo",
        "axes": {"pooling": {"last": [], "mean": ["base.pooling_mode=mean"]}},
        "seeds": [1, 2],
    }
)


def write_scores(folder: Path, label: str, seed: int, retrieval: float, *, recipe: str | None = None) -> None:
    [variant] = [variant for variant in GRID.variants() if variant.label == label]
    scores = RunScores(
        recipe=recipe or GRID.recipe_of(variant, seed).to_yaml(),
        release="abc",
        before={"held-out retrieval, nDCG@10": 0.1},
        after={"held-out retrieval, nDCG@10": retrieval},
        open_sets={"STS: one": retrieval, "STS: two": retrieval + 0.2, "bitext: three": 0.5},
        steps=3,
        seconds=1.0,
    )
    run = folder / "runs" / run_name(variant, seed)
    run.mkdir(parents=True, exist_ok=True)
    (run / SCORES_FILE).write_text(scores.model_dump_json(), encoding="utf-8")


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    for label, seed, retrieval in (("last", 1, 0.2), ("last", 2, 0.4), ("mean", 1, 0.3), ("mean", 2, 0.35)):
        write_scores(tmp_path, label, seed, retrieval)
    return tmp_path


def test_means_spread_and_differences_with_the_same_seed(finished: Path) -> None:
    table = collect(GRID, finished)
    lines = table.to_markdown().splitlines()
    assert "|  | last | mean |" in lines
    assert "| held-out retrieval, nDCG@10 | 0.300 (0.200 to 0.400) | 0.325 (0.300 to 0.350) |" in lines
    assert "| open STS, mean of 2 sets | 0.400 (0.300 to 0.500) | 0.425 (0.400 to 0.450) |" in lines
    assert "| held-out retrieval, nDCG@10 | +0.025 (-0.050 to +0.100) |" in lines
    assert "| STS: two | 0.500 (0.400 to 0.600) | 0.525 (0.500 to 0.550) |" in lines
    assert "Recipe demo, 4 of 4 runs, seeds 1, 2" in table.to_markdown()
    runs = json.loads(table.to_json())["runs"]
    assert [(run["setting"], run["seed"]) for run in runs] == [("last", 1), ("last", 2), ("mean", 1), ("mean", 2)]


def test_what_is_not_finished_is_empty_and_not_compared(tmp_path: Path) -> None:
    write_scores(tmp_path, "mean", 2, 0.3)
    table = collect(GRID, tmp_path)
    text = table.to_markdown()
    assert "1 of 4 runs" in text
    assert "| held-out retrieval, nDCG@10 |  | 0.300 |" in text
    assert "Difference" not in text
    write_scores(tmp_path, "last", 1, 0.3)
    assert collect(GRID, tmp_path).differences("mean")["held-out retrieval, nDCG@10"] == {}


def test_a_run_of_another_recipe_does_not_count(finished: Path) -> None:
    write_scores(finished, "mean", 1, 0.9, recipe="name: another")
    assert list(collect(GRID, finished).runs["mean"]) == [2]


def test_the_plot_has_a_panel_for_each_score(finished: Path, tmp_path: Path) -> None:
    plot_table(collect(GRID, finished), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_is_drawn_of_nothing(tmp_path: Path) -> None:
    plot_table(collect(GRID, tmp_path), tmp_path / "plot.png")
    assert not (tmp_path / "plot.png").exists()
