"""From a chat completion's body to the fields that were asked for, or the reason why there are none.

Nothing in an answer is ever evaluated: JSON first, JSON in a fence or among words next, json-repair's grammar last.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import json_repair

CONTENT_FILTER_CODES = {"content_filter", "content_policy_violation"}

_FENCE = re.compile(r"```[a-zA-Z]*\s*\n(.*?)```", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why an answer or a row is not used."""

    reason: str
    """A few words, counted in the statistics: `refusal`, `truncated`, `not JSON`, ..."""
    detail: str = ""


def completion_of(body: str) -> dict[str, Any]:
    """Read a response's body; empty where it is no JSON object, whatever a server may send instead."""
    try:
        completion = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return completion if isinstance(completion, dict) else {}


def content_of(completion: dict[str, Any]) -> str | Rejection:
    """Give the text that the model wrote, or say why there is none."""
    if error := completion.get("error"):
        code = error.get("code") if isinstance(error, dict) else None
        reason = "content filter" if code in CONTENT_FILTER_CODES else "request refused"
        return Rejection(reason, str(error)[:200])
    try:
        choice = completion["choices"][0]
        message, finish_reason = choice["message"], choice.get("finish_reason")
        content, refusal = message.get("content"), message.get("refusal")
    except (LookupError, TypeError, AttributeError):
        return Rejection("no completion", str(completion)[:200])
    if refusal:
        return Rejection("refusal", str(refusal)[:200])
    if finish_reason == "content_filter":
        return Rejection("content filter")
    if finish_reason == "length":
        return Rejection("truncated", str(content)[-200:])
    if not isinstance(content, str) or not content.strip():
        return Rejection("empty answer")
    return content


def parse_answer(content: str, schema: dict[str, Any]) -> dict[str, Any] | Rejection:
    """Read the JSON object that the schema asks for out of an answer.

    Args:
        content: what the model wrote.
        schema: an object schema whose properties are strings, integers or arrays of strings, all required.

    Returns:
        The properties; keys that were not asked for are left out.
    """
    answer = _json_object(content)
    if isinstance(answer, list) and list(schema["properties"]) == ["tasks"]:
        answer = {"tasks": answer}
    if isinstance(answer, Rejection):
        return answer
    if not isinstance(answer, dict):
        return Rejection("not a JSON object", content[:200])
    fields = {}
    for name, kind in schema["properties"].items():
        if name not in answer:
            return Rejection("missing key", name)
        if not _has_type(answer[name], kind):
            return Rejection("wrong type", f"{name} is {type(answer[name]).__name__}")
        fields[name] = answer[name]
    return fields


def _json_object(content: str) -> Any:
    """Give the first of the readings of an answer that is JSON."""
    text = content.strip()
    fence = _FENCE.search(text)
    spans = [text]
    if fence:
        spans.append(fence[1].strip())
    start, end = text.find("{"), text.rfind("}")
    if 0 <= start < end:
        spans.append(text[start : end + 1])
    for span in spans:
        try:
            return json.loads(span, object_pairs_hook=_unique_keys)
        except _DuplicateKeyError as error:
            return Rejection("duplicate key", str(error))
        except (ValueError, RecursionError):
            continue
    if not 0 <= start < end:
        return Rejection("not JSON", text[:200])
    try:
        # Only a whole object is repaired: a comma too many, single quotes, Python's None.
        return json_repair.loads(spans[-1], skip_json_loads=True)
    except (ValueError, RecursionError):
        return Rejection("not JSON", text[:200])


def _has_type(value: Any, kind: dict[str, Any]) -> bool:
    if kind["type"] == "array":
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    if kind["type"] == "integer":
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, str)


class _DuplicateKeyError(ValueError):
    pass


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = dict(pairs)
    if len(keys) < len(pairs):
        raise _DuplicateKeyError(next(key for number, (key, _) in enumerate(pairs) if key in dict(pairs[:number])))
    return keys
