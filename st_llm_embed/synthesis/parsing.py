"""From a chat completion's body to the fields that were asked for, or the reason why there are none.

The last whole JSON object outside of the model's thoughts is its answer. Nothing in it is ever evaluated, and nothing
of a text is lost: what cannot be read to its last character is rejected.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from st_llm_embed.api.exchange import CONTENT_FILTER_CODES

MOST_OBJECTS = 1_000
"""Places in an answer, counted from its end, at which an object may begin."""

_SURROGATE = re.compile("[\ud800-\udfff]")
_REASONING_FIELDS = ("reasoning_content", "reasoning")
CUT = "truncated"
_FINISH_REASONS = {
    **dict.fromkeys(("length", "max_tokens"), CUT),
    **dict.fromkeys(("content_filter", "safety", "prohibited_content", "recitation"), "content filter"),
    "error": "server error",
}
"""What it means that a model stopped before its answer's end, in the words of several servers."""

_TAGS = "think|thinking|thoughts?|reason|reasoning|reflection|analysis|scratch_?pad|monologue"
_THOUGHTS = (
    (rf"<(?:\w+:)?(?:{_TAGS})(?:\s[^<>]*)?>", rf"</(?:\w+:)?(?:{_TAGS})\s*>"),
    (r"\[(?:think|thinking|thoughts?|reasoning)\]", r"\[/(?:think|thinking|thoughts?|reasoning)\]"),
    ("◁think▷", "◁/think▷"),
    (r"<\|begin_of_thought\|>", r"<\|end_of_thought\|>"),
    (r"<\|start_thinking\|>", r"<\|end_thinking\|>"),
    (r"<\|inner_prefix\|>", r"<\|inner_suffix\|>"),
    (r"<\|channel>\s*thought", r"<channel\|>"),
    (r"<\|channel\|>\s*(?:analysis|commentary)", r"<\|channel\|>\s*final(?:[^{]*?<\|message\|>)?"),
    (r"\Aanalysis(?=[A-Z\s])", r"assistantfinal"),  # the same channels without their special tokens
    (r"\Ahere is my thought process:", r"here is my response:"),
)
"""How models mark what they think aloud: what begins it, and what ends it. Where a prompt begins it, only the end is
written."""
_MARK = re.compile("|".join(f"(?P<begin{n}>(?i:{begin}))|(?i:{end})" for n, (begin, end) in enumerate(_THOUGHTS)))

_QUOTES = {'"': '"', "'": "'", "“": "”", "”": "”", "„": "“”", "‘": "’", "’": "’", "«": "»", "「": "」"}  # noqa: RUF001
"""Those that stand for the quotes of JSON, each with what may end its text."""
_QUOTE = f"[{''.join(sorted({*_QUOTES, *''.join(_QUOTES.values())}))}]"
_KEY = re.compile(rf"(?:(?P<before>[{{,])\s*)?{_QUOTE}(?P<key>[\w\- ]{{1,40}}){_QUOTE}\s*:")
_END_OF_OBJECT = re.compile(r"\}\s*(?:```.*)?", re.DOTALL)
_BETWEEN_ITEMS = re.compile(rf"(?<={_QUOTE})\s*,\s*(?={_QUOTE})")
_ESCAPE = re.compile(r"(?:\\u[0-9a-fA-F]{4})+|\\[bfnrt]|\\(.)", re.DOTALL)

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
    """Return the text that holds the model's answer, or why there is none.

    It is the message's content; where that is empty, the arguments of its only tool call, or its reasoning if that
    ends in an object. Some servers put it into the error with which they refuse it as broken JSON.
    """
    if error := completion.get("error"):
        details = error if isinstance(error, dict) else {}
        if isinstance(text := details.get("failed_generation"), str) and text.strip():
            return text
        code = details.get("code")
        reason = "content filter" if isinstance(code, str) and code in CONTENT_FILTER_CODES else "request refused"
        return Rejection(reason, str(error)[:200])
    try:
        message = completion["choices"][0]["message"]
        text, refusal = _text_of(message), message.get("refusal")
    except (LookupError, TypeError, AttributeError):
        return Rejection("no completion", str(completion)[:200])
    if refusal:
        return Rejection("refusal", str(refusal)[:200])
    reason = _FINISH_REASONS.get(_finish_reason(completion))
    if reason is None or (reason == CUT and re.search(r"[\]}]", text)):
        return text if text.strip() else Rejection("empty answer")
    return Rejection(reason, text[-200:])


def parse_completion(completion: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any] | Rejection:
    """Read the JSON object that the schema asks for out of a completion; see `content_of` and `parse_answer`."""
    content = content_of(completion)
    if isinstance(content, Rejection):
        return content
    return parse_answer(content, schema, cut=_FINISH_REASONS.get(_finish_reason(completion)) == CUT)


