"""What a run achieved: report.json for programs, report.md with pictures for people."""

from __future__ import annotations

import gc
import json
import logging
import math
import platform
import re
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from st_llm_embed.evaluation.held_out import HeldOut, Scores, evaluate_held_out, load_held_out
from st_llm_embed.evaluation.plots import (
    Example,
    drawable,
    plot_before_after,
    plot_examples,
    plot_loss,
    plot_scores,
    plot_similarity,
)
from st_llm_embed.modules.lengths import text_lengths
from st_llm_embed.modules.model import LLMSentenceTransformer
from st_llm_embed.recipe import Recipe
from st_llm_embed.training.adapter import starting_model
from st_llm_embed.training.arguments import SCORES

logger = logging.getLogger(__name__)

VERSIONS_SHOWN = ("st_llm_embed", "sentence-transformers", "transformers", "peft", "torch", "datasets")

HEADLINES = {
    "retrieval_ndcg_at_10": "Retrieval nDCG@10",
    "retrieval_recall_at_1": "Retrieval recall@1",
    "sts_triplet_accuracy": "STS triplet accuracy",
    "bitext_accuracy": "Bitext accuracy",
}
"""Keys of the scores in report.json and what the table calls them."""

EXAMPLES, EXAMPLE_LENGTH = 10, 100
"""Queries that are shown with the documents nearest to them, and characters of each text."""


def write_report(recipe: Recipe, dataset_dir: Path, training_dir: Path, output_dir: Path) -> None:
    """Score the base, then the trained model, on the held-out rows and write the report into `output_dir`."""
    rows = load_held_out(dataset_dir, recipe.base.instructions)
    texts = f"{len(rows.queries):,} queries and {len(rows.documents):,} documents"
    logger.info("evaluation: scoring the base, then the trained model, on %s", texts)
    before = evaluate_held_out(starting_model(recipe), rows, batch_size=recipe.evaluation.batch_size)
    gc.collect()  # A SentenceTransformer and its card refer to each other.
    trained = LLMSentenceTransformer(str(training_dir / "model"))
    after = evaluate_held_out(trained, rows, batch_size=recipe.evaluation.batch_size)
    lengths = text_lengths(trained, rows.queries) + text_lengths(trained, rows.documents)
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
        "lengths": asdict(lengths),
        "limitations": list(recipe.publishing.limitations),
        "versions": {name: version(name) for name in VERSIONS_SHOWN},
        "hardware": f"{platform.processor() or platform.machine()}, {trained.device}",
    }
    (output_dir / "report.json").write_text(json.dumps(report, indent=2), encoding="utf-8")
    if report["training"]["loss"]:
        plot_loss(log, output_dir / "loss.png")
    if report["training"]["best_step"] is not None:
        plot_scores(log, HEADLINES, output_dir / "scores.png")
    plot_before_after(before.summary, after.summary, output_dir / "before_after.png")
    plot_similarity(before, after, output_dir / "similarity.png")
    examples = _examples(rows, before, after, recipe.seed)
    if all(map(_is_drawable, examples)):
        plot_examples(examples, output_dir / "examples.png")
    (output_dir / "report.md").write_text(_markdown(recipe, report, str(lengths), examples), encoding="utf-8")


