"""Prompts: templates/*.txt filled in.

Lines that begin with ``* `` are guidelines: one whose placeholder has no value is omitted, and their order is
shuffled for every request, as in the sampling code of SPEED (arXiv 2410.18634), so that no order shapes all answers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache
from importlib.resources import files

PROMPT_VERSION = "2"
"""Raised with every change of a template; stored in every row."""

_PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")


def fill_template(name: str, values: Mapping[str, str], order: Callable[[int], float]) -> str:
    """Fill one template in, named without ``.txt``.

    Texts are inserted as they are, braces and all; `order` returns the sort key of the guideline in line number n.
    """
    lines = []
    guidelines: list[tuple[float, str]] = []
    position = 0
    for number, (line, placeholders) in enumerate(_template(name)):
        guideline = line.startswith("* ")
        if guideline and not all(placeholder in values for placeholder in placeholders):
            continue
        text = _PLACEHOLDER.sub(lambda match: values[match[1]], line) if placeholders else line
        if guideline:
            position = len(lines)
            guidelines.append((order(number), text))
        else:
            lines.append(text)
    lines[position:position] = [text for _, text in sorted(guidelines)]
    return "\n".join(lines)


@cache
def _template(name: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Return the lines of a template, each with its placeholders."""
    text = (files("st_llm_embed") / "synthesis" / "templates" / f"{name}.txt").read_text(encoding="utf-8")
    return tuple((line, tuple(_PLACEHOLDER.findall(line))) for line in text.rstrip().split("\n"))
