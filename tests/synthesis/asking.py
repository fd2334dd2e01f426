"""Ask the loopback server: through the openai client, as a process, over a raw socket."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from openai import OpenAI
from openai.types.chat import ChatCompletion

from st_llm_embed.synthesis.replay import Faults, ReplayServer

KEYS = 'Write a JSON object: {"user_query": "a string", "tasks": ["a string"]}.'
NESTED = {
    "type": "object",
    "additionalProperties": False,
    "required": ["text", "score", "count", "sure", "level", "tasks", "inner"],
    "properties": {
        "text": {"type": "string"},
        "score": {"type": "number", "minimum": 2, "maximum": 3},
        "count": {"type": "integer", "minimum": 5, "maximum": 7},
        "sure": {"type": "boolean"},
        "level": {"type": "string", "enum": ["low", "high"]},
        "tasks": {"type": "array", "items": {"type": "string"}, "minItems": 3},
        "inner": {
            "type": "object",
            "additionalProperties": False,
            "required": ["name"],
            "properties": {"name": {"type": "string"}},
        },
    },
}
CHAT_BODY = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hello"}]}).encode()


def client(server: ReplayServer | str, key: str = "sk-right", **options: Any) -> OpenAI:
    base_url = server if isinstance(server, str) else server.base_url
    return OpenAI(base_url=base_url, api_key=key, max_retries=0, **options)


def ask(server: ReplayServer | str, text: str = KEYS, **body: Any) -> ChatCompletion:
    with client(server) as one:
        return one.chat.completions.create(model="m", messages=[{"role": "user", "content": text}], **body)


def json_schema(schema: dict[str, Any], *, strict: bool = True) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "row", "strict": strict, "schema": schema}}


def always(kind: str, **fields: Any) -> Faults:
    return Faults(shares={kind: 1.0}, **fields)


@contextmanager
def process(*options: str) -> Iterator[str]:
    """The server as a process; gives its base_url, ends it with SIGTERM, which must end it cleanly."""
    command = [sys.executable, "-m", "st_llm_embed.synthesis.replay", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        try:
            yield running.stdout.readline().strip()
        finally:
            running.send_signal(signal.SIGTERM)
            _, errors = running.communicate()
    assert (running.returncode, errors) == (0, "")


def exchange(server: ReplayServer, *segments: bytes) -> bytes:
    """Send segments one by one, each on the wire before the next; all that comes until the server closes."""
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for segment in segments:
            connection.sendall(segment)
        received = b""
        while part := connection.recv(65536):
            received += part
        return received
