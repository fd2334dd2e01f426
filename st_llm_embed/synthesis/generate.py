"""Ask for everything that is planned and not in the journal yet: instructions first, examples next."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from st_llm_embed.data.rows import fold
from st_llm_embed.errors import InputError
from st_llm_embed.recipe import REPLAY, Endpoint, Synthesis
from st_llm_embed.synthesis.attributes import task_type_weights, TWO_STEP
from st_llm_embed.synthesis.batch import BatchClient
from st_llm_embed.synthesis.budget import Budget
from st_llm_embed.synthesis.client import Client
from st_llm_embed.synthesis.journal import Journal, read_journal
from st_llm_embed.synthesis.parsing import Rejection, completion_of, content_of, parse_answer
from st_llm_embed.synthesis.plan import BRAINSTORM_SCHEMA, Request, RequestPlan
from st_llm_embed.synthesis.progress import Progress, shown_progress
from st_llm_embed.synthesis.tasks import TaskFile, tasks_path

MIN_INSTRUCTION_WORDS, MAX_INSTRUCTION_CHARACTERS = 3, 400


def generate(synthesis: Synthesis, folder: Path) -> None:
    """Have every planned request answered; free and without a request when all are.

    Args:
        synthesis: the recipe's section.
        folder: holds the journal and, when they are complete, the brainstormed tasks.

    Raises:
        InputError: something in the recipe cannot be used, a limit is reached, or the server cannot go on. What was
            answered is kept.
    """
    plan = RequestPlan(synthesis.plan, synthesis.endpoint)
    with Journal(folder) as journal, _served(synthesis, plan) as (base_url, api_key), shown_progress() as show:
        budget = Budget(synthesis, journal.usd, journal.tokens)
        live = Client(synthesis.endpoint, base_url, api_key, journal, budget)
        client = live
        if synthesis.endpoint.mode == "batch":
            client = BatchClient(synthesis.endpoint, base_url, api_key, journal, budget)

        def answer(step: str, planned: int, requests: Callable[[], Iterator[Request]]) -> None:
            if all(journal.has(request.step, request.index, request.key) for request in requests()):
                return
            live.find_formats(synthesis.endpoint.models, show)
            progress = Progress(step, planned)
            client.answer(requests, progress, show)
            if progress.left:
                raise InputError(
                    f"{progress.left:,} of {planned:,} {step} got no answer: the server failed or hung up each time. All "
                    "others are in the journal; run the same command again for the rest."
                )

        if not tasks_file(synthesis, plan, folder).is_file():
            answer("brainstorms", synthesis.plan.brainstorm_requests, plan.brainstorms)
            _write_tasks(synthesis, plan, folder, journal.path)
        tasks = TaskFile(tasks_file(synthesis, plan, folder))
        answer("examples", synthesis.plan.requests, lambda: plan.examples(tasks))


def tasks_file(synthesis: Synthesis, plan: RequestPlan, folder: Path) -> Path:
    """Give the path of the tasks: the user's file, or that of the brainstormed ones, named after their requests."""
    if synthesis.plan.tasks is not None:
        return tasks_path(synthesis.plan.tasks)
    digest = hashlib.blake2b(digest_size=4)
    for request in plan.brainstorms():
        digest.update(request.key.encode())
    return folder / f"tasks-{digest.hexdigest()}.jsonl"


@contextmanager
def _served(synthesis: Synthesis, plan: RequestPlan) -> Generator[tuple[str, str]]:
    """Give the address and the key; for `replay` start its server first."""
    endpoint = synthesis.endpoint
    if endpoint.base_url != REPLAY:
        yield endpoint.base_url, _api_key(endpoint)
        return
    from st_llm_embed.synthesis.recorded import recorded_answers
    from st_llm_embed.synthesis.replay import ReplayServer

    with ReplayServer(recorded_answers(synthesis, plan)) as server:
        yield server.base_url, "no key is needed"


def _api_key(endpoint: Endpoint) -> str:
    """Read the key from the environment; a server on this machine needs none."""
    key = os.environ.get(endpoint.api_key_env, "").strip()
    if key:
        return key
    if urlsplit(endpoint.base_url).hostname in ("localhost", "127.0.0.1", "::1"):
        return "no key is needed"
    raise InputError(
        f"The environment variable {endpoint.api_key_env} is not set, and {endpoint.base_url} needs a key. Set it "
        f"(export {endpoint.api_key_env}=...; any word for a server that asks for none), or name another variable with "
        "synthesis.endpoint.api_key_env."
    )


def _write_tasks(synthesis: Synthesis, plan: RequestPlan, folder: Path, journal: Path) -> None:
    """Freeze the brainstormed tasks: example requests name them, so a later parser must not change them."""
    keys = {request.key: request.index for request in plan.brainstorms()}
    by_index: dict[int, list[tuple[str, str]]] = {}
    for record, _ in read_journal(journal):
        if record["status"] == "answered" and record["step"] == "brainstorm" and record["key"] in keys:
            instructions = brainstormed(record["body"])
            task_type = record["about"]["task_type"]
            by_index[record["index"]] = [(task_type, instruction) for instruction in instructions]
    seen = set()
    lines = []
    for index in sorted(by_index):
        for task_type, instruction in by_index[index]:
            if (task_type, fold(instruction)) not in seen:
                seen.add((task_type, fold(instruction)))
                lines.append(json.dumps({"task_type": task_type, "instruction": instruction}, ensure_ascii=False))
    found = {task_type for task_type, _ in seen}
    missing = [name for name in task_type_weights(synthesis.plan) if name in TWO_STEP and name not in found]
    if missing:
        raise InputError(
            f"Brainstorming gave no usable instruction for {', '.join(missing)}. Raise synthesis.plan.brainstorm_requests, "
            "use a stronger model, or leave these out of synthesis.plan.task_types."
        )
    # sts and bitext need no task; the file only holds what was brainstormed.
    path = tasks_file(synthesis, plan, folder)
    partial = path.with_suffix(".partial")
    partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
    partial.replace(path)


def brainstormed(body: str) -> Iterator[str]:
    """Give the instructions of one brainstorm answer that can be used as such."""
    content = content_of(completion_of(body))
    answer = content if isinstance(content, Rejection) else parse_answer(content, BRAINSTORM_SCHEMA)
    if isinstance(answer, Rejection):
        return
    for instruction in answer["tasks"]:
        words = instruction.split()
        if len(words) >= MIN_INSTRUCTION_WORDS and len(instruction) <= MAX_INSTRUCTION_CHARACTERS:
            yield " ".join(words)
