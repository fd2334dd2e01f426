"""A folder of vectors: parquet shards, each there whole or not at all, and a manifest of what they were made from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import BaseModel, ValidationError

from st_llm_embed.errors import InputError, explained

MANIFEST = "_manifest.json"
"""The underscore keeps it from being taken for a part of the dataset by pyarrow and its like."""
UNFINISHED = ".part"
"""Ending of what is being written."""

VectorType = Literal["float32", "float16"]

VECTOR_TYPES: tuple[VectorType, ...] = ("float32", "float16")


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
    """Give the file of a shard."""
    return folder / f"shard-{number:05d}-of-{count:05d}.parquet"


def write_shard(path: Path, ids: list[str], texts: list[str] | None, vectors: NDArray[np.floating]) -> None:
    """Write ids, vectors of shape (number of ids, dimension) and, if they are kept, texts.

    Raises:
        InputError: the file cannot be written.
    """
    vector = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
    columns = {"id": pa.array(ids, pa.string()), "vector": vector}
    if texts is not None:
        columns["text"] = pa.array(texts, pa.string())
    # A name of its own: a process that outlives a killed run by a moment must not write into the same file.
    part = path.with_name(f"{path.name}.{os.getpid()}{UNFINISHED}")
    with explained(f"{path} cannot be written", "Make room or mend the folder, and give the command again."):
        with part.open("wb") as file:
            pq.write_table(pa.table(columns), file, use_dictionary=False)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)


def read_manifest(folder: Path) -> Manifest | None:
    """Give the manifest of a folder; None where there is none.

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
            f"{error.errors()[0]['loc']}). Put the file back as it was, or encode into another folder."
        ) from error


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of a folder, whole or not at all.

    Raises:
        InputError: it cannot be written.
    """
    part = folder / f"{MANIFEST}{UNFINISHED}"
    with explained(f"{part} cannot be written", "Make room or mend the folder, and give the command again."):
        part.write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
        part.replace(folder / MANIFEST)
