"""The recorded answers of `base_url: replay`: the sample rows, as if an LLM had just written them; no server runs."""

from __future__ import annotations

import json
from itertools import islice
from typing import TYPE_CHECKING, Any

from st_llm_embed.recipe import EMBEDDED, Synthesis
from st_llm_embed.synthesis.chat import PROBE_SCHEMA
from st_llm_embed.synthesis.plan import RequestPlan
from st_llm_embed.synthesis.tasks import TaskFile, tasks_path

if TYPE_CHECKING:
    from httpx2 import MockTransport, Request, Response

BYTES_PER_TOKEN = TOKENS_PER_MESSAGE = 4


def recorded_answers(synthesis: Synthesis, plan: RequestPlan) -> MockTransport:
    """Return the transport that answers a planned request as the sample, ``synthesis.plan.tasks: embedded``, does."""
    from httpx2 import MockTransport, Response

    answers = {}
    if synthesis.plan.tasks == EMBEDDED:
        path = tasks_path(EMBEDDED)
        lines = path.read_text(encoding="utf-8").splitlines()
        for planned in islice(plan.examples(TaskFile(path)), len(lines)):
            response = json.loads(lines[planned.index])["response"]
            answers[planned.messages[0]["content"]] = json.dumps(response, ensure_ascii=False)

    def respond(request: Request) -> Response:
        body = json.loads(request.content)
        schema = (body.get("response_format") or {}).get("json_schema", {}).get("schema")
        text = '{"colour": "violet"}' if schema == PROBE_SCHEMA else answers.get(body["messages"][0]["content"])
        if text is None:
            message = "no answer to this prompt is recorded; replay needs synthesis.plan.tasks: embedded"
            return Response(404, json={"error": {"message": message, "code": "not_found"}})
        return Response(200, json=_completion(body, text))

    return MockTransport(respond)


def _completion(body: dict[str, Any], text: str) -> dict[str, Any]:
    prompt, answer = (-(-len(one.encode()) // BYTES_PER_TOKEN) for one in (body["messages"][0]["content"], text))
    prompt += TOKENS_PER_MESSAGE
    return {
        "object": "chat.completion",
        "model": body["model"],
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer},
    }
