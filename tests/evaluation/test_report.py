from __future__ import annotations

import json
from pathlib import Path

from conftest import example_rows, write_rows

from st_llm_embed import Recipe, run_pipeline
from st_llm_embed.data.dataset import write_dataset
from st_llm_embed.data.rows import read_rows
from st_llm_embed.evaluation.report import write_report
from st_llm_embed.training.train import train


def test_a_report_leaves_out_what_there_is_none_of(tiny_recipe: Path, tmp_path: Path) -> None:
    """Rows without negatives, and a run that ends before the first logging step."""
    pairs = [row for row in example_rows(96) if row["task_type"] == "short-short"]
    path = write_rows(tmp_path / "pairs.jsonl", pairs)
    overrides = [f"data.rows={path}", "training.max_steps=2", "training.logging_steps=10"]
    report = run_pipeline(Recipe.load(str(tiny_recipe), overrides), tmp_path / "out")
    text = (tmp_path / "out" / "evaluation" / "report.md").read_text(encoding="utf-8")
    assert "nan" not in text
    assert "2 steps, 0.67 epochs, " in text
    assert "loss " not in text.partition("## Training")[2].partition("![")[2].partition(")")[2]
    assert json.dumps(report, allow_nan=False)


def test_a_report_names_the_task_that_chose_the_step(tiny_recipe: Path, tmp_path: Path) -> None:
    dataset, training = tmp_path / "dataset", tmp_path / "training"
    recipe = Recipe.load(str(tiny_recipe), ["training.max_steps=2", "evaluation.tasks=[STSBenchmark]"])
    write_dataset(read_rows(Path(str(recipe.data.rows))), dataset, recipe.data.validation_fraction)
    train(recipe, [dataset], training)
    log = json.loads((training / "log.json").read_text(encoding="utf-8"))
    for step, score in ((1, 0.75), (2, 0.5)):
        log.append({"step": step, "eval_retrieval_ndcg_at_10": 0.25, "eval_STSBenchmark": score})
    (training / "log.json").write_text(json.dumps(log), encoding="utf-8")
    best = {"load_best_model_at_end": True, "metric_for_best_model": "STSBenchmark"}
    write_report(recipe.model_copy(update={"training": recipe.training | best}), dataset, training, tmp_path)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "STSBenchmark was best at step 1 (0.750); the model has the weights of step 1." in text
    assert "chosen by the held-out rows" not in text
