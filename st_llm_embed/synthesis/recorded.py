"""Recorded answers for the replay server: the sample rows, as if an LLM had just written them."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import islice
from typing import Any

from st_llm_embed.api.client import PROBE_SCHEMA
from st_llm_embed.recipe import EMBEDDED, Synthesis
from st_llm_embed.synthesis.plan import RequestPlan
from st_llm_embed.synthesis.tasks import TaskFile, tasks_path


def recorded_answers(synthesis: Synthesis, plan: RequestPlan) -> Callable[[dict[str, Any]], str]:
    """Give the function that answers a planned request as the sample does, and a brainstorm with its instructions.

    Example requests need ``synthesis.plan.tasks: embedded``, whose lines are the sample's.
    """
    path = tasks_path(EMBEDDED)
    answers: dict[str, str] = {}
    if synthesis.plan.tasks == EMBEDDED:
        lines = path.read_text(encoding="utf-8").splitlines()
        for request in islice(plan.examples(TaskFile(path)), len(lines)):
            response = json.loads(lines[request.index])["response"]
            answers[request.messages[0]["content"]] = json.dumps(response, ensure_ascii=False)

    def answer(body: dict[str, Any]) -> str:
        if _schema(body) == PROBE_SCHEMA:
            return json.dumps({"colour": "violet"})
        return answers[body["messages"][0]["content"]]

    return answer


def _schema(body: dict[str, Any]) -> Any:
    return (body.get("response_format") or {}).get("json_schema", {}).get("schema")
