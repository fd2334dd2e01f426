"""The texts that are encoded, cut into shards, and the folder of vectors: parquet shards and a manifest."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from st_llm_embed.data.files import ALLOWED, RECORD_FILES, files_in, read_records, read_text
from st_llm_embed.errors import InputError, explained, shown

TEXT_FILES = (".txt", ".md")

MANIFEST = "_manifest.json"
"""The underscore keeps it from being taken for a part of the dataset by pyarrow and others."""
UNFINISHED = ".part"
"""Ending of what is being written."""

VectorType = Literal["float32", "float16"]

VECTOR_TYPES: tuple[VectorType, ...] = get_args(VectorType)


@dataclass(frozen=True)
class Texts:
    """Where texts are read from, which can be done any number of times."""

    path: str
    """A folder, a file, or the id of a dataset on the Hub."""
    column: str = "text"
    """The column of records that holds the text."""
    id_column: str | None = None
    """The column that holds the name of a text; None: its position, from 0 on, or the path of a text file."""
    config: str | None = None
    """Configuration of a dataset of the Hub."""
    split: str = "train"
    """Split of a dataset of the Hub."""

    def rows(self) -> Iterator[tuple[str, str]]:
        """Yield (id, text) of each text, always in the same order.

        Raises:
            InputError: there is nothing to read, a column is missing, or a record has no text or no name.
        """
        path = Path(self.path)
        if path.is_dir() and (files := files_in(path, TEXT_FILES)):
            if files_in(path, RECORD_FILES):
                raise InputError(f"{path} holds both text files and files of records. Give each a folder of its own.")
            for file in files:
                yield file.relative_to(path).as_posix(), read_text(file)
            return
        for place, record in enumerate(read_records(self.path, config=self.config, split=self.split)):
            text = self._value(record, self.column)
            if not isinstance(text, str):
                raise InputError(
                    f"Record {place} of {self.path} has {shown(text)} in the column {self.column!r}. Fill it or omit "
                    "the record, or name another column with --column."
                )
            name = place if self.id_column is None else self._value(record, self.id_column)
            if name is None:
                raise InputError(
                    f"Record {place} of {self.path} has no name in the column {self.id_column!r}. Fill it, or omit "
                    "--id: texts are then numbered."
                )
            yield str(name), text

    def _value(self, record: dict[str, Any], column: str) -> Any:
        if column not in record:
            raise InputError(
                f"{self.path} has no column {column!r}; it has {', '.join(map(repr, record))}. Name the one that "
                "holds the texts with --column, and the one that holds their names, if there is one, with --id."
            )
        return record[column]


@dataclass(frozen=True)
class Shard:
    """Consecutive texts whose vectors make one file."""

    number: int
    rows: int
    digest: str
    """Hash of ids and texts, in order."""


class ShardReader:
    """Reads the texts of shards; starts again at the first text for a shard before the last one that was read."""

    def __init__(self, texts: Texts, shard_size: int) -> None:
        self._texts, self._shard_size = texts, shard_size
        self._rows: Iterator[tuple[str, str]] = iter(())
        self._next = 0

    def read(self, shard: Shard) -> tuple[list[str], list[str]]:
        """Return the ids and the texts of a shard.

        Raises:
            InputError: they are not those of before.
        """
        start = shard.number * self._shard_size
        if start < self._next or self._next == 0:
            self._rows, self._next = self._texts.rows(), 0
        rows = list(islice(self._rows, start - self._next, start - self._next + shard.rows))
        self._next = start + shard.rows
        if _digest(rows) != shard.digest:
            raise InputError(
                f"The texts of {self._texts.path} changed while they were encoded (shard {shard.number}). Restore "
                "them and run the command again, or encode them into another folder."
            )
        return [name for name, _ in rows], [text for _, text in rows]


def cut_into_shards(texts: Texts, size: int) -> list[Shard]:
    """Read all texts once, check them, and return what each shard holds.

    Raises:
        InputError: there are no texts, or one of them cannot be used.
    """
    shards: list[Shard] = []
    rows = texts.rows()
    while part := list(islice(rows, size)):
        shards.append(Shard(len(shards), len(part), _digest(part)))
    if not shards:
        raise InputError(f"{texts.path} holds no texts. {ALLOWED}")
    return shards


def _digest(rows: Iterable[tuple[str, str]]) -> str:
    digest = hashlib.blake2b(digest_size=20)
    for row in rows:
        for part in row:
            with explained(f"The text {row[0]} is not Unicode", "Replace its half of a surrogate pair."):
                encoded = part.encode()
            digest.update(len(encoded).to_bytes(8, "big") + encoded)
    return digest.hexdigest()


class Manifest(BaseModel):
    """What a folder of vectors was made from; what its shards depend on is compared before anything is added."""

    input: str
    input_hash: str
    """Hash of all ids and texts, in order and by shard."""
    rows: int
    shards: int
    model: str
    """Hub id, or absolute path of a folder."""
    model_revision: str
    """Commit of a Hub model; hash of a folder's content, prompts included."""
    prompts: dict[str, str]
    """Those saved with the model; the one named after `role` was used."""
    similarity: str
    """The model's own function: cosine, dot, ..."""
    role: str
    dimension: int
    dtype: VectorType
    shard_size: int
    keep_text: bool
    versions: dict[str, str]


COMPARED = {
    "input_hash": "the texts, their ids or their order",
    "model_revision": "the model",
    "role": "--role",
    "dimension": "--dimension",
    "dtype": "--dtype",
    "shard_size": "--shard-size",
    "keep_text": "--no-text",
}
"""What all shards of a folder have in common, in the words of the command line."""


def shard_path(folder: Path, number: int, count: int) -> Path:
    """Return the file of a shard."""
    return folder / f"shard-{number:05d}-of-{count:05d}.parquet"


def write_shard(path: Path, ids: list[str], texts: list[str] | None, vectors: NDArray[np.floating]) -> None:
    """Write ids, vectors of shape (number of ids, dimension) and, if they are kept, texts; the whole file or nothing.

    Raises:
        InputError: the file cannot be written.
    """
    vector = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
    columns = {"id": pa.array(ids, pa.string()), "vector": vector}
    if texts is not None:
        columns["text"] = pa.array(texts, pa.string())
    # A name of its own: a process that outlives a killed run by a moment must not write into the same file.
    part = path.with_name(f"{path.name}.{os.getpid()}{UNFINISHED}")
    with explained(f"{path} cannot be written", "Make room or fix the folder, and run the command again."):
        with part.open("wb") as file:
            pq.write_table(pa.table(columns), file, use_dictionary=False)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)


def read_manifest(folder: Path) -> Manifest | None:
    """Return the manifest of a folder; None where there is none.

    Raises:
        InputError: it cannot be read.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise InputError(
            f"{path} is not what st-llm-embed encode writes ({error.error_count()} errors, the first in "
            f"{error.errors()[0]['loc']}). Restore the file, or encode into another folder."
        ) from error


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of a folder, the whole file or nothing.

    Raises:
        InputError: it cannot be written.
    """
    part = folder / f"{MANIFEST}{UNFINISHED}"
    with explained(f"{part} cannot be written", "Make room or fix the folder, and run the command again."):
        part.write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
        part.replace(folder / MANIFEST)
