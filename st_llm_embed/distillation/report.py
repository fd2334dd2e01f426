"""What a student keeps of its teacher, and what it costs: report.json for programs, report.md for people."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from st_llm_embed.distillation.train import distillation_of, teacher_instructions
from st_llm_embed.evaluation.held_out import load_held_out, score_held_out
from st_llm_embed.evaluation.report import HEADLINES, VERSIONS_SHOWN, markdown_table
from st_llm_embed.modules.stock import load_stock
from st_llm_embed.recipe import Recipe

START = "student before training"
RETRIEVAL = "retrieval_ndcg_at_10"

ADVICE = "Restore its files, or distill again into another --output-dir."

QUERIES, IN_A_ROW = 50, 10
"""Single queries that are timed, and how many of each model in a row, in turn."""


def write_student_report(
    recipe: Recipe, dataset_dir: Path, teacher_path: str, student_dir: Path, output_dir: Path
) -> None:
    """Score teacher and student on the held-out rows and time them, in stock's own classes.

    Raises:
        InputError: a model cannot be loaded, or lacks weights.
    """
    distillation, rows = distillation_of(recipe), load_held_out(dataset_dir, teacher_instructions(recipe))
    section = distillation.teacher
    own = rows.queries if distillation.student.instructions else rows.anchors
    asked = {"teacher": rows.queries, START: own, "student": own}
    if section.query_prompt is not None:
        asked["teacher"] = [section.query_prompt + anchor for anchor in rows.anchors]
    folders = {"teacher": Path(teacher_path), START: student_dir / "start", "student": student_dir / "model"}
    options: dict[str, Any] = {"batch_size": recipe.evaluation.batch_size, "normalize_embeddings": True}
    models: dict[str, SentenceTransformer] = {}
    vectors: dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]] = {}
    for name, folder in folders.items():
        revision, prompt = (section.revision, section.document_prompt) if name == "teacher" else (None, "")
        model = models[name] = load_stock(str(folder), name, ADVICE, revision=revision)
        queries = model.encode_query(asked[name], prompt="", **options)
        vectors[name] = queries, model.encode_document(rows.documents, prompt=prompt, **options)
    del models[START]
    report = {
        "recipe": recipe.name,
        "seed": recipe.seed,
        "distillation": distillation.model_dump(mode="json"),
        "scores": {name: score_held_out(rows, *of).summary for name, of in vectors.items()},
        "lengths": {
            str(length): score_held_out(rows, *(_cut(of, length) for of in vectors["student"])).summary[RETRIEVAL]
            for length in distillation.loss.matryoshka_dims
        },
        "costs": {
            name: {
                "parameters": sum(weights.numel() for weights in one.parameters()),
                "bytes_on_disk": bytes_on_disk(folders[name]),
                "query_p50_ms": milliseconds,
            }
            for (name, one), milliseconds in zip(models.items(), _query_times(models, asked), strict=True)
        },
        "versions": {name: version(name) for name in VERSIONS_SHOWN},
        "hardware": f"{platform.processor() or platform.machine()}, {models['student'].device}, "
        f"{torch.get_num_threads()} threads",
    }
    (output_dir / "report.json").write_text(json.dumps(report, indent=2), encoding="utf-8")
    (output_dir / "report.md").write_text(_markdown(report), encoding="utf-8")


def _query_times(models: Mapping[str, SentenceTransformer], asked: Mapping[str, Sequence[str]]) -> list[float]:
    """Return the median milliseconds of single queries by model, timed in turn: a busy machine slows all alike."""
    times: dict[str, list[float]] = {name: [] for name in models}
    for first in range(0, QUERIES, IN_A_ROW):
        for name, model in models.items():
            # The first is not counted: right after a large model a small one finds the caches full of its weights.
            for number in range(first - 1, first + IN_A_ROW):
                start = perf_counter()
                model.encode_query([asked[name][number % len(asked[name])]], prompt="", show_progress_bar=False)
                times[name].append(perf_counter() - start)
            del times[name][first]
    return [float(np.median(one) * 1e3) for one in times.values()]


def bytes_on_disk(folder: Path) -> int | None:
    """Return the size of a model's folder; None where the model is a name on the Hub."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else None


def kept(report: dict[str, Any]) -> dict[str, float]:
    """Return the student's `quality`, `smaller` and `faster`, as multiples; empty if the teacher finds nothing."""
    scores, costs = report["scores"], report["costs"]
    if not scores["teacher"][RETRIEVAL]:
        return {}
    return {
        "quality": scores["student"][RETRIEVAL] / scores["teacher"][RETRIEVAL],
        "smaller": costs["teacher"]["parameters"] / costs["student"]["parameters"],
        "faster": costs["teacher"]["query_p50_ms"] / costs["student"]["query_p50_ms"],
    }


def quality_rows(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return a measure and its value for each model, as text."""
    return [
        (label, *(f"{scores[key]:.3f}" for scores in report["scores"].values()))
        for key, label in HEADLINES.items()
        if report["scores"]["student"][key] is not None
    ]


def cost_rows(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return what the models cost, as text; nothing where it is not known."""
    costs = report["costs"].values()
    return [
        ("Parameters", *(f"{part['parameters']:,}" for part in costs)),
        ("MB on disk", *(f"{part['bytes_on_disk'] / 1e6:,.1f}" if part["bytes_on_disk"] else "" for part in costs)),
        ("One query, p50 ms", *(f"{part['query_p50_ms']:,.2f}" for part in costs)),
    ]


def _cut(vectors: NDArray[np.float32], length: int) -> NDArray[np.float32]:
    leading = vectors[:, :length]
    return leading / np.maximum(np.linalg.norm(leading, axis=1, keepdims=True), 1e-12)


def _markdown(report: dict[str, Any]) -> str:
    shares, scores = kept(report), report["scores"]["student"]
    lengths = [(length, f"{score:.3f}") for length, score in report["lengths"].items()]
    sections = [
        f"# {report['recipe']}: a student of kind {report['distillation']['student']['kind']}",
        f"The student keeps {shares['quality']:.0%} of the teacher's nDCG@10, encodes a query {shares['faster']:.1f} "
        f"times as fast and is {shares['smaller']:.1f} times as small."
        if shares
        else "The teacher finds nothing, so there is nothing to compare the student with.",
        markdown_table(("held-out rows", *report["scores"]), quality_rows(report)),
        f"{scores['queries']:,} queries whose instructions were not trained on, against {scores['documents']:,} "
        "documents; one is right for each.",
        "## Cost",
        markdown_table(("", *report["costs"]), cost_rows(report)),
        f"Times are of single calls in turn, on {report['hardware']}.",
        *(["## Shorter vectors", markdown_table(("dimensions", "nDCG@10"), lengths)] if lengths else []),
        "## Made with",
        ", ".join(f"{name} {number}" for name, number in report["versions"].items()),
    ]
    return "\n\n".join(sections) + "\n"
