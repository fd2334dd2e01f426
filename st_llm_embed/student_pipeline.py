"""The stages of a distillation in order: rows -> (teacher) -> student -> report -> release."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from st_llm_embed.distillation import (
    check_distillation,
    distillation_of,
    teacher_instructions,
    train_student,
    write_student_report,
)
from st_llm_embed.pipeline import build_data, check_data, check_inputs, content_hash, run_in, run_pipeline
from st_llm_embed.publishing.release import write_student_release
from st_llm_embed.recipe import TRAINED, Recipe, Teacher
from st_llm_embed.stage import build_stage, file_hash, file_hashes

NOT_THE_MODEL = ("README.md", "recipe.yaml")
"""Files of a release that may change without its vectors."""


def check_student_inputs(recipe: Recipe) -> None:
    """Check what a distillation needs that can be checked in seconds, before anything is written.

    Raises:
        InputError: teacher, student, rows, texts or a section of the recipe cannot be used.
    """
    check_distillation(recipe)
    trains_the_teacher = distillation_of(recipe).teacher.name_or_path == TRAINED
    (check_inputs if trains_the_teacher else check_data)(recipe)


def run_distillation(recipe: Recipe, output_dir: Path) -> dict[str, Any]:
    """Make the recipe's student; the stages that a run has finished are kept.

    Args:
        recipe: all choices.
        output_dir: as for `run_pipeline`, which runs first where the teacher is what the recipe trains. Also gets
            teacher/ (its vectors), student/, student-report/ and student-release/.

    Returns:
        The content of student-report/report.json.

    Raises:
        InputError: something given cannot be used, the output folder holds what no run wrote, or the disk is full;
            finished stages are kept.
    """
    distillation = distillation_of(recipe)
    check_distillation(recipe)
    if distillation.teacher.name_or_path == TRAINED:
        run_pipeline(recipe, output_dir)
    else:
        check_data(recipe)
    with run_in(output_dir, recipe):
        data = build_data(recipe, output_dir)
        path, identity = teacher = _identified(distillation.teacher, output_dir)
        dataset_dir, student_dir, report_dir = (output_dir / name for name in ("dataset", "student", "student-report"))
        trained = build_stage(
            student_dir,
            {
                **{folder.name: content_hash(folder) for folder in data if distillation.rows},
                "texts": [file_hash(Path(name)) for name in distillation.texts],
                "teacher": identity,
                "distillation": distillation.model_dump(
                    mode="json", exclude={"texts": True, "teacher": {"batch_size"}}
                ),
                "seed": recipe.seed,
                "instructions": teacher_instructions(recipe),
            },
            lambda folder: train_student(recipe, list(data), teacher, output_dir / "teacher", folder),
            resumable=True,
        )
        reported = build_stage(
            report_dir,
            {"student": trained, "rows": content_hash(dataset_dir), "name": recipe.name}
            | recipe.evaluation.model_dump(include={"batch_size"}),
            lambda folder: write_student_report(recipe, dataset_dir, path, student_dir, folder),
        )
        build_stage(
            output_dir / "student-release",
            {"report": reported, "recipe": recipe.model_dump(mode="json")},
            lambda folder: write_student_release(recipe, dataset_dir, student_dir, report_dir, folder),
        )
        return json.loads((report_dir / "report.json").read_text(encoding="utf-8"))


def _identified(teacher: Teacher, output_dir: Path) -> tuple[str, str]:
    """Return where the teacher is, and what identifies its weights."""
    path = str(output_dir / "release") if teacher.name_or_path == TRAINED else teacher.name_or_path
    hashes = file_hashes(Path(path), without=NOT_THE_MODEL)
    return path, json.dumps(hashes or {"name": path, "revision": teacher.revision}, sort_keys=True)
