"""What a run will take, projected from the answers to a few of its requests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any

from st_llm_embed.api.exchange import json_object
from st_llm_embed.recipe import Synthesis
from st_llm_embed.synthesis.generate import open_run, tasks_file, write_tasks
from st_llm_embed.synthesis.journal import read_answers
from st_llm_embed.synthesis.parsing import Rejection, parse_completion
from st_llm_embed.synthesis.plan import Request
from st_llm_embed.synthesis.selection import Selection
from st_llm_embed.synthesis.tasks import TaskFile


@dataclass(frozen=True)
class Projection:
    """What one step will take, with the recipe's concurrency and limits per minute."""

    step: str
    requests: int
    usable: float
    """Share of the answers that hold what was asked for; of examples, those that the filters keep."""
    tokens: float
    usd: float
    minutes: float


def estimate(synthesis: Synthesis, folder: Path, requests: int) -> list[Projection]:
    """Send `requests` of each step, spread over the task types, and project what all of them will take.

    Answers go to the journal and are used by the run itself, except examples of tasks that are only brainstormed for
    the estimate, and grades of rows that later ones make duplicates.
    """
    with open_run(synthesis, folder) as run:
        plan, path, projections = run.plan, tasks_file(synthesis, run.plan, folder), []
        journal, model = run.journal.path, synthesis.filters.judge_model
        if not path.is_file():
            planned, sent = _spread(plan.brainstorms, requests)
            run.ask("brainstorms", len(sent), lambda: iter(sent))
            types = {request.key: _task_type(request) for request in sent}
            if sent:
                projections.append(_projected(synthesis, planned, sent, journal, types))
            path = folder / "tasks-of-the-estimate.jsonl"
            write_tasks(plan, path, journal)
        tasks = TaskFile(path)
        planned, asked = _spread(lambda: plan.examples(tasks), requests)
        run.ask("examples", len(asked), lambda: iter(asked))
        rows = dict(Selection(synthesis, plan, tasks, journal, None, workspace=folder).candidates())
        types = {request.key: _task_type(request) for request in asked}
        kept = {request.key for request in asked if request.index in rows}
        projections.append(_projected(synthesis, planned, asked, journal, types, kept))
        if model is not None and rows:
            graded = dict(islice(rows.items(), requests))
            judged = [plan.judge(index, row, model) for index, row in graded.items()]
            run.ask("judgements", len(judged), lambda: iter(judged))
            types = {request.key: graded[request.index].task_type for request in judged}
            planned = Counter({name: round(count * projections[-1].usable) for name, count in planned.items()})
            projections.append(_projected(synthesis, planned, judged, journal, types))
        return projections


def _spread(requests: Callable[[], Iterator[Request]], count: int) -> tuple[Counter[str], list[Request]]:
    """Return how many requests each task type has, and the first of each, `count` altogether but at least one each."""
    planned = Counter(_task_type(request) for request in requests())
    wanted: Counter[str] = Counter()
    while wanted.total() < min(max(count, len(planned)), planned.total()):
        least = min(
            (task_type for task_type in planned if wanted[task_type] < planned[task_type]),
            key=lambda task_type: wanted[task_type],
        )
        wanted[least] += 1
    first = []
    for request in requests():
        if wanted[_task_type(request)]:
            wanted[_task_type(request)] -= 1
            first.append(request)
    return planned, first


def _projected(  # noqa: PLR0917
    synthesis: Synthesis,
    planned: Counter[str],
    sent: list[Request],
    journal: Path,
    types: Mapping[str, str],
    kept: set[str] | None = None,
) -> Projection:
    """Project what the planned requests of a step, counted by task type, will take from the answers to some.

    `types` has the task type of each that was sent, `kept` those that became rows, by key; without `kept` an answer is
    usable that can be parsed.
    """
    step = sent[0].step
    records = list(read_answers(journal, step, sent))
    schemas = {request.key: request.schema for request in sent}

    def mean(of: Callable[[dict[str, Any]], float]) -> float:
        """Return the mean over all planned requests, task types weighed as they are planned."""
        total = 0.0
        for task_type, count in planned.items():
            values = [of(one) for one in records if types[one["key"]] == task_type]
            values = values or [of(one) for one in records]
            total += count * sum(values) / max(1, len(values))
        return total / max(1, planned.total())

    def usable(record: dict[str, Any]) -> float:
        if kept is not None:
            return record["key"] in kept
        return not isinstance(parse_completion(json_object(record["body"]), schemas[record["key"]]), Rejection)

    requests, endpoint = planned.total(), synthesis.endpoint
    tokens, usd = (requests * mean(itemgetter(name)) for name in ("tokens", "usd"))
    minutes = [requests * mean(lambda record: record.get("seconds", 0.0)) / endpoint.concurrency / 60]
    if endpoint.requests_per_minute:
        minutes.append(requests / endpoint.requests_per_minute)
    if endpoint.tokens_per_minute:
        minutes.append(tokens / endpoint.tokens_per_minute)
    return Projection(step, requests, mean(usable), tokens, usd, max(minutes))


def _task_type(request: Request) -> str:
    return request.about.get("task_type", "")
