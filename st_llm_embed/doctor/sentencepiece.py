"""The pieces of a SentencePiece model, read without the library."""

from __future__ import annotations

from pathlib import Path


def read_pieces(path: Path) -> list[str] | None:
    """Read the pieces of a tokenizer.model in the order of their ids; None if it is no such file.

    The file is a protocol buffer (sentencepiece_model.proto): field 1 is a piece, and field 1 of that its text.
    """
    content = path.read_bytes()
    try:
        pieces = [value for field, value in _fields(content) if field == 1]
        return [next(text for field, text in _fields(piece) if field == 1).decode() for piece in pieces] or None
    except (IndexError, ValueError, StopIteration):
        return None


def _fields(content: bytes) -> list[tuple[int, bytes]]:
    """Split a message into its fields; numbers come as empty bytes.

    Raises:
        ValueError: this is no message.
    """
    fields, place = [], 0
    while place < len(content):
        tag, place = _varint(content, place)
        kind = tag & 7
        value = b""
        if kind == 0:
            _, place = _varint(content, place)
        elif kind == 2:
            length, place = _varint(content, place)
            value = content[place : place + length]
            if len(value) < length:
                raise ValueError("the message ends within a field")
            place += length
        elif kind in (1, 5):
            place += 8 if kind == 1 else 4
        else:
            raise ValueError(f"there is no type {kind}")
        fields.append((tag >> 3, value))
    return fields


def _varint(content: bytes, place: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = content[place]
        number |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return number, place
