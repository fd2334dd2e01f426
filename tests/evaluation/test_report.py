from __future__ import annotations

import json
from pathlib import Path

from conftest import example_rows, write_rows

from st_llm_embed import Recipe, run_pipeline


def test_a_report_leaves_out_what_there_is_none_of(tiny_recipe: Path, tmp_path: Path) -> None:
    """Rows without negatives, and a run that ends before the first logging step."""
    pairs = [row for row in example_rows(96) if row["task_type"] == "short-short"]
    path = write_rows(tmp_path / "pairs.jsonl", pairs)
    overrides = [f"data.rows={path}", "training.max_steps=2", "training.logging_steps=10"]
    report = run_pipeline(Recipe.load(str(tiny_recipe), overrides), tmp_path / "out")
    text = (tmp_path / "out" / "evaluation" / "report.md").read_text(encoding="utf-8")
    assert "nan" not in text
    assert "Mean cosine similarity to the query: positives " in text
    assert "after, hard negatives" not in text
    assert "2 steps, 0.67 epochs, " in text
    assert "loss " not in text.partition("## Training")[2].partition("![")[2].partition(")")[2]
    assert json.dumps(report, allow_nan=False)
