"""The three scales, and the paper's ablations as grids of scripts/ablate.py; the other scripts call this.

tiny: the embedded base (4.4 M parameters) and rows, on a CPU: 40 steps of 32 rows, texts of 96 tokens, three seeds.
small: Qwen3-0.6B with LoRA on one GPU, on the embedded rows or `--rows`, three seeds. Not run yet.
full: the recipe e5-mistral-7b. It needs `--rows`, so that an LLM writes them only once. Not run yet.

What one run takes. tiny, measured on a shared machine: 2.8 processor minutes with open sets, 1.8 without, 1.6 GiB, no
money. small and full, arithmetic at 100 TFLOP/s and 3 USD an hour for the training alone: 0.014 hours and 22 GiB of
one GPU, 0.04 USD; and 23 hours of one GPU, spread over 8 of 11 GiB each, 69 USD. docs/reproduction.md shows the
calculation.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import yaml

from st_llm_embed.cli.options import configure_logging
from st_llm_embed.errors import InputError, shown
from st_llm_embed.recipe import Recipe
from st_llm_embed.training.plan import GIB, plan_trainings

sys.path.append(str(Path(__file__).resolve().parents[1]))
from ablate import Grid, check_grid, run_grid

ScaleName = Literal["tiny", "small", "full"]

Axes = Mapping[str, Mapping[str, Sequence[str]]]

PAIRS = ("jaquad", "cmrc_trial", "afriqa", "epqa")
"""Sources of the recipe demo-real."""

USD_PER_HOUR = 3
"""Of one GPU."""

EMBEDDED_ROWS = ("data.rows=embedded", "synthesis=null")


@dataclass(frozen=True)
class Scale:
    """What every run of an ablation has in common."""

    recipe: str
    overrides: tuple[str, ...]
    seeds: tuple[int, ...]

    def with_overrides(self, *overrides: str) -> Scale:
        """Return the scale with more set over its recipe."""
        return replace(self, overrides=(*self.overrides, *overrides))


@contextmanager
def errors_in_one_line() -> Generator[None]:
    """Exit with the message of an InputError, without a traceback."""
    try:
        yield
    except InputError as error:
        raise SystemExit(f"Error: {error}") from error


def sources(recipe: str, *names: str, pairs: Path | None = None) -> str:
    """Return the override that keeps only these sources of a recipe, read from a folder of pairs if one is given."""
    known = Recipe.load(recipe).data.sources
    chosen = {name: known[name].model_dump(mode="json", exclude_unset=True) for name in names}
    for name, source in chosen.items():
        if pairs is not None:
            files = (pairs / f"train_{name}.jsonl", pairs / f"train_{name}" / "train.jsonl.gz")
            source["path"] = str(next((file for file in files if file.is_file()), files[0]))
    return f"data.sources={in_one_line(chosen)}"


def pairs_are_there(folder: Path) -> bool:
    """Return whether `training_pairs.py` wrote its sets into a folder; if not, say so."""
    if any((folder / f"train_{PAIRS[0]}{file}").is_file() for file in (".jsonl", "/train.jsonl.gz")):
        return True
    print(
        f"There are no pairs in {folder}; python scripts/training_pairs.py --to {folder} downloads them. Continuing "
        "without."
    )
    return False


def stages(*parts: Mapping[str, object]) -> str:
    """Return the override that trains in these stages."""
    return f"stages={in_one_line(list(parts))}"


def in_one_line(value: object) -> str:
    """Write a value as YAML for an override."""
    return yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=100_000).strip()


SHORT_TRAINING = (
    "base.max_seq_length=96",
    "training.per_device_train_batch_size=32",
    "training.max_steps=40",
    "training.save_strategy='no'",
    "publishing.limitations=[Made for an ablation of a few steps.]",
)

SCALES: dict[ScaleName, Scale] = {
    "tiny": Scale("demo", (*EMBEDDED_ROWS, *SHORT_TRAINING), (1, 2, 3)),
    # The embedded rows are few: small batches and three epochs, so that there are enough steps.
    "small": Scale(
        "qwen3-0.6b",
        (
            *EMBEDDED_ROWS,
            "data.validation_fraction=0.2",
            "training.per_device_train_batch_size=64",
            "training.num_train_epochs=3",
            "training.save_strategy='no'",
        ),
        (1, 2, 3),
    ),
    # The paper's ablations train on the synthetic rows and MS MARCO (table 5); it states no seed.
    "full": Scale(
        "e5-mistral-7b", ("synthesis=null", sources("e5-mistral-7b", "msmarco-passage", "msmarco-document")), (42,)
    ),
}


def arguments(document: str) -> argparse.Namespace:
    """Read the command line that all these scripts have."""
    parser = argparse.ArgumentParser(description=document, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=get_args(ScaleName), default="tiny")
    parser.add_argument("--output-dir", type=Path, help="default: runs/reproduce/<script>-<scale>")
    parser.add_argument("--open-sets", type=Path, help="folder of open STS, retrieval and bitext sets to score on")
    parser.add_argument("--pairs", type=Path, default=Path("data"), help="folder that training_pairs.py wrote")
    parser.add_argument("--rows", help=".jsonl file of rows to train on; full needs one")
    parser.add_argument(
        "--jobs", type=int, help="runs at a time; default: at tiny one for each processor core, at small and full 1"
    )
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--devices", type=int, default=8, help="GPUs of a full run, for --dry-run")
    parser.add_argument(
        "--dry-run", action="store_true", help="check the grid and write nothing; full: a plan of each"
    )
    given = parser.parse_args()
    if given.jobs is None:
        given.jobs = (os.cpu_count() or 1) if given.scale == "tiny" else 1
    for option in ("jobs", "devices"):
        if getattr(given, option) < 1:
            raise SystemExit(f"Error: --{option} is {getattr(given, option)}; it has to be at least 1.")
    for override in given.overrides:
        if not override.partition("=")[0] or "=" not in override:
            raise SystemExit(f"Error: --set is {shown(override)}; it has to look like training.max_steps=10.")
    return given


def ablate(given: argparse.Namespace, name: str, description: str, axes: Axes, scale: Scale | None = None) -> None:
    """Run or resume an ablation.

    Args:
        given: the command line.
        name: of the ablation; its default folder is runs/reproduce/<name>-<scale>.
        description: the question asked.
        axes: of the grid.
        scale: the one named on the command line if None.
    """
    scale = scale or SCALES[given.scale]
    if given.scale == "full" and given.rows is None:
        raise SystemExit(
            "--scale full needs --rows FILE.jsonl, so that all runs train on the same rows. Write them once with "
            "st-llm-embed synthesize e5-mistral-7b; docs/reproduction.md says how to export them to a file."
        )
    if given.rows is not None:
        scale = scale.with_overrides(f"data.rows={given.rows}")
    scale = scale.with_overrides(*given.overrides)
    grid = Grid.model_validate(
        {
            "name": f"{name}-{given.scale}",
            "description": description,
            "recipe": scale.recipe,
            "set": scale.overrides,
            "axes": axes,
            "seeds": scale.seeds,
        }
    )
    configure_logging()
    folder = given.output_dir or Path("runs/reproduce") / grid.name
    with errors_in_one_line():
        if given.dry_run and given.scale == "full":
            print_plans(grid, folder, given.devices)
        elif given.dry_run:
            check_grid(grid, given.open_sets)
            print(grid.to_yaml())
        else:
            print(run_grid(grid, folder, jobs=given.jobs, open_sets=given.open_sets))


def print_plans(grid: Grid, folder: Path, devices: int) -> None:
    """Print what each setting takes, counted in a step on fake tensors."""
    for variant in grid.variants():
        recipe = grid.recipe_of(variant, grid.seeds[0])
        for plan in plan_trainings(recipe, folder, devices=devices, sharded=True):
            print(
                f"{variant.label} ({plan.recipe}): {sum(plan.configurations.values()):,} rows at most, "
                f"{plan.steps:,} steps, {plan.tokens_per_step * plan.steps:,.0f} tokens, {plan.hours:,.1f} hours of "
                f"one device at 100 TFLOP/s, {plan.hours * USD_PER_HOUR:,.0f} USD, "
                f"{plan.memory['total'] / GIB:,.1f} GiB on each of {devices}, {plan.disk / GIB:,.1f} GiB on disk"
            )
            for note in plan.notes:
                print(f"  {note}")
