"""The command that examines a model before others do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from st_llm_embed.doctor import Diagnosis

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
            show_default="where weights lie in the folder",
        ),
    ] = None,
    fix: Annotated[
        Path | None, typer.Option(metavar="OUT", help="Write a repaired copy into this new folder and examine that.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub model.")] = None,
    device: Annotated[str | None, typer.Option(help="For --live: cuda:0, cpu, ...; the best there is.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Find what makes a model give other vectors elsewhere, by name. Exit code 1 if there is anything."""
    from st_llm_embed.doctor import diagnose

    diagnosis = diagnose(model, live=live, revision=revision, device=device)
    output = {"before": diagnosis.to_json()} if fix else diagnosis.to_json()
    if not as_json:
        _print(diagnosis)
    if fix is not None:
        from st_llm_embed.doctor.fix import repair

        repaired = repair(model, fix, revision=revision)
        diagnosis = diagnose(str(fix), live=live, device=device)
        output |= {"repaired": repaired, "after": diagnosis.to_json()}
        if not as_json:
            typer.echo(f"\nThe repaired copy is {fix}:")
            for line in repaired or ["nothing was changed"]:
                typer.echo(f"- {line}")
            if diagnosis.findings:
                typer.echo("\nThis cannot be repaired by a program:")
            _print(diagnosis)
    if as_json:
        typer.echo(json.dumps(output, indent=2, ensure_ascii=False))
    raise typer.Exit(1 if diagnosis.findings else 0)


def _print(diagnosis: Diagnosis) -> None:
    done = [check for check in diagnosis.checks if check.not_checked is None]
    others = [check for check in diagnosis.checks if check.not_checked is not None]
    for finding in diagnosis.findings:
        number = f"trap {finding.trap}, " if isinstance(finding.trap, int) else ""
        typer.echo(f"{finding.severity.upper()}: {number}{finding.name} ({finding.file})")
        typer.echo(f"  {finding.message}")
        typer.echo(f"  Hit: {', '.join(finding.readers) or 'everybody'}. Fix: {finding.fix}")
    found = "1 finding" if len(diagnosis.findings) == 1 else f"{len(diagnosis.findings)} findings"
    typer.echo(f"{diagnosis.model}: {found} in {len(done)} checks; not checked: {len(others)}.")
    for check in others:
        typer.echo(f"- {check.what}: {check.not_checked}")
    typer.echo("What libraries read:")
    for one in diagnosis.readings:
        typer.echo(f"- {one.reader}: {one.not_for or one.refuses or one.shown()}")
