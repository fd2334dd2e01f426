"""POST /v1/chat/completions without the wire: a body in, the bytes of a reply out, the bill in the ledger."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from hashlib import blake2b
from typing import Any, NamedTuple

from st_llm_embed.synthesis.replay.faults import ANSWERS, NOT_BILLED, Answer, Faults
from st_llm_embed.synthesis.replay.ledger import Ledger
from st_llm_embed.synthesis.replay.made_up import prompt_text

BYTES_PER_TOKEN = 4
HTML = (
    b"<html><head><title>502 Bad Gateway</title></head><body><center><h1>502 Bad Gateway</h1></center></body></html>"
)


class Reply(NamedTuple):
    """A reply before it goes on the wire; ``fault`` tells how it is delivered, ``late`` in units of the latency."""

    status: int
    body: bytes
    headers: str = ""
    content_type: str = "application/json"
    fault: str | None = None
    late: float = 0.0


def json_reply(value: dict[str, Any], status: int = 200) -> Reply:
    """A JSON object as a reply."""
    return Reply(status, json.dumps(value).encode())


def error_reply(
    status: int,
    message: str,
    *,
    kind: str = "invalid_request_error",
    code: str | None = None,
    param: str | None = None,
    headers: str = "",
) -> Reply:
    """An error in OpenAI's form."""
    reply = json_reply({"error": {"message": message, "type": kind, "param": param, "code": code}}, status)
    return reply._replace(headers=headers)


class Chat:
    """Chat completions of one server.

    Args:
        answer: maps the JSON body of a request to the text of its answer; LookupError becomes a 404, ValueError a 400.
        faults: what goes wrong.
        ledger: counts and bills.
    """

    def __init__(self, answer: Callable[[dict[str, Any]], str], faults: Faults, ledger: Ledger) -> None:
        self._answer = answer
        self._faults = faults
        self._ledger = ledger

    def reply(self, content: bytes, number: int) -> Reply:
        """Reply to a request over the wire, with the faults drawn for its arrival number."""
        fault, within = self._faults.draw(number)
        if fault == "quota" or fault in NOT_BILLED:
            self._ledger.faults[fault] += 1
            return self._turned_away(fault, within)
        reply = self._completion(content, fault, None)
        if reply.status != 200:
            return reply
        late = self._faults.straggler_factor if fault == "straggler" else 1.0
        reply = reply._replace(fault=fault, late=late)
        match fault:
            case "html":
                return reply._replace(body=HTML, content_type="text/html")
            case "wrong_content_type":
                return reply._replace(content_type="text/plain")
            case _:
                return reply

    def batch_line(self, body: dict[str, Any], custom_id: str) -> Reply:
        """Reply to a line of a batch; of the faults drawn from its custom_id, those of the answer happen."""
        number = int.from_bytes(blake2b(custom_id.encode(), digest_size=4).digest())
        fault, _ = self._faults.draw(number)
        return self._completion(json.dumps(body).encode(), fault if fault in ANSWERS else None, custom_id)

    def _turned_away(self, fault: str, within: float) -> Reply:
        match fault:
            case "quota":
                message = "You exceeded your current quota, please check your plan and billing details."
                return error_reply(429, message, kind="insufficient_quota", code="insufficient_quota")
            case "rate_limit":
                return error_reply(
                    429,
                    "Rate limit reached for requests per min (RPM). Please try again later.",
                    kind="requests",
                    code="rate_limit_exceeded",
                    headers=self._faults.retry_after_header(within),
                )
            case "server_error":
                status = (500, 502, 503)[int(3 * within)]
                if status == 502:
                    return Reply(502, HTML, content_type="text/html")
                message = "The server had an error while processing your request. Sorry about that!"
                return error_reply(status, message, kind="server_error")
            case _:
                return error_reply(400, "Invalid request: this one was drawn to be refused.")

    def _completion(self, content: bytes, fault: str | None, custom_id: str | None) -> Reply:
        try:
            body = json.loads(content)
        except ValueError:
            return error_reply(400, "We could not parse the JSON body of your request.")
        problem = next(_problems(body, self._faults.reject_response_format), None)
        if problem is not None:
            return error_reply(400, problem, param="response_format" if "response_format" in problem else None)
        heard = body
        if self._faults.ignore_response_format:
            heard = {name: value for name, value in body.items() if name != "response_format"}
        try:
            text = self._answer(heard)
        except LookupError as error:
            return error_reply(404, str(error.args[0]) if error.args else "no such answer", code="not_found")
        except ValueError as error:
            return error_reply(400, str(error))
        answer = _cut(text, body.get("max_completion_tokens") or body.get("max_tokens"))
        if fault is not None:
            self._ledger.faults[fault] += 1
        if fault is not None and fault in ANSWERS:
            answer = ANSWERS[fault](answer.content or "")
        completion = _completion(body, answer, choices=fault != "empty_choices")
        self._ledger.bill(body, completion["usage"], fault, custom_id)
        return json_reply(completion)


