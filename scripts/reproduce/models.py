"""The finished models that scripts measure, and calls of the command line."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from scales import SCALES, errors_in_one_line

from st_llm_embed import Recipe, run_pipeline


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that these scripts have in common."""
    parser.add_argument("--scale", choices=tuple(SCALES), default="tiny")
    parser.add_argument("--output-dir", type=Path, help="default: runs/reproduce/<script>-<scale>")
    parser.add_argument("--runs", type=Path, nargs="+", help="folders of finished runs to measure; trains one without")


def releases(given: argparse.Namespace, output_dir: Path) -> list[Path]:
    """Return the released models of --runs; without --runs, train one with the recipe of the scale.

    Raises:
        SystemExit: a folder is not that of a finished run, or the recipe cannot be run.
    """
    if given.runs:
        for run in given.runs:
            if not (run / "release" / "modules.json").is_file():
                raise SystemExit(
                    f"Error: {run} has no release/modules.json, so it is not the folder of a finished run. "
                    "Name folders that st-llm-embed run wrote, or omit --runs."
                )
        return [run / "release" for run in given.runs]
    scale = SCALES[given.scale]
    overrides = scale.overrides if given.scale != "full" else ()
    with errors_in_one_line():
        run_pipeline(Recipe.load(scale.recipe, [*overrides, f"seed={scale.seeds[0]}"]), output_dir / "model")
    return [output_dir / "model" / "release"]


def st_llm_embed(*arguments: str | Path, hub_datasets: Path | None = None) -> str:
    """Call a command and return what it printed; its messages are shown.

    Args:
        *arguments: of the command line; paths have to be absolute.
        hub_datasets: folder that holds datasets as <organisation>/<name>/, for machines without the Hub.

    Raises:
        SystemExit: it failed.
    """
    command = [sys.executable, "-m", "st_llm_embed.cli", *map(str, arguments)]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True, cwd=hub_datasets)
    if done.returncode:
        raise SystemExit(
            f"{' '.join(command)} ended with code {done.returncode}, so there is no table. What it finished is kept: "
            "fix the cause and run this again."
        )
    return done.stdout


def write(folder: Path, result: dict[str, object], text: str) -> None:
    """Write result.json and table.md, the source of docs/reproduction.md, and print the table."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(json.dumps(result, indent=1, ensure_ascii=False), encoding="utf-8")
    (folder / "table.md").write_text(text, encoding="utf-8")
    print(text)
