"""One exchange with an OpenAI-compatible server: a request, and what became of it."""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from st_llm_embed.errors import InputError

if TYPE_CHECKING:
    from openai import APIConnectionError, AsyncOpenAI

HOPELESS_CODES = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "access_terminated"}
"""Error codes that no waiting fixes, though some come with status 429."""
CONTENT_FILTER_CODES = {"content_filter", "content_policy_violation"}

STATUS_PAYMENT_REQUIRED = 402
STATUS_TOO_MANY = 429


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one request."""

    kind: Literal["answered", "rejected", "too many", "failed", "unreachable", "maybe paid"]
    """`answered`: billed, good or bad. `rejected`: this request will never be answered; not billed. `too many`: try
    later. `failed`: not billed, try again. `unreachable`: never sent. `maybe paid`: sent, and no answer came."""
    body: str = ""
    """The response's body, or what went wrong; without the key, which some servers repeat."""
    answer: dict[str, Any] = field(default_factory=dict)
    """The body read as JSON, where it is `answered` or `rejected`."""
    headers: Mapping[str, str] = field(default_factory=dict)


async def post(openai: AsyncOpenAI, body: dict[str, Any]) -> Outcome:
    """Send one chat completion request.

    Args:
        openai: holds address and key; its own retries are off.
        body: names the `model`.

    Raises:
        InputError: no later request can succeed either: the key, the quota, the address or a parameter is wrong.
    """
    from httpx2 import Response
    from openai import APIConnectionError, APIStatusError

    key = openai.api_key
    try:
        # The raw response: `chat.completions.create` raises on some answers that are paid for and can still be read,
        # and takes a sixth more processor time.
        response = await openai.post("/chat/completions", cast_to=Response, body=body)
    except APIStatusError as error:
        status, code, response = error.status_code, error.code, error.response
    except APIConnectionError as error:
        problem = f"{type(error.__cause__ or error).__name__}: {error.__cause__ or error}".replace(key, "[key]")
        return Outcome("maybe paid" if _was_sent(error) else "unreachable", problem)
    else:
        text = response.text.replace(key, "[key]")
        answer = json_object(text)
        if isinstance(answer.get("choices"), list):
            return Outcome("answered", text, answer, response.headers)
        # A page of a proxy, or an error of the model behind one: nobody says whether it is billed.
        return Outcome("maybe paid", f"status 200 without chat completions: {_short(text)}")
    # Outside of the handler, so that no traceback leads to the SDK's error, which may repeat the key.
    text = response.text.replace(key, "[key]")
    server = f"{openai.base_url} (model {body['model']!r})"
    return _refusal(status, code, text, response.headers, server=server)


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
        content = json.loads(text)
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


def _refusal(status: int, code: str | None, body: str, headers: Mapping[str, str], *, server: str) -> Outcome:
    text = _short(body)
    if code in HOPELESS_CODES or status == STATUS_PAYMENT_REQUIRED:
        raise InputError(
            f"{server} answers {code or status}: {text}. Run the same command again when the account has credit."
        )
    if status in (401, 403):
        raise InputError(
            f"{server} refuses the key with status {status}: {text}. Set the environment variable that "
            "synthesis.endpoint.api_key_env names to a key that may use the model."
        )
    if status in (404, 405):
        raise InputError(
            f"{server} has no chat completions, or not for this model (status {status}: {text}). Check "
            "synthesis.endpoint.base_url, which usually ends in /v1, and the names in synthesis.endpoint.models."
        )
    if status == STATUS_TOO_MANY:
        return Outcome("too many", text, headers=headers)
    if code in CONTENT_FILTER_CODES or status in (400, 413, 422):
        if not json_object(body).get("error"):  # servers have their own forms
            body = json.dumps({"error": {"message": text, "code": code}})
        return Outcome("rejected", body, json_object(body), headers)
    return Outcome("failed", f"status {status}: {text}", headers=headers)


def _short(body: str) -> str:
    return " ".join(body.split())[:300]


def _was_sent(error: APIConnectionError) -> bool:
    """Return whether the server may have got the request, and may bill it, though no answer came."""
    from httpx2 import ConnectError, ConnectTimeout, PoolTimeout

    return not isinstance(error.__cause__, ConnectError | ConnectTimeout | PoolTimeout)
