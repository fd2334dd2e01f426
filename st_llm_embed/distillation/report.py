"""What a student keeps of its teacher, and what it costs: report.json for programs, report.md for people."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from st_llm_embed.data.vectors import encoding
from st_llm_embed.distillation.plots import plot_cost_and_quality, plot_index
from st_llm_embed.distillation.precision import RANGES_FILE, index_costs
from st_llm_embed.distillation.speed import Encoders, measure_speed
from st_llm_embed.distillation.teacher import load_teacher
from st_llm_embed.distillation.train import distillation_of, teacher_instructions
from st_llm_embed.evaluation.held_out import HeldOut, load_held_out, score_held_out
from st_llm_embed.evaluation.report import HEADLINES, VERSIONS_SHOWN, markdown_table
from st_llm_embed.recipe import Recipe

START = "student before training"


class Measured(NamedTuple):
    """One model of the report."""

    scores: dict[str, Any]
    queries: NDArray[np.float32]
    documents: NDArray[np.float32]
    encoders: Encoders
    parameters: int
    bytes_on_disk: int | None
    """Of what encodes queries: of a static query tower without the teacher; None of a model on the Hub."""


def write_student_report(
    recipe: Recipe, dataset_dir: Path, teacher_path: str | None, student_dir: Path, output_dir: Path
) -> None:
    """Score teacher and student on the held-out rows, time them, and write the report into `output_dir`.

    Args:
        recipe: all choices.
        dataset_dir: the dataset, whose validation rows are scored.
        teacher_path: where the teacher is; None where there is none.
        student_dir: what `train_student` wrote.
        output_dir: gets report.json, report.md and its pictures.
    """
    distillation = distillation_of(recipe)
    rows, batch = load_held_out(dataset_dir, teacher_instructions(recipe)), recipe.evaluation.batch_size
    measured: dict[str, Measured] = {}
    if distillation.teacher is not None and teacher_path is not None:
        teacher = load_teacher(distillation.teacher, teacher_path)
        encode = encoding(teacher, distillation.teacher)
        queries = encode(rows.anchors, rows.instructions)
        documents = encode(rows.documents, None)
        # Timed as those use it who have sentence-transformers alone.
        stock = SentenceTransformer(teacher_path, revision=distillation.teacher.revision)
        prompt = distillation.teacher.query_prompt
        asked = rows.queries if prompt is None else [prompt + anchor for anchor in rows.anchors]
        encoders = Encoders(
            _quiet(stock.encode_query, ""),
            _quiet(stock.encode_document, distillation.teacher.document_prompt),
            asked,
        )
        measured["teacher"] = _measured(rows, (queries, documents), encoders, stock, Path(teacher_path))
    for name, folder in ((START, "start"), ("student", "model")):
        student = SentenceTransformer(str(student_dir / folder))
        asked = rows.queries if distillation.student.instructions else rows.anchors
        queries = student.encode_query(asked, prompt="", batch_size=batch, normalize_embeddings=True)
        encoders = Encoders(_quiet(student.encode_query, ""), _quiet(student.encode_document, ""), asked)
        if distillation.student.kind == "static-query":
            documents = measured["teacher"].documents
            encoders = encoders._replace(document=measured["teacher"].encoders.document)
        else:
            documents = student.encode_document(rows.documents, prompt="", batch_size=batch, normalize_embeddings=True)
        measured[name] = _measured(rows, (queries, documents), encoders, student, student_dir / folder)
    timed = {name: part.encoders for name, part in measured.items() if name != START}
    ranges = json.loads((student_dir / RANGES_FILE).read_text(encoding="utf-8"))
    report = {
        "recipe": recipe.name,
        "seed": recipe.seed,
        "distillation": distillation.model_dump(mode="json"),
        "scores": {name: part.scores for name, part in measured.items()},
        "costs": {
            name: {"parameters": part.parameters, "bytes_on_disk": part.bytes_on_disk}
            for name, part in measured.items()
            if name != START
        },
        "speed": measure_speed(timed, rows.documents),
        "index": index_costs(measured["student"].queries, measured["student"].documents, rows.positive, ranges),
        "versions": {name: version(name) for name in VERSIONS_SHOWN},
        "hardware": f"{platform.processor() or platform.machine()}, {student.device}, "
        f"{torch.get_num_threads()} threads",
    }
    (output_dir / "report.json").write_text(json.dumps(report, indent=2), encoding="utf-8")
    plot_cost_and_quality(report, output_dir / "cost_quality.png")
    plot_index(report["index"], output_dir / "index.png")
    (output_dir / "report.md").write_text(_markdown(report), encoding="utf-8")


def kept(report: dict[str, Any]) -> dict[str, float]:
    """Give what the student keeps and saves, as shares of the teacher's: nDCG@10, size, p50 of a query.

    Empty where there is no teacher, or one that finds nothing.
    """
    if not report["scores"].get("teacher", {}).get("retrieval_ndcg_at_10"):
        return {}
    scores, costs, speed = report["scores"], report["costs"], report["speed"]
    return {
        "quality": scores["student"]["retrieval_ndcg_at_10"] / scores["teacher"]["retrieval_ndcg_at_10"],
        "smaller": costs["teacher"]["parameters"] / costs["student"]["parameters"],
        "faster": speed["teacher"]["query_p50_ms"] / speed["student"]["query_p50_ms"],
    }


def quality_rows(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """Give the rows of the first table: a measure, and its value for each model, as text."""
    return [
        (label, *(f"{scores[key]:.3f}" for scores in report["scores"].values()))
        for key, label in HEADLINES.items()
        if report["scores"]["student"][key] is not None
    ]


def cost_rows(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """Give the rows of the second table: what the models cost, as text."""
    costs, speed = report["costs"].values(), report["speed"].values()
    return [
        ("Parameters", *(f"{part['parameters']:,}" for part in costs)),
        ("MB on disk", *(megabytes(part["bytes_on_disk"]) for part in costs)),
        ("One query, p50 ms", *(f"{part['query_p50_ms']:,.2f}" for part in speed)),
        ("One query, p95 ms", *(f"{part['query_p95_ms']:,.2f}" for part in speed)),
        ("Documents a second", *(f"{part['documents_per_second']:,.0f}" for part in speed)),
    ]


def megabytes(count: int | None) -> str:
    """Write a number of bytes; nothing where it is not known."""
    return "" if count is None else f"{count / 1e6:,.1f}"


def index_rows(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """Give the rows of the third table: index size and nDCG@10 by length and precision, as text."""
    whole = report["index"][0]["ndcg_at_10"]
    return [
        (
            str(row["length"]),
            row["precision"],
            f"{row['bytes_per_document']:,}",
            f"{row['bytes_per_document'] * 1e6 / 2**20:,.0f}",
            f"{row['ndcg_at_10']:.3f}",
            f"{row['ndcg_at_10'] / whole:.0%}" if whole else "",
        )
        for row in report["index"]
    ]


INDEX_HEADER = ("dimensions", "precision", "bytes a document", "MiB a million", "nDCG@10", "kept")


def _markdown(report: dict[str, Any]) -> str:
    kind, shares = report["distillation"]["student"]["kind"], kept(report)
    scores = report["scores"]["student"]
    summary = (
        f"The student keeps {shares['quality']:.0%} of the teacher's nDCG@10, encodes a query {shares['faster']:.1f} "
        f"times as fast and is {shares['smaller']:.1f} times as small."
        if shares
        else "There is no teacher to compare the student with, or one that finds nothing."
    )
    sections = [
        f"# {report['recipe']}: a student of kind {kind}",
        summary,
        markdown_table(("held-out rows", *report["scores"]), quality_rows(report)),
        f"{scores['queries']:,} queries whose instructions were not trained on, against {scores['documents']:,} "
        "documents; one is right for each.",
        "## By task type",
        markdown_table(
            ("nDCG@10", "queries", *report["scores"]),
            [
                (
                    task_type,
                    f"{part['retrieval_queries']:,}",
                    *(
                        f"{own['by_task_type'][task_type]['retrieval_ndcg_at_10']:.3f}"
                        for own in report["scores"].values()
                    ),
                )
                for task_type, part in scores["by_task_type"].items()
            ],
        ),
        "## Cost",
        markdown_table(("", *report["costs"]), cost_rows(report)),
        f"Times are of single calls in turn, on {report['hardware']}. "
        + (
            "The student's size is that of its query tower; documents are encoded by the teacher."
            if kind == "static-query"
            else ""
        ),
        "![Cost and quality](cost_quality.png)",
        "## Index",
        markdown_table(INDEX_HEADER, index_rows(report)),
        "Queries stay float32. int8 uses the ranges in the student's folder, binary the signs.",
        "![Index size and quality](index.png)",
        "## Made with",
        ", ".join(f"{name} {number}" for name, number in report["versions"].items()),
    ]
    return "\n\n".join(sections) + "\n"


def _measured(
    rows: HeldOut,
    vectors: tuple[NDArray[np.float32], NDArray[np.float32]],
    encoders: Encoders,
    model: SentenceTransformer,
    folder: Path,
) -> Measured:
    parameters = sum(weights.numel() for weights in model.parameters())
    return Measured(score_held_out(rows, *vectors).summary, *vectors, encoders, parameters, bytes_on_disk(folder))


def bytes_on_disk(folder: Path) -> int | None:
    """Give the size of a model's folder; None where a model is a name on the Hub."""
    if not folder.is_dir():
        return None
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _quiet(encode: Callable[..., Any], prompt: str | None) -> Callable[[list[str]], Any]:
    return lambda texts: encode(texts, prompt=prompt, batch_size=32, show_progress_bar=False)
