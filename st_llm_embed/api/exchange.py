"""One exchange with an OpenAI-compatible server: a request, and what came back."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from st_llm_embed.errors import InputError

if TYPE_CHECKING:
    from httpx2 import AsyncClient

CONTENT_FILTER_CODES = {"content_filter", "content_policy_violation"}

LONGEST_BODY = 64 << 20
"""Bytes of a response that are read; nothing that is asked for has more."""


@dataclass(frozen=True, slots=True)
class Response:
    """What came back for one request."""

    status: int
    """0 where no response began."""
    text: str
    """The body as far as it came, without the key, which some servers repeat."""
    headers: Mapping[str, str] = field(default_factory=dict)
    problem: str = ""
    """Why there is no response, or not all of it."""
    sent: bool = True
    """Whether the server may have got the request."""


async def post(http: AsyncClient, url: str, body: dict[str, Any], *, key: str, seconds: float) -> Response:
    """Send one request and read the response, or as much of it as comes; nothing is raised for what a server does.

    Args:
        http: keeps connections.
        url: full address.
        body: sent as JSON.
        key: of the server.
        seconds: most that may pass from now to the end of the response, however slowly it drips.
    """
    # Not through the SDK: it raises on responses that are paid for, and keeps nothing of one that breaks off.
    from httpx2 import ConnectError, ConnectTimeout, PoolTimeout, ProxyError, RequestError

    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"} | _account()
    status, received, response_headers, problem, sent = 0, bytearray(), {}, "", True
    try:
        async with (
            asyncio.timeout(seconds),
            http.stream("POST", url, content=json.dumps(body).encode(), headers=headers) as response,
        ):
            status, response_headers = response.status_code, response.headers
            async for part in response.aiter_bytes():
                received += part
                if len(received) > LONGEST_BODY:
                    problem = f"the response has more than {LONGEST_BODY:,} bytes"
                    break
    except TimeoutError:
        problem = f"no whole response within {seconds:g} seconds"
    except RequestError as error:
        problem = f"{type(error).__name__}: {error}".replace(key, "[key]")
        sent = not isinstance(error, ConnectError | ConnectTimeout | PoolTimeout | ProxyError)
    text = received.decode(json.detect_encoding(received), errors="replace").replace(key, "[key]")
    return Response(status, text, response_headers, problem, sent)


def read_api_key(base_url: str, variable: str) -> str:
    """Read the key from the environment; a server on this machine needs none.

    Raises:
        InputError: there is no key, or something that cannot be a key.
    """
    key = os.environ.get(variable, "").strip()
    if not re.fullmatch(r"[!-~]*", key):
        raise InputError(
            f"The environment variable {variable} holds something that no key has: a blank, a line end or a letter "
            "outside ASCII. Set it to the key alone."
        )
    if key:
        return key
    if urlsplit(base_url).hostname in ("localhost", "127.0.0.1", "::1"):
        return "no key is needed"
    raise InputError(
        f"The environment variable {variable} is not set, and {base_url} needs a key. Set it: export {variable}=... "
        "(any word for a server that needs none)."
    )


def json_object(text: str) -> dict[str, Any]:
    """Read a response's body; empty where it is not a JSON object, whatever a server may send instead."""
    try:
        content = json.loads(text.lstrip("\ufeff"))
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def read_vectors(data: list[Any], count: int) -> NDArray[np.float32] | str:
    """Read the vectors of an embeddings response.

    Args:
        data: the response's `data`: objects with `embedding`, a list of numbers or base64 of float32, and `index`.
        count: texts that were sent.

    Returns:
        The vectors, shape (count, dimension), or what is wrong with them: "an empty vector", ...
    """
    if len(data) != count:
        return f"{len(data)} vectors for {count} texts"
    vectors: dict[int, NDArray[np.float32]] = {}
    for place, item in enumerate(data):
        content = item.get("embedding") if isinstance(item, dict) else None
        try:
            if isinstance(content, str):
                vector = np.frombuffer(base64.b64decode(content, validate=True), dtype="<f4")
            else:
                vector = np.asarray(content, dtype=np.float32)
        except (ValueError, TypeError, binascii.Error):
            return "something that is not a vector"
        if vector.ndim != 1 or not vector.size:
            return "an empty vector" if vector.ndim == 1 else "something that is not a vector"
        if not np.isfinite(vector).all() or not vector.any():
            return "a vector that is zero or not finite (NaN or infinity)"
        index = item.get("index", place)
        vectors[index if isinstance(index, int) else place] = vector
    if set(vectors) != set(range(count)) or len({vector.size for vector in vectors.values()}) > 1:
        return "vectors that are not one for each text, all of one dimension"
    return np.stack([vectors[index] for index in range(count)]).astype(np.float32)


def _account() -> dict[str, str]:
    """Return the headers by which OpenAI bills an organization or project, as its SDK does."""
    variables = {"OpenAI-Organization": "OPENAI_ORG_ID", "OpenAI-Project": "OPENAI_PROJECT_ID"}
    return {header: os.environ[name] for header, name in variables.items() if os.environ.get(name)}
