"""A real OpenAI-compatible embeddings server on 127.0.0.1, with faults that a test scripts."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray


def hashed(texts: list[str], dimension: int = 8) -> NDArray[np.float32]:
    """Vectors that depend on nothing but the texts."""
    seeds = [int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest()) for text in texts]
    return np.stack([np.random.default_rng(seed).normal(size=dimension) for seed in seeds]).astype(np.float32)


class EmbeddingServer:
    """Serves POST /v1/embeddings, TEI's /embed and, with `tokenize`, /tokenize while the ``with`` block runs.

    Args:
        embed: gives the vectors of texts, shape (number of texts, dimension).
        fault: given the number of a request, from 0, and its texts, may answer in place of the model: a status with
            headers and a JSON body, or a list of vectors as JSON; None lets the model answer.
        base64_vectors: whether vectors come as asked for, or always as lists of numbers.
        tokenize: gives the token ids of a text, or None to refuse it; None for a server without /tokenize.
        dialect: whose form the answer of /tokenize has.
        path: where texts are posted to, besides /embed.
    """

    def __init__(
        self,
        embed: Callable[[list[str]], NDArray[np.float32]] = hashed,
        *,
        fault: Callable[[int, list[str]], Any] = lambda _number, _texts: None,
        base64_vectors: bool = True,
        tokenize: Callable[[str], list[int] | None] | None = None,
        dialect: Literal["vllm", "tei", "llama.cpp"] = "vllm",
        path: str = "/v1/embeddings",
    ) -> None:
        self.embed, self.fault, self.base64_vectors = embed, fault, base64_vectors
        self.tokenize, self.dialect, self.path = tokenize, dialect, path
        self.requests: list[list[str]] = []
        """The texts of each request, in the order of arrival."""
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str] = set()

    @property
    def texts(self) -> list[str]:
        """Every text that was asked for, as often as it was."""
        return [text for texts in self.requests for text in texts]

    def tokens(self, body: dict[str, Any]) -> tuple[int, dict[str, str], Any]:
        """Answer /tokenize in the dialect's form, reading its own field alone."""
        if self.tokenize is None:
            return 404, {}, {}
        ids = self.tokenize(body[{"vllm": "prompt", "tei": "inputs", "llama.cpp": "content"}[self.dialect]])
        if ids is None:
            return error(422, "the input is empty")
        if self.dialect == "tei":
            return 200, {}, [[{"id": one, "text": "", "special": False, "start": 0, "stop": 0} for one in ids]]
        return 200, {}, {"tokens": ids, "count": len(ids)}

    def __enter__(self) -> Self:
        lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.path == "/tokenize":
                    self.answer(*outer.tokens(body))
                    return
                if self.path not in (outer.path, "/embed"):
                    self.answer(404, {}, {})
                    return
                if self.path == "/embed":
                    body = {"input": body["inputs"], "model": ""}
                with lock:
                    number = len(outer.requests)
                    outer.requests.append(body["input"])
                    outer.bodies.append(body)
                    outer.keys.add(self.headers["Authorization"].removeprefix("Bearer "))
                    reply = outer.fault(number, body["input"])
                if reply == "cut":
                    self.close_connection = True
                    return
                status, headers, answer = reply if isinstance(reply, tuple) else (200, {}, reply)
                if answer is None:
                    with lock:
                        answer = [self.written(vector, body) for vector in outer.embed(body["input"])]
                if isinstance(answer, list):
                    tokens = sum(len(text.split()) for text in body["input"])
                    data = [{"object": "embedding", "index": at, "embedding": one} for at, one in enumerate(answer)]
                    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
                    # Not in order: the index counts.
                    listed = {"object": "list", "data": data[::-1], "model": body["model"], "usage": usage}
                    answer = answer if self.path == "/embed" else listed
                self.answer(status, headers, answer)

            def do_GET(self) -> None:
                self.answer(200, {}, {"object": "list", "data": [{"id": "the-only-model", "object": "model"}]})

            def answer(self, status: int, headers: dict[str, str], answer: Any) -> None:
                content = json.dumps(answer).encode()
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", **headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def written(self, vector: NDArray[np.float32], body: dict[str, Any]) -> Any:
                if outer.base64_vectors and body.get("encoding_format") == "base64":
                    return base64.b64encode(vector.astype("<f4").tobytes()).decode()
                return vector.tolist()

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.base_url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def error(status: int, message: str, **headers: str) -> tuple[int, dict[str, str], dict[str, Any]]:
    """A fault in OpenAI's form."""
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return status, names, {"error": {"message": message, "type": "error", "code": None}}
