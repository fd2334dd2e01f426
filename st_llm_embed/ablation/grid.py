"""The grid of an ablation: what is set over a recipe, alone and with everything else, and with which seeds."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path
from typing import Annotated, NamedTuple, Self

import yaml
from pydantic import Field, StringConstraints, ValidationError, field_validator, model_validator

from st_llm_embed.errors import InputError, explained, shown
from st_llm_embed.recipe import NAME_PATTERN, Label, Recipe, Section

Heading = Annotated[Label, StringConstraints(pattern=r"^[^|\n]+$")]
"""What stands in the table."""

Override = Annotated[str, StringConstraints(pattern=r"^[^=]+=")]
"""`section.key=value`, as for --set."""


class Variant(NamedTuple):
    """One point of the grid."""

    label: str
    overrides: tuple[str, ...]
    """Set over the recipe, those of the whole grid first."""


class Grid(Section):
    """What an ablation runs: every combination of one setting of each axis, with every seed."""

    name: str = Field(pattern=NAME_PATTERN)
    """Name of the ablation and of its default output folder."""
    description: str
    """One sentence on what is asked, above the table."""
    recipe: str
    """A shipped recipe's name, or the path of a .yaml file."""
    set: tuple[Override, ...] = ()
    """`section.key=value` each, set over the recipe in every run."""
    axes: dict[Heading, dict[Heading, tuple[Override, ...]]] = Field(min_length=1)
    """By the axis' name its settings, and by the setting's name what is set over the recipe. The first setting of each
    axis is what the others are compared with."""
    seeds: tuple[Annotated[int, Field(strict=True, ge=0, lt=2**32)], ...] = Field(min_length=1)
    """Each setting is run with each; the recipe's own seed has no effect."""

    @field_validator("seeds")
    @classmethod
    def _each_seed_once(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(value)) < len(value):
            raise ValueError("a seed stands there twice")
        return value

    @model_validator(mode="after")
    def _folders_are_distinct(self) -> Self:
        if empty := [axis for axis, settings in self.axes.items() if not settings]:
            raise ValueError(f"axis {empty[0]} has no setting")
        names = [run_name(variant, 0) for variant in self.variants()]
        if len(set(names)) < len(names):
            repeated = next(name for name in names if names.count(name) > 1).removesuffix("-seed0")
            raise ValueError(f"two settings would both be called {repeated!r} on disk; give them other names")
        return self

    def variants(self) -> list[Variant]:
        """Give every combination of one setting of each axis; the first is the one to compare with."""
        return [
            Variant(
                ", ".join(label for label, _ in chosen),
                (*self.set, *(override for _, overrides in chosen for override in overrides)),
            )
            for chosen in product(*(settings.items() for settings in self.axes.values()))
        ]

    def recipe_of(self, variant: Variant, seed: int) -> Recipe:
        """Give the recipe of one run.

        Raises:
            InputError: there is no such recipe, or an override is not allowed.
        """
        return Recipe.load(self.recipe, [*variant.overrides, f"seed={seed}"])

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a grid from a YAML file.

        Raises:
            InputError: there is no such file, or it is no grid.
        """
        with explained(
            f"The grid {shown(str(path))} cannot be read", "Give a YAML file; docs/reproduction.md has one."
        ):
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise InputError(
                f"{path} holds {type(content).__name__} at its top level, a grid is a mapping of "
                f"{', '.join(cls.model_fields)}. docs/reproduction.md has one."
            )
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            problems = "; ".join(
                f"{'.'.join(map(str, details['loc'])) or 'axes'}: {details['msg'].removeprefix('Value error, ')}"
                for details in error.errors(include_url=False)
            )
            raise InputError(
                f"The grid {path}: {problems}. A grid has the keys {', '.join(cls.model_fields)}; mend the file and "
                "run again."
            ) from error

    def save(self, path: Path) -> None:
        """Write the grid to a YAML file that `load` reads back as an equal one."""
        text = yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100)
        path.write_text(text, encoding="utf-8")


def run_name(variant: Variant, seed: int) -> str:
    """Give the name of a run's folder."""
    words = re.sub(r"[^\w.]+", "-", variant.label).strip("-")
    return f"{words or 'run'}-seed{seed}"
