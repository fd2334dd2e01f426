"""The command line: parse, call, print. Heavy imports stay inside the commands, so that --help answers at once."""

from __future__ import annotations

import sys

import typer

from st_llm_embed.cli import (
    ablation,
    distill,
    doctor,
    encode,
    evaluation,
    export,
    publish,
    recipes,
    runs,
    synthesis,
    verify,
)
from st_llm_embed.errors import InputError

app = typer.Typer(
    help="Turn a large language model into a text embedding model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(recipes.app, name="recipes")
for commands in (
    runs.app,
    synthesis.app,
    evaluation.app,
    export.app,
    doctor.app,
    verify.app,
    publish.app,
    encode.app,
    distill.app,
    ablation.app,
):
    app.add_typer(commands)


def main() -> None:
    """Run the command line; the user's mistakes end with one message and exit code 2."""
    try:
        app()
    except InputError as error:
        typer.echo(f"Error: {error}", err=True)
        sys.exit(2)
