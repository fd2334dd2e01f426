"""The prompts of queries, as saved."""

from __future__ import annotations

import re

from st_llm_embed.doctor.repository import PROMPTS_FILE, Repository
from st_llm_embed.doctor.traps import Finding, Reading

PIECES = re.compile(r"^(?:Instruct|Query|passage): ?", re.IGNORECASE | re.MULTILINE)
LABEL = re.compile(r"[^\n:]*:\s*")
"""What a prompt is made of besides the instruction."""


def prompts(repository: Repository, _: list[Reading]) -> list[Finding]:
    """Look for prompts that are on documents, twice, spelt in two ways, or missing."""
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
    if not any(saved.values()) and "instruct:" in repository.text("README.md").casefold():
        found.append(Finding("prompt missing by the card", PROMPTS_FILE))
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
    detail = f"{', '.join(other)}: {saved[other[0]]!r}, and {common[0]}: {saved[common[0]]!r}."
    return [Finding("prompt", PROMPTS_FILE, detail)]
