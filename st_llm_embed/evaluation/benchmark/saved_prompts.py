"""Prompts for MTEB tasks under the keys that plain mteb looks up in a model's saved prompts.

With them `mteb.evaluate(SentenceTransformer("org/model"), tasks)` gives every task its instruction, with no wrapper.
mteb asks for "<Task>-query", "<Task>", "<Type>-query", "<Type>", "query", in this order; a key without "-query" would
put the instruction before documents, too.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from st_llm_embed.instructions import ONE_STEP_INSTRUCTIONS, RETRIEVAL_INSTRUCTION, instruction_prompt

BENCHMARKS = ("MTEB(eng, v1)", "MTEB(eng, v2)", "MTEB(Multilingual, v2)")
"""Whose tasks get a prompt of their own where mteb's metadata has an instruction."""

ASYMMETRIC_TYPES = ("Retrieval", "Reranking", "InstructionRetrieval", "InstructionReranking")

TYPE_INSTRUCTIONS = {
    "Retrieval": RETRIEVAL_INSTRUCTION,
    "Reranking": RETRIEVAL_INSTRUCTION,
    "InstructionRetrieval": "Given a search request with its conditions, retrieve the documents that meet them",
    "InstructionReranking": "Given a search request with its conditions, retrieve the documents that meet them",
    "STS": ONE_STEP_INSTRUCTIONS["sts"][0],
    "Summarization": "Given a news summary, retrieve other summaries of the same story",
    "BitextMining": ONE_STEP_INSTRUCTIONS["bitext"][0],
    "Classification": "Classify the text into one of its categories",
    "MultilabelClassification": "Assign to the text all categories that fit it",
    "Clustering": "Identify the topic or category of the text",
    "PairClassification": "Retrieve text that means the same as this one or follows from it",
}
"""For tasks whose metadata has no instruction, by mteb task type."""

OWN_INSTRUCTIONS = {
    "CQADupstack": "Given a question, retrieve questions from the same forum that ask the same thing",
    "ArXivHierarchicalClustering": "Identify the main and the secondary field of the paper",
    "STS22": "Retrieve news articles that report the same event",
    "SummEval": "Given a news summary, retrieve other summaries of the same article",
}
"""For families of tasks, by the beginning of their names, where the type's instruction says too little."""

VARIANTS = ("HardNegatives", ".v2", ".v3", "Retrieval", "Clustering")
"""Endings of names whose task may be a variant of another, the parent, that has an instruction."""


def mteb_prompts() -> dict[str, str]:
    """Collect a prompt for every text task type, and for every task of `BENCHMARKS` that has an instruction.

    A task's instruction is that of mteb's metadata, of the task it is a variant of (FEVERHardNegatives: FEVER), or one
    of `OWN_INSTRUCTIONS`.
    """
    import mteb

    instructions = _instructions()
    prompts = {_key(name, name): instruction_prompt(one) for name, one in TYPE_INSTRUCTIONS.items()}
    for benchmark in BENCHMARKS:
        for task in mteb.get_benchmark(benchmark).tasks:
            name, task_type = task.metadata.name, str(task.metadata.type)
            instruction = instructions.get(name) or parent_instruction(name) or _own(name)
            if instruction:
                prompts[_key(name, task_type)] = instruction_prompt(instruction)
    return prompts


def _key(name: str, task_type: str) -> str:
    return f"{name}-query" if task_type in ASYMMETRIC_TYPES else name


def _of_metadata(prompt: Any) -> str | None:
    return prompt.get("query") if isinstance(prompt, dict) else prompt


def parent_instruction(name: str) -> str | None:
    """Give the instruction of the task that this one is a variant of, None if there is none that has one."""
    for ending in VARIANTS:
        parent = name.removesuffix(ending)
        if parent != name:
            found = _instructions().get(parent) or parent_instruction(parent)
            if found:
                return found
    return None


@cache
def _instructions() -> dict[str, str | None]:
    """Collect the instruction of every task in mteb's metadata; takes a second."""
    import mteb

    return {
        task.metadata.name: _of_metadata(task.metadata.prompt) for task in mteb.get_tasks(exclude_superseded=False)
    }


def _own(name: str) -> str | None:
    return next((one for start, one in OWN_INSTRUCTIONS.items() if name.startswith(start)), None)
