"""The plan: which request is sent as number i.

Request i is a pure function of the recipe's plan, its seed and i (and, for examples, of the tasks), the same on every
machine: each draw hashes (seed, step, i, what is drawn). Nothing is stored, so a plan of a million requests costs no
memory, and asking for more later leaves the first ones as they were.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

from st_llm_embed.data.rows import RESPONSE_KEYS, Row
from st_llm_embed.errors import InputError
from st_llm_embed.recipe import Endpoint, Plan, TaskType
from st_llm_embed.synthesis.attributes import (
    SUBJECTS,
    TWO_STEP,
    UNSPECIFIED,
    Weights,
    attribute_weights,
    language_weights,
    task_type_weights,
)
from st_llm_embed.synthesis.prompts import PROMPT_VERSION, fill_template
from st_llm_embed.synthesis.tasks import Task, TaskFile

Step = Literal["probe", "brainstorm", "example", "judge"]


@dataclass(frozen=True, slots=True)
class Request:
    """One chat completion request."""

    step: Step
    index: int
    """Number within its step."""
    key: str
    """Names the request: a hash of everything that is sent, and of the index, because identical prompts are asked
    many times on purpose. 16 hexadecimal digits."""
    model: str
    messages: list[dict[str, str]]
    schema: dict[str, Any]
    """JSON schema of the answer."""
    about: dict[str, Any]
    """task_type, instruction, attributes: what the answer is to become; kept with it in the journal."""


class RequestPlan:
    """Every request of a recipe by number."""

    def __init__(self, plan: Plan, endpoint: Endpoint) -> None:
        """Prepare the draws; raise an InputError if a name or weight of a custom plan cannot be used."""
        self._plan = plan
        self._parameters = json.dumps(endpoint.parameters, sort_keys=True)
        self._models = _Draw(endpoint.models)
        types = task_type_weights(plan)
        self._types = _Draw(types)
        self.brainstormed_types = [name for name in TWO_STEP if name in types]
        if plan.tasks is None and plan.brainstorm_requests < len(self.brainstormed_types):
            raise InputError(
                f"synthesis.plan.brainstorm_requests is {plan.brainstorm_requests}; "
                f"{', '.join(self.brainstormed_types)} need at least one each. Raise it, set a file of "
                "instructions with synthesis.plan.tasks, or omit task types with synthesis.plan.task_types."
            )
        self._draw_brainstormed = _Draw({name: types[name] for name in self.brainstormed_types})
        self._attributes = {
            task_type: {name: _Draw(weights) for name, weights in attribute_weights(plan, task_type).items()}
            for task_type in RESPONSE_KEYS
        }
        languages = language_weights(plan)
        self._languages = _Draw(languages)
        self._other_languages = {
            name: _Draw({other: weight for other, weight in languages.items() if other != name}) for name in languages
        }
        # All requests of sts and bitext are alike but for their attributes; the paper names no subject.
        self._subjects = SUBJECTS if plan.preset == "custom" else ()
        self._one_language: str | None = next(iter(languages)) if len(languages) == 1 else None
        if self._one_language and plan.tasks is None and "bitext" in types:
            raise self._no_second_language()

    def check(self, tasks: TaskFile) -> None:
        """Raise an InputError if there are no tasks, or a bitext task needs a second language and the plan has one."""
        if not len(tasks):
            raise InputError(
                f"{tasks.path} holds no tasks. Write one JSON object a line, with task_type and instruction."
            )
        for task in tasks.of_type("bitext"):
            self._two_languages(0, task)

    def brainstorm(self, index: int) -> Request:
        """Return brainstorm request number `index`, which asks for about 20 instructions."""
        # The first requests take one task type each, so that a short plan, too, has tasks of all.
        if index < len(self.brainstormed_types):
            task_type = self.brainstormed_types[index]
        else:
            task_type = self._draw_brainstormed(self._uniform("brainstorm", index, "task type"))
        about: dict[str, Any] = {"task_type": task_type}
        if topic := self._topic("brainstorm", index, self._plan.topics):
            about["topic"] = topic
        prompt = self._prompt("brainstorm", index, f"brainstorm-{task_type}", about)
        return self._request("brainstorm", index, prompt, BRAINSTORM_SCHEMA, about)

    def brainstorms(self) -> Iterator[Request]:
        """Yield all brainstorm requests."""
        if self.brainstormed_types:
            for index in range(self._plan.brainstorm_requests):
                yield self.brainstorm(index)

    def example(self, index: int, tasks: TaskFile) -> Request:
        """Return example request number `index`, which asks for one row."""
        task = self._task(index, tasks)
        attributes = self._draw_attributes(index, task)
        values = dict(attributes)
        if task.instruction is not None:
            values["instruction"] = task.instruction
        elif topic := self._topic("example", index, self._plan.topics or self._subjects):
            values["topic"] = topic
        about = {"task_type": task.task_type, "instruction": task.instruction, "attributes": attributes}
        prompt = self._prompt("example", index, f"example-{task.task_type}", values)
        return self._request("example", index, prompt, EXAMPLE_SCHEMAS[task.task_type], about)

    def examples(self, tasks: TaskFile) -> Iterator[Request]:
        """Yield all example requests."""
        for index in range(self._plan.requests):
            yield self.example(index, tasks)

    def judge(self, index: int, row: Row, model: str) -> Request:
        """Return the request that has the row of example request `index` graded."""
        values = {"instruction": row.instruction, "anchor": row.anchor, "positive": row.positive}
        if row.negative is not None:
            values["negative"] = row.negative
        template = "judge-pair" if row.negative is None else "judge"
        return self._request("judge", index, self._prompt("judge", index, template, values), JUDGE_SCHEMA, {}, model)

    def _task(self, index: int, tasks: TaskFile) -> Task:
        if self._plan.tasks is not None:
            return tasks[index % len(tasks)]
        task_type: TaskType = self._types(self._uniform("example", index, "task type"))
        if task_type not in TWO_STEP:
            return Task(task_type, None)
        choices = tasks.of_type(task_type)
        return choices[int(self._uniform("example", index, "task") * len(choices))]

    def _draw_attributes(self, index: int, task: Task) -> dict[str, str]:
        drawn = {}
        if task.task_type == "bitext":
            drawn["src_lang"], drawn["tgt_lang"] = self._two_languages(index, task)
        else:
            language = task.attributes.get("language")
            drawn["language"] = language or self._languages(self._uniform("example", index, "language"))
        for name, draw in self._attributes[task.task_type].items():
            value = task.attributes.get(name) or draw(self._uniform("example", index, name))
            if value != UNSPECIFIED:
                drawn[name] = value
        return drawn

    def _two_languages(self, index: int, task: Task) -> tuple[str, str]:
        source, target = task.attributes.get("src_lang"), task.attributes.get("tgt_lang")
        if self._one_language and not (source and target) and (source or target) in (None, self._one_language):
            raise self._no_second_language()
        others = self._other_languages
        source = source or others.get(target or "", self._languages)(self._uniform("example", index, "src"))
        return source, target or others.get(source, self._languages)(self._uniform("example", index, "tgt"))

    def _no_second_language(self) -> InputError:
        return InputError(
            f"synthesis.plan.languages has one language, {self._one_language}, and bitext needs two. Add a language, "
            "or remove bitext from synthesis.plan.task_types or the file of tasks."
        )

    def _topic(self, step: Step, index: int, topics: Sequence[str]) -> str | None:
        return topics[int(self._uniform(step, index, "topic") * len(topics))] if topics else None

    def _prompt(self, step: Step, index: int, template: str, values: Mapping[str, str]) -> str:
        return fill_template(template, values, lambda number: self._uniform(step, index, f"guideline {number}"))

    def _request(  # noqa: PLR0917
        self, step: Step, index: int, prompt: str, schema: dict[str, Any], about: dict[str, Any], model: str = ""
    ) -> Request:
        model = model or self._models(self._uniform(step, index, "model"))
        named = "\x1f".join((step, str(index), model, prompt, self._parameters, PROMPT_VERSION))
        key = hashlib.blake2b(named.encode(errors="surrogatepass"), digest_size=8).hexdigest()
        return Request(step, index, key, model, [{"role": "user", "content": prompt}], schema, about)

    def _uniform(self, step: Step, index: int, what: str) -> float:
        """Draw a number in [0, 1): the same for the same seed, step, index and name on every machine."""
        digest = hashlib.blake2b(f"{self._plan.seed}/{step}/{index}/{what}".encode(), digest_size=8).digest()
        return (int.from_bytes(digest, "big") >> 11) / 2**53


class _Draw:
    """Maps a uniform number to a name, by weights."""

    def __init__(self, weights: Weights) -> None:
        # Sorted: the order of a recipe's lines must not change what is drawn.
        self._names: tuple[Any, ...] = tuple(sorted(weights))
        self._cumulative = list(accumulate(weights[name] for name in self._names))

    def __call__(self, uniform: float) -> Any:
        position = bisect_right(self._cumulative, uniform * self._cumulative[-1])
        return self._names[min(position, len(self._names) - 1)]


def object_schema(properties: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the JSON schema of an object with exactly these properties."""
    names = list(properties)
    return {"type": "object", "properties": properties, "required": names, "additionalProperties": False}


BRAINSTORM_SCHEMA = object_schema({"tasks": {"type": "array", "items": {"type": "string"}}})
EXAMPLE_SCHEMAS = {
    task_type: object_schema({key: {"type": "string"} for key in keys}) for task_type, keys in RESPONSE_KEYS.items()
}
JUDGE_SCHEMA = object_schema({"score": {"type": "integer", "enum": [1, 2, 3, 4, 5]}})