def headline_rows(report: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Return the rows (measure, before, after, change) of the report's first table, as text."""
    rows = []
    for key, label in HEADLINES.items():
        before, after = report["before"][key], report["after"][key]
        if before is not None and after is not None:
            rows.append((label, f"{before:.3f}", f"{after:.3f}", f"{after - before:+.3f}"))
    return rows


def _training_facts(recipe: Recipe, log: list[dict[str, Any]]) -> dict[str, Any]:
    kinds = sorted({key for entry in log for key in entry if key.startswith("loss_")})
    metric = str(recipe.training.get("metric_for_best_model", SCORES[0])).removeprefix("eval_")
    scored = [entry for entry in log if f"eval_{metric}" in entry]
    # The first of equal ones, as the trainer's.
    best = max(scored, key=lambda entry: entry[f"eval_{metric}"], default=None)
    summary = next(entry for entry in reversed(log) if "train_runtime" in entry)
    return {
        "steps": summary["step"],
        "epochs": summary["epoch"],
        # Empty where the run was shorter than the first logging step.
        "loss": {
            name: _tenths([entry[key] for entry in log if key in entry])
            for name, key in {"all": "loss", **{key.removeprefix("loss_"): key for key in kinds}}.items()
        }
        if any("loss" in entry for entry in log)
        else {},
        # After a resume this is the time since the resume.
        "seconds": summary["train_runtime"],
        # None where nothing was scored during training.
        "best_metric": metric if best else None,
        "best_step": best["step"] if best else None,
        "best_score": best[f"eval_{metric}"] if best else None,
        "kept_step": best["step"] if best and recipe.training.get("load_best_model_at_end") else summary["step"],
    }


def _tenths(losses: list[float]) -> dict[str, float]:
    """Return the means of the first and of the last tenth: single batches are harder or easier than others."""
    count = math.ceil(len(losses) / 10)
    return {"first_tenth": float(np.mean(losses[:count])), "last_tenth": float(np.mean(losses[-count:]))}


def _examples(rows: HeldOut, before: Scores, after: Scores, seed: int) -> list[Example]:
    """Draw some queries at random, of those that can be drawn as a picture if there are enough."""

    def nearest(scores: Scores, number: int) -> list[tuple[str, bool]]:
        places = scores.ranked.top[number].tolist()
        return [(" ".join(rows.documents[place].split()), place == rows.positive[number]) for place in places]

    def example(number: int) -> Example:
        return Example(" ".join(rows.anchors[number].split()), nearest(before, number), nearest(after, number))

    order = np.random.default_rng(seed).permutation(len(rows.queries)).tolist()
    shown = list(islice(filter(_is_drawable, map(example, order)), EXAMPLES))
    return shown if len(shown) == EXAMPLES else list(map(example, order[:EXAMPLES]))


def _is_drawable(example: Example) -> bool:
    return all(map(drawable, [example.query, *(text for text, _ in example.before + example.after)]))


def _markdown(recipe: Recipe, report: dict[str, Any], lengths: str, examples: Sequence[Example]) -> str:
    before, after = report["before"], report["after"]
    sections = [
        f"# {recipe.name}: before and after training",
        recipe.description,
        markdown_table(("held-out rows", "before", "after", "change"), headline_rows(report)),
        f"{after['queries']:,} queries whose instructions were not trained on, against all "
        f"{after['documents']:,} held-out positives and hard negatives; one document is right for each. "
        "STS triplet accuracy is how often the positive is nearer than the hard negative, which shares words with "
        "the anchor but not its meaning (0.5 is chance); bitext accuracy is how often the nearest translation among "
        f"the bitext rows is the right one. Queries and documents: {lengths}.",
        "![nDCG@10 by task type and language, accuracies](before_after.png)",
        f"## {len(examples)} queries, and the documents nearest to them",
        "Drawn at random. The right document is bold.",
        "![The same as a picture](examples.png)" if all(map(_is_drawable, examples)) else "",
        markdown_table(("query", "before", "after"), [_example_row(example) for example in examples]),
        "## By task type and language",
        "In brackets the 95 % intervals of the means, by bootstrap over queries; where there are few queries they are "
        "wide.",
        markdown_table(
            ("", "queries", "nDCG@10 before", "after", "recall@1 before", "after"),
            [_part_row("all", before, after)]
            + [
                _part_row(name, old, after[group][name])
                for group in ("by_task_type", "by_language")
                for name, old in before[group].items()
            ],
        ),
        "## Similarities",
        "Training should push positives to the right and hard negatives to the left.",
        "![Cosine similarity of positives and hard negatives](similarity.png)",
        *_training_sections(recipe, report),
    ]
    if recipe.publishing.limitations:
        sections += ["## Known limits", "\n".join(f"- {limitation}" for limitation in recipe.publishing.limitations)]
    versions = ", ".join(f"{name} {number}" for name, number in report["versions"].items())
    sections += ["## Made with", versions]
    return "\n\n".join(filter(None, sections)) + "\n"


def _training_sections(recipe: Recipe, report: dict[str, Any]) -> list[str]:
    training = report["training"]
    sections = ["## Training"]
    if recipe.stages:
        names = ", ".join(stage.name for stage in recipe.stages)
        sections.append(f"The last of {len(recipe.stages)} stages ({names}):")
    sections.append(
        f"{training['steps']} steps, {training['epochs']:.2f} epochs, {training['seconds']:.0f} s on "
        f"{report['hardware']}. Seed {recipe.seed}."
    )
    if training["loss"]:
        rows = [(name, *(f"{loss:.2f}" for loss in tenths.values())) for name, tenths in training["loss"].items()]
        sections += [
            "![Loss by step](loss.png)",
            markdown_table(("loss, mean of", "the first tenth", "the last tenth"), rows),
            "Losses of different task types, and of different batch sizes, cannot be compared with each other.",
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
    return sections


def _example_row(example: Example) -> tuple[str, str, str]:
    def listed(found: list[tuple[str, bool]]) -> str:
        shown = (f"**{_cell(text)}**" if right else _cell(text) for text, right in found)
        return "<br>".join(f"{number}. {text}" for number, text in enumerate(shown, start=1))

    return _cell(example.query), listed(example.before), listed(example.after)


def _cell(text: str) -> str:
    """Return the beginning of a text, with nothing that Markdown or HTML reads."""
    shown = text[:EXAMPLE_LENGTH] + ("..." if text[EXAMPLE_LENGTH:] else "")
    return re.sub(r"([\\`*_{}\[\]<>|#$~])", r"\\\1", " ".join(shown.split())).replace("\\<", "&lt;")


def _part_row(name: str, before: dict[str, Any], after: dict[str, Any]) -> tuple[str, ...]:
    parts = (before, after)
    spreads = ("{:.2f} to {:.2f}".format(*one["retrieval_ndcg_at_10_interval"]) for one in parts)
    ndcg = (f"{one['retrieval_ndcg_at_10']:.3f} ({spread})" for one, spread in zip(parts, spreads, strict=True))
    return name, f"{before['retrieval_queries']:,}", *ndcg, *(f"{one['retrieval_recall_at_1']:.3f}" for one in parts)


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
