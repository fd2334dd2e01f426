"""The released student: one Hub repository as files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from huggingface_hub import ModelCard, ModelCardData
from sentence_transformers import SentenceTransformer

from st_llm_embed.distillation import distillation_of
from st_llm_embed.distillation.report import cost_rows, kept, quality_rows
from st_llm_embed.modules.layout import make_portable
from st_llm_embed.publishing.cards import renewed_card
from st_llm_embed.publishing.cards.dataset import languages
from st_llm_embed.publishing.cards.renewed import UNNAMED
from st_llm_embed.publishing.cards.templates import template
from st_llm_embed.publishing.release import PROBES, without_local_places
from st_llm_embed.recipe import TRAINED, Recipe


def write_student_release(
    recipe: Recipe, dataset_dir: Path, student_dir: Path, report_dir: Path, output_dir: Path
) -> None:
    """Save the student with card and recipe, and check that it still returns its vectors.

    Raises:
        RuntimeError: the released folder returns other vectors.
    """
    trained = SentenceTransformer(str(student_dir / "model"))
    trained.save_pretrained(str(output_dir), create_model_card=False)
    if distillation_of(recipe).student.kind == "encoder":
        make_portable(output_dir, trained.tokenizer, None)
    (output_dir / "recipe.yaml").write_text(without_local_places(recipe), encoding="utf-8")
    dimension = int(trained.get_embedding_dimension() or 0)
    card = _student_card(recipe, dataset_dir, report_dir, output_dir, dimension)
    (output_dir / "README.md").write_text(card, encoding="utf-8")
    _check_same(trained, output_dir)


def _check_same(trained: SentenceTransformer, folder: Path) -> None:
    released = SentenceTransformer(str(folder))
    if not np.array_equal(released.encode_query(list(PROBES)), trained.encode_query(list(PROBES))):
        raise RuntimeError(
            f"{folder} gives other vectors than the student that was trained; it must not be published."
        )


def _student_card(recipe: Recipe, dataset_dir: Path, report_dir: Path, output_dir: Path, dimension: int) -> str:
    """Render the card of a student from its recipe and its report."""
    distillation = distillation_of(recipe)
    report = json.loads((report_dir / "report.json").read_text(encoding="utf-8"))
    teacher = distillation.teacher
    named = None if Path(teacher.name_or_path).exists() else teacher.name_or_path
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
    card = ModelCard.from_template(
        data,
        template_path=str(template("student_card.md")),
        name=recipe.name,
        kind=distillation.student.kind,
        teacher=named or "a model that is not on the Hub",
        lengths=distillation.loss.matryoshka_dims or (dimension,),
        rows=distillation.rows,
        texts=bool(distillation.texts),
        instructions=distillation.student.instructions,
        models=list(report["scores"]),
        quality=quality_rows(report),
        costed=list(report["costs"]),
        costs=cost_rows(report),
        hardware=report["hardware"],
        kept=kept(report),
        limitations=recipe.publishing.limitations if teacher.name_or_path == TRAINED else (),
    )
    return renewed_card(str(card), output_dir, UNNAMED)
