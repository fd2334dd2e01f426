"""Answers that fit a request and mean nothing: words drawn from a hash of the request."""

from __future__ import annotations

import json
import re
from hashlib import blake2b, shake_128
from typing import Any

WORDS = re.findall(
    r"\w+",
    """
able about above across after again air all almost along also always among animal answer any apple area around ask
away back ball bank base bear beauty bed before begin behind best better between big bird black blue boat body book
both box boy bread break bridge bright bring brother brown build busy call calm came can car care carry cause centre
certain chair change check child choose circle city clean clear climb close cloud coast cold colour come common
complete cook cool copper corn could count country course cover cross cut dance dark day deep desert differ dinner
direct distant doctor does door down draw dream dress drink drive drop dry during each early earth east easy edge
""",
)
PHRASES = [
    " ".join([WORDS[byte % len(WORDS)] for byte in shake_128(b"%d" % number).digest(4)]) for number in range(4096)
]
OPENINGS = [phrase.capitalize() for phrase in PHRASES]
KEY = re.compile(r'"(\w+)"\s*:\s*(\[?)')
QUOTED = re.compile(r'"(\w+)"')
INNERMOST_BRACES = re.compile(r"\{([^{}]*)\}")
JSON_OBJECT_KEYS = {"answer": {"type": "string"}}


def made_up_answer(body: dict[str, Any]) -> str:
    """Answer a chat request: an object of its schema or with the keys its prompt names, else sentences.

    Args:
        body: the JSON body of a POST /v1/chat/completions. Equal bodies get equal answers, others do not.
    """
    seed = blake2b(json.dumps(body).encode(), digest_size=16).digest()
    wanted = body.get("response_format") or {}
    if wanted.get("type") == "json_schema":
        return json.dumps(_value(wanted["json_schema"]["schema"], seed))
    properties = _named_keys(prompt_text(body["messages"]))
    if wanted.get("type") == "json_object":
        properties = properties or JSON_OBJECT_KEYS
    if properties:
        return json.dumps(_value({"type": "object", "properties": properties}, seed))
    return _sentences(seed, 2, 8)


def prompt_text(messages: list[dict[str, Any]]) -> str:
    return "\n".join(message["content"] for message in messages)


def _named_keys(prompt: str) -> dict[str, dict[str, Any]]:
    """Schemas of the keys in double quotes within braces; ``"key": [`` is a list of strings."""
    properties: dict[str, dict[str, Any]] = {}
    for braces in INNERMOST_BRACES.findall(prompt):
        keys = KEY.findall(braces) or [(key, "") for key in QUOTED.findall(braces)]
        for key, bracket in keys:
            strings = {"type": "array", "items": {"type": "string"}}
            properties.setdefault(key, strings if bracket else {"type": "string"})
    return properties


def _value(schema: dict[str, Any], seed: bytes) -> Any:
    """A value of the schema; a nested value's seed is made of its parent's and its name."""
    if "enum" in schema:
        return schema["enum"][int.from_bytes(seed) % len(schema["enum"])]
    if schema["type"] == "object":
        return {name: _value(part, _seed(seed, name)) for name, part in schema["properties"].items()}
    if schema["type"] == "array":
        return [_sentences(_seed(seed, str(place)), 1, 1) for place in range(5)]
    return _sentences(seed, 2, 8)


def _seed(parent: bytes, name: str) -> bytes:
    return blake2b(parent + name.encode(), digest_size=16).digest()


def _sentences(seed: bytes, least: int, most: int) -> str:
    """Between ``least`` and ``most`` sentences of 12 words."""
    drawn = memoryview(shake_128(seed).digest(6 * most + 2)).cast("H")
    count = least + drawn[-1] % (most - least + 1)
    threes = zip(drawn[0 : 3 * count : 3], drawn[1::3], drawn[2::3], strict=False)
    return " ".join(
        [f"{OPENINGS[one % 4096]} {PHRASES[two % 4096]} {PHRASES[three % 4096]}." for one, two, three in threes]
    )
