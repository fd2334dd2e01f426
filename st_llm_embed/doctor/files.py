"""The files of a model folder: which there are, and what is in them or why they cannot be read."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from st_llm_embed.errors import InputError, explained
from st_llm_embed.modules.layout import LFS_POINTER


def files_in(folder: Path) -> Iterator[str]:
    """Yield the names of a folder's files, relative to it, those in linked folders included, each folder once."""
    seen = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        seen.add(os.path.realpath(place))
        folders[:] = sorted(one for one in folders if os.path.realpath(Path(place, one)) not in seen)
        yield from (path.relative_to(folder).as_posix() for one in files if (path := Path(place, one)).is_file())


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        InputError: it is empty, stands for a file that was never downloaded, or names a key twice.
        ValueError: it is not JSON.
    """
    content = path.read_bytes()
    _check_filled(content)
    return json.loads(content.decode("utf-8"), object_pairs_hook=_with_keys_once)


def read_pieces(path: Path) -> list[str]:
    """Read the pieces of a SentencePiece model in the order of their ids.

    The file is a protocol buffer (sentencepiece_model.proto): field 1 is a piece, whose first field is its text.

    Raises:
        InputError: it is not such a file.
    """
    content = path.read_bytes()
    _check_filled(content)
    try:
        pieces = [next(_fields(value))[1].decode() for field, value in _fields(content) if field == 1]
    except (IndexError, ValueError, StopIteration):
        pieces = []
    if not pieces:
        raise InputError(f"{path.name} is not a SentencePiece file. Copy it from the base again.")
    return pieces


def damage(read: Callable[[], Any]) -> str | None:
    """Return in words why something cannot be read; None if it can."""
    try:
        with explained("It cannot be read", "Write or download it again."):
            read()
    except InputError as error:
        return str(error)
    return None


def _with_keys_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for number, key in enumerate(keys) if key in keys[:number])
        # Python takes the last one, Rust's reader stops, others take the first.
        raise InputError(f"It has the key {twice!r} twice, and libraries take different ones. Remove one.")
    return content


def _check_filled(content: bytes) -> None:
    if not content.strip():
        raise InputError("The file is empty. Download it again.")
    if content.startswith(LFS_POINTER):
        raise InputError("A Git LFS pointer is there in place of the file. Run git lfs pull.")


def _fields(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield number and content of a message's fields, each of which has to have a length.

    Raises:
        ValueError: this is not such a message.
    """
    place = 0
    while place < len(content):
        tag, start = _varint(content, place)
        size, start = _varint(content, start)
        place = start + size
        if tag & 7 != 2 or place > len(content):
            raise ValueError("this is not a field with a length")
        yield tag >> 3, content[start:place]


def _varint(content: bytes, place: int) -> tuple[int, int]:
    """Return a number, seven bits a byte, and the place after it."""
    number = shift = 0
    while True:
        byte = content[place]
        number |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return number, place
