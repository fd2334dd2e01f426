"""Run a recipe with one choice after another, over seeds, and compare the runs in one table.

    python scripts/ablate.py GRID.yaml [--output-dir DIR] [--jobs N] [--open-sets FOLDER] [--dry-run]

Each run is `st-llm-embed run RECIPE --set ...` in a process of its own, into DIR/runs/<setting>-seed<seed>/ with its
output in DIR/logs/. table.md, table.json and plot.png in DIR are rewritten after each run. Run the command again to
resume: finished runs are kept. docs/reproduction.md has a grid.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Annotated, Any, NamedTuple, Self

import yaml
from open_sets import check_open_sets, open_set_files
from pydantic import Field, StringConstraints, ValidationError, field_validator, model_validator

from st_llm_embed.cli.options import configure_logging
from st_llm_embed.errors import InputError, explained, shown
from st_llm_embed.evaluation.plots import AFTER, BEFORE, figure
from st_llm_embed.evaluation.report import markdown_table
from st_llm_embed.pipeline import check_inputs
from st_llm_embed.recipe import Recipe
from st_llm_embed.recipe.section import NAME_PATTERN, Label, Section

Heading = Annotated[Label, StringConstraints(pattern=r"^[^|\n]+$")]
"""A heading of the table."""

Override = Annotated[str, StringConstraints(pattern=r"^[^=]+=")]
"""`section.key=value`, as for --set."""

HELD_OUT = {
    "retrieval_ndcg_at_10": "held-out retrieval, nDCG@10",
    "sts_triplet_accuracy": "held-out STS triplets, accuracy",
    "bitext_accuracy": "held-out bitext, accuracy",
}
"""Keys of the report and their names in the tables."""

GROUPS = ("STS", "retrieval", "bitext")
"""Task types with which the names of open sets begin."""

PLOT_COLUMNS = 3

Runs = dict[str, dict[int, dict[str, Any]]]
"""Content of scores.json of the finished runs, by setting and seed; a setting without any has an empty entry."""

Values = dict[str, dict[str, dict[int, float]]]
"""By setting, score and seed; scores are in 0..1."""


class Variant(NamedTuple):
    """One point of the grid: its label, and what is set over the recipe, the overrides of the whole grid first."""

    label: str
    overrides: tuple[str, ...]


class Grid(Section):
    """What an ablation runs: every combination of one setting of each axis, with every seed."""

    name: str = Field(pattern=NAME_PATTERN)
    """Name of the ablation and of its default output folder."""
    description: str
    """One sentence on the question asked, shown above the table."""
    recipe: str
    """A shipped recipe's name, or the path of a .yaml file."""
    set: tuple[Override, ...] = ()
    """`section.key=value` each, set over the recipe in every run."""
    axes: dict[Heading, dict[Heading, tuple[Override, ...]]] = Field(min_length=1)
    """By axis and setting, what is set over the recipe. The first setting of each axis is the one to compare with."""
    seeds: tuple[Annotated[int, Field(strict=True, ge=0, lt=2**32)], ...] = Field(min_length=1)
    """Each setting is run with each seed; the recipe's own seed has no effect."""

    @field_validator("seeds")
    @classmethod
    def _each_seed_once(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(value)) < len(value):
            raise ValueError("a seed is listed twice")
        return value

    @model_validator(mode="after")
    def _folders_are_distinct(self) -> Self:
        if empty := [axis for axis, settings in self.axes.items() if not settings]:
            raise ValueError(f"axis {empty[0]} has no setting")
        names = [run_name(variant, 0) for variant in self.variants()]
        if repeated := [name for name in names if names.count(name) > 1]:
            same = repeated[0].removesuffix("-seed0")
            raise ValueError(f"two settings would both be called {same!r} on disk; rename one of them")
        return self

    def variants(self) -> list[Variant]:
        """Return every combination of one setting of each axis; the first is the one to compare with."""
        return [
            Variant(
                ", ".join(label for label, _ in chosen),
                (*self.set, *(override for _, overrides in chosen for override in overrides)),
            )
            for chosen in product(*(settings.items() for settings in self.axes.values()))
        ]

    def recipe_of(self, variant: Variant, seed: int) -> Recipe:
        """Return the recipe of one run.

        Raises:
            InputError: there is no such recipe, or an override is not allowed.
        """
        return Recipe.load(self.recipe, [*variant.overrides, f"seed={seed}"])

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a grid from a YAML file.

        Raises:
            InputError: the file cannot be read, or is not a grid.
        """
        with explained(f"The grid {shown(str(path))} cannot be read", "docs/reproduction.md has a grid."):
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            problems = "; ".join(
                f"{'.'.join(map(str, details['loc']))}: {details['msg'].removeprefix('Value error, ')}".lstrip(": ")
                for details in error.errors(include_url=False)
            )
            raise InputError(
                f"The grid {path}: {problems}. A grid is a mapping with the keys {', '.join(cls.model_fields)}; "
                "docs/reproduction.md has one."
            ) from error

    def to_yaml(self) -> str:
        """Return the grid as YAML that `load` reads back as an equal one."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100)


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grid", type=Path, metavar="GRID.yaml")
    parser.add_argument("--output-dir", type=Path, help="default: runs/<name of the grid>")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; each gets its share of the cores")
    parser.add_argument(
        "--open-sets", type=Path, help="folder of open sets to score each run on (scripts/open_sets.py)"
    )
    parser.add_argument("--dry-run", action="store_true", help="check every recipe, list the runs, write nothing")
    given = parser.parse_args()
    if given.jobs < 1:
        parser.error("--jobs has to be at least 1")
    configure_logging()
    try:
        grid = Grid.load(given.grid)
        folder = given.output_dir or Path("runs") / grid.name
        if not given.dry_run:
            print(run_grid(grid, folder, jobs=given.jobs, open_sets=given.open_sets))
            return
        check_grid(grid, given.open_sets)
        for seed, variant in product(grid.seeds, grid.variants()):
            print(f"{folder / 'runs' / run_name(variant, seed)}  {' '.join(variant.overrides)}")
    except InputError as error:
        sys.stderr.write(f"Error: {error}\n")
        sys.exit(2)


