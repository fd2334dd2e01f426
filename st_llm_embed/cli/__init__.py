"""The command line: parse, call, print. Heavy imports stay inside the commands, so that --help answers at once."""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Annotated

import typer

from st_llm_embed.cli import check, distill, encode, evaluation, publish, recipes, run, synthesis
from st_llm_embed.errors import InputError

app = typer.Typer(
    help="Turn a large language model into a text embedding model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(recipes.app, name="recipes")
for commands in (run, synthesis, evaluation, check, publish, encode, distill):
    app.add_typer(commands.app)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"st_llm_embed {version('st_llm_embed')}")
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; the user's mistakes end with one message and exit code 2."""
    try:
        app()
    except InputError as error:
        for problem in str(error).splitlines():
            typer.echo(f"Error: {problem}", err=True)
        sys.exit(2)
