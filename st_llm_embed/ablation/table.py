"""What came of a grid: each score's mean over the seeds, its spread, and its difference to the first setting."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from st_llm_embed.ablation.grid import Grid, run_name
from st_llm_embed.ablation.scores import RunScores, read_scores
from st_llm_embed.evaluation import markdown_table

GROUPS = ("STS", "retrieval", "bitext")
"""Beginnings of the names of open sets."""


@dataclass(frozen=True)
class Table:
    """The scores of a grid's finished runs."""

    grid: Grid
    runs: dict[str, dict[int, RunScores]]
    """By setting and seed, in the grid's order; settings without a finished run are there, empty."""

    def scores(self, label: str) -> dict[str, dict[int, float]]:
        """Give a setting's scores after training by name and seed: held-out rows, and the means of open sets."""
        found: dict[str, dict[int, float]] = {}
        for seed, run in self.runs[label].items():
            for name, value in (run.after | grouped(run.open_sets)).items():
                found.setdefault(name, {})[seed] = value
        return found

    @property
    def names(self) -> list[str]:
        """The scores that any run has, in order."""
        return list(dict.fromkeys(name for label in self.runs for name in self.scores(label)))

    def differences(self, label: str) -> dict[str, dict[int, float]]:
        """Give by how much a setting's scores lie above the first setting's with the same seed."""
        first = self.scores(next(iter(self.runs)))
        return {
            name: {seed: value - first[name][seed] for seed, value in values.items() if seed in first.get(name, {})}
            for name, values in self.scores(label).items()
        }

    def to_json(self) -> str:
        """Give everything, for programs."""
        content: dict[str, Any] = {
            "grid": self.grid.model_dump(mode="json"),
            "runs": [
                {"setting": label, "seed": seed, **run.model_dump(exclude={"recipe"})}
                for label, runs in self.runs.items()
                for seed, run in runs.items()
            ],
        }
        return json.dumps(content, indent=1, ensure_ascii=False)

    def to_markdown(self) -> str:
        """Give the tables for people; mean over the seeds, lowest to highest in brackets."""
        first, *others = self.runs
        seeds = ", ".join(map(str, self.grid.seeds))
        wanted = len(self.runs) * len(self.grid.seeds)
        done = sum(map(len, self.runs.values()))
        parts = [
            f"# {self.grid.name}",
            self.grid.description,
            f"Recipe {self.grid.recipe}, {done} of {wanted} runs, seeds {seeds}: mean, and lowest to highest in "
            "brackets. Scores go from 0 to 1, the higher the better.",
            self._table(self.names, {label: self.scores(label) for label in self.runs}, spread),
        ]
        if others and self.runs[first]:
            parts += [
                f"Difference to {first} with the same seed; where the brackets hold 0, the seeds do not agree:",
                self._table(self.names, {label: self.differences(label) for label in others}, signed_spread),
            ]
        parts += [
            "Held-out rows before training:",
            self._of_runs(lambda run: run.before),
        ]
        if any(run.open_sets for runs in self.runs.values() for run in runs.values()):
            parts += ["By open set:", self._of_runs(lambda run: run.open_sets)]
        return "\n\n".join(parts) + "\n"

    def _of_runs(self, chosen: Callable[[RunScores], dict[str, float]]) -> str:
        found: dict[str, dict[str, dict[int, float]]] = {}
        for label, runs in self.runs.items():
            found[label] = {}
            for seed, run in runs.items():
                for name, value in chosen(run).items():
                    found[label].setdefault(name, {})[seed] = value
        return self._table(list(dict.fromkeys(name for of in found.values() for name in of)), found, spread)

    @staticmethod
    def _table(
        names: list[str], values: Mapping[str, dict[str, dict[int, float]]], shown: Callable[[list[float]], str]
    ) -> str:
        """One row for each score, one column for each setting."""
        rows = [
            (name, *(shown(list(of[name].values())) if of.get(name) else "" for of in values.values()))
            for name in names
        ]
        return markdown_table(("", *values), rows)


def collect(grid: Grid, output_dir: Path) -> Table:
    """Read the scores of those runs of a grid that are finished; one made with another recipe does not count."""
    runs: dict[str, dict[int, RunScores]] = {}
    for variant in grid.variants():
        runs[variant.label] = {}
        for seed in grid.seeds:
            scores = read_scores(output_dir / "runs" / run_name(variant, seed))
            if scores is not None and scores.recipe == grid.recipe_of(variant, seed).to_yaml():
                runs[variant.label][seed] = scores
    return Table(grid, runs)


def grouped(open_sets: dict[str, float]) -> dict[str, float]:
    """Give the mean of the open sets of each kind."""
    found = {}
    for group in GROUPS:
        values = [value for name, value in open_sets.items() if name.startswith(f"{group}: ")]
        if values:
            found[f"open {group}, mean of {len(values)} sets"] = mean(values)
    return found


def spread(values: list[float]) -> str:
    """Write mean (lowest to highest), or the one value there is."""
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def signed_spread(values: list[float]) -> str:
    """Write a difference as `spread` does, with its sign."""
    if len(values) == 1:
        return f"{values[0]:+.3f}"
    return f"{mean(values):+.3f} ({min(values):+.3f} to {max(values):+.3f})"
