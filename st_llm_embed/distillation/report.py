"""What a student keeps of its teacher, and what it costs: report.json for programs, report.md for people."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from st_llm_embed.distillation.train import distillation_of, teacher_instructions
from st_llm_embed.evaluation.held_out import load_held_out, score_held_out
from st_llm_embed.evaluation.report import HEADLINES, VERSIONS_SHOWN, markdown_table
from st_llm_embed.recipe import Recipe

START = "student before training"
RETRIEVAL = "retrieval_ndcg_at_10"

QUERIES, IN_A_ROW, ROUNDS, DOCUMENTS = 50, 10, 3, 32
"""What is timed: single queries, some in a row of each model in turn, and the fastest of some batches of documents."""


class Encoder(NamedTuple):
    """A model by sentence-transformers alone, as those use it who have nothing else."""

    model: SentenceTransformer
    asked: Sequence[str]
    """The held-out queries as this model gets them, with an instruction or without."""
    document_prompt: str | None
    options: dict[str, Any]

    def queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return vectors of unit length, shape (number of texts, dimension)."""
        return self.model.encode_query(list(texts), prompt="", **self.options)

    def documents(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return vectors of unit length, shape (number of texts, dimension)."""
        return self.model.encode_document(list(texts), prompt=self.document_prompt, **self.options)


def write_student_report(
    recipe: Recipe, dataset_dir: Path, teacher_path: str, student_dir: Path, output_dir: Path
) -> None:
    """Score teacher and student on the held-out rows, time them, and write the report into `output_dir`.

    Args:
        recipe: all choices.
        dataset_dir: the dataset, whose validation rows are scored.
        teacher_path: where the teacher is.
        student_dir: what `train_student` wrote.
        output_dir: gets report.json and report.md.
    """
    distillation, rows = distillation_of(recipe), load_held_out(dataset_dir, teacher_instructions(recipe))
    options = {
        "batch_size": recipe.evaluation.batch_size,
        "normalize_embeddings": True,
        "show_progress_bar": False,
    }
    prompt = distillation.teacher.query_prompt
    taught = rows.queries if prompt is None else [prompt + anchor for anchor in rows.anchors]
    asked = rows.queries if distillation.student.instructions else rows.anchors
    stock = SentenceTransformer(teacher_path, revision=distillation.teacher.revision)
    models = {"teacher": Encoder(stock, taught, distillation.teacher.document_prompt, options)}
    for name, folder in ((START, "start"), ("student", "model")):
        models[name] = Encoder(SentenceTransformer(str(student_dir / folder)), asked, "", options)
    vectors = {name: (one.queries(one.asked), one.documents(rows.documents)) for name, one in models.items()}
    del models[START]
    folders = {"teacher": Path(teacher_path), "student": student_dir / "model"}
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
                "parameters": sum(weights.numel() for weights in one.model.parameters()),
                "bytes_on_disk": bytes_on_disk(folders[name]),
            }
            for name, one in models.items()
        },
        "speed": measure_speed(models, rows.documents),
        "versions": {name: version(name) for name in VERSIONS_SHOWN},
        "hardware": f"{platform.processor() or platform.machine()}, {stock.device}, {torch.get_num_threads()} threads",
    }
    (output_dir / "report.json").write_text(json.dumps(report, indent=2), encoding="utf-8")
    (output_dir / "report.md").write_text(_markdown(report), encoding="utf-8")


def measure_speed(models: Mapping[str, Encoder], documents: Sequence[str]) -> dict[str, dict[str, float]]:
    """Time single queries and batches of documents, each model in turn, so that a busy machine slows all alike.

    Returns:
        For each model `query_p50_ms` and `documents_per_second`.
    """
    queries: dict[str, list[float]] = {name: [] for name in models}
    batches: dict[str, list[float]] = {name: [] for name in models}
    for first in range(0, QUERIES, IN_A_ROW):
        for name, one in models.items():
            # In a row: right after a large model a small one finds the caches full of the other's weights.
            one.queries(one.asked[:1])
            for number in range(first, first + IN_A_ROW):
                start = perf_counter()
                one.queries([one.asked[number % len(one.asked)]])
                queries[name].append(perf_counter() - start)
    batch = [documents[number % len(documents)] for number in range(DOCUMENTS)]
    for _ in range(ROUNDS):
        for name, one in models.items():
            start = perf_counter()
            one.documents(batch)
            batches[name].append(perf_counter() - start)
    return {
        name: {
            "query_p50_ms": float(np.median(queries[name]) * 1e3),
            "documents_per_second": DOCUMENTS / min(batches[name]),
        }
        for name in models
    }


def bytes_on_disk(folder: Path) -> int | None:
    """Return the size of a model's folder; None where the model is a name on the Hub."""
    if not folder.is_dir():
        return None
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def kept(report: dict[str, Any]) -> dict[str, float]:
    """Return `quality`, `smaller` and `faster` of the student, as multiples of the teacher's.

    Empty where the teacher finds nothing.
    """
    scores, costs, speed = report["scores"], report["costs"], report["speed"]
    if not scores["teacher"][RETRIEVAL]:
        return {}
    return {
        "quality": scores["student"][RETRIEVAL] / scores["teacher"][RETRIEVAL],
        "smaller": costs["teacher"]["parameters"] / costs["student"]["parameters"],
        "faster": speed["teacher"]["query_p50_ms"] / speed["student"]["query_p50_ms"],
    }


def quality_rows(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the rows of the first table: a measure, and its value for each model, as text."""
    return [
        (label, *(f"{scores[key]:.3f}" for scores in report["scores"].values()))
        for key, label in HEADLINES.items()
        if report["scores"]["student"][key] is not None
    ]


def cost_rows(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """Return the rows of the second table: what the models cost, as text; nothing where it is not known."""
    costs, speed = report["costs"].values(), report["speed"].values()
    sizes = [part["bytes_on_disk"] for part in costs]
    return [
        ("Parameters", *(f"{part['parameters']:,}" for part in costs)),
        ("MB on disk", *("" if size is None else f"{size / 1e6:,.1f}" for size in sizes)),
        ("One query, p50 ms", *(f"{part['query_p50_ms']:,.2f}" for part in speed)),
        ("Documents a second", *(f"{part['documents_per_second']:,.0f}" for part in speed)),
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
