"""The commands that have an LLM write rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from st_llm_embed.cli.options import OutputDir, Overrides, RecipeArgument, log_to_stderr, required, run_folder
from st_llm_embed.errors import InputError
from st_llm_embed.recipe import Recipe

if TYPE_CHECKING:
    from st_llm_embed.synthesis.generate import Projection

app = typer.Typer()

PushTo = Annotated[
    str | None, typer.Option(metavar="ORG/NAME", help="Push the dataset to this repository of the Hugging Face Hub.")
]
Private = Annotated[bool, typer.Option("--private", help="With --push-to: as a private repository.")]


@app.command()
def synthesize(
    recipe: RecipeArgument = None,
    output_dir: OutputDir = None,
    overrides: Overrides = None,
    *,
    estimate: Annotated[
        int | None,
        typer.Option(metavar="K", help="Send K requests of each step and project requests, tokens, USD and hours."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check recipe, prices and key, print the first prompts, send nothing.")
    ] = False,
    push_to: PushTo = None,
    private: Private = False,
) -> None:
    """Have an LLM write the rows: requests, journal, filters, dataset. Run it again to resume."""
    resolved = _recipe_to_push(required(recipe, "synthesize"), overrides, push_to)
    if estimate is not None and (estimate < 1 or dry_run):
        raise InputError(
            f"--estimate is {estimate}{' beside --dry-run' if dry_run else ''}; it takes the number of requests to "
            "send for each step, 20 or more for a useful projection, and excludes --dry-run, which sends nothing."
        )
    log_to_stderr()
    folder = run_folder(resolved.name, output_dir)
    from st_llm_embed.pipeline import check_data, run_estimate, run_synthesis, synthesis_of
    from st_llm_embed.synthesis.generate import planned_prompts

    if dry_run:
        prompts = planned_prompts(synthesis_of(resolved))
        check_data(resolved)
        typer.echo("\n\n".join(prompts))
    elif estimate is not None:
        _print_projections(run_estimate(resolved, folder, estimate))
    else:
        _print_statistics(run_synthesis(resolved, folder), folder)
        _push_dataset(folder, push_to, private=private)


@app.command()
def reparse(
    recipe: RecipeArgument = None,
    output_dir: OutputDir = None,
    overrides: Overrides = None,
    *,
    push_to: PushTo = None,
    private: Private = False,
) -> None:
    """Make the dataset again of the answers in the journal, with this recipe's filters. No LLM is asked or paid."""
    resolved = _recipe_to_push(required(recipe, "reparse"), overrides, push_to)
    log_to_stderr()
    folder = run_folder(resolved.name, output_dir)
    from st_llm_embed.pipeline import run_synthesis

    _print_statistics(run_synthesis(resolved, folder, ask=False), folder)
    _push_dataset(folder, push_to, private=private)


def _recipe_to_push(recipe: str, overrides: list[str] | None, push_to: str | None) -> Recipe:
    """Load a recipe; where its dataset is to be pushed, check that it can be, before anything is paid."""
    if push_to is None:
        return Recipe.load(recipe, overrides or [])
    resolved = Recipe.load(recipe, [*(overrides or []), f"publishing.dataset_repo_id={push_to}"])
    if resolved.publishing.dataset_license is None:
        raise InputError(
            "The dataset has no licence, and what is pushed needs one. Ask what the terms of the LLM that writes it "
            "allow, then set it: --set publishing.dataset_license=cc-by-4.0 (or apache-2.0, cc-by-nc-4.0, ...)."
        )
    return resolved


def _push_dataset(folder: Path, push_to: str | None, *, private: bool) -> None:
    if push_to is None:
        return
    from st_llm_embed.publishing.push import push_folder

    pushed = push_folder(
        folder / "dataset", push_to, repo_type="dataset", private=private, create_pr=False, commit_message="Add rows"
    )
    typer.echo(f"{pushed.address}  the dataset on the Hub")


def _print_projections(projections: list[Projection]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("step", "requests", "usable", "tokens", "USD", "hours", title="projected from the answers so far")
    for row in projections:
        table.add_row(
            row.step,
            f"{row.requests:,}",
            f"{row.usable:.0%}",
            f"{row.tokens:,.0f}",
            f"{row.usd:,.2f}",
            f"{row.hours:,.1f}",
        )
    Console().print(table)


def _print_statistics(statistics: dict[str, Any], folder: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        "task type", "rows", "rejected", title=f"{statistics['rows']:,} rows, ${statistics['cost']['usd']:,.2f}"
    )
    for task_type in statistics["rows_by_task_type"] | statistics["rejected_by_task_type"]:
        rows = statistics["rows_by_task_type"].get(task_type, 0)
        rejected = statistics["rejected_by_task_type"].get(task_type, 0)
        table.add_row(task_type, f"{rows:,}", f"{rejected:,}")
    Console().print(table)
    if statistics["rejected"]:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in statistics["rejected_by_reason"].items())
        typer.echo(f"rejected: {reasons}")
    typer.echo(f"{folder / 'dataset'}  the rows, the tasks, the rejected answers, statistics and plots")
    typer.echo(f"{folder / 'journal'}  every answer as it came")
