"""Filters that need one row alone; each returns the reason why a row is rejected."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from st_llm_embed.data.rows import Row, fold
from st_llm_embed.languages import LANGUAGE_CODES
from st_llm_embed.recipe import TaskType
from st_llm_embed.synthesis.flaws import flaw_of
from st_llm_embed.synthesis.language_id import contradicts
from st_llm_embed.synthesis.parsing import Rejection, is_refusal

LEAST_LEAKED_BYTES = 30
"""Least length in UTF-8 of a query that must not be word for word in its positive: 30 Latin, 10 Chinese characters.
Pairs that people wrote pass (scripts/measure_leaks.py; docs/decisions.md)."""

LONG_SIDES: dict[TaskType, tuple[str, ...]] = {
    "short-long": ("positive", "negative"),
    "long-long": ("anchor", "positive"),
}
LABELS = ("positive", "negative")
"""The sides of long-short that are labels."""
MIN_LONG_CHARACTERS, MAX_CHARACTERS = 60, 30_000
MAX_SHORT_CHARACTERS, MAX_LABEL_CHARACTERS = 2_000, 200
"""Sizes that no such text has unless something went wrong; in characters, since not all scripts separate words."""

_EDGES = " .?!:;,…。？！؟।՞;\"'«»“”„‘’「」『』()¿¡"  # noqa: RUF001
_LANGUAGE_NAMES = re.compile("|".join(LANGUAGE_CODES))


def check_texts(texts: dict[str, str], task_type: TaskType) -> Rejection | None:
    """Check the texts of one row: anchor, positive and, where there is one, negative."""
    for name, text in texts.items():
        problem = _check_text(name, text, task_type)
        if problem is not None:
            return problem
    anchor, positive, negative = (fold(texts.get(name, "")) for name in ("anchor", "positive", "negative"))
    if negative == positive:
        return Rejection("negative equals positive", positive[:200])
    if anchor in (positive, negative):
        return Rejection("anchor repeated", anchor[:200])
    if task_type in LONG_SIDES and leaks(anchor, positive):
        return Rejection("query leaks into positive", anchor[:200])
    return None


def leaks(query: str, text: str) -> bool:
    """Return whether a text has a whole query in it, word for word; both folded."""
    wording = query.strip(_EDGES)
    return len(wording.encode()) >= LEAST_LEAKED_BYTES and wording in text


def check_language(row: Row) -> Rejection | None:
    """Check that no text is confidently in another language than the one asked for.

    A row whose instruction names another language, such as "Given a German question, retrieve Spanish passages", is
    not checked: its texts are in two languages on purpose.
    """
    for text, code in _expected_languages(row):
        found = contradicts(text, code)
        if found is not None:
            named = {LANGUAGE_CODES[name] for name in _LANGUAGE_NAMES.findall(row.instruction)}
            if named - {row.language, row.target_language}:
                return None
            return Rejection("wrong language", f"asked for {code}, got {found.found}: {text[:120]}")
    return None


def _check_text(name: str, text: str, task_type: TaskType) -> Rejection | None:
    if flaw := flaw_of(text):
        return Rejection(flaw, f"{name}: {text[:200]}")
    if not any(unicodedata.category(character)[0] in "LNS" for character in text):
        return Rejection("empty text", f"{name}: {text[:100]}")  # no letter, number or symbol, such as "..."
    if is_refusal(text):
        return Rejection("refusal", f"{name}: {text[:200]}")
    long = name in LONG_SIDES.get(task_type, ()) or (task_type == "long-short" and name == "anchor")
    label = task_type == "long-short" and name in LABELS
    most = MAX_CHARACTERS if long else MAX_LABEL_CHARACTERS if label else MAX_SHORT_CHARACTERS
    if len(text) > most:
        return Rejection("too long", f"{name} has {len(text):,} characters")
    if name in LONG_SIDES.get(task_type, ()) and len(text) < MIN_LONG_CHARACTERS:
        return Rejection("too short", f"{name}: {text}")
    return None


def _expected_languages(row: Row) -> Iterable[tuple[str, str]]:
    yield row.anchor, row.language
    # The labels of long-short stay in the language of the instruction.
    if row.task_type != "long-short":
        yield from ((text, row.target_language) for text in (row.positive, row.negative) if text)
