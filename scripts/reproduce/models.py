"""Where the scripts that measure a finished model take it from."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from scales import SCALES, refusals_told

from st_llm_embed import Recipe, run_pipeline


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that these scripts have in common."""
    parser.add_argument("--scale", choices=tuple(SCALES), default="tiny")
    parser.add_argument("--output-dir", type=Path, help="default: runs/reproduce/<script>-<scale>")
    parser.add_argument("--runs", type=Path, nargs="+", help="folders of finished runs to measure; trains one without")


def releases(given: argparse.Namespace, output_dir: Path) -> list[Path]:
    """Give the released models of the runs that were named; without, train one by the scale's recipe.

    Raises:
        SystemExit: a folder is none of a finished run, or the recipe cannot be run.
    """
    if given.runs:
        for run in given.runs:
            if not (run / "release" / "modules.json").is_file():
                raise SystemExit(
                    f"Error: {run} is not the folder of a finished run: it has no release/modules.json. Give folders "
                    "that st-llm-embed run wrote, or leave --runs out."
                )
        return [run / "release" for run in given.runs]
    scale = SCALES[given.scale]
    overrides = scale.overrides if given.scale != "full" else ()
    with refusals_told():
        run_pipeline(Recipe.load(scale.recipe, [*overrides, f"seed={scale.seeds[0]}"]), output_dir / "model")
    return [output_dir / "model" / "release"]


def st_llm_embed(*arguments: str | Path, hub_datasets: Path | None = None) -> str:
    """Call a command and give what it printed; its messages are shown.

    Args:
        *arguments: of the command line; paths have to be absolute.
        hub_datasets: folder that holds datasets as <organisation>/<name>/, for machines without the Hub.

    Raises:
        SystemExit: it did not finish, or lacks some of what was asked for.
    """
    command = [sys.executable, "-m", "st_llm_embed.cli", *map(str, arguments)]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True, cwd=hub_datasets)
    if done.returncode:
        raise SystemExit(
            f"{' '.join(command)} ended with code {done.returncode}, so there is no table. What it finished is kept: "
            "mend what it names and run this again."
        )
    return done.stdout


def write(folder: Path, result: dict[str, object], text: str) -> None:
    """Write result.json and table.md, which docs/reproduction.md is filled from, and print the table."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(json.dumps(result, indent=1, ensure_ascii=False), encoding="utf-8")
    (folder / "table.md").write_text(text, encoding="utf-8")
    print(text)
