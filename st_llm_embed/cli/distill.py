"""The command that makes a small student."""

from __future__ import annotations

import typer

from st_llm_embed.cli.options import (
    DryRun,
    OutputDir,
    Overrides,
    RecipeArgument,
    check_and_print,
    configure_logging,
    load_recipe,
    print_contents,
)

app = typer.Typer()

CONTENTS = {
    "student-release": "the student: SentenceTransformer(...) loads this folder",
    "student-report/report.md": "the report",
    "student": "checkpoints and log",
    "teacher": "the teacher's vectors",
    "release": "the teacher",
    "recipe.yaml": "every choice of this run",
}


@app.command()
def distill(
    recipe: RecipeArgument = None,
    output_dir: OutputDir = None,
    overrides: Overrides = None,
    *,
    dry_run: DryRun = False,
) -> None:
    """Make a small student of a teacher and its rows, with a report. Run it again to resume."""
    resolved, folder = load_recipe("distill", recipe, overrides, output_dir, example="demo-distill")
    from st_llm_embed.pipeline import check_student_inputs, run_distillation

    if dry_run:
        check_and_print(resolved, lambda one: check_student_inputs(one, configure_logging))
        return
    configure_logging()
    from rich.console import Console
    from rich.table import Table

    from st_llm_embed.distillation.report import cost_rows, quality_rows

    report = run_distillation(resolved, folder)
    for title, models, rows in (
        ("what the student keeps", report["scores"], quality_rows(report)),
        ("what they cost", report["costs"], cost_rows(report)),
    ):
        table = Table("", *models, title=f"{resolved.name}: {title}")
        for row in rows:
            table.add_row(*row)
        Console().print(table)
    print_contents(folder, CONTENTS)
