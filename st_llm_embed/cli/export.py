"""The command that exports a model to other runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from st_llm_embed.cli.options import configure_logging, listed

app = typer.Typer()


@app.command("export")
def export_model(
    model: Annotated[str, typer.Argument(help="Release folder of a run, or folder or Hub id of a merged embedder.")],
    *,
    to: Annotated[str, typer.Option(metavar="A,B,...", help="Any of portable, onnx, openvino, gguf.")],
    output_dir: Annotated[
        Path | None, typer.Option(help="Gets a folder for each format.", show_default="runs/export/<model>")
    ] = None,
    quantize: Annotated[
        str, typer.Option(metavar="A,B,...", help="int8 (onnx), q8_0 and q4_0 (gguf), beside the full weights.")
    ] = "",
    rows: Annotated[
        Path | None, typer.Option(help="With --quantize: rows or a dataset folder to measure the loss on.")
    ] = None,
) -> None:
    """Export an embedder to other runtimes, each compared with the model before it is kept."""
    configure_logging()
    from st_llm_embed.export import export

    for done in export(model, listed(to), output_dir, quantize=listed(quantize), rows=rows):
        found = done.verification
        compared = (
            "not compared"
            if found is None
            else (
                f"lowest cosine {found.worst_cosine:.6f}, largest difference {found.largest_difference:.1e} "
                f"over {len(found.rows)} texts"
            )
        )
        typer.echo(f"{done.format}: {done.folder} ({compared})")
        for kind, loss in done.losses.items():
            typer.echo(
                f"  {kind}: recall@10 {loss.recall_at_10:.4f} -> {loss.recall_at_10_quantized:.4f}, nDCG@10 "
                f"{loss.ndcg_at_10:.4f} -> {loss.ndcg_at_10_quantized:.4f}, {loss.queries} queries over "
                f"{loss.documents} documents, lowest cosine {loss.minimum_cosine:.4f}"
            )
