"""Trap 6: the prompts that queries carry, as saved, as trained with, and as published."""

from __future__ import annotations

import re

from st_llm_embed.doctor.finding import Finding, NotCheckedError, Reading
from st_llm_embed.doctor.repository import Repository
from st_llm_embed.instructions import INSTRUCTION_TEMPLATE

FILE = "config_sentence_transformers.json"
TRAINED = re.compile(re.escape(INSTRUCTION_TEMPLATE).replace(re.escape("{instruction}"), "[^\n]+"))
PIECES = re.compile(r"^(?:Instruct|Query|passage): ?", re.IGNORECASE | re.MULTILINE)
LABEL = re.compile(r"[^\n:]*:\s*")
"""What a prompt is made of besides the instruction."""


def prompts(repository: Repository, readings: list[Reading]) -> list[Finding]:
    """Look for prompts that stand on documents, twice, are spelt in two ways, or are missing."""
    del readings
    saved = repository.prompts
    found = [*_on_documents(repository), *_twice(saved), *_spelling(saved)]
    if not any(saved.values()):
        named = "instruct:" in repository.text("README.md").casefold()
        if repository.recipe or named:
            found.append(
                Finding(
                    6,
                    "error" if repository.recipe else "warning",
                    FILE,
                    "No prompt is saved, and "
                    + ("recipe.yaml trained" if repository.recipe else "README.md has users write")
                    + " queries with an instruction: encode_query gives vectors of bare queries.",
                    "Save prompts: query with the instruction, document with an empty one.",
                )
            )
    return found


def prompts_as_trained(repository: Repository, readings: list[Reading]) -> list[Finding]:
    """Compare the saved prompts with those of the training, where the repository tells them."""
    del readings
    saved = {name: prompt for name, prompt in repository.prompts.items() if prompt}
    if repository.recipe:
        other = {name: prompt for name, prompt in saved.items() if not TRAINED.fullmatch(prompt)}
        return [
            Finding(
                6,
                "error",
                FILE,
                f"The prompt {name!r} is {prompt!r}, and training put {INSTRUCTION_TEMPLATE!r} before each query.",
                "Save the prompt as it was in training, to the last space.",
            )
            for name, prompt in other.items()
        ]
    if "generated_from_trainer" in repository.text("README.md"):
        if saved and re.search(r"`prompts`: None", repository.text("README.md")):
            return [
                Finding(
                    6,
                    "warning",
                    FILE,
                    f"The prompts {', '.join(saved)} are saved, and README.md says `prompts`: None of the training; "
                    "sentence-transformers' trainer does not read saved prompts.",
                    "Train with prompts in SentenceTransformerTrainingArguments, or save none.",
                )
            ]
        return []
    raise NotCheckedError("neither recipe.yaml nor a trainer's README.md tells the prompts of the training")


def _on_documents(repository: Repository) -> list[Finding]:
    default = repository.table(FILE).get("default_prompt_name")
    found = []
    if default and repository.prompts.get(default):
        found.append(
            Finding(
                6,
                "error",
                FILE,
                f"default_prompt_name is {default!r}: sentence-transformers puts this prompt before every text "
                "given to encode, documents included, and servers put none.",
                "Set default_prompt_name to null; encode_query takes the prompt 'query' by itself.",
                ("sentence-transformers",),
            )
        )
    query = repository.prompts.get("query")
    document = repository.prompts.get("document") or repository.prompts.get("passage")
    if query and document == query:
        found.append(
            Finding(
                6,
                "error",
                FILE,
                f"Documents have the prompt of queries, {query!r}.",
                "Set the prompt 'document' to the empty text, or to what documents had in training.",
            )
        )
    return found


def _twice(saved: dict[str, str]) -> list[Finding]:
    found = []
    for name, prompt in saved.items():
        pieces = [piece.strip().casefold() for piece in PIECES.findall(prompt)]
        half = prompt[: len(prompt) // 2]
        if len(pieces) > len(set(pieces)) or (half and half * 2 == prompt):
            found.append(
                Finding(6, "error", FILE, f"The prompt {name!r} stands twice in itself: {prompt!r}.", "Write it once.")
            )
    return found


def _spelling(saved: dict[str, str]) -> list[Finding]:
    """Find instructions that differ from each other in anything but the words."""
    instructed = {name: prompt for name, prompt in saved.items() if "instruct" in prompt.casefold()}
    forms: dict[tuple[str, ...], list[str]] = {}
    for name, prompt in instructed.items():
        first, *rest = prompt.splitlines(keepends=True)
        label = LABEL.match(first)
        end = first[len(first.rstrip()) :]
        forms.setdefault((label.group() if label else "", end, *rest), []).append(name)
    if len(forms) < 2:
        return []
    common = max(forms.values(), key=len)
    other = sorted(set(instructed) - set(common))
    return [
        Finding(
            6,
            "error",
            FILE,
            f"The prompts {', '.join(other)} are spelt otherwise than {common[0]!r}: {saved[other[0]]!r} and "
            f"{saved[common[0]]!r}.",
            "Spell all prompts as in training, to the last space.",
        )
    ]
