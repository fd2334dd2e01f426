"""The command line: parse, call, print. Heavy imports stay inside the commands, so that --help answers at once."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from st_llm_embed.errors import InputError, explained
from st_llm_embed.recipe import Recipe, recipe_text, recipe_to_start_from, shipped_recipes

if TYPE_CHECKING:
    from st_llm_embed.synthesis.generate import Projection

app = typer.Typer(
    help="Turn a large language model into a text embedding model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
recipes_app = typer.Typer(help="List, show and copy the shipped recipes.", no_args_is_help=True)
app.add_typer(recipes_app, name="recipes")

Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override one value of the recipe; may be repeated."),
]
PushTo = Annotated[
    str | None, typer.Option(metavar="ORG/NAME", help="Push the dataset to this repository of the Hugging Face Hub.")
]
Private = Annotated[bool, typer.Option("--private", help="With --push-to: as a private repository.")]
OutputDir = Annotated[
    Path | None, typer.Option(help="Where everything is written.", show_default="runs/<recipe name>")
]


@app.command()
def run(
    recipe: Annotated[str | None, typer.Argument(help="A shipped recipe's name, or the path of a .yaml file.")] = None,
    output_dir: OutputDir = None,
    overrides: Overrides = None,
    *,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check recipe, rows and base, print the resolved recipe, write nothing.")
    ] = False,
) -> None:
    """Run every stage of a recipe: dataset, training, evaluation, release. Run it again to go on after a stop."""
    resolved = Recipe.load(_required(recipe, "run"), overrides or [])
    from st_llm_embed.pipeline import check_inputs, run_pipeline
    from st_llm_embed.training import is_first_process

    if is_first_process():
        _configure_logging()
    if dry_run:
        check_inputs(resolved)
        sys.stdout.write(resolved.to_yaml())
        return
    folder = output_dir or Path("runs") / resolved.name
    report = run_pipeline(resolved, folder)
    if is_first_process():
        _print_outcome(report, folder)


@app.command()
def synthesize(
    recipe: Annotated[str | None, typer.Argument(help="A shipped recipe's name, or the path of a .yaml file.")] = None,
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
    """Have an LLM write the rows: requests, journal, filters, dataset. Run it again to go on after a stop."""
    resolved = _recipe_to_push(_required(recipe, "synthesize"), overrides, push_to)
    if estimate is not None and (estimate < 1 or dry_run):
        raise InputError(
            f"--estimate is {estimate}{' beside --dry-run' if dry_run else ''}; give the number of requests to send "
            "for each step, 20 or more for a useful projection, and no --dry-run, which sends nothing."
        )
    _log_to_stderr()
    folder = output_dir or Path("runs") / resolved.name
    from st_llm_embed.pipeline import check_data, planned_prompts, run_estimate, run_synthesis

    if dry_run:
        check_data(resolved)
        typer.echo("\n\n".join(planned_prompts(resolved)))
    elif estimate is not None:
        _print_projections(run_estimate(resolved, folder, estimate))
    else:
        _print_statistics(run_synthesis(resolved, folder), folder)
        _push_dataset(folder, push_to, private=private)


@app.command()
def reparse(
    recipe: Annotated[str | None, typer.Argument(help="A shipped recipe's name, or the path of a .yaml file.")] = None,
    output_dir: OutputDir = None,
    overrides: Overrides = None,
    *,
    push_to: PushTo = None,
    private: Private = False,
) -> None:
    """Make the dataset anew of the answers in the journal, with this recipe's filters. No LLM is asked or paid."""
    resolved = _recipe_to_push(_required(recipe, "reparse"), overrides, push_to)
    _log_to_stderr()
    folder = output_dir or Path("runs") / resolved.name
    from st_llm_embed.pipeline import run_synthesis

    _print_statistics(run_synthesis(resolved, folder, ask=False), folder)
    _push_dataset(folder, push_to, private=private)


@app.command()
def overlap(
    dataset: Annotated[
        str, typer.Argument(help="The folder of a run or a dataset, a .jsonl or .parquet file of rows, or embedded.")
    ],
    tasks: Annotated[str | None, typer.Option(metavar="NAME,NAME", help="Tasks of mteb.")] = None,
    benchmark: Annotated[str | None, typer.Option(help="All tasks of a benchmark of mteb.")] = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with examples, in place of a table.")] = False,
) -> None:
    """Look up the test texts of MTEB tasks in a training set: what a model trained on it has seen."""
    _log_to_stderr()
    from st_llm_embed.evaluation.overlap import find_tasks, measure_overlap, overlap_json, overlap_markdown

    found = measure_overlap(dataset, find_tasks(_listed(tasks), benchmark))
    typer.echo(overlap_json(found) if as_json else overlap_markdown(found))
    if found.not_compared:
        raise InputError(f"These tasks were not compared: {', '.join(found.not_compared)}. The output says why.")


