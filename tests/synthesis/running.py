"""Runs against the loopback server: recipes for it, the journal afterwards, and a clock that nobody waits for."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from st_llm_embed.api.budget import Budget
from st_llm_embed.api.client import Client
from st_llm_embed.recipe import Synthesis
from st_llm_embed.synthesis.batch import BatchClient
from st_llm_embed.synthesis.journal import Journal
from st_llm_embed.synthesis.plan import Request, RequestPlan
from st_llm_embed.synthesis.progress import Progress
from st_llm_embed.synthesis.replay import ReplayServer
from st_llm_embed.synthesis.tasks import TaskFile, tasks_path

PRICE = {"input": 1.0, "output": 2.0}


def synthesis(server: ReplayServer | str, requests: int = 40, **changes: Any) -> Synthesis:
    """The section of a recipe; `changes` are fields of its endpoint, or of its budget, plan and filters by name."""
    sections = {name: changes.pop(name, {}) for name in ("budget", "plan", "filters")}
    endpoint = {
        "base_url": server if isinstance(server, str) else server.base_url,
        "models": {"m": 1},
        "parameters": {"max_completion_tokens": 300},
        "concurrency": 8,
        **changes,
    }
    prices = dict.fromkeys(endpoint["models"], PRICE)
    return Synthesis.model_validate(
        {
            "endpoint": endpoint,
            "plan": {"seed": 1, "requests": requests, "tasks": "embedded"} | sections["plan"],
            "budget": {"prices": prices} | sections["budget"],
            "filters": {"languages": False, "near_duplicates": None} | sections["filters"],
        }
    )


def without_probes(recipe: Synthesis, folder: Path) -> Synthesis:
    """Write down that the server's models only answer in JSON when the prompt asks for it, so that none is probed."""
    with Journal(folder) as journal:
        for model in recipe.endpoint.models:
            known = {"status": "format", "model": model, "base_url": recipe.endpoint.base_url, "format": "prompt"}
            journal.append(known)
    return recipe


def planned(recipe: Synthesis) -> Iterator[Request]:
    tasks = TaskFile(tasks_path(str(recipe.plan.tasks)))
    return RequestPlan(recipe.plan, recipe.endpoint).examples(tasks)


def records(folder: Path, *statuses: str) -> list[dict[str, Any]]:
    """All records of a journal, or those of some statuses, but for the probes."""
    lines = (folder / "answers.jsonl").read_bytes().splitlines()
    return [
        record
        for record in map(json.loads, lines)
        if (record["status"] in statuses or not statuses) and record.get("step") != "probe"
    ]


def answered(folder: Path) -> list[str]:
    return [record["key"] for record in records(folder, "answered")]


class Hours:
    """A clock that jumps to the end of every sleep at once."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        end = self.now + seconds
        await asyncio.sleep(0)
        self.now = max(self.now, end)


@contextmanager
def client(recipe: Synthesis, folder: Path, hours: Hours | None = None, key: str = "sk-x") -> Iterator[Client]:
    """The client of one run on a journal."""
    endpoint = recipe.endpoint
    hours = hours or Hours()
    with Journal(folder) as journal:
        budget = Budget(recipe, journal.usd, journal.tokens)
        yield Client(endpoint, endpoint.base_url, key, journal, budget, clock=hours, sleep=hours.sleep)


def answer_all(recipe: Synthesis, folder: Path, hours: Hours | None = None) -> Progress:
    """Have all planned examples answered; what waits in the client waits on the clock."""
    progress = Progress("examples", recipe.plan.requests)
    with client(recipe, folder, hours) as one:
        one.find_formats(recipe.endpoint.models)
        one.answer(lambda: planned(recipe), progress, lambda _: None)
    return progress


def batch_answer_all(recipe: Synthesis, folder: Path, key: str = "sk-x") -> Progress:
    """Have all planned examples answered by the Batch API."""
    progress = Progress("examples", recipe.plan.requests)
    with Journal(folder) as journal:
        budget = Budget(recipe, journal.usd, journal.tokens)
        one = BatchClient(recipe.endpoint, recipe.endpoint.base_url, key, journal, budget, poll_seconds=0)
        one.answer(lambda: planned(recipe), progress, lambda _: None)
    return progress
