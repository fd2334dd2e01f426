"""The command that compares a model's vectors with those of another runtime or a server."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from st_llm_embed.doctor.verify import Verification

app = typer.Typer()


@app.command()
def verify(
    model: Annotated[str, typer.Argument(help="Folder or Hub id of the model, or its probe.json.")],
    against: Annotated[
        str,
        typer.Option(
            metavar="PATH|URL",
            help="Folder of a model, .onnx, OpenVINO's .xml, .gguf, or a server: .../v1/embeddings, TEI's .../embed.",
        ),
    ],
    *,
    minimum_cosine: Annotated[
        float, typer.Option(help="Least cosine similarity of equal vectors; half precision gives about 0.999.")
    ] = 0.9999,
    served_name: Annotated[
        str | None, typer.Option(help="Name of the model at the server.", show_default="the first it lists")
    ] = None,
    api_key_env: Annotated[str, typer.Option(help="Variable that holds the server's key.")] = "OPENAI_API_KEY",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of a table.")] = False,
) -> None:
    """Compare the vectors of a model's probe texts with those of another runtime or a server.

    Exits with 0 if they are the same, with 1 if they differ, and then says which known fault explains it.
    """
    from transformers.utils import logging as transformers_logging

    from st_llm_embed.doctor.verify import server_runtime
    from st_llm_embed.doctor.verify import verify as compare
    from st_llm_embed.doctor.verify.against import probe_of, runtime_of

    transformers_logging.disable_progress_bar()
    probe, weights = probe_of(model)
    if against.startswith(("http://", "https://")):
        runtime = server_runtime(
            against, max_seq_length=probe.max_seq_length, served_name=served_name, api_key_env=api_key_env
        )
    else:
        runtime = runtime_of(against, probe)
    verification = compare(probe, runtime, minimum_cosine=minimum_cosine, weights=weights)
    if as_json:
        typer.echo(json.dumps({"model": model, "against": against} | verification.to_json(), indent=2))
    else:
        _print(verification, against)
    raise typer.Exit(0 if verification.same else 1)


def _print(verification: Verification, against: str) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    words = {True: "same", False: "differs", None: "?"}
    table = Table("text", "role", "tokens", "cosine", "norm", "vector", title=escape(against))
    for row in verification.rows:
        alike = "-" if row.cosine is None else f"{row.cosine:.6f}"
        norm = "-" if row.norm is None else f"{row.norm:.4f}"
        verdict = "refused" if row.same is None else words[row.same]
        table.add_row(row.name, row.role, words[row.ids_equal], alike, norm, verdict)
    Console().print(table)
    refusals = {row.refusal for row in verification.rows if row.same is None}
    for refusal in sorted(refusals):
        typer.echo(f"Refused: {refusal}")
    for one in verification.explanations:
        typer.echo(f"{one.trap}: {one.sentence}")
    least = verification.worst_cosine
    told = "" if least is None else f"; the least cosine is {least:.6f}, {verification.minimum_cosine} is asked for"
    typer.echo(f"{'The vectors are the same' if verification.same else 'The vectors differ'}{told}.")
