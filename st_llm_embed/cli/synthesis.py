"""The commands that have an LLM write rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from st_llm_embed.cli.options import OutputDir, Overrides, RecipeArgument, load_recipe, log_to_stderr
from st_llm_embed.errors import InputError

if TYPE_CHECKING:
    from st_llm_embed.synthesis.estimate import Projection

app = typer.Typer()


@app.command()
def synthesize(
    recipe: RecipeArgument = None,
    output_dir: OutputDir = None,
    overrides: Overrides = None,
    *,
    estimate: Annotated[
        int | None,
        typer.Option(metavar="K", help="Send K requests of each step and project requests, tokens, USD and minutes."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check recipe, prices and key, print the first prompts, send nothing.")
    ] = False,
    ask_again: Annotated[
        bool, typer.Option("--ask-again", help="Ask again for what the server refused, such as after it was fixed.")
    ] = False,
    give_up_batches: Annotated[
        bool, typer.Option("--give-up-batches", help="Count batches that are lost or stuck as paid, and ask again.")
    ] = False,
) -> None:
    """Have an LLM write the rows: requests, journal, filters, dataset. Run it again to resume."""
    resolved, folder = load_recipe("synthesize", recipe, overrides, output_dir, needs=("data", "synthesis"))
    if estimate is not None and (estimate < 1 or dry_run):
        raise InputError(
            f"--estimate is {estimate}{' beside --dry-run' if dry_run else ''}; it takes the number of requests to "
            "send for each step, 20 or more for a useful projection, and excludes --dry-run, which sends nothing."
        )
    log_to_stderr()
    from st_llm_embed.pipeline import check_data, run_estimate, run_synthesis, synthesis_of
    from st_llm_embed.synthesis import batch, generate
    from st_llm_embed.synthesis.generate import planned_prompts

    if ask_again or give_up_batches:
        if dry_run or not (folder / "journal").is_dir():
            raise InputError(
                "--ask-again and --give-up-batches change what an earlier run is asked for; "
                f"{'this is a dry run' if dry_run else f'{folder} holds none'}. Omit them."
            )
        given_up = batch.give_up_batches(folder / "journal") if give_up_batches else 0
        again = generate.ask_again(folder / "journal") if ask_again else 0
        typer.echo(f"{again:,} refused requests are asked again, {given_up:,} batches given up", err=True)
    if dry_run:
        prompts = planned_prompts(synthesis_of(resolved))
        check_data(resolved)
        typer.echo("\n\n".join(prompts))
    elif estimate is not None:
        _print_projections(run_estimate(resolved, folder, estimate))
    else:
        _print_statistics(run_synthesis(resolved, folder), folder)


@app.command()
def reparse(
    recipe: RecipeArgument = None,
    output_dir: OutputDir = None,
    overrides: Overrides = None,
    *,
    push_to: Annotated[
        str | None,
        typer.Option(metavar="ORG/NAME", help="Push the dataset to this repository of the Hugging Face Hub."),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="With --push-to: as a private repository.")] = False,
) -> None:
    """Make the dataset again of the answers in the journal, with this recipe's filters. No LLM is asked or paid."""
    named = [] if push_to is None else [f"publishing.dataset_repo_id={push_to}"]
    resolved, folder = load_recipe("reparse", recipe, [*(overrides or []), *named], output_dir)
    if push_to is not None and resolved.publishing.dataset_license is None:
        raise InputError(
            "The dataset has no licence, and what is pushed needs one. Ask what the terms of the LLM that writes it "
            "allow, then set it: --set publishing.dataset_license=cc-by-4.0 (or apache-2.0, cc-by-nc-4.0, ...)."
        )
    log_to_stderr()
    from st_llm_embed.pipeline import run_synthesis

    _print_statistics(run_synthesis(resolved, folder, ask=False), folder)
    if push_to is not None:
        from st_llm_embed.publishing.push import push_folder

        dataset, title = folder / "dataset", "Add rows"
        pushed = push_folder(
            dataset, push_to, repo_type="dataset", private=private, create_pr=False, commit_message=title
        )
        typer.echo(f"{pushed.address}  the dataset on the Hub")


def _print_projections(projections: list[Projection]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("step", "requests", "usable", "tokens", "USD", "minutes", title="projected from the answers so far")
    for row in projections:
        numbers = f"{row.requests:,} {row.usable:.0%} {row.tokens:,.0f} {row.usd:,.2f} {row.minutes:,.1f}"
        table.add_row(row.step, *numbers.split())
    Console().print(table)


def _print_statistics(statistics: dict[str, Any], folder: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    title = f"{statistics['rows']:,} rows, ${statistics['cost']['usd']:,.2f}"
    table = Table("task type", "rows", "rejected", title=title)
    rows, rejected = statistics["rows_by_task_type"], statistics["rejected_by_task_type"]
    for task_type in rows | rejected:
        table.add_row(task_type, f"{rows.get(task_type, 0):,}", f"{rejected.get(task_type, 0):,}")
    Console().print(table)
    if statistics["rejected"]:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in statistics["rejected_by_reason"].items())
        typer.echo(f"rejected: {reasons}")
    typer.echo(f"{folder / 'dataset'}  the rows, the tasks, the rejected answers and statistics")
    typer.echo(f"{folder / 'journal'}  every answer as it came")
