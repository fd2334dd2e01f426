"""The command line: parse, call, print. Heavy imports stay inside the commands, so that --help answers at once."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from st_llm_embed.errors import InputError, explained
from st_llm_embed.recipe import Recipe, recipe_text, recipe_to_start_from, shipped_recipes

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


@app.command()
def run(
    recipe: Annotated[str | None, typer.Argument(help="A shipped recipe's name, or the path of a .yaml file.")] = None,
    output_dir: Annotated[
        Path | None, typer.Option(help="Where everything is written.", show_default="runs/<recipe name>")
    ] = None,
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


def _configure_logging() -> None:
    """Show the package's own progress and the bars of training and encoding; silence those of loading and saving."""
    import datasets
    from transformers.utils import logging as transformers_logging

    datasets.disable_progress_bars()
    transformers_logging.disable_progress_bar()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    package_logger = logging.getLogger("st_llm_embed")
    package_logger.addHandler(handler)
    package_logger.setLevel(logging.INFO)


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
        ("recipe.yaml", "every choice of this run"),
    ):
        typer.echo(f"{folder / name}  {content}")


if __name__ == "__main__":
    main()
