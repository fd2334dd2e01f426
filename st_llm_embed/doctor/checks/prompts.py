"""The prompts of queries, as saved, as trained with, and as published."""

from __future__ import annotations

import re

from st_llm_embed.doctor.repository import PROMPTS_FILE, Repository
from st_llm_embed.doctor.traps import Finding, NotCheckedError, Reading
from st_llm_embed.instructions import INSTRUCTION_TEMPLATE

TRAINED = re.compile(re.escape(INSTRUCTION_TEMPLATE).replace(re.escape("{instruction}"), "[^\n]+"))
PIECES = re.compile(r"^(?:Instruct|Query|passage): ?", re.IGNORECASE | re.MULTILINE)
LABEL = re.compile(r"[^\n:]*:\s*")
"""What a prompt is made of besides the instruction."""


def prompts(repository: Repository, readings: list[Reading]) -> list[Finding]:
    """Look for prompts that are on documents, twice, spelt in two ways, or missing."""
    del readings
    saved = repository.prompts
    found = []
    default = repository.table(PROMPTS_FILE).get("default_prompt_name")
    if default and saved.get(default):
        detail = f"sentence-transformers puts the default prompt {default!r} before every text given to encode."
        found.append(Finding("prompt on documents", PROMPTS_FILE, detail, ("sentence-transformers",)))
    query = saved.get("query")
    if query and query == (saved.get("document") or saved.get("passage")):
        found.append(Finding("prompt on documents", PROMPTS_FILE, f"The prompt of both is {query!r}."))
    for name, prompt in saved.items():
        pieces = [piece.strip().casefold() for piece in PIECES.findall(prompt)]
        half = prompt[: len(prompt) // 2]
        if len(pieces) > len(set(pieces)) or (half and half * 2 == prompt):
            found.append(Finding("prompt doubled", PROMPTS_FILE, f"The prompt {name!r} is {prompt!r}."))
    found += _spelling(saved)
    if not any(saved.values()):
        if repository.recipe:
            detail = "No prompt is saved, and recipe.yaml trained queries with an instruction."
            found.append(Finding("prompt missing", PROMPTS_FILE, detail))
        elif "instruct:" in repository.text("README.md").casefold():
            found.append(Finding("prompt missing by the card", PROMPTS_FILE))
    return found


def prompts_as_trained(repository: Repository, readings: list[Reading]) -> list[Finding]:
    """Compare the saved prompts with those of the training."""
    del readings
    if not repository.recipe:
        raise NotCheckedError("there is no recipe.yaml, which states the prompts of the training")
    trained = f"training put {INSTRUCTION_TEMPLATE!r} before each query."
    return [
        Finding("prompt", PROMPTS_FILE, f"The prompt {name!r} is {prompt!r}, and {trained}")
        for name, prompt in repository.prompts.items()
        if prompt and not TRAINED.fullmatch(prompt)
    ]


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
    detail = f"{', '.join(other)}: {saved[other[0]]!r}, and {common[0]}: {saved[common[0]]!r}."
    return [Finding("prompt", PROMPTS_FILE, detail)]