def parse_answer(content: str, schema: dict[str, Any], *, cut: bool = False) -> dict[str, Any] | Rejection:
    """Read the last whole JSON object that the schema asks for out of what the model wrote; other keys are omitted.

    Args:
        content: see `content_of`.
        schema: its properties are strings, integers of an enumeration or arrays of strings, all required. Keys of the
            answer may differ from theirs in case, blanks, hyphens and underscores.
        cut: the model was stopped in the middle, which an object that is whole may have survived.
    """
    properties = schema["properties"]
    text = _unquoted(content.strip().removeprefix("\ufeff").strip())
    objects = _objects(text)
    said = _without_thoughts(text, [(begin, end) for begin, end, _ in objects])
    spoken = "".join(text[part] for part in said)
    objects = [found for found in objects if any(part.start <= found[0] and found[1] <= part.stop for part in said)]
    try:
        answer, end = _last_answer(objects, properties)
        rest = "".join(text[max(part.start, end) : part.stop] for part in said)
        answer = _read_by_keys(rest, properties) or answer or _only_list(spoken, properties)
    except _DuplicateKeyError as error:
        return Rejection("duplicate key", str(error))
    # A draft in the midst of thoughts that nothing marks, and that were cut, is not an answer.
    if cut and (answer is None or (said == [slice(0, len(text))] and not _is_alone(spoken))):
        return Rejection(CUT, content[-200:])
    if answer is None:
        if not objects:
            return Rejection("refusal" if is_refusal(spoken.strip()) else "not JSON", spoken[:200])
        keys = {_folded(key) for key, _ in objects[-1][2]}
        return Rejection("missing key", ", ".join(name for name in properties if _folded(name) not in keys))
    return _checked(answer, properties)


def is_refusal(text: str) -> bool:
    """Return whether a text begins with the words of a model that declines."""
    return _REFUSAL.match(text[:_REFUSAL_CHARACTERS]) is not None


def _finish_reason(completion: dict[str, Any]) -> str:
    try:
        return str(completion["choices"][0].get("finish_reason")).lower()
    except (LookupError, TypeError, AttributeError):
        return ""


def _text_of(message: dict[str, Any]) -> str:
    text = _content_text(message.get("content"))
    if text.strip():
        return text
    calls = [call["function"] for call in message.get("tool_calls") or []] or [message.get("function_call") or {}]
    if len(calls) == 1 and (arguments := calls[0].get("arguments")):
        return _content_text(arguments)
    thought = next((found for name in _REASONING_FIELDS if (found := _content_text(message.get(name))).strip()), "")
    return thought if thought.rstrip("` \n").endswith(("}", "]")) else ""


def _content_text(content: Any) -> str:
    """Return the text of a content, which may be a list of parts, some of them thoughts, or the object itself."""
    if isinstance(content, list):
        texts = [
            part.get("text")
            for part in content
            if isinstance(part, dict) and part.get("type", "text") in ("text", "output_text")
        ]
        return "".join(text for text in texts if isinstance(text, str))
    if isinstance(content, dict):
        return json.dumps(content, ensure_ascii=False)
    return content if isinstance(content, str) else ""


def _unquoted(text: str) -> str:
    """Return the JSON that is within a JSON string, or whose quotes are escaped as if it were."""
    if text.startswith(('"', '{\\"')):
        try:
            return str(json.loads(text if text.startswith('"') else f'"{text}"', strict=False))
        except (ValueError, RecursionError):
            pass
    return text


class _Object(tuple[tuple[str, Any], ...]):
    """The keys and values of a JSON object, repeated keys included."""

    __slots__ = ()


def _objects(text: str) -> list[tuple[int, int, _Object]]:
    """Return each whole outermost JSON object in a text, with its beginning and end."""
    decoder = json.JSONDecoder(object_pairs_hook=_Object, strict=False)
    found: list[tuple[int, int, _Object]] = []
    end = 0
    for match in list(re.finditer(r'\{\s*["}]', text))[-MOST_OBJECTS:]:
        if match.start() >= end:
            try:
                value, end = decoder.raw_decode(text, match.start())
            except (ValueError, RecursionError):
                continue
            found.append((match.start(), end, value))
    return found


def _without_thoughts(text: str, objects: list[tuple[int, int]]) -> list[slice]:
    """Return the parts of a text that are not thoughts; what looks like a mark within an object is a text's own."""
    parts: list[slice] = []
    begin: int | None = 0
    for mark in _MARK.finditer(text):
        if any(first < mark.start() < last for first, last in objects):
            continue
        if mark.lastgroup is None:
            parts = parts if begin is None else []
            begin = mark.end()
        elif begin is not None:
            parts.append(slice(begin, mark.start()))
            begin = None
    return parts if begin is None else [*parts, slice(begin, len(text))]


