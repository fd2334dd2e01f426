"""Tasks: what examples are asked for. One JSON object a line, brainstormed by the LLM or given by the user.

A line has ``task_type``, ``instruction`` (none for sts and bitext) and, if its values are to be fixed and not drawn,
``attributes``.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from st_llm_embed.data.rows import sample_file
from st_llm_embed.errors import InputError, explained, shown
from st_llm_embed.languages import LANGUAGE_CODES
from st_llm_embed.recipe import EMBEDDED, TASK_TYPES, TaskType
from st_llm_embed.synthesis.attributes import ATTRIBUTES, TWO_STEP

FIX = "Fix or remove the line."


@dataclass(frozen=True, slots=True)
class Task:
    """What one example is asked for."""

    task_type: TaskType
    instruction: str | None
    """None where the task type has fixed instructions."""
    attributes: Mapping[str, str] = field(default_factory=dict)
    """Values that are not drawn."""


class TaskFile:
    """The tasks of a file."""

    def __init__(self, path: Path) -> None:
        """Read every line; raise an InputError if there is no file or a line is not a task."""
        self.path = path
        self._tasks: list[Task] = []
        self._by_type: dict[TaskType, list[Task]] = defaultdict(list)
        try:
            lines = path.read_bytes().split(b"\n")
        except OSError as error:
            raise InputError(
                f"The file of tasks {path} cannot be read: {error.strerror}. synthesis.plan.tasks takes the path of a "
                f".jsonl file, or {EMBEDDED!r}."
            ) from error
        for number, line in enumerate(lines, start=1):
            if line.strip():
                task = _parse(line, f"{path}, line {number}")
                self._tasks.append(task)
                self._by_type[task.task_type].append(task)

    def __len__(self) -> int:
        return len(self._tasks)

    def __getitem__(self, number: int) -> Task:
        return self._tasks[number]

    def of_type(self, task_type: TaskType) -> list[Task]:
        """Return the tasks of one type."""
        return self._by_type[task_type]


def tasks_path(name_or_path: str) -> Path:
    """Find the file of tasks that a recipe names."""
    return sample_file() if name_or_path == EMBEDDED else Path(name_or_path)


def _parse(line: bytes, where: str) -> Task:
    with explained(f"{where} is not JSON in UTF-8", "Write one JSON object a line."):
        content: Any = json.loads(line.decode("utf-8-sig"))
    if not isinstance(content, dict) or content.get("task_type") not in TASK_TYPES:
        raise InputError(f"{where} is not a task: it needs a task_type, one of {', '.join(TASK_TYPES)}. {FIX}")
    task_type: TaskType = content["task_type"]
    instruction = content.get("instruction") if task_type in TWO_STEP else None
    if task_type in TWO_STEP and not (isinstance(instruction, str) and instruction.strip()):
        raise InputError(f"{where}: a {task_type} task needs an instruction, a text. {FIX}")
    given = content.get("attributes") or {}
    sides = ("src_lang", "tgt_lang") if task_type == "bitext" else ("language",)
    allowed = (*sides, *ATTRIBUTES[task_type])
    if not isinstance(given, dict) or not given.keys() <= set(allowed):
        raise InputError(
            f"{where}: the attributes of a {task_type} task are {', '.join(allowed)}; got {shown(given)}. {FIX}"
        )
    attributes = {name: _text(value, f"{where}: {name}") for name, value in given.items() if value is not None}
    languages = [attributes[side] for side in sides if side in attributes]
    if not LANGUAGE_CODES.keys() >= set(languages) or len(set(languages)) < len(languages):
        raise InputError(
            f"{where}: {' and '.join(sides)} is {shown(' and '.join(languages))}; allowed are the English names in "
            f"st_llm_embed/languages.py, two different ones in bitext. {FIX}"
        )
    return Task(task_type, instruction and _text(instruction, f"{where}: instruction"), attributes)


def _text(value: Any, what: str) -> str:
    """Return a value as prompts have it: 4.0 as 4."""
    text = value.strip() if isinstance(value, str) else ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        text = f"{value:g}" if isinstance(value, float) else str(value)
    if not text or any("\ud800" <= character <= "\udfff" for character in text):
        raise InputError(f"{what} is {shown(value)}; set a text or a number, or omit it.")
    return text
