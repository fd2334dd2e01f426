"""The texts that are encoded, cut into shards, and the folder of vectors: parquet shards and a manifest."""

from __future__ import annotations

import hashlib
import json
import logging
from array import array
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel
from tokenizers import Tokenizer

from st_llm_embed.data.documents import Chunker, all_chunks, read_documents
from st_llm_embed.data.files import ALLOWED, RECORD_FILES, files_in, read_records, read_text
from st_llm_embed.errors import InputError, explained, shown
from st_llm_embed.modules.lengths import Lengths
from st_llm_embed.processes import written_beside

logger = logging.getLogger(__name__)

TEXT_FILES = (".txt", ".md")

MANIFEST = "_manifest.json"
"""The underscore keeps it from being taken for a part of the dataset by pyarrow and others."""

LENGTHS = b"lengths"
"""Key of a shard's metadata."""

VectorType = Literal["float32", "float16"]


@dataclass(frozen=True)
class Texts:
    """Where texts are read from, any number of times; `config` and `split` are of a Hub dataset."""

    path: str
    """A folder, a file, or the id of a dataset on the Hub."""
    column: str = "text"
    """The column of records that holds the text."""
    id_column: str | None = None
    """The column that holds the name of a text; None: its position, from 0 on, or the path of a text file."""
    config: str | None = None
    split: str = "train"

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
            for option, column in (("--column", self.column), ("--id", self.id_column)):
                if column is not None and column not in record:
                    raise InputError(
                        f"{self.path} has no column {column!r} for {option}; it has {', '.join(map(repr, record))}."
                    )
            text = record[self.column]
            name = place if self.id_column is None else record[self.id_column]
            if not isinstance(text, str) or name is None:
                raise InputError(
                    f"Record {place} of {self.path} has the text {shown(text)} and the name {shown(name)}. Fill both "
                    "or omit the record, or choose other columns with --column and --id."
                )
            yield str(name), text


@dataclass(frozen=True)
class Passages:
    """Documents, read any number of times and cut into passages."""

    path: str
    """A folder, a file, or the id of a dataset on the Hub, as `read_documents` takes it."""
    tokens: int
    """Most of a passage, the titles it is under included."""
    tokenizer: str
    """What counts them: the content of a tokenizer.json."""
    id_column: ClassVar[None] = None
    """No two passages share an id."""

    def rows(self) -> Iterator[tuple[str, str]]:
        """Yield `document#offset`, the offset in characters, and the text of each passage, always in the same order.

        Raises:
            InputError: there is nothing to read, a document is not a text, or passages are too short.
        """
        chunker = Chunker(Tokenizer.from_str(self.tokenizer), self.tokens)
        for chunk in all_chunks(read_documents(self.path), chunker):
            yield chunk.id, chunk.text


def document_of(passage: str) -> str:
    """Return the id of the document that a passage's id names."""
    return passage.rpartition("#")[0]


@dataclass(frozen=True)
class Shard:
    """Consecutive texts whose vectors make one file."""

    number: int
    rows: int
    digest: str
    """Hash of ids and texts, in order."""


class ShardReader:
    """Reads the texts of shards; starts again at the first text for a shard before the last one that was read."""

    def __init__(self, texts: Texts | Passages, shard_size: int) -> None:
        self._texts, self._shard_size = texts, shard_size
        self._rows: Iterator[tuple[str, str]] = iter(())
        self._next = 0

    def read(self, shard: Shard) -> tuple[list[str], list[str]]:
        """Return the ids and the texts of a shard, which have to be those of before."""
        start = shard.number * self._shard_size
        if start < self._next or self._next == 0:
            self._rows, self._next = self._texts.rows(), 0
        rows = list(islice(self._rows, start - self._next, start - self._next + shard.rows))
        self._next = start + shard.rows
        if _digest(rows) != shard.digest:
            raise InputError(
                f"The texts of {self._texts.path} changed while they were encoded. Restore them, or encode into "
                "another folder."
            )
        return [name for name, _ in rows], [text for _, text in rows]


def cut_into_shards(texts: Texts | Passages, size: int) -> list[Shard]:
    """Read all texts once, check them, and return what each shard holds; ids that several texts have are logged."""
    shards: list[Shard] = []
    names = array("Q")
    rows = texts.rows()
    while part := list(islice(rows, size)):
        shards.append(Shard(len(shards), len(part), _digest(part)))
        if texts.id_column is not None:
            names.extend(_number(name) for name, _ in part)
    if not shards:
        raise InputError(f"{texts.path} holds no texts. {ALLOWED}")
    _log_repeated(texts, np.frombuffer(names, dtype=np.uint64))
    return shards


def _log_repeated(texts: Texts | Passages, names: NDArray[np.uint64]) -> None:
    values, counts = np.unique(names, return_counts=True)
    repeated = set(values[counts > 1].tolist())
    if repeated:
        first = next(name for name, _ in texts.rows() if _number(name) in repeated)
        logger.warning(
            "%s texts of %s share %s ids, the first of them %r; all are kept, and a search shows one id for several.",
            f"{counts[counts > 1].sum():,}",
            texts.path,
            f"{len(repeated):,}",
            first,
        )


def _number(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")


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
    role: str
    dimension: int
    dtype: VectorType
    shard_size: int
    keep_text: bool
    chunk_tokens: int | None = None
    """Most tokens of a passage; None where whole texts were encoded."""
    versions: dict[str, str]

    def write(self, folder: Path) -> None:
        """Write it into a folder, the whole file or nothing."""
        with written_beside(folder / MANIFEST) as part:
            part.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")


COMPARED = {
    "input_hash": "the texts, their ids or their order",
    "model_revision": "the model",
    "role": "--role",
    "dimension": "--dimension",
    "dtype": "--dtype",
    "shard_size": "--shard-size",
    "keep_text": "--no-text",
    "chunk_tokens": "--chunk or --chunk-tokens",
}
"""What all shards of a folder have in common, in the words of the command line."""


def shard_path(folder: Path, number: int, count: int) -> Path:
    """Return the file of a shard."""
    return folder / f"shard-{number:05d}-of-{count:05d}.parquet"


def reading_shard(path: Path) -> AbstractContextManager[None]:
    """Re-raise what goes wrong while a shard is read as an InputError."""
    advice = f"Remove {path.name} and run the encode command that made {path.parent} again."
    return explained(f"{path} cannot be read", advice)


def lengths_metadata(lengths: Lengths) -> dict[bytes, bytes]:
    """Return what a shard's file says of its texts' lengths."""
    return {LENGTHS: json.dumps(asdict(lengths)).encode()}


def read_lengths(folder: Path, shards: int) -> Lengths:
    """Return how much of all texts in a folder was read when they were encoded."""
    found = Lengths()
    for number in range(shards):
        path = shard_path(folder, number, shards)
        with reading_shard(path):
            found += Lengths(**json.loads(pq.read_schema(path).metadata[LENGTHS]))
    return found


def read_manifest(folder: Path) -> Manifest | None:
    """Return the manifest of a folder; None where there is none."""
    path = folder / MANIFEST
    if not path.is_file():
        return None
    with explained(f"{path} is not what st-llm-embed encode writes", "Restore it, or encode into another folder."):
        return Manifest.model_validate_json(path.read_bytes())
