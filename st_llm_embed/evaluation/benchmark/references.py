"""Published scores that a report compares with: references.yaml, a source for each number."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict

MEAN = "mean"
"""Key of the mean over all tasks of a benchmark in a table of categories."""


class ReferenceTable(BaseModel):
    """Scores of one system from one source, in percent."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    system: str
    by: Literal["category", "task", "language"]
    benchmark: str | None = None
    """For `category` and, where the scores are of its splits and subsets, `task`."""
    task: str | None = None
    """For `language`: whose scores they are."""
    source: str
    confirmed: bool
    """Whether the numbers were read in the source's own text."""
    note: str | None = None
    scores: dict[str, float]


class References(BaseModel):
    """All of references.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    systems: dict[str, str]
    """Short name of a system -> what reports call it."""
    tables: tuple[ReferenceTable, ...]

    def by(self, kind: Literal["category", "task", "language"]) -> list[ReferenceTable]:
        """Give the tables of one kind, in the order of the file."""
        return [table for table in self.tables if table.by == kind]


@cache
def load_references() -> References:
    """Read references.yaml."""
    text = (files("st_llm_embed") / "evaluation" / "benchmark" / "references.yaml").read_text(encoding="utf-8")
    return References.model_validate(yaml.safe_load(text))