def _last_answer(
    objects: list[tuple[int, int, _Object]], properties: dict[str, Any]
) -> tuple[dict[str, Any] | None, int]:
    """Return the last object with the keys asked for, and where the outermost one around it ends."""
    for _, end, outermost in reversed(objects):
        for found in _within(outermost):
            answer = _with_keys(found, properties)
            if answer is not None:
                return answer, end
    return None, 0


def _within(value: Any) -> Iterator[_Object]:
    """Yield an object before those within it, of which the last one comes first."""
    if isinstance(value, _Object):
        yield value
    if isinstance(value, list | _Object):
        for item in reversed(value):
            yield from _within(item[1] if isinstance(value, _Object) else item)


def _with_keys(pairs: Iterator[tuple[str, Any]] | _Object, properties: dict[str, Any]) -> dict[str, Any] | None:
    """Return the values of the keys asked for; None if one is missing."""
    names = {_folded(name): name for name in properties}
    given = [(names[_folded(key)], value) for key, value in pairs if _folded(key) in names]
    answer = dict(given)
    if len(answer) < len(properties):
        return None
    if len(answer) < len(given):
        raise _DuplicateKeyError(next(name for name in properties if [key for key, _ in given].count(name) > 1))
    return answer


def _folded(key: str) -> str:
    return re.sub(r"[\W_]", "", key).casefold()


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


def _read_by_keys(text: str, properties: dict[str, Any]) -> dict[str, Any] | None:
    """Read an object with other quotes, quotes within quotes, or a comma too many or too few.

    Each value reaches from its key to the next one. Nothing is guessed: the object is whole, has the keys asked for
    and no other, and every text in it is quoted from beginning to end.
    """
    end = text.rfind("}")
    names = {_folded(name) for name in properties}
    keys = [found for found in _KEY.finditer(text) if found["before"] or _folded(found["key"]) in names]
    start = max((number for number, found in enumerate(keys) if found["before"] == "{"), default=None)
    if start is None or not _END_OF_OBJECT.fullmatch(text, end):
        return None
    keys = keys[start:]
    if any(_folded(found["key"]) not in names for found in keys):
        return None
    ends = [*(found.start() for found in keys[1:]), end]
    values = (text[found.end() : stop].strip() for found, stop in zip(keys, ends, strict=True))
    answer = _with_keys(zip((found["key"] for found in keys), values, strict=True), properties)
    if answer is None:
        return None
    read = {name: _value(answer[name].removesuffix(",").rstrip(), properties[name]["type"]) for name in properties}
    return None if None in read.values() else read


def _value(written: str, kind: str) -> Any:
    """Read a value as it is written; None if it is not whole."""
    if kind == "integer":
        return int(written) if re.fullmatch(r"\d{1,9}", written) else None
    if kind == "array":
        if not (written.startswith("[") and written.endswith("]")):
            return None
        items = _BETWEEN_ITEMS.split(written[1:-1].strip().removesuffix(",").rstrip())
        texts = [_value(item, "string") for item in items if item]
        return None if None in texts else texts
    inner = written[1:-1]
    escaped = len(inner) - len(inner.rstrip("\\"))
    if len(written) < 2 or written[-1] not in _QUOTES.get(written[0], ()) or escaped % 2:
        return None
    return _ESCAPE.sub(_unescaped, inner)


def _unescaped(escape: re.Match[str]) -> str:
    character = escape[1]
    if character is None:
        return str(json.loads(f'"{escape[0]}"'))
    return character if character in '\\/"' or character in _QUOTES else escape[0]


def _is_alone(text: str) -> bool:
    """Return whether an answer is nothing but an object, at least on one side of it."""
    text = text.strip()
    return text.startswith(("{", "[", "```")) or text.rstrip("` \n").endswith(("}", "]"))


def _checked(answer: dict[str, Any], properties: dict[str, Any]) -> dict[str, Any] | Rejection:
    for name, kind in properties.items():
        value = answer[name]
        if not _has_type(value, kind):
            return Rejection("wrong type", f"{name} is {type(value).__name__}: {str(value)[:100]}")
        if any(_SURROGATE.search(text) for text in _texts(value)):
            return Rejection("broken characters", name)
    return {name: answer[name] for name in properties}


def _has_type(value: Any, kind: dict[str, Any]) -> bool:
    if kind["type"] == "array":
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    if kind["type"] == "integer":
        return isinstance(value, int) and not isinstance(value, bool) and value in kind["enum"]
    return isinstance(value, str) and value in kind.get("enum", [value])


def _texts(value: Any) -> list[str]:
    return [text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)]


class _DuplicateKeyError(ValueError):
    pass
