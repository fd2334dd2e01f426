"""Arguments and options that commands share, their checks, and the log on stderr."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from st_llm_embed.data.files import check_name
from st_llm_embed.errors import InputError, Problems
from st_llm_embed.processes import is_first_process
from st_llm_embed.recipe import Recipe, RecipeError, shipped_recipes

Choice = TypeVar("Choice", bound=str)

RecipeArgument = Annotated[str | None, typer.Argument(help="A shipped recipe's name, or the path of a .yaml file.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Check recipe, rows and base, print the resolved recipe, write nothing.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override one value of the recipe; may be repeated."),
]
OutputDir = Annotated[
    Path | None, typer.Option(help="Where everything is written.", show_default="runs/<recipe name>")
]


def load_recipe(
    command: str,
    recipe: str | None,
    overrides: list[str] | None,
    output_dir: Path | None,
    *,
    example: str = "demo",
    needs: Collection[str] = Recipe.model_fields,
) -> tuple[Recipe, Path]:
    """Return the recipe that a command was given, and the folder of its run.

    Raises:
        InputError: what is wrong with the recipe, and, of the sections that the command needs, with what they name.
    """
    problems = Problems()
    try:
        resolved = Recipe.load(required(recipe, command, example), overrides or [])
    except RecipeError as error:
        from st_llm_embed.pipeline import check_sections

        problems.found += error.problems
        with problems.collected():
            check_sections({name: section for name, section in error.sections.items() if name in needs})
        problems.report()
        raise
    return resolved, run_folder(resolved.name, output_dir)


def check_and_print(recipe: Recipe, check: Callable[[Recipe], object]) -> None:
    """Do what --dry-run does: check a recipe and print it, every default written out."""
    check(recipe)
    sys.stdout.write(recipe.to_yaml())


def print_contents(folder: Path, contents: Mapping[str, str]) -> None:
    """Print the paths of what a command wrote, as far as they are there, and what each is."""
    for name, content in contents.items():
        if (folder / name).exists():
            typer.echo(f"{folder / name}  {content}")


def required(recipe: str | None, command: str, example: str = "demo") -> str:
    """Return the recipe's name; without one, raise an InputError that lists them."""
    if recipe is None:
        raise InputError(
            f"{command} needs a recipe: a shipped one ({', '.join(shipped_recipes())}) or the path of a .yaml file. "
            f"To see the whole path in minutes, without network or GPU, run: st-llm-embed {command} {example}."
        )
    return recipe


def one_of(value: str, allowed: tuple[Choice, ...], option: str) -> Choice:
    """Return the value; raise an InputError if the option does not allow it."""
    for one in allowed:
        if one == value:
            return one
    raise InputError(f"{option} is {value!r}; allowed are {', '.join(allowed)}.")


def listed(names: str | None) -> list[str]:
    """Return the names in a comma-separated list."""
    return [name.strip() for name in (names or "").split(",") if name.strip()]


def run_folder(name: str, output_dir: Path | None) -> Path:
    """Return the folder of a run: that of --output-dir, or one named after the recipe."""
    return check_name(output_dir or Path("runs") / name)


def configure_logging() -> None:
    """Show the package's log in the first process; silence other libraries' bars of loading and saving."""
    if not is_first_process():
        return
    import datasets
    from transformers.utils import logging as transformers_logging

    datasets.disable_progress_bars()
    transformers_logging.disable_progress_bar()
    log_to_stderr()


def log_to_stderr() -> None:
    """Show the package's log."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    package_logger = logging.getLogger("st_llm_embed")
    package_logger.handlers = [handler]
    package_logger.setLevel(logging.INFO)
