"""Ask for everything that is planned and not in the journal yet: instructions first, examples next."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from st_llm_embed.api.budget import Budget
from st_llm_embed.api.client import Client
from st_llm_embed.api.exchange import CHAT, read_api_key
from st_llm_embed.data.rows import fold
from st_llm_embed.errors import InputError
from st_llm_embed.recipe import REPLAY, Synthesis
from st_llm_embed.synthesis.batch import BatchClient
from st_llm_embed.synthesis.journal import Journal, read_journal, read_record
from st_llm_embed.synthesis.parsing import Rejection, completion_of, content_of, parse_answer
from st_llm_embed.synthesis.plan import BRAINSTORM_SCHEMA, EXAMPLE_SCHEMAS, Request, RequestPlan
from st_llm_embed.synthesis.progress import Progress, shown_progress
from st_llm_embed.synthesis.selection import Rejected, Selection, Similarities
from st_llm_embed.synthesis.tasks import TaskFile, tasks_path

MIN_INSTRUCTION_WORDS, MAX_INSTRUCTION_CHARACTERS = 3, 400


def check_synthesis(synthesis: Synthesis) -> None:
    """Check what can be checked without sending or writing anything.

    Raises:
        InputError: a name, weight, price, file or the missing key makes the recipe unusable.
    """
    plan = RequestPlan(synthesis.plan, synthesis.endpoint)
    Budget(synthesis, 0.0, 0)
    if synthesis.endpoint.base_url != REPLAY:
        read_api_key(synthesis.endpoint.base_url, synthesis.endpoint.api_key_env, CHAT)
    if synthesis.plan.tasks is not None:
        plan.check(TaskFile(tasks_path(synthesis.plan.tasks)))
    for path in synthesis.filters.evaluation_texts:
        if not Path(path).exists():
            raise InputError(
                f"synthesis.filters.evaluation_texts names {path}, and there is no such file or folder. Mend the path."
            )


def generate(synthesis: Synthesis, folder: Path, similarities: Similarities | None = None) -> None:
    """Have every planned request answered; free and without a request when all are.

    Args:
        synthesis: the recipe's section.
        folder: holds the journal and, when they are complete, the brainstormed tasks.
        similarities: of the consistency filter, which the judge comes after.

    Raises:
        InputError: something in the recipe cannot be used, a limit is reached, or the server cannot go on. What was
            answered is kept.
    """
    with _asking(synthesis, folder) as ask:
        plan, planned = ask.plan, synthesis.plan
        if not tasks_file(synthesis, plan, folder).is_file():
            ask("brainstorms", planned.brainstorm_requests, plan.brainstorms)
            _write_tasks(plan, tasks_file(synthesis, plan, folder), ask.journal.path)
        tasks = TaskFile(tasks_file(synthesis, plan, folder))
        ask("examples", planned.requests, lambda: plan.examples(tasks))
        model = synthesis.filters.judge_model
        if model is not None:
            selection = Selection(synthesis, plan, tasks, ask.journal.path, similarities)

            def judgements() -> Iterator[Request]:
                for candidate in selection.candidates(folder):
                    if not isinstance(candidate, Rejected):
                        yield plan.judge(*candidate, model)

            ask("judgements", sum(1 for _ in judgements()), judgements)


def estimate(synthesis: Synthesis, folder: Path, requests: int) -> list[Projection]:
    """Send a few of the planned requests and project what all of them will take.

    Answers go to the journal and are used by the run itself, but for examples of tasks that are only brainstormed for
    the estimate.

    Args:
        synthesis: the recipe's section.
        folder: of the journal.
        requests: how many of each step to send.
    """
    with _asking(synthesis, folder) as ask:
        plan = ask.plan
        path = tasks_file(synthesis, plan, folder)
        projections = []
        if not path.is_file():
            count = min(max(requests, len(plan.brainstormed_types)), synthesis.plan.brainstorm_requests)
            ask("brainstorms", count, lambda: islice(plan.brainstorms(), count))
            projections.append(_projected(synthesis, "brainstorm", count, synthesis.plan.brainstorm_requests, ask))
            path = folder / "tasks-of-the-estimate.jsonl"
            _write_tasks(plan, path, ask.journal.path)
        tasks = TaskFile(path)
        count = min(requests, synthesis.plan.requests)
        ask("examples", count, lambda: islice(plan.examples(tasks), count))
        projections.append(_projected(synthesis, "example", count, synthesis.plan.requests, ask))
        return projections


@dataclass(frozen=True)
class Projection:
    """What one step will take."""

    step: str
    requests: int
    usable: float
    """Share of the answers that hold what was asked for."""
    tokens: float
    usd: float
    hours: float
    """With the recipe's concurrency and limits per minute."""


