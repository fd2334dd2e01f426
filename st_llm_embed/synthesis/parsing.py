"""From a chat completion's body to the fields that were asked for, or the reason why there are none.

Nothing in an answer is ever evaluated: JSON anywhere in the answer first, json-repair's grammar last.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import json_repair

from st_llm_embed.api.exchange import CONTENT_FILTER_CODES

MOST_BRACES = 50
"""Places in an answer at which JSON may begin; the words around it have few."""
MOST_CHARACTERS_REPAIRED = 200_000

_THOUGHTS_END = re.compile(r".*</think(?:ing)?>", re.DOTALL)
_END_OF_OBJECT = re.compile(r"\}\s*(?:```.*)?$", re.DOTALL)
_SURROGATE = re.compile("[\ud800-\udfff]")

_PHRASES = (files("st_llm_embed") / "synthesis" / "refusals.txt").read_text(encoding="utf-8").splitlines()
_REFUSAL = re.compile(rf"\W*({'|'.join(line for line in _PHRASES if not line.startswith('#'))})", re.IGNORECASE)
_REFUSAL_CHARACTERS = 300
"""A phrase is at the beginning."""


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why an answer or a row is not used."""

    reason: str
    """A few words, counted in the statistics: `refusal`, `truncated`, `not JSON`, ..."""
    detail: str = ""


def content_of(completion: dict[str, Any]) -> str | Rejection:
    """Return the text that the model wrote, or why there is none."""
    if error := completion.get("error"):
        code = error.get("code") if isinstance(error, dict) else None
        reason = "content filter" if isinstance(code, str) and code in CONTENT_FILTER_CODES else "request refused"
        return Rejection(reason, str(error)[:200])
    try:
        choice = completion["choices"][0]
        message, finish_reason = choice["message"], choice.get("finish_reason")
        content, refusal = message.get("content"), message.get("refusal")
    except (LookupError, TypeError, AttributeError):
        return Rejection("no completion", str(completion)[:200])
    text = _text_of(content)
    if refusal:
        return Rejection("refusal", str(refusal)[:200])
    if finish_reason in ("content_filter", "length"):
        return Rejection("truncated" if finish_reason == "length" else "content filter", text[-200:])
    return text if text.strip() else Rejection("empty answer")


def parse_completion(completion: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any] | Rejection:
    """Read the JSON object that the schema asks for out of a completion; see `content_of` and `parse_answer`."""
    content = content_of(completion)
    return content if isinstance(content, Rejection) else parse_answer(content, schema)


def parse_answer(content: str, schema: dict[str, Any]) -> dict[str, Any] | Rejection:
    """Read the JSON object that the schema asks for out of what the model wrote; other keys are omitted.

    The schema's properties are strings, integers of an enumeration or arrays of strings, all required.
    """
    properties = schema["properties"]
    text = _without_thoughts(content.strip().removeprefix("\ufeff")).strip()
    try:
        answer = next((found for found in _objects(text) if properties.keys() <= found.keys()), None)
        if answer is None:
            answer = _only_list(text, properties) or _repaired(text, properties)
        if answer is None or not properties.keys() <= answer.keys():
            found = answer or next(_objects(text), None)
            if found is None:
                return Rejection("refusal" if is_refusal(text) else "not JSON", text[:200])
            return Rejection("missing key", ", ".join(name for name in properties if name not in found))
    except _DuplicateKeyError as error:
        return Rejection("duplicate key", str(error))
    fields = {name: answer[name] for name in properties}
    for name, kind in properties.items():
        if not _has_type(fields[name], kind):
            return Rejection("wrong type", f"{name} is {type(fields[name]).__name__}: {str(fields[name])[:100]}")
        if any(_SURROGATE.search(text) for text in _texts(fields[name])):
            return Rejection("broken characters", name)
    return fields


def _text_of(content: Any) -> str:
    """Return the text of a message's content, which some servers send as a list of parts."""
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        return "".join(text for text in parts if isinstance(text, str))
    return content if isinstance(content, str) else ""


def _without_thoughts(text: str) -> str:
    """Remove what a reasoning model thought aloud; the tag that begins it may be part of the prompt."""
    if text.startswith(("{", "[", "`", '"')):
        return text
    if text.startswith(("<think>", "<thinking>")) and not _THOUGHTS_END.match(text):
        return ""
    return _THOUGHTS_END.sub("", text)


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """Yield each JSON object in a text, outer ones before those within them."""
    decoder = json.JSONDecoder(object_pairs_hook=_unique_keys, strict=False)
    if text.startswith(('"', '{\\"')):  # JSON within a JSON string
        quoted = text if text.startswith('"') else f'"{text}"'
        try:
            text = str(decoder.decode(quoted))
        except (ValueError, RecursionError):
            return
    starts = [match.start() for match, _ in zip(re.finditer(r"\{", text), range(MOST_BRACES), strict=False)]
    for start in starts:
        try:
            yield decoder.raw_decode(text, start)[0]
        except _DuplicateKeyError:
            raise
        except (ValueError, RecursionError):
            continue


def _only_list(text: str, properties: dict[str, Any]) -> dict[str, Any] | None:
    """Take a bare list for the one list that was asked for."""
    start, end = text.find("["), text.rfind("]")
    if [kind["type"] for kind in properties.values()] != ["array"] or not 0 <= start < end:
        return None
    try:
        found = json.loads(text[start : end + 1], strict=False)
    except (ValueError, RecursionError):
        return None
    return dict.fromkeys(properties, found)


def _repaired(text: str, properties: dict[str, Any]) -> dict[str, Any] | None:
    """Read an object with a comma too many, single quotes or quotes within quotes.

    Nothing is guessed: the object is whole, has the keys asked for and no other, and every text in it is quoted.
    """
    start, end = text.find("{"), text.rfind("}") + 1
    if not 0 <= start < end <= start + MOST_CHARACTERS_REPAIRED or not _END_OF_OBJECT.match(text, end - 1):
        return None
    try:
        found = json_repair.loads(text[start:end], skip_json_loads=True)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or found.keys() != properties.keys():
        return None
    for name in properties:
        if len(re.findall(rf"""["']{name}["']\s*:""", text)) > 1:
            raise _DuplicateKeyError(name)
    quoted = all(_is_quoted(value, text) for part in found.values() for value in _texts(part))
    return found if quoted else None


def _is_quoted(value: str, text: str) -> bool:
    beginning = re.match(r"[\w ]*", value.strip(), re.ASCII)
    return beginning is None or re.search(rf"""["'\u201c\u2018]\s*{beginning[0][:40]}""", text) is not None


def _has_type(value: Any, kind: dict[str, Any]) -> bool:
    if kind["type"] == "array":
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    if kind["type"] == "integer":
        return isinstance(value, int) and not isinstance(value, bool) and value in kind["enum"]
    return isinstance(value, str)


def _texts(value: Any) -> list[str]:
    return [text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)]


class _DuplicateKeyError(ValueError):
    pass


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = dict(pairs)
    if len(keys) < len(pairs):
        raise _DuplicateKeyError(next(key for number, (key, _) in enumerate(pairs) if key in dict(pairs[:number])))
    return keys


def is_refusal(text: str) -> bool:
    """Return whether a text begins with the words of a model that declines."""
    return _REFUSAL.match(text[:_REFUSAL_CHARACTERS]) is not None
