"""Runs against the replay server: recipes for it, the journal afterwards, and a clock that nobody waits for."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from replay_server import Faults, ReplayServer

from st_llm_embed.api.client import Client
from st_llm_embed.recipe import Synthesis
from st_llm_embed.synthesis.batch import BatchClient
from st_llm_embed.synthesis.chat import ChatService, Progress
from st_llm_embed.synthesis.journal import Journal
from st_llm_embed.synthesis.plan import Request, RequestPlan
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
    """Write down that the server's models answer by a schema, so that none is probed."""
    with Journal(folder) as journal:
        for model in recipe.endpoint.models:
            known = {"status": "format", "model": model, "base_url": recipe.endpoint.base_url, "format": "json_schema"}
            journal.append(known)
    return recipe


def planned(recipe: Synthesis) -> Iterator[Request]:
    tasks = TaskFile(tasks_path(str(recipe.plan.tasks)))
    return RequestPlan(recipe.plan, recipe.endpoint).examples(tasks)


def planned_keys(recipe: Synthesis) -> list[str]:
    return sorted(request.key for request in planned(recipe))


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


def always(kind: str) -> Faults:
    return Faults(shares={kind: 1.0})


@contextmanager
def process(*options: str) -> Iterator[str]:
    """The server as a process; yields its base_url, ends it with SIGTERM, which must end it cleanly."""
    command = [sys.executable, "-m", "replay_server", *options]
    tests = Path(__file__).parents[1]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tests) as running:
        try:
            yield running.stdout.readline().strip()
        finally:
            running.send_signal(signal.SIGTERM)
            _, errors = running.communicate()
    assert (running.returncode, errors) == (0, "")


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system in memory, which only root can mount."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    mounted = subprocess.run(command, check=False, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"mounting a small file system needs root: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


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


class Asking(NamedTuple):
    """The client of one run on a journal."""

    chat: ChatService
    client: Client[Request]
    recipe: Synthesis

    def find_formats(self) -> None:
        for model in self.recipe.endpoint.models:
            self.chat.find_format(self.client, model)

    def answer(self) -> Progress:
        self.chat.progress = progress = Progress("examples", self.recipe.plan.requests)
        self.client.send(self.chat.unanswered(planned(self.recipe)))
        return progress


@contextmanager
def asking(recipe: Synthesis, folder: Path, hours: Hours | None = None, key: str = "sk-x") -> Iterator[Asking]:
    hours = hours or Hours()
    with Journal(folder) as journal:
        chat = ChatService(recipe, journal)
        client = Client(chat, recipe.endpoint, recipe.endpoint.base_url, key, clock=hours, sleep=hours.sleep)
        yield Asking(chat, client, recipe)


def answer_all(recipe: Synthesis, folder: Path, hours: Hours | None = None) -> Progress:
    """Have all planned examples answered; what waits in the client waits on the clock."""
    with asking(recipe, folder, hours) as one:
        one.find_formats()
        return one.answer()


def batch_answer_all(
    recipe: Synthesis, folder: Path, key: str = "sk-x", kind: type[BatchClient] = BatchClient
) -> Progress:
    """Have all planned examples answered by the Batch API."""
    with Journal(folder) as journal:
        chat = ChatService(recipe, journal)
        chat.progress = progress = Progress("examples", recipe.plan.requests)
        kind(chat, recipe.endpoint, key, poll_seconds=0).answer(lambda: planned(recipe))
    return progress
