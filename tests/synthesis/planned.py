"""Plans, tasks and journals to test with."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from st_llm_embed.recipe import Recipe, Synthesis
from st_llm_embed.synthesis.generate import tasks_file
from st_llm_embed.synthesis.journal import Journal, request_record
from st_llm_embed.synthesis.plan import Request, RequestPlan
from st_llm_embed.synthesis.tasks import TaskFile

TWO_STEP_TASKS = [
    {"task_type": task_type, "instruction": f"Given {side} number {number}, find what belongs to it."}
    for task_type, side in (
        ("short-long", "a question"),
        ("long-short", "a report"),
        ("short-short", "a phrase"),
        ("long-long", "an essay"),
    )
    for number in range(12)
]


def synthesis(*, filters: dict[str, Any] | None = None, **plan: Any) -> Synthesis:
    """The demo's section with a plan of its own: brainstormed, unless `tasks` are given."""
    content = Recipe.load("demo").model_dump(mode="json")
    brainstormed = {} if "tasks" in plan else {"brainstorm_requests": 4}
    content["synthesis"]["plan"] = {"seed": 1, "preset": "custom", "requests": 100} | brainstormed | plan
    content["synthesis"]["filters"] = filters or {}
    return Recipe.model_validate(content).synthesis


def request_plan(**plan: Any) -> RequestPlan:
    section = synthesis(**plan)
    return RequestPlan(section.plan, section.endpoint)


def write_tasks(path: Path, tasks: Iterable[dict[str, Any] | str] = TWO_STEP_TASKS) -> Path:
    lines = [task if isinstance(task, str) else json.dumps(task) for task in tasks]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def completion(content: str) -> str:
    """A response's body in which the model says this."""
    return json.dumps({"choices": [{"message": {"content": content}, "finish_reason": "stop"}]})


def write_journal(
    section: Synthesis,
    folder: Path,
    answer: Callable[[Request], dict[str, Any] | str],
    order: Callable[[list[Request]], Iterable[Request]] = list,
) -> list[Request]:
    """Write tasks, and a journal in which each example request is answered; return the requests."""
    plan = RequestPlan(section.plan, section.endpoint)
    with Journal(folder) as journal:
        path = tasks_file(section, plan, folder)
        if section.plan.tasks is None:
            write_tasks(path)
        requests = list(plan.examples(TaskFile(path)))
        for request in order(requests):
            content = answer(request)
            body = completion(content if isinstance(content, str) else json.dumps(content, ensure_ascii=False))
            journal.append(request_record(request, "answered", 100, 0.01, body=body))
    return requests
