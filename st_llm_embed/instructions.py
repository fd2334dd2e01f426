"""Instructions: the template, and the wordings for task types, public sets and MTEB tasks.

Only queries carry one; documents are encoded as they are, so an index never depends on the task (paper, section 2.2).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, NamedTuple

from st_llm_embed.recipe import Instructions, TaskType

INSTRUCTION_TEMPLATE = "Instruct: {instruction}\nQuery: "
"""Precedes a query (paper, section 2.2, equation 1)."""


def instruction_prompt(instruction: str) -> str:
    """Return the prompt for an instruction; empty for an empty one."""
    return INSTRUCTION_TEMPLATE.format(instruction=instruction) if instruction else ""


def format_query(instruction: str, query: str) -> str:
    """Return the text that is encoded for a query under an instruction."""
    return instruction_prompt(instruction) + query


def instruction_of(instructions: Instructions, instruction: str, task_type: str) -> str:
    """Return what a recipe uses as a row's instruction: itself, the name of its task type, or nothing."""
    return {"natural": instruction, "task_type": task_type, "none": ""}[instructions]


ONE_STEP_INSTRUCTIONS: dict[TaskType, tuple[str, ...]] = {
    "sts": (
        "Retrieve semantically similar text.",
        "Find the sentence that says the same thing in other words.",
        "Given a text, retrieve the one closest to it in meaning.",
        "Retrieve a paraphrase of the given text.",
        "Find text with the same meaning, even where the wording differs.",
        "Given a statement, retrieve another that expresses the same idea.",
        "Match the text with its closest equivalent in meaning.",
        "Retrieve text that conveys the same message as this one.",
        "Find the restatement of this text.",
        "Given a sentence, find the sentence most similar in meaning.",
        "Retrieve the text that a reader would take to mean the same.",
        "Look for wording that keeps the meaning of this text.",
    ),
    "bitext": (
        "Retrieve parallel sentences.",
        "Find the translation of this text.",
        "Given a text, retrieve its translation into another language.",
        "Retrieve the same sentence in the other language.",
        "Match the sentence with its translation.",
        "Find the text in another language that means the same.",
        "Given a sentence in one language, retrieve its counterpart in another.",
        "Retrieve the translated version of this text.",
        "Find the foreign-language equivalent of this sentence.",
        "Locate the translation that renders this text faithfully.",
        "Given a source sentence, find the matching target sentence.",
        "Retrieve the corresponding sentence from the parallel corpus.",
    ),
}
"""Wordings for the task types whose instruction no LLM brainstorms. The first of each is the reference code's
(microsoft/unilm, e5/utils.py); the others allow rows of these types to be held out by instruction as well."""

RETRIEVAL_INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"
"""The reference code's instruction for MS MARCO (microsoft/unilm, e5/utils.py), the usual choice for search."""

PUBLISHED_PROMPTS: dict[str, str] = {
    "query": instruction_prompt(RETRIEVAL_INSTRUCTION),
    "document": "",
    "STS": instruction_prompt(ONE_STEP_INSTRUCTIONS["sts"][0]),
    "BitextMining": instruction_prompt(ONE_STEP_INSTRUCTIONS["bitext"][0]),
}
"""Prompts saved with a model: those of ``encode_query`` and ``encode_document``, and two by the task-type keys that
plain mteb looks up."""


def published_prompts(instructions: Instructions) -> dict[str, str]:
    """Return the prompts to save with a model that was trained with such instructions."""
    types: dict[str, TaskType] = {"query": "short-long", "STS": "sts", "BitextMining": "bitext"}
    if instructions == "natural":
        return dict(PUBLISHED_PROMPTS)
    return {
        name: instruction_prompt(instruction_of(instructions, "", types[name])) if name in types else prompt
        for name, prompt in PUBLISHED_PROMPTS.items()
    }


TRAINING_SET_INSTRUCTIONS: dict[str, tuple[str, ...]] = {
    "eli5": ("Given a question, retrieve the highest voted answers from a forum that explains things simply.",),
    "hotpotqa": ("Given a question that takes several steps, retrieve the documents that help to answer it.",),
    "fever": ("Given a claim, retrieve the documents that support or refute it.",),
    "miracl": ("Given a question, retrieve passages of Wikipedia that answer it.",),
    "msmarco-passage": (RETRIEVAL_INSTRUCTION,),
    "msmarco-document": ("Given a web search query, retrieve relevant documents that answer the query",),
    "nq": ("Given a question, retrieve passages of Wikipedia that answer it.",),
    "nli": (
        "Given a premise, retrieve a hypothesis that follows from it.",
        ONE_STEP_INSTRUCTIONS["sts"][0],
    ),
    "squad": ("Given a question, retrieve passages of Wikipedia that answer it.",),
    "triviaqa": ("Given a quiz question, retrieve passages of Wikipedia that answer it.",),
    "quora": ("Given a question, retrieve questions that ask the same.", "Find questions with the same meaning."),
    "mr-tydi": ("Given a question, retrieve passages of Wikipedia that answer it.",),
    "dureader": ("Given a Chinese search query, retrieve web passages that answer it.",),
    "t2ranking": ("Given a Chinese search query, retrieve web passages that answer it.",),
}
"""For the public sets of the paper's mix (section 4.1), in our wording; where a set has several, a row draws one."""

