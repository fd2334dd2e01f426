"""The released student: one Hub repository as files, and a second one of a static query tower alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
from huggingface_hub import ModelCard, ModelCardData
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router
from sentence_transformers.base.modules.module import Module

from st_llm_embed.distillation import distillation_of
from st_llm_embed.distillation.precision import RANGES_FILE
from st_llm_embed.distillation.report import INDEX_HEADER, cost_rows, index_rows, kept, quality_rows
from st_llm_embed.modules.layout import make_portable
from st_llm_embed.publishing.cards import renewed_card
from st_llm_embed.publishing.cards.dataset import languages
from st_llm_embed.publishing.cards.renewed import UNNAMED
from st_llm_embed.publishing.cards.templates import template
from st_llm_embed.publishing.release import PROBES, without_local_places
from st_llm_embed.recipe import TRAINED, Recipe


def write_student_release(
    recipe: Recipe,
    dataset_dir: Path,
    teacher_path: str | None,
    student_dir: Path,
    *,
    report_dir: Path,
    output_dir: Path,
) -> None:
    """Save the student with int8 ranges, card and recipe, and check that it still gives its vectors.

    A static query tower is saved with the teacher as its document tower.

    Raises:
        RuntimeError: the released folder, loaded anew, gives other vectors.
    """
    distillation = distillation_of(recipe)
    trained = SentenceTransformer(str(student_dir / "model"))
    model = trained
    if distillation.student.kind == "static-query" and distillation.teacher is not None:
        teacher = SentenceTransformer(teacher_path, revision=distillation.teacher.revision)
        document = distillation.teacher.document_prompt
        prompts = {"query": "", "document": teacher.prompts.get("document", "") if document is None else document}
        router = Router.for_query_document(
            cast(list[Module], list(trained.children())), cast(list[Module], list(teacher.children()))
        )
        model = SentenceTransformer(
            modules=[router], prompts=cast(dict[str, Any], prompts), similarity_fn_name="cosine"
        )
    model.save_pretrained(str(output_dir), create_model_card=False)
    if distillation.student.kind == "encoder":
        make_portable(output_dir, model.tokenizer, None)
    _finish(recipe, dataset_dir, student_dir, report_dir, output_dir, kind=distillation.student.kind)
    _check_same(trained, output_dir)


def write_query_release(
    recipe: Recipe, dataset_dir: Path, student_dir: Path, report_dir: Path, output_dir: Path
) -> None:
    """Save a static query tower alone, for the side that only asks; otherwise as `write_student_release`."""
    trained = SentenceTransformer(str(student_dir / "model"))
    trained.save_pretrained(str(output_dir), create_model_card=False)
    _finish(recipe, dataset_dir, student_dir, report_dir, output_dir, kind="query-tower")
    _check_same(trained, output_dir)


def _finish(
    recipe: Recipe, dataset_dir: Path, student_dir: Path, report_dir: Path, output_dir: Path, *, kind: str
) -> None:
    shutil.copyfile(student_dir / RANGES_FILE, output_dir / RANGES_FILE)
    (output_dir / "recipe.yaml").write_text(without_local_places(recipe), encoding="utf-8")
    (output_dir / "README.md").write_text(
        _student_card(recipe, dataset_dir, report_dir, output_dir, kind), encoding="utf-8"
    )


def _check_same(trained: SentenceTransformer, folder: Path) -> None:
    released = SentenceTransformer(str(folder))
    if not np.array_equal(released.encode_query(list(PROBES)), trained.encode_query(list(PROBES))):
        raise RuntimeError(
            f"{folder} gives other vectors than the student that was trained; it must not be published."
        )


def _student_card(recipe: Recipe, dataset_dir: Path, report_dir: Path, output_dir: Path, kind: str) -> str:
    """Render the card of a student from its recipe and its report."""
    distillation = distillation_of(recipe)
    report = json.loads((report_dir / "report.json").read_text(encoding="utf-8"))
    teacher = distillation.teacher
    named = None if teacher is None or Path(teacher.name_or_path).exists() else teacher.name_or_path
    if named == TRAINED:
        named = recipe.publishing.repo_id
    start = distillation.student.name_or_path
    data = ModelCardData(
        language=languages(dataset_dir),
        license=recipe.publishing.license,
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=["sentence-transformers", "feature-extraction", "text-embeddings", "distillation", "st_llm_embed"],
        base_model=None if start is None or Path(start).exists() else start,
    )
    lengths = list(json.loads((output_dir / RANGES_FILE).read_text(encoding="utf-8")))
    card = ModelCard.from_template(
        data,
        template_path=str(template("student_card.md")),
        name=recipe.name,
        kind=kind,
        teacher=named or ("" if teacher is None else "a model that is not on the Hub"),
        lengths=lengths,
        rows=distillation.rows,
        texts=bool(distillation.texts),
        instructions=distillation.student.instructions,
        models=list(report["scores"]),
        quality=quality_rows(report),
        costed=list(report["costs"]),
        costs=cost_rows(report),
        hardware=report["hardware"],
        index_header=INDEX_HEADER,
        index=index_rows(report),
        kept=kept(report),
        limitations=recipe.publishing.limitations if teacher is not None and teacher.name_or_path == TRAINED else (),
        ranges_file=RANGES_FILE,
    )
    return renewed_card(str(card), output_dir, UNNAMED)
