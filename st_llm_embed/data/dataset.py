"""The dataset on disk: parquet files with one configuration per task type, split into two parts.

The folder is a Hub dataset repository: ``datasets.load_dataset(folder, "sts", split="validation")`` reads it.
"""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from st_llm_embed.data.rows import Attributes, Quality, Row, read_rows
from st_llm_embed.data.split import Parts, Split, Splitter, configuration
from st_llm_embed.errors import InputError
from st_llm_embed.recipe import Data, HoldOut

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

ROWS_PER_GROUP = 2_000

MINING_REPORT = "mining.json"
"""What mining hard negatives dropped and why, beside the rows."""

SPLIT_REPORT = "split.json"
"""What was held out and what was omitted for it, beside the rows."""

TEXT_COLUMN = re.compile(r"anchor|positive|negative(_\d+)?")

METADATA_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("instruction", "task_type", "language", "target_language")),
        *((name, pa.string()) for name in ("generator", "prompt_version")),
        ("attributes", pa.struct([(name, pa.string()) for name in Attributes.model_fields])),
        ("quality", pa.struct([(name, pa.float32()) for name in Quality.model_fields])),
        ("document", pa.string()),
        ("key", pa.string()),
    ]
)
"""The columns besides the texts; `document` is written where rows name one."""


def task_type_of(configuration: str) -> str:
    """Return the task type, or the name of the source, that a configuration's rows are of."""
    return configuration.removesuffix("-pairs").removesuffix("-triplets")


def check_rows(path: Path, data: Data) -> Counter[tuple[str, Split]]:
    """Read a file of rows once without keeping it, and return their number by (configuration, split).

    Raises:
        InputError: the file is empty, a line is not a row, nothing is left to train on, or nothing is held out.
    """
    splitter = Splitter()
    for row in read_rows(path, data.instruction):
        splitter.add(row)
    counts = splitter.counts(splitter.parts(data.validation_fraction, data.hold_out))
    check_sizes(counts, data.validation_fraction, str(path))
    return counts


def check_sizes(counts: Counter[tuple[str, Split]], validation_fraction: float, source: str) -> None:
    """Check that there are rows to train on and rows held out; raise an InputError that names their source if not."""
    splits = {split for _, split in counts}
    if not splits:
        raise InputError(f"There are no rows in {source}. Its report or statistics.json says what was rejected.")
    if len(splits) < 2:
        raise InputError(
            f"data.validation_fraction {validation_fraction} puts all {counts.total():,} rows of {source} into the "
            f"{splits.pop()} part. Give rows with more different anchors and positives, another share, or another "
            "data.hold_out: instruction, anchor, positive or document."
        )


def write_dataset(
    rows: Iterable[Row], directory: Path, validation_fraction: float, hold_out: HoldOut | None = None
) -> Counter[tuple[str, Split]]:
    """Write rows to ``<directory>/<configuration>/<split>.parquet``, and split.json beside them.

    Rows are read once and kept on disk until all are known, because no text may be in both parts (`Splitter`).

    Returns:
        The number of rows by (configuration, split).
    """
    splitter = Splitter()
    directory.mkdir(parents=True, exist_ok=True)
    with TemporaryFile("w+", encoding="utf-8", dir=directory) as kept:
        for row in rows:
            splitter.add(row)
            kept.write(json.dumps(_record(row)) + "\n")
        parts = splitter.parts(validation_fraction, hold_out)
        kept.seek(0)
        counts = _write(_divided_rows(kept, parts), directory, with_documents=splitter.has_documents())
    omitted = {"rows": int(parts.omitted.sum()), "negatives": int(parts.negative_omitted.sum())}
    if any(omitted.values()):
        logger.info(
            "dataset: held out by %s; %d training rows that repeat a held-out text and %d negatives are omitted",
            *(parts.hold_out, omitted["rows"], omitted["negatives"]),
        )
    report = {"hold_out": parts.hold_out, "held_out": int(parts.held.sum()), "omitted": omitted}
    (directory / SPLIT_REPORT).write_text(json.dumps(report, indent=2), encoding="utf-8")
    return counts


def _divided_rows(lines: Iterable[str], parts: Parts) -> Iterator[tuple[tuple[str, Split], dict[str, Any]]]:
    for place, line in enumerate(lines):
        if (split := parts.split(place)) is not None:
            record = json.loads(line)
            if parts.negative_omitted[place]:
                del record["negative"]
            yield (configuration(record["task_type"], with_negative="negative" in record), split), record


def write_source(
    rows: Iterable[Row], directory: Path, name: str, *, with_negatives: bool
) -> Counter[tuple[str, Split]]:
    """Write a source's rows to ``<directory>/<name>/train.parquet``.

    With negatives, rows that lack one go to ``<name>-pairs``, so that no text column ever holds a null.
    """
    parts = {True: f"{name}-pairs" if with_negatives else name, False: name}
    records = (((parts[row.negative is None], "train"), _record(row)) for row in rows)
    return _write(records, directory, with_documents=False)


def load_split(directory: Path, split: Split) -> dict[str, Dataset]:
    """Load one split of a written dataset, by configuration, in a fixed order."""
    # Importing datasets takes a second.
    from datasets import Dataset

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

    def __init__(self, directory: Path, metadata: pa.Schema) -> None:
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


def _record(row: Row) -> dict[str, Any]:
    """Return what is written of a row."""
    structs = {"attributes": row.attributes.model_dump(), "quality": row.quality.model_dump()}
    return row.model_dump(exclude_none=True) | structs


def _write(
    rows: Iterable[tuple[tuple[str, Split], dict[str, Any]]], directory: Path, *, with_documents: bool
) -> Counter[tuple[str, Split]]:
    metadata = pa.schema([field for field in METADATA_SCHEMA if with_documents or field.name != "document"])
    with DatasetWriter(directory, metadata) as writer:
        for part, record in rows:
            writer.add(part, record)
    return writer.counts
