"""Tasks: what examples are asked for. One JSON object a line, brainstormed by the LLM or given by the user.

A line has ``task_type``, ``instruction`` (none for sts and bitext) and, if its values are to be fixed and not drawn,
``attributes``. Only the offsets of the lines are kept in memory.
"""

from __future__ import annotations

import json
import weakref
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, BinaryIO

from st_llm_embed.errors import InputError
from st_llm_embed.recipe import EMBEDDED, TASK_TYPES, TaskType
from st_llm_embed.synthesis.attributes import ATTRIBUTES, TWO_STEP


@dataclass(frozen=True, slots=True)
class Task:
    """What one example is asked for."""

    task_type: TaskType
    instruction: str | None
    """None where the task type has fixed instructions."""
    attributes: Mapping[str, str] = field(default_factory=dict)
    """Values that are not drawn."""


class TaskFile:
    """The lines of a file of tasks, read when they are needed."""

    def __init__(self, path: Path) -> None:
        """Check every line once.

        Raises:
            InputError: the file cannot be read, is empty, or a line is no task; names the line.
        """
        self._offsets = array("Q")
        self._by_type: dict[str, array[int]] = {}
        self._file: BinaryIO = _opened(path)
        weakref.finalize(self, self._file.close)
        while line := self._file.readline():
            if line.strip():
                task = _parse(line, f"{path}, line {len(self._offsets) + 1}")
                self._by_type.setdefault(task.task_type, array("Q")).append(len(self._offsets))
                self._offsets.append(self._file.tell() - len(line))
        if not self._offsets:
            raise InputError(f"{path} holds no tasks. Give one JSON object a line with task_type and instruction.")

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, number: int) -> Task:
        self._file.seek(self._offsets[number])
        return _parse(self._file.readline(), "")

    def count(self, task_type: TaskType) -> int:
        """Number of tasks of one type."""
        return len(self._by_type.get(task_type, ()))

    def of_type(self, task_type: TaskType, number: int) -> Task:
        """Give a task by its number among those of its type."""
        return self[self._by_type[task_type][number]]


def tasks_path(name_or_path: str) -> Path:
    """Find the file of tasks that a recipe names."""
    if name_or_path == EMBEDDED:
        return Path(str(files("st_llm_embed") / "data" / "sample" / "open.jsonl"))
    return Path(name_or_path)


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise InputError(
            f"The file of tasks {path} cannot be read: {error.strerror}. synthesis.plan.tasks takes the path of a .jsonl "
            f"file, or {EMBEDDED!r}."
        ) from error


def _parse(line: bytes, where: str) -> Task:
    try:
        content: Any = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where} is not JSON: {error}. Write one JSON object a line.") from error
    if not isinstance(content, dict) or content.get("task_type") not in TASK_TYPES:
        raise InputError(
            f"{where} is no task: it needs a task_type, one of {', '.join(TASK_TYPES)}, and an instruction. "
            "Mend or remove the line."
        )
    task_type: TaskType = content["task_type"]
    instruction = content.get("instruction") if task_type in TWO_STEP else None
    if task_type in TWO_STEP and not (isinstance(instruction, str) and instruction.strip()):
        raise InputError(f"{where}: a {task_type} task needs an instruction, a text. Mend or remove the line.")
    attributes = content.get("attributes") or {}
    sides = {"src_lang", "tgt_lang"} if task_type == "bitext" else {"language"}
    allowed = sides | ATTRIBUTES[task_type].keys()
    if not isinstance(attributes, dict) or not attributes.keys() <= allowed:
        raise InputError(
            f"{where}: the attributes of a {task_type} task are {', '.join(sorted(allowed))}. Mend or remove the line."
        )
    return Task(
        task_type,
        instruction and instruction.strip(),
        {k: f"{v:g}" if isinstance(v, float) else str(v) for k, v in attributes.items()},
    )