def check_grid(grid: Grid, open_sets: Path | None) -> None:
    """Check everything that can be checked in seconds, before anything is written.

    Raises:
        InputError: a recipe of the grid cannot be run, or an open set is missing.
    """
    if open_sets is not None:
        check_open_sets(open_sets)
    for variant in grid.variants():
        # What can be wrong does not depend on the seed.
        check_inputs(grid.recipe_of(variant, grid.seeds[0]))


def run_grid(grid: Grid, output_dir: Path, *, jobs: int = 1, open_sets: Path | None = None) -> str:
    """Run every run of a grid that is not finished, and return the tables in Markdown.

    Raises:
        InputError: a recipe of the grid cannot be run, an ablation did not write the folder, or a run failed;
            finished runs are kept.
    """
    check_grid(grid, open_sets)
    with explained(f"The output folder {output_dir} cannot be written to", "Choose another with --output-dir."):
        if output_dir.exists() and any(output_dir.iterdir()) and not (output_dir / "grid.yaml").is_file():
            raise InputError(f"{output_dir} was not written by an ablation. Choose another --output-dir.")
        (output_dir / "runs").mkdir(parents=True, exist_ok=True)
        (output_dir / "logs").mkdir(exist_ok=True)
        (output_dir / "grid.yaml").write_text(grid.to_yaml(), encoding="utf-8")
    planned = [(variant, seed) for seed in grid.seeds for variant in grid.variants()]
    # Runs of several stages take longest; started first, they leave no core idle at the end.
    planned.sort(key=lambda run: len(grid.recipe_of(*run).stages), reverse=True)
    tables = ""
    with ThreadPoolExecutor(jobs) as pool:
        started = {pool.submit(_run, grid, *run, output_dir, jobs=jobs, open_sets=open_sets): run for run in planned}
        try:
            for number, run in enumerate(as_completed(started), start=1):
                run.result()
                tables = write_tables(grid, output_dir)
                sys.stderr.write(f"{run_name(*started[run])}: finished, {number} of {len(planned)}\n")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return tables


def run_name(variant: Variant, seed: int) -> str:
    """Return the name of a run's folder."""
    words = re.sub(r"[^\w.]+", "-", variant.label).strip("-")
    return f"{words or 'run'}-seed{seed}"


