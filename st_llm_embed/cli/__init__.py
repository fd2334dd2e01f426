"""The command line: parse, call, print. Heavy imports stay inside the commands, so that --help answers at once."""

from __future__ import annotations

import os
import sys
import traceback
from contextlib import suppress
from importlib.metadata import version
from typing import Annotated

import typer

from st_llm_embed.cli import check, distill, encode, evaluation, publish, recipes, run, synthesis
from st_llm_embed.errors import InputError, disk_is_full

app = typer.Typer(
    help="Turn a large language model into a text embedding model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(recipes.app, name="recipes")
for commands in (run, synthesis, evaluation, check, publish, encode, distill):
    app.add_typer(commands.app)


INTERRUPTED = 130
"""Exit code after Ctrl-C, which Typer sets."""

CRASHED = 70
"""Exit code after an error of ours; not 1, which says of doctor and verify that they found something."""


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
    """Run the command line; the user's mistakes, and a full disk, end with one message and exit code 2."""
    try:
        try:
            app()
        finally:
            # Not left to the end of the process, which would show a traceback where the disk is full.
            sys.stdout.flush()
    except InputError as error:
        for problem in str(error).splitlines():
            typer.echo(f"Error: {problem}", err=True)
        sys.exit(2)
    except SystemExit as stop:
        if stop.code == INTERRUPTED:
            typer.echo("Interrupted. What is finished is kept; the same command resumes from there.", err=True)
        raise
    except Exception as error:
        if not disk_is_full(error):
            traceback.print_exc()
            raise SystemExit(CRASHED) from error
        full = InputError(f"There is no room to write: {error}. Make room and run the same command again.")
        typer.echo(f"Error: {full}", err=True)
        with suppress(OSError):
            # What is left to be printed.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(2)
