"""The commands under `recipes`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from st_llm_embed.cli.options import Overrides
from st_llm_embed.errors import InputError, explained
from st_llm_embed.recipe import Recipe, recipe_text, recipe_to_start_from, shipped_recipes

app = typer.Typer(help="List, show and copy the shipped recipes.", no_args_is_help=True)


@app.command("list")
def list_recipes() -> None:
    """List the shipped recipes with their descriptions."""
    for name in shipped_recipes():
        typer.echo(f"{name:22} {Recipe.load(name).description}")


@app.command("show")
def show_recipe(
    recipe: Annotated[str, typer.Argument(help="A shipped recipe's name, or the path of a .yaml file.")],
    overrides: Overrides = None,
) -> None:
    """Print a recipe: with its comments, or with --set, resolved."""
    typer.echo(Recipe.load(recipe, overrides).to_yaml() if overrides else recipe_text(recipe))


@app.command("copy")
def copy_recipe(
    name: Annotated[str, typer.Argument(help="A shipped recipe's name.")],
    to: Annotated[Path | None, typer.Option(help="The new file, .yaml or .yml.", show_default="NAME.yaml")] = None,
) -> None:
    """Copy a shipped recipe to start your own: named after the file, without description and limitations."""
    target = to or Path(f"{name}.yaml")
    content = recipe_to_start_from(name, target)
    with explained(f"{target} cannot be written", "Choose another file with --to."):
        if target.exists():
            raise InputError(f"{target} exists. Choose another file with --to, or remove it.")
        target.write_text(content, encoding="utf-8")
    typer.echo(f"Wrote {target}. Run it with: st-llm-embed run {target}")