def _run(grid: Grid, variant: Variant, seed: int, output_dir: Path, *, jobs: int, open_sets: Path | None) -> None:
    """Run one point of the grid and score it; the command itself finds out which stages are finished."""
    name = run_name(variant, seed)
    folder, log = output_dir / "runs" / name, output_dir / "logs" / f"{name}.log"
    log.unlink(missing_ok=True)

    def call(*arguments: str | Path) -> None:
        threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))}
        with log.open("ab") as file:
            command = [sys.executable, *map(str, arguments)]
            code = subprocess.run(
                command, check=False, stdout=file, stderr=subprocess.STDOUT, env=threads | dict(os.environ)
            ).returncode
        if code != 0:
            lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
            reason = lines[-1].removeprefix("Error: ") if lines else "no output."
            raise InputError(
                f"The run {name} ended with code {code}: {reason} The whole output is in {log}. Finished runs are "
                "kept: fix the cause and run the same command again."
            )

    options = [part for override in (*variant.overrides, f"seed={seed}") for part in ("--set", override)]
    call("-m", "st_llm_embed.cli", "run", grid.recipe, *options, "--output-dir", folder)
    score_run(folder, open_sets, call)


def score_run(folder: Path, open_sets: Path | None, call: Callable[..., None]) -> dict[str, Any]:
    """Write the scores of a finished run to its scores.json and return them; `call` runs a script with arguments.

    A release is scored on the same open sets only once.
    """
    report, manifest = (_read(folder / name) for name in ("evaluation/report.json", "manifests/release.json"))
    before, after = (
        {label: report[moment][key] for key, label in HELD_OUT.items() if report[moment][key] is not None}
        for moment in ("before", "after")
    )
    scores = {
        "recipe": (folder / "recipe.yaml").read_text(encoding="utf-8"),
        "release": manifest["fingerprint"],
        "before": before,
        "after": after,
        "open_sets": {},
        "open_sets_hash": None,
        "steps": report["training"]["steps"],
        "seconds": report["training"]["seconds"],
    }
    if open_sets is not None:
        hashes = [hashlib.sha256((open_sets / name).read_bytes()).hexdigest() for name in open_set_files()]
        scores["open_sets_hash"] = hashlib.sha256("".join(hashes).encode()).hexdigest()
        known = _read(folder / "scores.json")
        if all(known.get(key) == scores[key] for key in ("release", "open_sets_hash")):
            scores["open_sets"] = known["open_sets"]
        else:
            to = folder / "open_sets.json"
            call(Path(__file__).with_name("open_sets.py"), folder / "release", open_sets, "--to", to)
            scores["open_sets"] = _read(to)
    _write(folder / "scores.json", json.dumps(scores, indent=1))
    return scores


def collect(grid: Grid, output_dir: Path) -> Runs:
    """Read the scores of the finished runs of a grid; runs of another recipe do not count."""
    runs: Runs = {}
    for variant in grid.variants():
        runs[variant.label] = {}
        for seed in grid.seeds:
            scores = _read(output_dir / "runs" / run_name(variant, seed) / "scores.json")
            if scores.get("recipe") == grid.recipe_of(variant, seed).to_yaml():
                runs[variant.label][seed] = scores
    return runs


def write_tables(grid: Grid, output_dir: Path) -> str:
    """Write table.md, table.json and plot.png of the finished runs, and return the first."""
    runs = collect(grid, output_dir)
    text = to_markdown(grid, runs)
    _write(output_dir / "table.md", text)
    listed = [
        {"setting": label, "seed": seed} | {key: value for key, value in run.items() if key != "recipe"}
        for label, by_seed in runs.items()
        for seed, run in by_seed.items()
    ]
    content = {"grid": grid.model_dump(mode="json"), "runs": listed}
    _write(output_dir / "table.json", json.dumps(content, indent=1, ensure_ascii=False))
    plot(scores_after(runs), output_dir / "plot.png")
    return text


