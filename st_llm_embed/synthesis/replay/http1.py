"""As much of HTTP/1.1 as a client of the OpenAI API sends."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import NamedTuple

MAX_HEAD_BYTES = 64 * 1024
MAX_BODY_BYTES = 256 * 1024 * 1024
"""Above the 200 MB that OpenAI allows for the file of a batch."""

REASONS = {status.value: status.phrase for status in HTTPStatus}


class Request(NamedTuple):
    """A request; names of headers are in lower case."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def keep_alive(self) -> bool:
        """Whether the client keeps the connection open."""
        return self.headers.get("connection", "").lower() != "close"


class BadRequestError(Exception):
    """What came is no request that can be read; the connection cannot be used any more."""


async def read_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Request | None:
    """Read the next request of a connection.

    Returns:
        The request, or None when the client has closed the connection between two requests or within one.

    Raises:
        BadRequestError: what came is not HTTP/1.1, or larger than is allowed.
    """
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        method, target, headers = _head(head)
        if headers.get("expect", "").lower() == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if "chunked" in headers.get("transfer-encoding", ""):
            body = await _chunks(reader)
        else:
            length = _size(headers.get("content-length", "0"), 10)
            body = await reader.readexactly(length) if length else b""
    except asyncio.IncompleteReadError:
        return None
    except asyncio.LimitOverrunError as error:
        raise BadRequestError(f"A head or chunk line is longer than {MAX_HEAD_BYTES} bytes.") from error
    return Request(method, target, headers, body)


def head_bytes(status: int, headers: str, content_type: str, length: int) -> bytes:
    """The head of a response; ``headers`` are further lines, each with its line end."""
    return (
        f"HTTP/1.1 {status} {REASONS[status]}\r\ncontent-type: {content_type}\r\ncontent-length: {length}\r\n"
        f"{headers}\r\n"
    ).encode("latin-1")


def _head(head: bytes) -> tuple[str, str, dict[str, str]]:
    lines = head.decode("latin-1").split("\r\n")
    parts = lines[0].split(" ")
    if len(parts) != 3 or not parts[2].startswith("HTTP/1."):
        raise BadRequestError("The request line is not that of HTTP/1.1.")
    headers = {}
    for line in lines[1:-2]:
        name, colon, value = line.partition(":")
        if not colon:
            raise BadRequestError("A header line has no colon.")
        headers[name.lower()] = value.strip()
    return parts[0], parts[1], headers


def _size(digits: str, base: int) -> int:
    try:
        size = int(digits, base)
    except ValueError:
        size = -1
    if not 0 <= size <= MAX_BODY_BYTES:
        raise BadRequestError(f"A body has 0 to {MAX_BODY_BYTES} bytes; its size was given as {digits[:40]!r}.")
    return size


async def _chunks(reader: asyncio.StreamReader) -> bytes:
    body = bytearray()
    while size := _size((await reader.readuntil(b"\r\n")).split(b";")[0].decode("latin-1").strip(), 16):
        body += (await reader.readexactly(size + 2))[:-2]
        _size(str(len(body)), 10)
    while await reader.readuntil(b"\r\n") != b"\r\n":
        pass  # trailer lines
    return bytes(body)
