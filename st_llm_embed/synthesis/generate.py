"""Ask for everything that is planned and not in the journal yet: instructions first, examples next, grades last."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from operator import itemgetter
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from st_llm_embed.api.budget import Cost
from st_llm_embed.api.client import Client
from st_llm_embed.api.exchange import json_object, read_api_key
from st_llm_embed.data.rows import fold
from st_llm_embed.errors import InputError
from st_llm_embed.recipe import REPLAY, Synthesis
from st_llm_embed.synthesis.batch import BatchClient
from st_llm_embed.synthesis.chat import ChatService, Progress, max_answer_tokens, model_prices, shown_progress
from st_llm_embed.synthesis.journal import Journal, read_answers
from st_llm_embed.synthesis.parsing import Rejection, parse_completion
from st_llm_embed.synthesis.plan import BRAINSTORM_SCHEMA, Request, RequestPlan
from st_llm_embed.synthesis.recorded import recorded_answers
from st_llm_embed.synthesis.selection import Selection, Similarities
from st_llm_embed.synthesis.tasks import TaskFile, tasks_path

logger = logging.getLogger(__name__)

STAND_IN = "(an instruction that is brainstormed first)"
MIN_INSTRUCTION_WORDS, MAX_INSTRUCTION_CHARACTERS = 3, 400


def check_synthesis(synthesis: Synthesis) -> None:
    """Raise an InputError if the recipe cannot be used, as far as that shows without sending or writing anything."""
    plan = RequestPlan(synthesis.plan, synthesis.endpoint)
    model_prices(synthesis)
    max_answer_tokens(synthesis.endpoint)
    if synthesis.endpoint.base_url != REPLAY:
        read_api_key(synthesis.endpoint.base_url, synthesis.endpoint.api_key_env)
    if synthesis.plan.tasks is not None:
        plan.check(TaskFile(tasks_path(synthesis.plan.tasks)))
    for path in synthesis.filters.evaluation_texts:
        if not Path(path).exists():
            raise InputError(f"synthesis.filters.evaluation_texts names {path}, which does not exist. Fix the path.")


def planned_prompts(synthesis: Synthesis) -> list[str]:
    """Return the first prompt of each step, with a stand-in for the instruction that is not brainstormed yet."""
    plan = RequestPlan(synthesis.plan, synthesis.endpoint)
    if synthesis.plan.tasks is not None:
        first = [*islice(plan.examples(TaskFile(tasks_path(synthesis.plan.tasks))), 1)]
    else:
        with NamedTemporaryFile("w", suffix=".jsonl", encoding="utf-8") as file:
            for task_type in plan.brainstormed_types:
                file.write(json.dumps({"task_type": task_type, "instruction": STAND_IN}) + "\n")
            file.flush()
            examples = islice(plan.examples(TaskFile(Path(file.name))), 100)
            first = [
                *islice(plan.brainstorms(), 1),
                max(examples, key=lambda one: one.about["instruction"] is not None),
            ]
    return [request.messages[0]["content"] for request in first]


def generate(synthesis: Synthesis, folder: Path, similarities: Similarities | None = None) -> Selection | None:
    """Have every planned request answered; free and without a request when all are.

    Args:
        synthesis: the recipe's section.
        folder: holds the journal and, when they are complete, the brainstormed tasks.
        similarities: of the consistency filter, which the judge comes after.

    Returns:
        The rows that were selected for the judge, for `write_synthetic_dataset`; None without a judge.

    Raises:
        InputError: something cannot be used, a limit is reached, or the server cannot continue; answers are kept.
    """
    with _open_run(synthesis, folder) as run:
        plan, path = run.plan, tasks_file(synthesis, run.plan, folder)
        if not path.is_file():
            run.announce("brainstorms", plan.brainstorms)
            run.ask("brainstorms", synthesis.plan.brainstorm_requests, plan.brainstorms)
            _write_tasks(plan, path, run.journal.path)
        tasks = TaskFile(path)
        run.announce("examples", lambda: plan.examples(tasks))
        run.ask("examples", synthesis.plan.requests, lambda: plan.examples(tasks))
        model = synthesis.filters.judge_model
        if model is None:
            return None
        selection = Selection(synthesis, plan, tasks, run.journal.path, similarities, workspace=folder)

        def judgements(model: str = model) -> Iterator[Request]:
            return (plan.judge(index, row, model) for index, row in selection.candidates())

        run.announce("judgements", judgements)
        run.ask("judgements", sum(1 for _ in selection.candidates()), judgements)
        return selection


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
    with _open_run(synthesis, folder) as run:
        plan, path, projections = run.plan, tasks_file(synthesis, run.plan, folder), []
        journal, model = run.journal.path, synthesis.filters.judge_model
        if not path.is_file():
            planned, sent = _spread(plan.brainstorms, requests)
            run.ask("brainstorms", len(sent), lambda: iter(sent))
            types = {request.key: _task_type(request) for request in sent}
            projections.append(_projected(synthesis, planned, sent, journal, types))
            path = folder / "tasks-of-the-estimate.jsonl"
            _write_tasks(plan, path, journal)
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


def tasks_file(synthesis: Synthesis, plan: RequestPlan, folder: Path) -> Path:
    """Return the path of the tasks: the user's file, or that of the brainstormed ones, named after their requests."""
    if synthesis.plan.tasks is not None:
        return tasks_path(synthesis.plan.tasks)
    digest = hashlib.blake2b(digest_size=4)
    for request in plan.brainstorms():
        digest.update(request.key.encode())
    return folder / f"tasks-{digest.hexdigest()}.jsonl"


