"""The commands that export a model to other runtimes and publish a run or a saved model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from st_llm_embed.cli.options import configure_logging, listed, log_to_stderr, run_folder
from st_llm_embed.errors import InputError
from st_llm_embed.recipe import Recipe

app = typer.Typer()

CONTENTS = {"dataset": "the rows", "adapter": "the LoRA adapter alone", "model": "the model"}


@app.command("export")
def export_command(
    model: Annotated[str, typer.Argument(help="Release folder of a run, or folder or Hub id of a merged embedder.")],
    *,
    to: Annotated[str, typer.Option(metavar="A,B,...", help="Any of portable, onnx, gguf.")],
    output_dir: Annotated[
        Path | None, typer.Option(help="Gets a folder for each format.", show_default="runs/export/<model>")
    ] = None,
    quantize: Annotated[
        str, typer.Option(metavar="A,B,...", help="int8 (onnx), q8_0 and q4_0 (gguf), beside the full weights.")
    ] = "",
) -> None:
    """Export an embedder to other runtimes, each compared with the model before it is kept."""
    configure_logging()
    from st_llm_embed.export import export_model

    for done in export_model(model, listed(to), output_dir, quantize=listed(quantize)):
        compared = "not compared"
        if found := done.verification:
            numbers = f"lowest cosine {found.worst_cosine:.6f}, largest difference {found.largest_difference:.1e}"
            compared = f"{numbers} over {len(found.rows)} texts"
        typer.echo(f"{done.format}: {done.folder} ({compared})")
        for kind, cosine in done.quantized.items():
            typer.echo(f"  {kind}: {'not compared' if cosine is None else f'lowest cosine {cosine:.4f}'}")


@app.command()
def publish(
    source: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE|DIR", help="A recipe that was run, the output folder of a run, or a saved model."
        ),
    ],
    to: Annotated[str, typer.Option(metavar="ORG/NAME", help="Name of the model on the Hub.")],
    *,
    private: Annotated[bool, typer.Option("--private", help="Make the repositories private.")] = False,
    create_pr: Annotated[
        bool, typer.Option("--create-pr", help="Open a pull request in each repository, commit nothing to main.")
    ] = False,
    tag: Annotated[str | None, typer.Option(metavar="V1", help="Tag the commit in each repository.")] = None,
) -> None:
    """Publish model, adapter and rows on the Hugging Face Hub. Run it again to resume after an interruption."""
    folder = Path(source)
    if not folder.is_dir():
        folder = run_folder(Recipe.load(source).name, None)
        if not folder.is_dir():
            raise InputError(
                f"{source} was not run here: there is no {folder}. Run it first (st-llm-embed run {source}), or give "
                "the folder that --output-dir named."
            )
    log_to_stderr()
    from st_llm_embed.publishing.publish import publish as publish_folder

    for one in publish_folder(folder, to, private=private, create_pr=create_pr, tag=tag):
        typer.echo(f"{one.address}  {CONTENTS[one.what]}")
