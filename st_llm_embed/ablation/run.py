"""The runs of a grid, each in a process and a folder of its own, several at a time."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from st_llm_embed.ablation.grid import Grid, run_name
from st_llm_embed.ablation.plots import plot_table
from st_llm_embed.ablation.table import Table, collect
from st_llm_embed.errors import InputError, explained
from st_llm_embed.evaluation.open_sets import check_open_sets
from st_llm_embed.pipeline import check_inputs

logger = logging.getLogger(__name__)


def run_grid(grid: Grid, output_dir: Path, *, jobs: int = 1, open_sets: Path | None = None) -> Table:
    """Run what of a grid has not run yet; the table and the plot are written anew after each run.

    Args:
        grid: what to run.
        output_dir: gets grid.yaml, runs/<setting>-seed<seed>/ as `run_pipeline` writes them, logs/, table.md,
            table.json and plot.png.
        jobs: runs at a time; each has its share of the cores.
        open_sets: folder of open evaluation sets that every run is scored on besides (`evaluation.open_sets`).

    Raises:
        InputError: a recipe of the grid cannot be run, the folder holds what no ablation wrote, or a run failed;
            finished ones are kept.
    """
    check_grid(grid, open_sets)
    planned = {
        run_name(variant, seed): grid.recipe_of(variant, seed) for seed in grid.seeds for variant in grid.variants()
    }
    with explained(f"The output folder {output_dir} cannot be written to", "Choose another with --output-dir."):
        if output_dir.exists() and any(output_dir.iterdir()) and not (output_dir / "grid.yaml").is_file():
            raise InputError(
                f"{output_dir} was not written by an ablation, and this one would write there. Move it away or choose "
                "another --output-dir."
            )
        (output_dir / "runs").mkdir(parents=True, exist_ok=True)
        (output_dir / "logs").mkdir(exist_ok=True)
        grid.save(output_dir / "grid.yaml")
    for name, recipe in planned.items():
        recipe.save(output_dir / "logs" / f"{name}.yaml")
    # Runs of several stages take longest; begun first, they leave no core idle at the end.
    queue = sorted(planned, key=lambda name: len(planned[name].stages), reverse=True)
    stopped = threading.Event()
    with ThreadPoolExecutor(jobs) as pool:
        started = {pool.submit(_run, name, output_dir, jobs, open_sets, stopped): name for name in queue}
        for number, run in enumerate(as_completed(started), start=1):
            name = started[run]
            try:
                run.result()
            except BaseException:
                stopped.set()
                raise
            table = collect(grid, output_dir)
            _write(table, output_dir)
            logger.info("%s: finished, %d of %d", name, number, len(planned))
    # A grid has one run at the least.
    return table


def check_grid(grid: Grid, open_sets: Path | None) -> None:
    """Check everything that can be checked in seconds, before anything is written.

    Raises:
        InputError: a recipe of the grid cannot be run, or an open set is not there.
    """
    if open_sets is not None:
        check_open_sets(open_sets)
    for variant in grid.variants():
        # The seed makes no difference to what can be found wrong.
        check_inputs(grid.recipe_of(variant, grid.seeds[0]))


def _run(name: str, output_dir: Path, jobs: int, open_sets: Path | None, stopped: threading.Event) -> None:
    """Do one run, or find it finished; its output goes into a file."""
    if stopped.is_set():
        return
    folder, log = output_dir / "runs" / name, output_dir / "logs" / f"{name}.log"
    command = [sys.executable, "-m", "st_llm_embed.ablation", str(log.with_suffix(".yaml")), str(folder)]
    command += [str(open_sets)] if open_sets is not None else []
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))}
    with log.open("wb") as file:
        code = subprocess.run(  # noqa: S603
            command, check=False, stdout=file, stderr=subprocess.STDOUT, env=threads | dict(os.environ)
        ).returncode
    if code != 0:
        told = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        reason = told[-1].removeprefix("Error: ") if told else "it said nothing."
        raise InputError(
            f"The run {name} ended with code {code}: {reason} "
            f"{log} has all it said. Finished runs are kept: mend the cause and run the same command again."
        )


def _write(table: Table, output_dir: Path) -> None:
    for name, text in (("table.md", table.to_markdown()), ("table.json", table.to_json())):
        partial = output_dir / f".{name}.partial"
        partial.write_text(text, encoding="utf-8")
        partial.replace(output_dir / name)
    plot_table(table, output_dir / "plot.png")