def _completion(body: dict[str, Any], answer: Answer, *, choices: bool) -> dict[str, Any]:
    prompt_tokens = _tokens(prompt_text(body["messages"])) + 4 * len(body["messages"])
    completion_tokens = _tokens(answer.content or answer.refusal or "")
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": answer.content, "refusal": answer.refusal},
        "logprobs": None,
        "finish_reason": answer.finish_reason,
    }
    now = time.time_ns()
    return {
        "id": f"chatcmpl-{now:x}",
        "object": "chat.completion",
        "created": now // 10**9,
        "model": body["model"],
        "choices": [choice] if choices else [],
        "usage": {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
    }


def _tokens(text: str) -> int:
    return max(1, -(-len(text.encode()) // BYTES_PER_TOKEN))


def _cut(text: str, limit: int | None) -> Answer:
    """The answer as far as ``limit`` tokens go."""
    if limit is None or _tokens(text) <= limit:
        return Answer(text)
    return Answer(text.encode()[: limit * BYTES_PER_TOKEN].decode(errors="ignore"), finish_reason="length")


def _problems(body: Any, rejected: tuple[str, ...]) -> Iterator[str]:
    """What OpenAI would refuse about a request; only the first is sure to make sense."""
    if not isinstance(body, dict) or not isinstance(body.get("model"), str):
        yield "you must provide a model parameter"
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages or not all(isinstance(one, dict) for one in messages):
        yield "Invalid value for 'messages': expected a non-empty array of objects."
    if body.get("stream"):
        yield "Unsupported value: 'stream' is not supported by this server."
    for name in ("max_completion_tokens", "max_tokens"):
        limit = body.get(name)
        if limit is not None and (not isinstance(limit, int) or limit < 1):
            yield f"Invalid value for '{name}': {limit!r}, expected an integer of at least 1."
    wanted = body.get("response_format") or {"type": "text"}
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if kind not in ("text", "json_object", "json_schema"):
        yield f"Invalid value for 'response_format': {wanted!r}."
    if kind in rejected:
        yield f"Invalid parameter: 'response_format' of type '{kind}' is not supported with this model."
    if kind == "json_object" and "json" not in prompt_text(messages).lower():
        yield "'messages' must contain the word 'json' in some form, to use 'response_format' of type 'json_object'."
    if kind == "json_schema":
        yield from _schema_problems(wanted.get("json_schema"))


def _schema_problems(wanted: Any) -> Iterator[str]:
    """What OpenAI would refuse about a json_schema, in strict mode the rules of every object in it."""
    if not isinstance(wanted, dict) or not isinstance(wanted.get("name"), str):
        yield "Missing required parameter: 'response_format.json_schema.name'."
    if not isinstance(wanted.get("schema"), dict):
        yield "Missing required parameter: 'response_format.json_schema.schema'."
    inside = [wanted["schema"]] if wanted.get("strict") else []
    while inside:
        part = inside.pop()
        properties = part.get("properties", {})
        if part.get("type") == "object":
            named = f"Invalid schema for response_format '{wanted['name']}'"
            if part.get("additionalProperties") is not False:
                yield f"{named}: 'additionalProperties' is required to be supplied and to be false."
            if sorted(part.get("required", [])) != sorted(properties):
                yield f"{named}: 'required' is required to be supplied and to name every key in properties."
        inside += [*properties.values(), *([part["items"]] if "items" in part else [])]
