"""The instruction that each MTEB task gives to a model, in the paper's wording or in mteb's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from st_llm_embed.evaluation.benchmark.saved_prompts import parent_instruction
from st_llm_embed.instructions import instruction_prompt

if TYPE_CHECKING:
    from mteb import TaskMetadata

PromptMode = Literal["paper", "mteb", "none"]
"""``paper``: the instructions of the paper's evaluation (its appendix, and e5/utils.py of microsoft/unilm); ``mteb``:
what mteb gives its own e5-mistral entry, as on the leaderboard; ``none``: no instruction at all."""

Source = Literal["task", "parent", "type", "saved", "none"]
"""Where an instruction comes from: the task's metadata, that of the task it is a variant of, mteb's default for the
task type, the prompts saved with a model, or nowhere."""

PAPER_FAMILIES = {
    "CQADupstack": (
        "Given a question, retrieve detailed question descriptions from Stackexchange that are duplicates to the "
        "given question"
    ),
}
"""By the beginning of a task's name; mteb's metadata of these tasks has no instruction."""

PAPER_TYPES = ("STS", "BitextMining", "Summarization")
"""Types all of whose tasks have one instruction in the paper, which is mteb's default for the type, too."""


class TaskPrompt(NamedTuple):
    """What stands before the texts of one task."""

    query: str
    """Before queries, and before all texts of a task that does not tell queries from documents."""
    document: str
    source: Source
    generic: bool = False


class Instruction(NamedTuple):
    """The instruction of one task, and where it comes from."""

    text: str
    source: Source
    generic: bool = False
    """Whether it is a default for the type that says nothing about the task."""


def instructed_prompt(mode: PromptMode, metadata: TaskMetadata) -> TaskPrompt:
    """Give what stands before the texts of one task for a model that takes instructions: none before documents."""
    instruction = task_instruction(mode, metadata)
    query = instruction_prompt(instruction.text) if instruction.text else ""
    return TaskPrompt(query, "", instruction.source, instruction.generic)


def task_instruction(mode: PromptMode, metadata: TaskMetadata) -> Instruction:
    """Give the instruction of one task.

    Args:
        mode: whose instructions.
        metadata: of an official task, or of any other task class that was imported.
    """
    from mteb.abstasks.abstask import get_abstask_prompt

    if mode == "none":
        return Instruction("", "none")
    prompt: Any = metadata.prompt
    own: str | None = prompt.get("query", "") if isinstance(prompt, dict) else prompt or None
    if own is not None:
        return Instruction(own, "task")
    if mode == "paper":
        parent = _paper_family(metadata.name) or parent_instruction(metadata.name)
        if parent:
            return Instruction(parent, "parent")
    by_type = get_abstask_prompt(metadata.name)
    if mode == "paper" and metadata.type == "Summarization":
        # mteb ends this one with a full stop, the paper does not.
        by_type = by_type.removesuffix(".")
    return Instruction(by_type, "type", generic=metadata.type not in PAPER_TYPES)


def _paper_family(name: str) -> str | None:
    return next((text for start, text in PAPER_FAMILIES.items() if name.startswith(start)), None)
