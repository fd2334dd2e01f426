"""Ask for everything that is planned and not in the journal yet: instructions first, examples next, grades last."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import NamedTemporaryFile

from st_llm_embed.api.budget import Cost
from st_llm_embed.api.client import Client
from st_llm_embed.api.exchange import json_object, read_api_key
from st_llm_embed.data.rows import fold
from st_llm_embed.errors import InputError
from st_llm_embed.recipe import REPLAY, Synthesis
from st_llm_embed.synthesis.batch import GIVE_UP, BatchClient
from st_llm_embed.synthesis.chat import ChatService, Progress, max_answer_tokens, model_prices, shown_progress
from st_llm_embed.synthesis.flaws import flaw_of
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
    with open_run(synthesis, folder) as run:
        plan, path = run.plan, tasks_file(synthesis, run.plan, folder)
        if not path.is_file():
            run.announce("brainstorms", plan.brainstorms)
            run.ask("brainstorms", synthesis.plan.brainstorm_requests, plan.brainstorms)
            write_tasks(plan, path, run.journal.path)
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


def tasks_file(synthesis: Synthesis, plan: RequestPlan, folder: Path) -> Path:
    """Return the path of the tasks: the user's file, or that of the brainstormed ones, named after their requests."""
    if synthesis.plan.tasks is not None:
        return tasks_path(synthesis.plan.tasks)
    digest = hashlib.blake2b(digest_size=4)
    for request in plan.brainstorms():
        digest.update(request.key.encode())
    return folder / f"tasks-{digest.hexdigest()}.jsonl"


@dataclass(frozen=True)
class Run:
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
def open_run(synthesis: Synthesis, folder: Path) -> Generator[Run]:
    """Open the journal in a folder and the connection to the recipe's server."""
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
                "synthesis.endpoint.mode=batch until they are, so that nothing is paid twice, then change the mode. "
                f"{GIVE_UP}"
            )
        chat = ChatService(synthesis, journal, show)
        client = Client(chat, endpoint, base_url, key, transport=transport)
        batch = BatchClient(chat, endpoint, key) if endpoint.mode == "batch" else None
        yield Run(plan, journal, (*endpoint.models,), chat, client, batch)


def ask_again(folder: Path) -> int:
    """Have the next run ask again for what the server refused; return how many requests that are."""
    with Journal(folder) as journal:
        return journal.ask_again()


def write_tasks(plan: RequestPlan, path: Path, journal: Path) -> None:
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
    for instruction in (text for text in answer["tasks"] if flaw_of(text) is None):
        words = instruction.split()
        if len(words) >= MIN_INSTRUCTION_WORDS and len(instruction) <= MAX_INSTRUCTION_CHARACTERS:
            yield " ".join(words)
