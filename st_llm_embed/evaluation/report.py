"""What a run achieved: report.json for programs, report.md with pictures for people."""

from __future__ import annotations

import gc
import json
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from st_llm_embed.evaluation.held_out import Scores, evaluate_held_out, load_held_out
from st_llm_embed.evaluation.plots import plot_before_after, plot_loss, plot_scores, plot_similarity
from st_llm_embed.modules.model import LLMSentenceTransformer
from st_llm_embed.recipe import Recipe
from st_llm_embed.training.adapter import starting_model
from st_llm_embed.training.arguments import SCORES

VERSIONS_SHOWN = ("st_llm_embed", "sentence-transformers", "transformers", "peft", "torch", "datasets")

HEADLINES = {
    "retrieval_ndcg_at_10": "Retrieval nDCG@10",
    "retrieval_recall_at_1": "Retrieval recall@1",
    "sts_triplet_accuracy": "STS triplet accuracy",
    "bitext_accuracy": "Bitext accuracy",
}
"""Keys of the scores in report.json and what the table calls them."""


def write_report(recipe: Recipe, dataset_dir: Path, training_dir: Path, output_dir: Path) -> None:
    """Score the base, then the trained model, on the held-out rows and write the report into `output_dir`."""
    rows = load_held_out(dataset_dir, recipe.base.instructions)
    before = evaluate_held_out(starting_model(recipe), rows, batch_size=recipe.evaluation.batch_size)
    gc.collect()  # A SentenceTransformer and its card refer to each other.
    trained = LLMSentenceTransformer(str(training_dir / "model"))
    after = evaluate_held_out(trained, rows, batch_size=recipe.evaluation.batch_size)
    log = json.loads((training_dir / "log.json").read_text(encoding="utf-8"))
    report = {
        "recipe": recipe.name,
        "seed": recipe.seed,
        "before": before.summary,
        "after": after.summary,
        "cosines": {
            "random pairs": _spread(after.random_similarity),
            "true pairs": _spread(after.positive_similarity),
        },
        "training": _training_facts(recipe, log),
        "limitations": list(recipe.publishing.limitations),
        "versions": {name: version(name) for name in VERSIONS_SHOWN},
        "hardware": f"{platform.processor() or platform.machine()}, {trained.device}",
    }
    (output_dir / "report.json").write_text(json.dumps(report, indent=2), encoding="utf-8")
    plot_loss(log, output_dir / "loss.png")
    if report["training"]["best_step"] is not None:
        plot_scores(log, HEADLINES, output_dir / "scores.png")
    plot_before_after(before.summary, after.summary, output_dir / "before_after.png")
    plot_similarity(before, after, output_dir / "similarity.png")
    (output_dir / "report.md").write_text(_markdown(recipe, report, before, after), encoding="utf-8")


def headline_rows(report: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Return the rows (measure, before, after, change) of the report's first table, as text."""
    rows = []
    for key, label in HEADLINES.items():
        before, after = report["before"][key], report["after"][key]
        if before is not None and after is not None:
            rows.append((label, f"{before:.3f}", f"{after:.3f}", f"{after - before:+.3f}"))
    return rows


def _training_facts(recipe: Recipe, log: list[dict[str, Any]]) -> dict[str, Any]:
    losses = [entry["loss"] for entry in log if "loss" in entry]
    metric = str(recipe.training.get("metric_for_best_model", SCORES[0])).removeprefix("eval_")
    scored = [entry for entry in log if f"eval_{metric}" in entry]
    # The first of equal ones, as the trainer's.
    best = max(scored, key=lambda entry: entry[f"eval_{metric}"], default=None)
    summary = next(entry for entry in reversed(log) if "train_runtime" in entry)
    return {
        "steps": summary["step"],
        "epochs": summary["epoch"],
        # None where the run was shorter than the first logging step.
        "first_loss": losses[0] if losses else None,
        "last_loss": losses[-1] if losses else None,
        # After a resume this is the time since the resume.
        "seconds": summary["train_runtime"],
        # None where nothing was scored during training.
        "best_metric": metric if best else None,
        "best_step": best["step"] if best else None,
        "best_score": best[f"eval_{metric}"] if best else None,
        "kept_step": best["step"] if best and recipe.training.get("load_best_model_at_end") else summary["step"],
    }


def _markdown(recipe: Recipe, report: dict[str, Any], before: Scores, after: Scores) -> str:
    training = report["training"]
    losses = "" if training["first_loss"] is None else "loss {first_loss:.2f} to {last_loss:.2f}, ".format(**training)
    sections = [
        f"# {recipe.name}: before and after training",
        recipe.description,
        markdown_table(("held-out rows", "before", "after", "change"), headline_rows(report)),
        f"{after.summary['queries']:,} queries whose instructions were not trained on, against all "
        f"{after.summary['documents']:,} held-out positives and hard negatives; one document is right for each. "
        "STS triplet accuracy is how often the positive is nearer than the hard negative, which shares words with "
        "the anchor but not its meaning (0.5 is chance); bitext accuracy is how often the nearest translation among "
        "the bitext rows is the right one.",
        "![nDCG@10 by task type and language, accuracies](before_after.png)",
        "## By task type and language",
        markdown_table(
            ("", "queries", "nDCG@10 before", "after", "recall@1 before", "after"),
            [
                _part_row(name, old, after.summary[group][name])
                for group in ("by_task_type", "by_language")
                for name, old in before.summary[group].items()
                if old["retrieval_queries"]
            ],
        ),
        "## Similarities",
        "Training should push positives to the right and hard negatives to the left.",
        "![Cosine similarity of positives and hard negatives](similarity.png)",
        "## Training",
        "![Loss by step](loss.png)",
        f"The last of {len(recipe.stages)} stages ({', '.join(stage.name for stage in recipe.stages)}):"
        if recipe.stages
        else "",
        f"{training['steps']} steps, {training['epochs']:.2f} epochs, {losses}"
        f"{training['seconds']:.0f} s on {report['hardware']}. Seed {recipe.seed}.",
    ]
    if training["best_step"] is not None:
        metric = training["best_metric"]  # a score of the held-out rows, or an mteb task
        sections += [
            "![Held-out scores by step](scores.png)",
            f"{HEADLINES.get(metric, metric)} was best at step {training['best_step']} "
            f"({training['best_score']:.3f}); the model has the weights of step {training['kept_step']}.",
        ]
        if metric in HEADLINES and training["kept_step"] == training["best_step"] != training["steps"]:
            sections.append("The step was chosen by the held-out rows, which favours their scores after training.")
    if recipe.publishing.limitations:
        sections += ["## Known limits", "\n".join(f"- {limitation}" for limitation in recipe.publishing.limitations)]
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    sections += ["## Made with", versions]
    return "\n\n".join(filter(None, sections)) + "\n"


def _part_row(name: str, before: dict[str, Any], after: dict[str, Any]) -> tuple[str, ...]:
    scores = (one[f"retrieval_{key}"] for key in ("ndcg_at_10", "recall_at_1") for one in (before, after))
    return name, f"{before['retrieval_queries']:,}", *(f"{score:.3f}" for score in scores)


def _spread(similarity: NDArray[np.float32]) -> dict[str, float | int] | None:
    """Return between which cosines nearly all pairs are; None where there are no pairs."""
    if not len(similarity):
        return None
    low, median, high = np.quantile(similarity.astype(np.float64), (0.05, 0.5, 0.95))
    return {"p5": float(low), "median": float(median), "p95": float(high), "pairs": len(similarity)}


def markdown_table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Return a table in Markdown."""
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
