"""The texts that are encoded: text files, files of records, or a dataset of the Hub; never all in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from st_llm_embed.data.files import ALLOWED, RECORD_FILES, files_in, read_records, read_text
from st_llm_embed.errors import InputError, shown

TEXT_FILES = (".txt", ".md")


@dataclass(frozen=True)
class Texts:
    """Where texts are read from, which can be done any number of times."""

    path: str
    """A folder, a file, or the id of a dataset on the Hub."""
    column: str = "text"
    """The column of records that holds the text."""
    id_column: str | None = None
    """The column that holds the name of a text; without one it is the place, from 0 on, or the path of a text file."""
    config: str | None = None
    """Configuration of a dataset of the Hub."""
    split: str = "train"
    """Split of a dataset of the Hub."""
    revision: str | None = None
    """Branch, tag or commit of a dataset of the Hub."""

    def rows(self) -> Iterator[tuple[str, str]]:
        """Give (id, text) of each text, always in the same order.

        Raises:
            InputError: there is nothing to read, a column is missing, or a text is none.
        """
        path = Path(self.path)
        if path.is_dir() and (files := files_in(path, TEXT_FILES)):
            if files_in(path, RECORD_FILES):
                raise InputError(f"{path} holds both text files and files of records. Give each a folder of its own.")
            for file in files:
                yield file.relative_to(path).as_posix(), read_text(file)
            return
        records = read_records(self.path, config=self.config, split=self.split, revision=self.revision)
        for place, record in enumerate(records):
            text, name = self._value(record, self.column), str(place)
            if not isinstance(text, str):
                raise InputError(
                    f"Record {place} of {self.path} has {shown(text)} in the column {self.column!r}; every record "
                    "needs a text there, if only an empty one. Fill it or leave the record away, or name another "
                    "column with --column."
                )
            if self.id_column is not None:
                given = self._value(record, self.id_column)
                if given is None:
                    raise InputError(
                        f"Record {place} of {self.path} has no name in the column {self.id_column!r}. Fill it, or "
                        "leave --id away: texts are then numbered."
                    )
                name = str(given)
            yield name, text

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


def cut_into_shards(texts: Texts, size: int) -> list[Shard]:
    """Read all texts once, check them, and say what each shard holds.

    Raises:
        InputError: there are no texts, or one of them cannot be used.
    """
    shards: list[Shard] = []
    rows = texts.rows()
    while part := list(islice(rows, size)):
        shards.append(Shard(len(shards), len(part), digest_of(part)))
    if not shards:
        raise InputError(f"{texts.path} holds no texts. {ALLOWED}")
    return shards


def digest_of(rows: Iterable[tuple[str, str]]) -> str:
    """Hash ids and texts, in order."""
    digest = hashlib.blake2b(digest_size=20)
    for row in rows:
        for part in row:
            encoded = part.encode("utf-8", "surrogatepass")
            digest.update(len(encoded).to_bytes(8, "big") + encoded)
    return digest.hexdigest()