@app.command()
def submit(
    model: Annotated[str, typer.Argument(metavar="ORG/NAME", help="The model's name on the Hub.")],
    results: Annotated[Path, typer.Option(help="What evaluate wrote with --prompts mteb.")],
    benchmark: Annotated[str | None, typer.Option(help="Submit the tasks of this benchmark alone.")] = None,
    trained_on: Annotated[
        str | None,
        typer.Option(
            metavar="TASK,TASK|none", help="Tasks of mteb trained on, besides those of the recipe's known sources."
        ),
    ] = None,
    overlap: Annotated[Path | None, typer.Option(help="What overlap --json printed.")] = None,
    *,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open the pull request with the scores.")] = False,
) -> None:
    """Write what the two pull requests for the MTEB leaderboard need. Nothing is opened without --create-pr."""
    _log_to_stderr()
    from st_llm_embed.evaluation.submission import open_results_pull_request, prepare_submission

    declared = None if trained_on is None else _listed(trained_on)
    submission = prepare_submission(model, results, benchmark=benchmark, declared=declared, overlap=overlap)
    typer.echo((submission.folder / "checklist.md").read_text(encoding="utf-8"))
    typer.echo(f"{submission.folder}  the files of both pull requests")
    if create_pr:
        typer.echo(open_results_pull_request(submission))


def _listed(names: str | None) -> list[str]:
    return [name.strip() for name in (names or "").split(",") if name.strip()]


@recipes_app.command("list")
def list_recipes() -> None:
    """Print the name of each shipped recipe and what it makes."""
    for name in shipped_recipes():
        typer.echo(f"{name:20} {Recipe.load(name).description}")


@recipes_app.command("show")
def show_recipe(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe's name, or the path of a .yaml file.")],
    overrides: Overrides = None,
) -> None:
    """Print a recipe: as written, with its comments, or resolved where --set is given."""
    typer.echo(Recipe.load(recipe, overrides).to_yaml() if overrides else recipe_text(recipe))


@recipes_app.command("copy")
def copy_recipe(
    name: Annotated[str, typer.Argument(help="A shipped recipe's name.")],
    to: Annotated[Path | None, typer.Option(help="The new file, .yaml or .yml.", show_default="NAME.yaml")] = None,
) -> None:
    """Start a recipe of your own: a shipped one with its comments, the file's name, and no description or limits."""
    target = to or Path(f"{name}.yaml")
    content = recipe_to_start_from(name, target)
    with explained(f"{target} cannot be written", "Choose another file with --to."):
        if target.exists():
            raise InputError(f"{target} exists. Choose another file with --to, or remove it.")
        target.write_text(content, encoding="utf-8")
    typer.echo(f"Wrote {target}. Run it with: st-llm-embed run {target}")


def main() -> None:
    """Run the command line; the user's mistakes end with one message and exit code 2."""
    try:
        app()
    except InputError as error:
        typer.echo(f"Error: {error}", err=True)
        sys.exit(2)


def _required(recipe: str | None, command: str) -> str:
    if recipe is None:
        raise InputError(
            f"{command} needs a recipe: a shipped one ({', '.join(shipped_recipes())}) or the path of a .yaml file. "
            f"To see the whole path in minutes, without network or GPU: st-llm-embed {command} demo."
        )
    return recipe


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

    address = push_folder(
        folder / "dataset", push_to, repo_type="dataset", private=private, create_pr=False, commit_message="Add rows"
    )
    typer.echo(f"{address}  the dataset on the Hub")


def _configure_logging() -> None:
    """Show the package's own progress and the bars of training and encoding; silence those of loading and saving."""
    import datasets
    from transformers.utils import logging as transformers_logging

    datasets.disable_progress_bars()
    transformers_logging.disable_progress_bar()
    _log_to_stderr()


def _log_to_stderr() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    package_logger = logging.getLogger("st_llm_embed")
    package_logger.handlers = [handler]
    package_logger.setLevel(logging.INFO)


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


def _print_outcome(report: dict[str, object], folder: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from st_llm_embed.evaluation import headline_rows

    table = Table("held-out rows", "before", "after", "change", title=f"{report['recipe']}: before and after training")
    for row in headline_rows(report):
        table.add_row(*row)
    Console().print(table)
    for name, content in (
        ("release", "the model: SentenceTransformer(...) loads this folder"),
        ("evaluation/report.md", "the report, with plots"),
        ("training", "checkpoints and log"),
        ("dataset", "the rows, train and held out"),
        ("journal", "every answer of the LLM, if it wrote the rows"),
        ("recipe.yaml", "every choice of this run"),
    ):
        typer.echo(f"{folder / name}  {content}")


if __name__ == "__main__":
    main()