@dataclass(frozen=True)
class _Asking:
    """Everything that is open while requests are sent; called to have the requests of one step answered."""

    plan: RequestPlan
    journal: Journal
    models: tuple[str, ...]
    live: Client
    client: Client | BatchClient
    show: Callable[[Progress], None]

    def __call__(self, step: str, planned: int, requests: Callable[[], Iterator[Request]]) -> None:
        missing = next((request for request in requests() if not self.journal.has(request)), None)
        if missing is None:
            return
        self.live.find_formats([missing.model] if missing.step == "judge" else self.models)
        progress = Progress(step, planned)
        self.client.answer(requests, progress, self.show)
        if progress.left:
            raise InputError(
                f"{progress.left:,} of {planned:,} {step} got no answer: the server failed or hung up each time. All "
                "others are in the journal; run the same command again for the rest, or make the dataset of what "
                "there is with st-llm-embed reparse."
            )


@contextmanager
def _asking(synthesis: Synthesis, folder: Path) -> Generator[_Asking]:
    plan, endpoint = RequestPlan(synthesis.plan, synthesis.endpoint), synthesis.endpoint
    with Journal(folder) as journal, _served(synthesis, plan) as (base_url, api_key), shown_progress() as show:
        if journal.batches and endpoint.mode == "live":
            raise InputError(
                f"{len(journal.batches)} batches of an earlier run are not collected yet, and their requests would be "
                "paid twice. Run with --set synthesis.endpoint.mode=batch until they are, then change the mode."
            )
        budget = Budget(synthesis, journal.usd, journal.tokens)
        live = Client(endpoint, base_url, api_key, journal, budget)
        batch = BatchClient(endpoint, base_url, api_key, journal, budget)
        yield _Asking(plan, journal, (*endpoint.models,), live, live if endpoint.mode == "live" else batch, show)


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
        yield endpoint.base_url, read_api_key(endpoint.base_url, endpoint.api_key_env, CHAT)
        return
    from st_llm_embed.synthesis.recorded import recorded_answers
    from st_llm_embed.synthesis.replay import ReplayServer

    with ReplayServer(recorded_answers(synthesis, plan)) as server:
        yield server.base_url, "no key is needed"


def _write_tasks(plan: RequestPlan, path: Path, journal: Path) -> None:
    """Freeze the brainstormed tasks: example requests name them, so a later parser must not change them."""
    keys = {request.key: request.index for request in plan.brainstorms()}
    by_index: dict[int, list[tuple[str, str]]] = {}
    for record in _answers(journal, "brainstorm"):
        if record["key"] in keys:
            task_type = record["about"]["task_type"]
            by_index[record["index"]] = [(task_type, instruction) for instruction in brainstormed(record["body"])]
    seen = set()
    lines = []
    for index in sorted(by_index):
        for task_type, instruction in by_index[index]:
            if (task_type, fold(instruction)) not in seen:
                seen.add((task_type, fold(instruction)))
                lines.append(json.dumps({"task_type": task_type, "instruction": instruction}, ensure_ascii=False))
    found = {task_type for task_type, _ in seen}
    missing = [name for name in plan.brainstormed_types if name not in found]
    if missing:
        raise InputError(
            f"Brainstorming gave no usable instruction for {', '.join(missing)}. Raise "
            "synthesis.plan.brainstorm_requests, use a stronger model, or leave these task types out."
        )
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


def _answers(journal: Path, step: str) -> Iterator[dict[str, Any]]:
    """Read all answers of a step, with their bodies."""
    offset = 0
    with journal.open("rb") as file:
        for record, size in read_journal(journal):
            if record["status"] == "answered" and record["step"] == step:
                yield read_record(file, offset)
            offset += size


def _projected(synthesis: Synthesis, step: str, sent: int, planned: int, ask: _Asking) -> Projection:
    latest = {record["index"]: record for record in _answers(ask.journal.path, step) if record["index"] < sent}
    records = list(latest.values())
    count = max(1, len(records))
    tokens, usd = (sum(record[name] for record in records) / count * planned for name in ("tokens", "usd"))
    seconds = sum(record.get("seconds", 0.0) for record in records) / count
    endpoint = synthesis.endpoint
    minutes = [planned * seconds / endpoint.concurrency / 60]
    if endpoint.requests_per_minute:
        minutes.append(planned / endpoint.requests_per_minute)
    if endpoint.tokens_per_minute:
        minutes.append(tokens / endpoint.tokens_per_minute)
    usable = sum(_usable(record) for record in records) / count
    return Projection(step, planned, usable, tokens, usd, max(minutes) / 60)


def _usable(record: dict[str, Any]) -> bool:
    content = content_of(completion_of(record["body"]))
    schema = BRAINSTORM_SCHEMA if record["step"] == "brainstorm" else EXAMPLE_SCHEMAS[record["about"]["task_type"]]
    return not isinstance(content, Rejection) and not isinstance(parse_answer(content, schema), Rejection)
