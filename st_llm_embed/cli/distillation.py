"""The command that makes a small student."""

from __future__ import annotations

from pathlib import Path
from typing import Any

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
    "student-report/report.md": "the report, with plots",
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
    """Make a small student of a teacher and its rows, with a report. Run it again to go on after a stop."""
    resolved, folder = load_recipe("distill", recipe, overrides, output_dir, example="demo-distill")
    configure_logging()
    from st_llm_embed.student_pipeline import check_student_inputs, run_distillation

    if dry_run:
        check_and_print(resolved, check_student_inputs)
        return
    _print_outcome(run_distillation(resolved, folder), folder)


def _print_outcome(report: dict[str, Any], folder: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from st_llm_embed.distillation.report import cost_rows, quality_rows

    console = Console()
    quality = Table("held-out rows", *report["scores"], title=f"{report['recipe']}: what the student keeps")
    for row in quality_rows(report):
        quality.add_row(*row)
    costs = Table("cost", *report["costs"])
    for row in cost_rows(report):
        costs.add_row(*row)
    console.print(quality)
    console.print(costs)
    print_contents(folder, CONTENTS)
