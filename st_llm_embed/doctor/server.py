"""A server over HTTP as a runtime: OpenAI-compatible (/v1/embeddings), or Text Embeddings Inference (/embed)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import httpx2
import numpy as np

from st_llm_embed.api.exchange import Response, read_api_key, read_vectors
from st_llm_embed.api.outcome import WRONG_ADDRESS, WRONG_KEY, classify
from st_llm_embed.doctor.runtimes import Embedding, Runtime
from st_llm_embed.errors import InputError
from st_llm_embed.recipe import is_plain_address

REFUSED = (400, 413, 422, 500)
"""A text, or a batch with it, is empty or too long for a server; llama.cpp says so with 500."""


def server_runtime(
    url: str,
    *,
    max_seq_length: int | None = None,
    served_name: str | None = None,
    api_key_env: str = "OPENAI_API_KEY",
) -> Runtime:
    """Ask a server for vectors, and for token ids where it has /tokenize (vLLM, TEI, llama.cpp).

    Args:
        url: its address: one that ends in /embeddings, or in /embed for TEI's own interface, is used as it is;
            others are completed to /v1/embeddings.
        max_seq_length: texts of more tokens are cut for their vectors but not by /tokenize, so their ids are omitted.
        served_name: the model's name there; by default the first one that /v1/models names.
        api_key_env: environment variable that holds the key; a server on this machine needs none.

    Raises:
        InputError: the address is not one, or the key is missing. The runtime raises it where the server cannot be
            reached, or answers with something else than vectors.
    """
    if not is_plain_address(url):
        # Not shown: it may hold a secret.
        raise InputError(
            "The address of the server has to begin with http:// or https:// and to hold no user, password, query or "
            "fragment; the key goes into the variable that --api-key-env names."
        )
    return _Server(url.rstrip("/"), max_seq_length, served_name, api_key_env)


class _Server:
    def __init__(self, url: str, max_seq_length: int | None, served_name: str | None, api_key_env: str) -> None:
        self._is_tei = url.endswith("/embed")
        self._root = url.removesuffix("/embed").removesuffix("/embeddings").removesuffix("/v1")
        self._url = url if url.endswith(("/embed", "/embeddings")) else f"{self._root}/v1/embeddings"
        self._max_seq_length, self._served_name, self._has_ids = max_seq_length, served_name, True
        self._key = read_api_key(url, api_key_env)
        headers = {"Authorization": f"Bearer {self._key}"}
        # Nothing is kept open between requests, so that nothing has to be closed.
        limits = httpx2.Limits(max_keepalive_connections=0)
        self._http = httpx2.Client(timeout=300.0, headers=headers, limits=limits)

    def __call__(self, texts: Sequence[str]) -> list[Embedding]:
        answer = self._vectors(texts)
        if not isinstance(answer, str):
            ids = [self._ids(text) for text in texts]
            return [Embedding(own, vector) for own, vector in zip(ids, answer, strict=True)]
        if len(texts) == 1:
            return [Embedding(self._ids(texts[0]), None, answer)]
        # One text that is empty or too long has the whole batch refused.
        alone = [self([text])[0] for text in texts]
        taken = [text for text, one in zip(texts, alone, strict=True) if one.vector is not None]
        if not 1 < len(taken) < len(texts):
            return alone
        again = iter(self(taken))
        return [one if one.vector is None else next(again) for one in alone]

    def _vectors(self, texts: Sequence[str]) -> np.ndarray | str:
        """Return vectors, shape (number of texts, dimension), or why the server refuses the texts."""
        if self._is_tei:
            body: dict[str, Any] = {"inputs": list(texts), "truncate": True}
        else:
            body = {"model": self._model(), "input": list(texts), "encoding_format": "float"}
        status, answer = self._post(self._url, body)
        if status in REFUSED:
            return f"status {status}: {answer}"
        content = _json(answer)
        data = content.get("data") if isinstance(content, dict) else content
        rows = [{"embedding": one} if self._is_tei else one for one in data] if isinstance(data, list) else []
        vectors = read_vectors(rows, len(texts)) if status == 200 else f"status {status}: {answer}"
        if isinstance(vectors, str):
            raise InputError(f"{self._url} answers with {vectors}. {_advice(status, answer)}")
        return vectors

    def _model(self) -> str:
        if self._served_name is None:
            try:
                listed = _json(self._http.get(f"{self._root}/v1/models").text)
                self._served_name = str(listed["data"][0]["id"])
            except (httpx2.HTTPError, LookupError, TypeError):
                # TEI and llama.cpp serve one model, whatever it is called.
                self._served_name = "default"
        return self._served_name

    def _ids(self, text: str) -> list[int] | None:
        if not self._has_ids:
            return None
        # Each server takes the fields it knows: vLLM prompt, TEI inputs, llama.cpp content.
        body: dict[str, Any] = {"prompt": text, "inputs": text, "content": text}
        body |= {"add_special_tokens": True, "add_special": True, "parse_special": True}
        model = {} if self._is_tei else {"model": self._model()}
        status, answer = self._post(f"{self._root}/tokenize", body | model)
        if status in REFUSED:
            # This text alone; the others are asked for all the same.
            return None
        ids = _token_ids(_json(answer)) if status == 200 else None
        self._has_ids = ids is not None
        if ids is None or (self._max_seq_length is not None and len(ids) > self._max_seq_length):
            return None
        return ids

    def _post(self, url: str, body: dict[str, Any]) -> tuple[int, str]:
        try:
            response = self._http.post(url, json=body)
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
            words = str(error).rstrip(".") or type(error).__name__
            raise InputError(
                f"The server at {urlsplit(url).netloc} cannot be reached, or cut the connection: {words}. Start it, "
                "or correct the address."
            ) from None
        text = response.text if response.status_code == 200 else " ".join(response.text.split())[:300]
        return response.status_code, text.replace(self._key, "[key]")


def _advice(status: int, answer: str) -> str:
    """Return what to do about an answer that is not vectors."""
    kind = classify(Response(status, answer), heard=False).kind
    if kind == "too many":
        return "It takes no more requests for now: wait, or raise the account's limit, and run again."
    if kind == "hopeless" and status not in WRONG_KEY | WRONG_ADDRESS:
        return "Run again when the account has credit."
    return (
        "Give the address of a server of embeddings, ending in /v1/embeddings or, for Text Embeddings Inference, in "
        "/embed; name the model with --served-name; put the key into the variable that --api-key-env names."
    )


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _token_ids(answer: Any) -> list[int] | None:
    """Read token ids from an answer of /tokenize: TEI's is a list with a list of tokens, others have `tokens`."""
    tokens = answer.get("tokens") if isinstance(answer, dict) else answer
    if isinstance(tokens, list) and len(tokens) == 1 and isinstance(tokens[0], list):
        [tokens] = tokens
    if not isinstance(tokens, list):
        return None
    ids = [one.get("id") if isinstance(one, dict) else one for one in tokens]
    return ids if all(isinstance(one, int) for one in ids) else None