@dataclass(frozen=True)
class _Run:
    """Everything that is open while requests are sent."""

    plan: RequestPlan
    journal: Journal
    models: tuple[str, ...]
    chat: ChatService
    client: Client[Request]
    batch: BatchClient | None

    def announce(self, step: str, requests: Callable[[], Iterator[Request]]) -> None:
        """Log in one line what is asked, what is not, and the most it can cost; nothing if all is there."""
        answered, missing, worst, name = 0, 0, Cost(0, 0.0), ""
        for request in requests():
            name = request.step
            if self.journal.has(request):
                answered += 1
            else:
                missing += 1
                one = self.chat.worst_case(request)
                worst = Cost(worst.tokens + one.tokens, worst.usd + one.usd)
        if missing:
            aside = self.journal.answers(name) - answered
            said = (
                f"{step}: {missing:,} to ask, {answered:,} answered already, {aside:,} answers set aside because "
                f"settings changed; at most ${worst.usd:,.2f} and {worst.tokens:,} tokens, besides what is spent: "
                f"{self.chat.limit.describe()}"
            )
            logger.info("%s", said)

    def ask(self, step: str, planned: int, requests: Callable[[], Iterator[Request]]) -> None:
        """Have the requests of one step answered."""
        missing = next((request for request in requests() if not self.journal.has(request)), None)
        if missing is None:
            return
        for model in [missing.model] if missing.step == "judge" else self.models:
            self.chat.find_format(self.client, model)
        self.chat.progress = progress = Progress(step, planned)
        if self.batch:
            self.batch.answer(requests)
        else:
            self.client.send(self.chat.unanswered(requests()))
        if progress.left:
            raise InputError(
                f"{progress.left:,} of {planned:,} {step} got no answer: the server failed or hung up each time. Run "
                "the same command again for the rest, or make the dataset of what there is with st-llm-embed reparse."
            )


@contextmanager
def _open_run(synthesis: Synthesis, folder: Path) -> Generator[_Run]:
    plan, endpoint = RequestPlan(synthesis.plan, synthesis.endpoint), synthesis.endpoint
    base_url, transport = endpoint.base_url, None
    if base_url == REPLAY:
        base_url, key, transport = "http://replay/v1", "no key is needed", recorded_answers(synthesis, plan)
    else:
        key = read_api_key(base_url, endpoint.api_key_env)
    with Journal(folder) as journal, shown_progress() as show:
        if journal.batches and endpoint.mode == "live":
            raise InputError(
                f"{len(journal.batches)} batches of an earlier run are not collected yet. Run with --set "
                "synthesis.endpoint.mode=batch until they are, so that nothing is paid twice, then change the mode."
            )
        chat = ChatService(synthesis, journal, show)
        client = Client(chat, endpoint, base_url, key, transport=transport)
        batch = BatchClient(chat, endpoint, key) if endpoint.mode == "batch" else None
        yield _Run(plan, journal, (*endpoint.models,), chat, client, batch)


def ask_again(folder: Path) -> int:
    """Have the next run ask again for what the server refused; return how many requests that are."""
    with Journal(folder) as journal:
        return journal.ask_again()


def _write_tasks(plan: RequestPlan, path: Path, journal: Path) -> None:
    """Freeze the brainstormed tasks: example requests name them, so a later parser must not change them."""
    seen, lines = set(), []
    for record in read_answers(journal, "brainstorm", plan.brainstorms()):
        task_type = record["about"]["task_type"]
        for instruction in _instructions(record["body"]):
            if (task_type, fold(instruction)) not in seen:
                seen.add((task_type, fold(instruction)))
                lines.append(json.dumps({"task_type": task_type, "instruction": instruction}, ensure_ascii=False))
    if missing := [name for name in plan.brainstormed_types if name not in {task_type for task_type, _ in seen}]:
        raise InputError(
            f"Brainstorming yielded no usable instruction for {', '.join(missing)}. Raise "
            "synthesis.plan.brainstorm_requests, use a stronger model, or omit these task types."
        )
    partial = path.with_suffix(".partial")
    partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
    partial.replace(path)


def _instructions(body: str) -> Iterator[str]:
    """Yield the instructions of one brainstorm answer that can be used as such."""
    answer = parse_completion(json_object(body), BRAINSTORM_SCHEMA)
    if isinstance(answer, Rejection):
        return
    for instruction in answer["tasks"]:
        words = instruction.split()
        if len(words) >= MIN_INSTRUCTION_WORDS and len(instruction) <= MAX_INSTRUCTION_CHARACTERS:
            yield " ".join(words)


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
