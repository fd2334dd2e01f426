"""The commands that examine a model before others do: its files, and its vectors in another runtime."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from st_llm_embed.doctor import Diagnosis
    from st_llm_embed.doctor.verify import Verification

app = typer.Typer()


@app.command()
def doctor(
    model: Annotated[str, typer.Argument(help="Folder or Hub id of a decoder embedding model, anybody's.")],
    *,
    live: Annotated[
        bool | None,
        typer.Option(
            "--live/--no-live",
            help="Also encode texts, which takes the weights.",
            show_default="where weights are in the folder",
        ),
    ] = None,
    fix: Annotated[
        Path | None, typer.Option(metavar="OUT", help="Write a repaired copy into this new folder and examine that.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub model.")] = None,
    device: Annotated[str | None, typer.Option(help="For --live: cuda:0, cpu, ...; the best there is.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Find what makes a model return other vectors elsewhere, by name.

    Exit code 0: nothing was found; 1: something was; 2: the model or an option is not usable; 70: the program failed.
    """
    if fix is None:
        from st_llm_embed.doctor import diagnose

        diagnosis = diagnose(model, live=live, revision=revision, device=device)
        output = diagnosis.to_json()
        if not as_json:
            _print_diagnosis(diagnosis)
    else:
        from st_llm_embed.doctor.fix import repair

        before, changed, diagnosis = repair(model, fix, live=live, revision=revision, device=device)
        output = {"before": before.to_json(), "repaired": changed, "after": diagnosis.to_json()}
        if not as_json:
            _print_diagnosis(before)
            typer.echo(f"\nThe repaired copy is {fix}:")
            for line in changed or ["nothing was changed"]:
                typer.echo(f"- {line}")
            if diagnosis.findings:
                typer.echo("\nThis cannot be repaired by a program:")
            _print_diagnosis(diagnosis)
    if as_json:
        typer.echo(json.dumps(output, indent=2, ensure_ascii=False))
    raise typer.Exit(1 if diagnosis.findings else 0)


@app.command()
def verify(
    model: Annotated[str, typer.Argument(help="Folder or Hub id of the model, or its probe.json.")],
    against: Annotated[
        str,
        typer.Option(
            metavar="PATH|URL",
            help="Folder of a model, .onnx, .gguf, or a server: .../v1/embeddings, TEI's .../embed.",
        ),
    ],
    *,
    minimum_cosine: Annotated[
        float | None,
        typer.Option(
            help="Least cosine similarity of equal vectors; half precision gives about 0.999.",
            show_default="what rounding in float32 leaves",
        ),
    ] = None,
    served_name: Annotated[
        str | None, typer.Option(help="Name of the model at the server.", show_default="the first it lists")
    ] = None,
    api_key_env: Annotated[str, typer.Option(help="Variable that holds the server's key.")] = "OPENAI_API_KEY",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON in place of a table.")] = False,
) -> None:
    """Compare a model's probe vectors with another runtime's, and name the known cause if they differ.

    Exit code 0: they are the same; 1: they differ; 2: the model or the runtime is not usable; 70: the program failed.
    """
    from transformers.utils import logging as transformers_logging

    from st_llm_embed.doctor.probe import MINIMUM_COSINE
    from st_llm_embed.doctor.server import server_runtime
    from st_llm_embed.doctor.verify import probe_of
    from st_llm_embed.doctor.verify import verify as compare

    transformers_logging.disable_progress_bar()
    probe, weights = probe_of(model)
    runtime = against
    if against.startswith(("http://", "https://")):
        limit = probe.max_seq_length
        runtime = server_runtime(against, max_seq_length=limit, served_name=served_name, api_key_env=api_key_env)
    least = MINIMUM_COSINE if minimum_cosine is None else minimum_cosine
    verification = compare(probe, runtime, minimum_cosine=least, weights=weights)
    if as_json:
        typer.echo(json.dumps({"model": model, "against": against} | verification.to_json(), indent=2))
    else:
        _print_verification(verification, against)
    raise typer.Exit(0 if verification.same else 1)


def _print_diagnosis(diagnosis: Diagnosis) -> None:
    others = [check for check in diagnosis.checks if check.not_checked is not None]
    for finding in diagnosis.findings:
        typer.echo(f"{finding.severity.upper()}: {finding.trap} ({finding.file})")
        typer.echo(f"  {finding.message}")
        typer.echo(f"  Affected: {', '.join(finding.readers) or 'everybody'}. Fix: {finding.fix}")
    found = "1 finding" if len(diagnosis.findings) == 1 else f"{len(diagnosis.findings)} findings"
    done = len(diagnosis.checks) - len(others)
    typer.echo(f"{diagnosis.model}: {found} in {done} checks; not checked: {len(others)}.")
    for check in others:
        typer.echo(f"- {check.what}: {check.not_checked}")
    typer.echo("What libraries read:")
    for one in diagnosis.readings:
        typer.echo(f"- {one.reader}: {one.not_for or one.refuses or one.shown()}")


def _print_verification(verification: Verification, against: str) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    words = {True: "same", False: "differs", None: "?"}
    table = Table("text", "role", "tokens", "cosine", "norm", "vector", title=escape(against))
    for row in verification.rows:
        cosine = "-" if row.cosine is None else f"{row.cosine:.6f}"
        norm = "-" if row.norm is None else f"{row.norm:.4f}"
        verdict = "refused" if row.refusal else words[row.same]
        table.add_row(row.name, row.role, words[row.ids_equal], cosine, norm, verdict)
    Console().print(table)
    for refusal in sorted({row.refusal for row in verification.rows if row.refusal}):
        typer.echo(f"Refused: {refusal}")
    for one in verification.explanations:
        typer.echo(f"{one.trap}: {one.sentence}")
    least = verification.worst_cosine
    read = "" if least is None else f"; the least cosine is {least:.6f}, {verification.minimum_cosine} is asked for"
    typer.echo(f"{'The vectors are the same' if verification.same else 'The vectors differ'}{read}.")
