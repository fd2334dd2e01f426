"""What a response means: by its status and, since gateways answer 200 to what failed behind them, by its body."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from st_llm_embed.api.exchange import CONTENT_FILTER_CODES, Response, json_object

Kind = Literal["answered", "rejected", "too many", "failed", "unreachable", "maybe paid", "hopeless"]
"""`answered`: billed, good or bad. `rejected`: this request will never be answered; not billed. `too many`: try later.
`failed`: not billed, try again. `unreachable`: never sent. `maybe paid`: sent, and no answer came. `hopeless`: no
request can succeed before the key, the account, the address or a parameter is changed."""

OK = 200
MAYBE_PAID = {408, 499, 504, 520, 524, 598, 599}
"""A gateway stopped waiting, or does not know; the model behind it may have answered, and been paid."""
TOO_MANY = {429, 529}
TRY_AGAIN = {409, 425}
PAYMENT_REQUIRED, FORBIDDEN = 402, 403
WRONG_KEY, WRONG_ADDRESS = {401, FORBIDDEN, 407}, {404, 405, 410}

_NAMED: tuple[tuple[re.Pattern[str], int], ...] = tuple(
    (re.compile(pattern), status)
    for pattern, status in (
        (r"api.?key|authenti|unauthori", 401),
        (r"forbidden|permission", FORBIDDEN),
        (r"not.?found", 404),
        (r"rate.?limit|too.?many|exhausted|overloaded|throttl", 429),
        (r"time[d]?.?out|deadline", 504),
        (r"invalid.?request|context.?length", 400),
    )
)
"""The status of an error within a response of status 200 that names no number."""
_TIMED_OUT = re.compile(r"time[d]?.?out|deadline")
_NO_CREDIT = re.compile(r"insufficient.?(quota|balance|funds|credit)|exceeded_current_quota|billing|access_terminated")
_NO_CREDIT_WORDS = re.compile(r"insufficient (balance|funds|credit)|credit balance|out of credits?|spending limit")
"""What no waiting fixes, though some of it comes with status 429. A message of "quota" or "billing" is no sign: limits
per minute have it, too."""
_FILTERED = re.compile(
    rf"{'|'.join(CONTENT_FILTER_CODES)}|content.?(filter|policy|management|moderation)|moderation|flagged|violat|"
    r"prohibited.?content|unsafe|data.?inspection|responsible.?ai"
)
_FILTERS_SAY = {400, FORBIDDEN, 422, 451}
"""Statuses at which words such as those name the prompt."""
_JSON_MODE_FAILED = "json_validate_failed"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one request."""

    kind: Kind
    said: str = ""
    """What went wrong, in a line; empty where it is `answered`."""
    body: str = ""
    """The response's body, whole."""
    answer: dict[str, Any] = field(default_factory=dict)
    """The body read as JSON, where it is."""
    headers: Mapping[str, str] = field(default_factory=dict)
    status: int = 0
    """Of the response, or the one that its body names."""


def classify(response: Response, *, heard: bool) -> Outcome:
    """Return what a response means.

    Args:
        response: what came back for a chat completion request.
        heard: whether the server has answered before: then status 403 is about the prompt, not about the key.
    """
    answer, status = json_object(response.text), OK if 200 <= response.status < 300 else response.status
    came = f"status {response.status}: {_short(response.text)}" if response.status else ""
    said = "; ".join(filter(None, [response.problem, came]))
    if not response.sent:
        return Outcome("unreachable", said)
    choice = _choice(answer)
    error = _error(answer, choice, status)
    body = response.text
    if error is None and status != OK:
        kind: Kind = _refused(status, "", body.lower(), heard=heard) if status else "maybe paid"
    elif error is None:
        kind = _completed(answer, choice) if choice else "maybe paid"
    else:
        names = " ".join(str(error.get(name) or "") for name in ("code", "type", "status", "reason")).lower()
        # Not all of the error: some repeat the prompt.
        words = f"{names} {error.get('message') or error.get('msg')}".lower()
        status = _named_status(error, words) if status == OK else status
        kind = _refused(status, names, words, heard=heard)
        if kind != "hopeless" and (bytes_said(answer) or _counted(answer, "total_tokens")):
            kind = "answered" if kind == "rejected" else "maybe paid"
        if _JSON_MODE_FAILED in names:
            kind, answer, body = _without_json_mode(error, answer, body)
    if kind == "rejected" and not answer.get("error"):  # servers have their own forms
        answer = {"error": {"message": _short(body), "code": None}, "body": answer or body}
        body = json.dumps(answer)
    return Outcome(kind, "" if kind == "answered" else said, body or said, answer, response.headers, status)


