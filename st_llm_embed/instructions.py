"""Instructions: one sentence that says what a query is for.

Only the query side carries one; documents are encoded as they are, so an index never depends on the task
(paper, section 2.2).
"""

from __future__ import annotations

from st_llm_embed.recipe import Instructions, TaskType

INSTRUCTION_TEMPLATE = "Instruct: {instruction}\nQuery: "
"""What stands before a query (paper, section 2.2, equation 1)."""


def instruction_prompt(instruction: str) -> str:
    """Give the prompt that an instruction puts before a query; an empty one puts nothing."""
    return INSTRUCTION_TEMPLATE.format(instruction=instruction) if instruction else ""


def format_query(instruction: str, query: str) -> str:
    """Give the text that is encoded for a query under an instruction."""
    return instruction_prompt(instruction) + query


def instruction_of(instructions: Instructions, instruction: str, task_type: str) -> str:
    """Give what a recipe has in place of a row's instruction: itself, the name of its task type, or nothing."""
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
(microsoft/unilm, e5/utils.py); the others let rows of these types, too, be held out by instruction."""

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
    """Give the prompts saved with a model that was trained with such instructions."""
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
