"""The command that runs an ablation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from st_llm_embed.cli.options import configure_logging, run_folder

app = typer.Typer()


@app.command()
def ablate(
    grid: Annotated[Path, typer.Argument(metavar="GRID.yaml", help="A recipe, what is set over it, and the seeds.")],
    output_dir: Annotated[
        Path | None, typer.Option(help="Where everything is written.", show_default="runs/<name of the grid>")
    ] = None,
    *,
    jobs: Annotated[int, typer.Option(min=1, help="Runs at a time; each has its share of the cores.")] = 1,
    open_sets: Annotated[
        Path | None, typer.Option(help="Folder of open STS, retrieval and bitext sets to score each run on, too.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check every recipe of the grid, list the runs, write nothing.")
    ] = False,
) -> None:
    """Run a recipe with one choice after another, over seeds, and compare. Run it again to go on after a stop."""
    from st_llm_embed.ablation.grid import Grid, run_name

    resolved = Grid.load(grid)
    configure_logging()
    from st_llm_embed.ablation.run import check_grid, run_grid

    folder = run_folder(resolved.name, output_dir)
    if dry_run:
        check_grid(resolved, open_sets)
        for seed in resolved.seeds:
            for variant in resolved.variants():
                typer.echo(f"{folder / 'runs' / run_name(variant, seed)}  {' '.join(variant.overrides)}")
        return
    typer.echo(run_grid(resolved, folder, jobs=jobs, open_sets=open_sets).to_markdown())
    for name, what in (("table.md", "the tables"), ("table.json", "the same for programs"), ("plot.png", "the plot")):
        typer.echo(f"{folder / name}  {what}")