def bytes_said(answer: dict[str, Any]) -> int:
    """Return the bytes of what a model said: its text, its thoughts, its refusal or a tool's arguments."""
    message = _choice(answer).get("message")
    fields = message.items() if isinstance(message, dict) else ()
    said = (str(value).strip() for name, value in fields if value and name != "role")
    return sum(len(text.encode(errors="replace")) for text in said)


def _without_json_mode(error: dict[str, Any], answer: dict[str, Any], body: str) -> tuple[Kind, dict[str, Any], str]:
    """Take the text that a server would not call JSON for an answer if it is; the same prompt may work next time."""
    generated = error.get("failed_generation")
    if not isinstance(generated, str) or not json_object(generated):
        return "maybe paid", answer, body
    message = {"role": "assistant", "content": generated}
    answer = {"choices": [{"message": message, "finish_reason": "stop"}], "failed": answer}
    return "answered", answer, json.dumps(answer)


def _completed(answer: dict[str, Any], choice: dict[str, Any]) -> Kind:
    """Return `answered`, unless a choice is empty and the server does not say that it billed one."""
    if bytes_said(answer) or choice.get("finish_reason") == "content_filter" or _counted(answer, "completion_tokens"):
        return "answered"
    usage = answer.get("usage")
    billed = not isinstance(usage, dict) or _counted(answer, "prompt_tokens") or _counted(answer, "total_tokens")
    return "maybe paid" if billed else "failed"


def _choice(answer: dict[str, Any]) -> dict[str, Any]:
    choices = answer.get("choices")
    return choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}


def _counted(answer: dict[str, Any], name: str) -> bool:
    usage = answer.get("usage")
    return bool(usage.get(name)) if isinstance(usage, dict) else False


def _error(answer: dict[str, Any], choice: dict[str, Any], status: int) -> dict[str, Any] | None:
    """Return the error within a body, whatever form it has; None where there is none."""
    error = answer.get("error") or choice.get("error")
    if not error and choice.get("finish_reason") == "error":
        error = "finish_reason is error"
    if not error and (not choice or status != OK):
        message = answer.get("message")
        error = answer.get("errors") or answer.get("detail") or (message if isinstance(message, str) else None)
    if isinstance(error, list):
        error = error[0] if error else None
    if not error:
        return None
    own = error if isinstance(error, dict) else {"message": error}
    return {name: answer[name] for name in ("code", "type", "status") if name in answer} | own


def _named_status(error: dict[str, Any], words: str) -> int:
    """Return the status that an error within a response of status 200 has."""
    for name in ("code", "status", "status_code"):
        number = str(error.get(name))
        if re.fullmatch(r"[45]\d\d", number):
            return int(number)
    return next((status for pattern, status in _NAMED if pattern.search(words)), 500)


def _refused(status: int, names: str, words: str, *, heard: bool) -> Kind:  # noqa: PLR0911
    """Return what an error means: `names` are its codes and types, `words` its message, too; both in lower case."""
    if status == PAYMENT_REQUIRED or _NO_CREDIT.search(names) or (status < 500 and _NO_CREDIT_WORDS.search(words)):
        return "hopeless"
    if _FILTERED.search(names) or (status in _FILTERS_SAY and _FILTERED.search(words)):
        return "rejected"
    if status == FORBIDDEN and heard:
        return "rejected"
    if status in WRONG_KEY | WRONG_ADDRESS:
        return "hopeless"
    if status in TOO_MANY or (status >= 500 and re.search("rate.?limit", names)):
        return "too many"
    if status in MAYBE_PAID or (status >= 500 and _TIMED_OUT.search(words)):
        return "maybe paid"
    return "failed" if status in TRY_AGAIN or status >= 500 or status < 400 else "rejected"


def _short(body: str) -> str:
    return " ".join(body.split())[:300]