PromptMode = Literal["paper", "mteb", "none"]
"""``paper``: the instructions of the paper's evaluation (its appendix, and e5/utils.py of microsoft/unilm); ``mteb``:
what mteb gives its own e5-mistral entry, as on the leaderboard; ``none``: no instruction at all."""

ASYMMETRIC_TYPES = ("Retrieval", "Reranking", "InstructionRetrieval", "InstructionReranking")
"""MTEB task types that distinguish queries from documents."""

MTEB_TYPE_INSTRUCTIONS = {
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
"""Saved with a model for tasks whose metadata has no instruction, by MTEB task type."""

MTEB_FAMILY_INSTRUCTIONS = {
    "CQADupstack": "Given a question, retrieve questions from the same forum that ask the same thing",
    "ArXivHierarchicalClustering": "Identify the main and the secondary field of the paper",
    "STS22": "Retrieve news articles that report the same event",
    "SummEval": "Given a news summary, retrieve other summaries of the same article",
}
"""Saved for families of tasks, by the beginning of their names, where the type's instruction says too little."""

PAPER_FAMILY_INSTRUCTIONS = {
    "CQADupstack": (
        "Given a question, retrieve detailed question descriptions from Stackexchange that are duplicates to the "
        "given question"
    ),
}
"""The paper's, by the beginning of a task's name; mteb's metadata of these tasks has no instruction."""

PAPER_TYPES = ("STS", "BitextMining", "Summarization")
"""Types all of whose tasks share one instruction in the paper, which is mteb's default for the type as well."""

VARIANTS = ("HardNegatives", ".v2", ".v3", "Retrieval", "Clustering")
"""Endings of the names of tasks that may be variants of another one, the parent, which has an instruction."""


class TaskPrompt(NamedTuple):
    """What precedes the texts of one task."""

    query: str
    """Before queries, and before all texts of a task that does not distinguish queries from documents."""
    document: str
    source: Literal["task", "parent", "type", "saved", "none"]
    """Origin of the instruction: the task's metadata, that of the task it is a variant of, mteb's default for the task
    type, the prompts saved with a model, or nowhere."""
    generic: bool = False
    """Whether it is a default for the type that says nothing about the task."""


def mteb_task_prompt(
    mode: PromptMode, name: str, task_type: str, *, own: str | None, published: Mapping[str, str], default: str
) -> TaskPrompt:
    """Return what precedes the texts of an MTEB task for a model that takes instructions; nothing before documents.

    Args:
        mode: whose instructions.
        name: of the task.
        task_type: of the task.
        own: the instruction in the task's metadata, which may be empty; None where it has none.
        published: the instructions in mteb's metadata, by task name.
        default: mteb's instruction for the task type.
    """
    if mode == "none":
        return TaskPrompt("", "", "none")
    if own is not None:
        return TaskPrompt(instruction_prompt(own), "", "task")
    if mode == "paper":
        parent = _of_family(PAPER_FAMILY_INSTRUCTIONS, name) or _of_parent(name, published)
        if parent:
            return TaskPrompt(instruction_prompt(parent), "", "parent")
        if task_type == "Summarization":
            # mteb ends this one with a full stop, the paper does not.
            default = default.removesuffix(".")
    return TaskPrompt(instruction_prompt(default), "", "type", generic=task_type not in PAPER_TYPES)


def saved_mteb_prompts(tasks: Iterable[tuple[str, str]], published: Mapping[str, str]) -> dict[str, str]:
    """Return prompts under the keys that plain mteb looks up in a model's saved prompts.

    With them `mteb.evaluate(SentenceTransformer("org/model"), tasks)` gives each task its instruction without a
    wrapper. mteb looks up "<Task>-query", "<Task>", "<Type>-query", "<Type>", "query", in this order; a key without
    "-query" would put the instruction before documents as well.

    Args:
        tasks: name and type of the tasks that get a prompt of their own: the instruction of mteb's metadata, of the
            task it is a variant of (FEVERHardNegatives: FEVER), or of `MTEB_FAMILY_INSTRUCTIONS`.
        published: the instructions in mteb's metadata, by task name.
    """

    def key(name: str, task_type: str) -> str:
        return f"{name}-query" if task_type in ASYMMETRIC_TYPES else name

    prompts = {key(one, one): instruction_prompt(wording) for one, wording in MTEB_TYPE_INSTRUCTIONS.items()}
    for name, task_type in tasks:
        instruction = published.get(name) or _of_parent(name, published) or _of_family(MTEB_FAMILY_INSTRUCTIONS, name)
        if instruction:
            prompts[key(name, task_type)] = instruction_prompt(instruction)
    return prompts


def _of_family(families: Mapping[str, str], name: str) -> str | None:
    return next((wording for start, wording in families.items() if name.startswith(start)), None)


def _of_parent(name: str, published: Mapping[str, str]) -> str | None:
    """Return the instruction of the task that this one is a variant of, if there is one that has an instruction."""
    parents = [name.removesuffix(ending) for ending in VARIANTS if name.endswith(ending)]
    return next((found for one in parents if (found := published.get(one) or _of_parent(one, published))), None)
