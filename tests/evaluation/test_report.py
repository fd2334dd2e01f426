from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import example_rows, write_rows
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from st_llm_embed import Recipe
from st_llm_embed.data.dataset import write_dataset
from st_llm_embed.data.rows import read_rows
from st_llm_embed.evaluation.plots import drawable
from st_llm_embed.evaluation.report import write_report
from st_llm_embed.training.train import train

Panels = dict[str, list[Axes]]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Panels:
    """The panels of each picture, as they are saved."""
    found: Panels = {}
    save = Figure.savefig

    def recorded(self: Figure, path: Path, **options: Any) -> None:
        found[path.name] = list(self.axes)
        save(self, path, **options)

    monkeypatch.setattr(Figure, "savefig", recorded)
    return found


@pytest.fixture
def reported(tiny_recipe: Path, tmp_path: Path, drawn: Panels) -> Callable[..., tuple[str, dict[str, Any]]]:
    """Train on rows and write the report; returns it as text and as JSON."""

    def run(rows: list[dict[str, str]], *overrides: str, log: tuple[dict[str, Any], ...] = ()) -> tuple[str, dict]:
        path = write_rows(tmp_path / "rows.jsonl", rows)
        recipe = Recipe.load(str(tiny_recipe), [f"data.rows={path}", *overrides])
        dataset, training = tmp_path / "dataset", tmp_path / "training"
        write_dataset(read_rows(path), dataset, recipe.data.validation_fraction)
        train(recipe, [dataset], training)
        records = json.loads((training / "log.json").read_text(encoding="utf-8"))
        (training / "log.json").write_text(json.dumps([*records, *log]), encoding="utf-8")
        if log:
            best = {"load_best_model_at_end": True, "metric_for_best_model": "STSBenchmark"}
            recipe = recipe.model_copy(update={"training": recipe.training | best})
        write_report(recipe, dataset, training, tmp_path)
        report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
        assert json.dumps(report, allow_nan=False)
        text = (tmp_path / "report.md").read_text(encoding="utf-8")
        assert "nan" not in text
        assert {name for name in drawn if f"({name})" in text} == set(drawn)
        for name, panels in drawn.items():
            assert all(axes.has_data() for axes in panels), f"{name} has an empty panel"
        return text, report

    return run


def test_a_report_reads_right_at_a_glance(reported: Callable[..., tuple[str, dict]], drawn: Panels) -> None:
    rows = example_rows(96)
    for row in rows[::8]:
        del row["language"]
    scores = [{"step": step, "eval_retrieval_ndcg_at_10": 0.25, "eval_STSBenchmark": 1 / step} for step in (1, 2)]
    text, report = reported(rows, "training.max_steps=20", "base.max_seq_length=24", log=tuple(scores))
    losses = report["training"]["loss"]
    assert losses.keys() == {"all", "bitext", "short-long", "short-short", "sts"}
    assert all(0 < loss < 9 for tenths in losses.values() for loss in tenths.values())
    assert "| loss, mean of | the first tenth | the last tenth |" in text

    # Rows of an unknown language are of no other one, and few queries have a wide interval.
    languages = report["after"]["by_language"]
    assert languages["unknown language"]["retrieval_queries"] > 0
    assert languages["English"]["retrieval_queries"] > languages["unknown language"]["retrieval_queries"]
    for part in (report["after"], *languages.values()):
        low, high = part["retrieval_ndcg_at_10_interval"]
        assert low <= part["retrieval_ndcg_at_10"] <= high
    assert f"| unknown language | {languages['unknown language']['retrieval_queries']} | " in text
    assert report["lengths"]["cut"] > 0
    assert "of all tokens are read" in text

    # Ten queries, three documents each, before and after.
    assert text.count("<br>2. ") == 20
    assert "STSBenchmark was best at step 1 (1.000); the model has the weights of step 1." in text
    assert "chosen by the held-out rows" not in text
    assert set(drawn) == {"before_after.png", "similarity.png", "loss.png", "scores.png", "examples.png"}
    before, after = drawn["similarity.png"]
    assert (before.get_xlim(), before.get_ylim()) == (after.get_xlim(), after.get_ylim())
    for axes in (*drawn["similarity.png"], *drawn["before_after.png"], *drawn["loss.png"]):
        assert len(axes.get_legend_handles_labels()[1]) == 2
    steps = drawn["loss.png"][0].xaxis.get_major_locator()
    assert all(step == int(step) for step in steps.tick_values(0, 3))


def test_a_report_omits_what_there_is_none_of(reported: Callable[..., tuple[str, dict]], drawn: Panels) -> None:
    """Rows without negatives, in a script that the picture's font lacks, and an end before the first record."""
    pairs = [
        row | {"anchor": f"質問 {row['anchor']} | x"} for row in example_rows(96) if row["task_type"] == "short-short"
    ]
    text, report = reported(pairs, "training.max_steps=2", "training.logging_steps=10")
    assert "2 steps, 0.67 epochs, " in text
    assert report["training"]["loss"] == {}
    assert "loss" not in text.partition("## Training")[2]
    assert set(drawn) == {"before_after.png", "similarity.png"}
    assert len(drawn["before_after.png"]) == 1
    # A bar in a text is not a cell's end.
    table = text.partition("| query | before | after |")[2].partition("\n\n")[0]
    assert all(line.replace("\\|", "").count("|") == 4 for line in table.strip().splitlines())


@pytest.mark.parametrize(
    ("text", "possible"),
    [("Grüße, $5 и Ωmega", True), ("北海道", False), ("שלום", False), ("हिन्दी", False), ("ไทย", False), ("", True)],
)
def test_only_what_the_font_has_is_drawn(text: str, possible: bool) -> None:
    assert drawable(text) == possible
