"""The rows that a run would train on, as far as they are there already: how many, and how long their texts are."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from st_llm_embed.data import load_split, read_rows, rows_file, split_of
from st_llm_embed.data.dataset import config_of, negative_columns
from st_llm_embed.data.rows import Row, embedded_rows
from st_llm_embed.data.sources import read_source
from st_llm_embed.instructions import format_query, instruction_of
from st_llm_embed.recipe import SYNTHESIS, Instructions, Recipe, TrainingStage
from st_llm_embed.training.stages import takes

SAMPLED_ROWS = 2_000
"""Rows whose texts are counted in tokens, of all configurations together."""


@dataclass(frozen=True)
class PlannedRows:
    """One configuration of the training set."""

    name: str
    rows: int
    columns: int
    """Texts of a row: anchor, positive, negatives."""
    lengths: list[list[int]]
    """Tokens of each text of some rows, shape (rows, columns)."""


@dataclass(frozen=True)
class PlannedSet:
    """The training set, and where the numbers come from."""

    configurations: list[PlannedRows]
    notes: list[str]

    @property
    def rows(self) -> int:
        """Rows of all configurations."""
        return sum(part.rows for part in self.configurations)


def planned_set(
    recipe: Recipe, output_dir: Path, tokenizer: PreTrainedTokenizerBase, stage: TrainingStage | None = None
) -> PlannedSet:
    """Count the rows of a run and the tokens of a sample of their texts.

    What a run has written to `output_dir` already comes first; then the file of rows, then the plan of synthesis.

    Args:
        recipe: all choices.
        output_dir: of the run.
        tokenizer: the base's.
        stage: takes some of the configurations, with or without their negatives; None takes all.

    Raises:
        InputError: a file of rows or a local source cannot be read.
    """
    texts: dict[str, _Texts] = {}
    notes: list[str] = []
    dataset = _dataset(output_dir / "dataset", recipe.base.instructions)
    if dataset:
        texts |= dataset
        notes.append(f"Rows are those of {output_dir / 'dataset'}.")
    elif recipe.data.rows == SYNTHESIS:
        texts |= _synthesized(recipe)
        notes.append(
            "Rows are an upper bound: every request of synthesis.plan.requests that is not held out gives one. Their "
            "lengths are those of the sample inside the package, which was written to the paper's plan."
        )
    else:
        rows = read_rows(rows_file(recipe.data.rows))
        trained_on = (row for row in rows if split_of(row, recipe.data.validation_fraction) == "train")
        texts |= _of_rows(trained_on, recipe.base.instructions)
    if recipe.data.mining is not None and not dataset:
        for part in texts.values():
            part.add_negatives(recipe.data.mining.num_negatives)
        notes.append("Every row is taken to get its mined negatives, as long as its positive.")
    sources, unread = _sources(recipe, output_dir)
    texts |= sources
    if unread := [name for name in unread if stage is None or takes(stage, name)]:
        notes.append(
            f"{', '.join(unread)} of data.sources are on the Hub and not read yet, so their rows are not counted: "
            "a run takes longer than this by their share, unless training.max_steps is set."
        )
    if stage is not None:
        texts = _of_stage(stage, texts, notes)
    counted = sum(part.rows for part in texts.values())
    return PlannedSet(
        [
            PlannedRows(name, part.rows, part.columns, part.lengths(tokenizer, recipe, counted))
            for name, part in sorted(texts.items())
            if part.rows
        ],
        notes,
    )


class _Texts:
    """Some rows of a configuration: how many there are, and a sample of their texts."""

    def __init__(self) -> None:
        self.rows = 0
        self.sample: list[list[str]] = []
        self._random = random.Random(0)  # noqa: S311

    def add(self, texts: list[str]) -> None:
        """Count a row, and keep it with the chance that every row has (reservoir sampling)."""
        self.rows += 1
        if len(self.sample) < SAMPLED_ROWS:
            self.sample.append(texts)
        elif (place := self._random.randrange(self.rows)) < SAMPLED_ROWS:
            self.sample[place] = texts

    def add_negatives(self, count: int) -> None:
        """Give every row that has fewer than `count` negatives the text of its positive in their place."""
        self.sample = [row + [row[1]] * (2 + count - len(row)) for row in self.sample]

    def remove_negatives(self) -> None:
        """Leave every row its anchor and its positive."""
        self.sample = [row[:2] for row in self.sample]

    @property
    def columns(self) -> int:
        """Texts of a row."""
        return len(self.sample[0])

    def lengths(self, tokenizer: PreTrainedTokenizerBase, recipe: Recipe, of_rows: int) -> list[list[int]]:
        """Count the tokens of this configuration's part of the sample, cut off as in training."""
        size = max(SAMPLED_ROWS * self.rows // of_rows, min(len(self.sample), 20))
        some = self._random.sample(self.sample, min(size, len(self.sample)))
        ids = tokenizer(list(chain(*some)), truncation=True, max_length=recipe.base.max_seq_length)["input_ids"]
        counts = iter(map(len, ids))
        return [[next(counts) for _ in row] for row in some]


def _of_rows(rows: Iterable[Row], instructions: Instructions) -> dict[str, _Texts]:
    parts: dict[str, _Texts] = {}
    for row in rows:
        parts.setdefault(config_of(row), _Texts()).add(_texts_of(row, instructions))
    return parts


def _texts_of(row: Row, instructions: Instructions) -> list[str]:
    negatives = [] if row.negative is None else [row.negative]
    instruction = instruction_of(instructions, row.instruction, row.task_type)
    return [format_query(instruction, row.anchor), row.positive, *negatives]


def _dataset(folder: Path, instructions: Instructions) -> dict[str, _Texts]:
    """Take the training rows that a run has written."""
    parts = {}
    for name, dataset in load_split(folder, "train").items():
        texts = _Texts()
        columns = ["positive", *negative_columns(dataset.column_names)]
        for row in _records(dataset):
            instruction = instruction_of(instructions, row["instruction"], row["task_type"])
            texts.add([format_query(instruction, row["anchor"]), *(row[column] for column in columns)])
        parts[name] = texts
    return parts


def _records(dataset: Any) -> Iterator[Mapping[str, Any]]:
    for table in dataset.with_format("arrow").iter(batch_size=SAMPLED_ROWS):
        yield from table.to_pylist()


def _synthesized(recipe: Recipe) -> dict[str, _Texts]:
    """Take the package's sample for rows that nobody has asked for, in the plan's shares of task types."""
    assert recipe.synthesis is not None  # noqa: S101 - the recipe's own check
    plan = recipe.synthesis.plan
    parts = _of_rows(read_rows(embedded_rows()), recipe.base.instructions)
    shares = {name: float(plan.task_types.get(name, 0)) for name in parts}
    if not any(shares.values()):
        shares = {name: float(part.rows) for name, part in parts.items()}
    requests = plan.requests * (1 - recipe.data.validation_fraction)
    for name, part in parts.items():
        part.rows = round(requests * shares[name] / sum(shares.values()))
    return {name: part for name, part in parts.items() if part.rows}


def _of_stage(stage: TrainingStage, texts: dict[str, _Texts], notes: list[str]) -> dict[str, _Texts]:
    """Take what a stage trains on; where none of it is known yet, all others stand for it."""
    chosen = {name: part for name, part in texts.items() if takes(stage, name)} or texts
    unknown = [begin for begin in stage.configurations if not any(name.startswith(begin) for name in texts)]
    if unknown:
        others = (
            "are not counted"
            if len(unknown) < len(stage.configurations)
            else f"are taken to be {', '.join(sorted(texts))}"
        )
        notes.append(f"Stage {stage.name}: no rows of {', '.join(unknown)} are known yet; they {others}.")
    if not stage.hard_negatives:
        for part in chosen.values():
            part.remove_negatives()
    return chosen


def _sources(recipe: Recipe, output_dir: Path) -> tuple[dict[str, _Texts], list[str]]:
    """Take the sources that a run has written, or that are files; those of the Hub are not downloaded for a plan.

    Returns:
        The rows, and the names of the sources that were not read.
    """
    written = _dataset(output_dir / "sources", recipe.base.instructions)
    if written:
        return written, []
    parts: dict[str, _Texts] = {}
    unread = []
    for name, source in recipe.data.sources.items():
        if not Path(source.path).is_file():
            unread.append(name)
            continue
        for row in read_source(name, source):
            lacks = row.negative is None and "negative" in source.columns
            texts = _texts_of(row, recipe.base.instructions)
            parts.setdefault(f"{name}-pairs" if lacks else name, _Texts()).add(texts)
    return parts, unread
