"""The dataset on disk: parquet files with one configuration per task type, split by instruction.

The folder is a Hub dataset repository: ``datasets.load_dataset(folder, "sts", split="validation")`` reads it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, Self

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from st_llm_embed.data.rows import RESPONSE_KEYS, Attributes, Quality, Row, content_hash, read_rows
from st_llm_embed.errors import InputError

Split = Literal["train", "validation"]

ROWS_PER_GROUP = 2_000

MINING_REPORT = "mining.json"
"""What mining hard negatives dropped and why, beside the rows."""
TEXT_COLUMN = re.compile(r"anchor|positive|negative(_\d+)?")

METADATA_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("instruction", "task_type", "language", "target_language")),
        *((name, pa.string()) for name in ("generator", "prompt_version")),
        ("attributes", pa.struct([(name, pa.string()) for name in Attributes.model_fields])),
        ("quality", pa.struct([(name, pa.float32()) for name in Quality.model_fields])),
        ("key", pa.string()),
    ]
)


def split_of(row: Row, validation_fraction: float) -> Split:
    """Return the split of a row, which depends on task type and instruction alone.

    No instruction of a task type is in both splits; rows of another type with the same instruction may be.
    """
    words = " ".join(row.instruction.casefold().split())
    position = int(content_hash(f"{row.task_type}\n{words}"), 16) / 2**64
    return "validation" if position < validation_fraction else "train"


def config_of(row: Row) -> str:
    """Return the configuration of a row: its task type.

    Rows with a negative more or less than their type has go to ``<task type>-triplets`` or ``<task type>-pairs``: no
    text column ever holds a null.
    """
    if (row.negative is not None) == (len(RESPONSE_KEYS[row.task_type]) == 3):
        return row.task_type
    return f"{row.task_type}-{'pairs' if row.negative is None else 'triplets'}"


def task_type_of(configuration: str) -> str:
    """Return the task type, or the name of the source, that a configuration's rows are of."""
    return configuration.removesuffix("-pairs").removesuffix("-triplets")


def check_rows(path: Path, validation_fraction: float) -> Counter[tuple[str, Split]]:
    """Read a file of rows once without keeping it, and return their number by (configuration, split).

    Raises:
        InputError: the file is empty, a line is not a row, nothing is left to train on, or nothing is held out.
    """
    sizes = Counter((config_of(row), split_of(row, validation_fraction)) for row in read_rows(path))
    check_sizes(sizes, validation_fraction, str(path))
    return sizes


def check_sizes(counts: Counter[tuple[str, Split]], validation_fraction: float, source: str) -> None:
    """Check that there are rows to train on and rows held out; raise an InputError that names their source if not."""
    splits = {split for _, split in counts}
    if not splits:
        raise InputError(f"There are no rows in {source}. Its report or statistics.json says what was rejected.")
    if len(splits) < 2:
        raise InputError(
            f"data.validation_fraction {validation_fraction} puts all {counts.total()} rows of {source} into the "
            f"{splits.pop()} part: whole instructions are held out. Give more distinct instructions, or another share."
        )


def write_dataset(rows: Iterable[Row], directory: Path, validation_fraction: float) -> Counter[tuple[str, Split]]:
    """Write rows to ``<directory>/<configuration>/<split>.parquet``; return their number by (configuration, split)."""
    return _write(((row, (config_of(row), split_of(row, validation_fraction))) for row in rows), directory)


def write_source(
    rows: Iterable[Row], directory: Path, name: str, *, with_negatives: bool
) -> Counter[tuple[str, Split]]:
    """Write a source's rows to ``<directory>/<name>/train.parquet``.

    With negatives, rows that lack one go to ``<name>-pairs``, so that no text column ever holds a null.
    """
    parts = {True: f"{name}-pairs" if with_negatives else name, False: name}
    return _write(((row, (parts[row.negative is None], "train")) for row in rows), directory)


def load_split(directory: Path, split: Split) -> dict[str, Dataset]:
    """Load one split of a written dataset, by configuration, in a fixed order."""
    paths = sorted(directory.glob(f"*/{split}.parquet"))
    return {path.parent.name: Dataset.from_parquet(str(path)) for path in paths}


def is_text_column(name: str) -> bool:
    """Whether a column holds texts to train on: anchor, positive, negative or negative_1, negative_2, ..."""
    return TEXT_COLUMN.fullmatch(name) is not None


def to_training(dataset: Dataset) -> Dataset:
    """Return exactly the columns ``anchor, positive[, negatives], instruction``; the collator joins first and last.

    Raises:
        InputError: a text is null or empty.
    """
    columns = ["anchor", "positive", *negative_columns(dataset.column_names), "instruction"]
    for start, table in enumerate(dataset.with_format("arrow").iter(batch_size=ROWS_PER_GROUP)):
        for name in columns:
            for place, text in enumerate(table[name].to_pylist()):
                if text and not text.isspace():
                    continue
                key = table["key"][place].as_py() if "key" in table.column_names else None
                raise InputError(
                    f"The {name} of training row {key or start * ROWS_PER_GROUP + place} is "
                    f"{'null' if text is None else 'empty'}. A row needs a text in every column of its configuration: "
                    "give one, or remove the row."
                )
    return dataset.select_columns(columns)


def negative_columns(names: Iterable[str]) -> list[str]:
    """Return those of a dataset's columns that hold negatives, in order: `negative`, or `negative_1`, ..."""
    return sorted(
        (name for name in names if re.fullmatch(r"negative(_\d+)?", name)), key=lambda name: (len(name), name)
    )


class DatasetWriter:
    """Writes rows to `<directory>/<configuration>/<split>.parquet`, some at a time; a context manager."""

    def __init__(self, directory: Path, metadata: pa.Schema = METADATA_SCHEMA) -> None:
        """Write into a directory; `metadata` has the columns besides the texts."""
        self.counts: Counter[tuple[str, Split]] = Counter()
        self._directory, self._metadata = directory, metadata
        self._buffers: dict[tuple[str, Split], list[dict[str, Any]]] = {}
        self._writers: dict[tuple[str, Split], pq.ParquetWriter] = {}

    def add(self, part: tuple[str, Split], row: dict[str, Any]) -> None:
        """Add a row; all of a configuration have the text columns of its first."""
        buffer = self._buffers.setdefault(part, [])
        buffer.append(row)
        self.counts[part] += 1
        if len(buffer) == ROWS_PER_GROUP:
            self._flush(part)

    def _flush(self, part: tuple[str, Split]) -> None:
        if not (buffer := self._buffers[part]):
            return
        if part not in self._writers:
            texts = [name for name in buffer[0] if is_text_column(name)]
            schema = pa.schema([*((name, pa.string()) for name in texts), *self._metadata])
            folder = self._directory / part[0]
            folder.mkdir(parents=True, exist_ok=True)
            self._writers[part] = pq.ParquetWriter(folder / f"{part[1]}.parquet", schema)
        self._writers[part].write_table(pa.Table.from_pylist(buffer, schema=self._writers[part].schema))
        buffer.clear()

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        """Write what is left, unless an error ended the block, and close the files."""
        try:
            for part in self._buffers if error is None else ():
                self._flush(part)
        finally:
            for writer in self._writers.values():
                writer.close()


def _write(rows: Iterable[tuple[Row, tuple[str, Split]]], directory: Path) -> Counter[tuple[str, Split]]:
    with DatasetWriter(directory) as writer:
        for row, part in rows:
            structs = {"attributes": row.attributes.model_dump(), "quality": row.quality.model_dump()}
            writer.add(part, row.model_dump(exclude_none=True) | structs)
    return writer.counts