def _read(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file; empty if there is no such file."""
    return json.loads(path.read_bytes()) if path.is_file() else {}


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def to_markdown(grid: Grid, runs: Runs) -> str:
    """Return the tables: mean over the seeds, and lowest to highest in brackets."""
    first, *others = runs
    after = scores_after(runs)
    done, wanted = sum(map(len, runs.values())), len(runs) * len(grid.seeds)
    parts = [
        f"# {grid.name}",
        grid.description,
        f"Recipe {grid.recipe}, {done} of {wanted} runs, seeds {', '.join(map(str, grid.seeds))}: mean, and lowest to "
        "highest in brackets. Scores go from 0 to 1, the higher the better.",
        _table(after),
    ]
    if others and runs[first]:
        differences = {label: differences_to(after[first], after[label]) for label in others}
        parts += [
            f"Difference to {first} with the same seed; where the brackets hold 0, the seeds do not agree:",
            _table(differences, "+"),
        ]
    parts += ["Held-out rows before training:", _table(_by_score(runs, lambda run: run["before"]))]
    open_sets = _by_score(runs, lambda run: run["open_sets"])
    if any(open_sets.values()):
        parts += ["By open set:", _table(open_sets)]
    return "\n\n".join(parts) + "\n"


def scores_after(runs: Runs) -> Values:
    """Return the scores after training: held-out rows, and the means of open sets."""
    return _by_score(runs, lambda run: run["after"] | group_means(run["open_sets"]))


def group_means(open_sets: dict[str, float]) -> dict[str, float]:
    """Return the mean of the open sets of each task type."""
    means = {}
    for group in GROUPS:
        if values := [value for name, value in open_sets.items() if name.startswith(f"{group}: ")]:
            means[f"open {group}, mean of {len(values)} sets"] = mean(values)
    return means


def _by_score(runs: Runs, scores_of: Callable[[dict[str, Any]], dict[str, float]]) -> Values:
    values: Values = {label: {} for label in runs}
    for label, by_seed in runs.items():
        for seed, run in by_seed.items():
            for name, value in scores_of(run).items():
                values[label].setdefault(name, {})[seed] = value
    return values


def differences_to(
    first: dict[str, dict[int, float]], other: dict[str, dict[int, float]]
) -> dict[str, dict[int, float]]:
    """Return by how much a setting's scores are above the first setting's with the same seed."""
    return {
        name: {seed: value - first[name][seed] for seed, value in by_seed.items() if seed in first.get(name, {})}
        for name, by_seed in other.items()
    }


def _table(values: Values, sign: str = "") -> str:
    """Return one row for each score and one column for each setting."""
    names = dict.fromkeys(name for scores in values.values() for name in scores)
    rows = [
        (name, *(spread(list(scores.get(name, {}).values()), sign) for scores in values.values())) for name in names
    ]
    return markdown_table(("", *values), rows)


def spread(values: list[float], sign: str = "") -> str:
    """Return mean (lowest to highest), the one value, or nothing; sign "+" shows signs."""
    one = f"{{:{sign}.3f}}".format
    if len(values) < 2:
        return "".join(map(one, values))
    return f"{one(mean(values))} ({one(min(values))} to {one(max(values))})"


def plot(values: Values, path: Path) -> None:
    """Draw a panel for each score to a PNG file: a dot for each seed, their mean, and a bar from lowest to highest.

    Nothing is drawn if no run is finished.
    """
    names, labels = list(dict.fromkeys(name for scores in values.values() for name in scores)), list(values)
    if not names:
        return
    rows = math.ceil(len(names) / PLOT_COLUMNS)
    with figure(path, width=13, height=rows * (1.3 + 0.4 * len(labels)), rows=rows, columns=PLOT_COLUMNS) as panels:
        for axes in panels[len(names) :]:
            axes.set_axis_off()
        for column, (name, axes) in enumerate(zip(names, panels, strict=False)):
            for place, label in enumerate(labels):
                if scores := list(values[label].get(name, {}).values()):
                    axes.plot([min(scores), max(scores)], [place, place], color=BEFORE, linewidth=4, alpha=0.6)
                    axes.plot(scores, [place] * len(scores), "o", color=AFTER, markersize=4, fillstyle="none")
                    axes.plot(mean(scores), place, "|", color=AFTER, markersize=16, markeredgewidth=2.5)
            axes.set_yticks(range(len(labels)), labels if column % PLOT_COLUMNS == 0 else [""] * len(labels))
            axes.set_ylim(len(labels) - 0.5, -0.5)
            axes.set(title=name.replace(", ", "\n", 1), xlabel="score (0 to 1, higher is better)")
            axes.margins(x=0.1)
            axes.locator_params(axis="x", nbins=5)
            axes.grid(axis="x", alpha=0.3)
        if drawn := panels[0].get_figure():
            drawn.legend(
                panels[0].lines[:3], ["lowest to highest", "one seed", "mean"], loc="outside lower center", ncols=3
            )


if __name__ == "__main__":
    main()
