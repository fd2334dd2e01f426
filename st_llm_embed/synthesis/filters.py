"""Filters that need one row alone; each gives the reason why a row is rejected."""

from __future__ import annotations

import re
from collections.abc import Iterable

from st_llm_embed.data.rows import Row, fold
from st_llm_embed.languages import LANGUAGE_CODES
from st_llm_embed.recipe import TaskType
from st_llm_embed.synthesis.language_id import contradicts
from st_llm_embed.synthesis.parsing import Rejection

REFUSAL = re.compile(
    r"^\W*(i['\u2019]?m (very |so )?sorry\b.{0,40}\b(can|not|unable)|sorry, (but )?(i|as) |as an? (ai|artificial|large language)\b"
    r"|i('m| am) (unable|not able) to (provide|generate|create|write|help|assist)"
    r"|i can(no|['\u2019])t (help|assist|provide|generate|create|write|comply|fulfil))",
    re.IGNORECASE,
)
"""Words that answers begin with when a model declines inside the JSON it was asked for."""

LEAKED_WORDS = 6
"""A query of so many words is not found word for word in a text that somebody else wrote."""

LONG_SIDES: dict[TaskType, tuple[str, ...]] = {
    "short-long": ("positive", "negative"),
    "long-long": ("anchor", "positive"),
}
MIN_LONG_CHARACTERS, MAX_CHARACTERS = 60, 30_000
MAX_SHORT_CHARACTERS = 2_000
"""Sizes that no such text has unless something went wrong; in characters, since words are not told apart everywhere."""


def check_texts(texts: dict[str, str], task_type: TaskType) -> Rejection | None:
    """Check the texts of one row: anchor, positive and, where there is one, negative."""
    for name, text in texts.items():
        if not text.strip():
            return Rejection("empty text", name)
        if REFUSAL.search(text):
            return Rejection("refusal", text[:200])
        long = name in LONG_SIDES.get(task_type, ()) or (task_type == "long-short" and name == "anchor")
        if len(text) > (MAX_CHARACTERS if long else MAX_SHORT_CHARACTERS):
            return Rejection("too long", f"{name} has {len(text):,} characters")
        if name in LONG_SIDES.get(task_type, ()) and len(text) < MIN_LONG_CHARACTERS:
            return Rejection("too short", f"{name}: {text}")
    anchor, positive, negative = (fold(texts.get(name, "")) for name in ("anchor", "positive", "negative"))
    if negative and negative == positive:
        return Rejection("negative equals positive", positive[:200])
    if anchor in (positive, negative):
        return Rejection("anchor repeated", anchor[:200])
    if task_type in ("short-long", "long-long") and len(anchor.split()) >= LEAKED_WORDS and anchor in positive:
        return Rejection("query leaks into positive", anchor[:200])
    return None


def check_language(row: Row) -> Rejection | None:
    """Check that no text is confidently in another language than the one asked for.

    A row whose instruction names another language, such as "Given a German question, retrieve Spanish passages", is not
    checked: its texts are in two languages on purpose.
    """
    asked = {row.language, row.target_language}
    if any(name in row.instruction for name, code in LANGUAGE_CODES.items() if code not in asked):
        return None
    for text, code in _expected_languages(row):
        found = contradicts(text, code)
        if found is not None:
            return Rejection("wrong language", f"asked for {code}, got {found.found}: {text[:120]}")
    return None


def _expected_languages(row: Row) -> Iterable[tuple[str, str]]:
    yield row.anchor, row.language
    # The labels of long-short stay in the language of the instruction.
    if row.task_type != "long-short":
        yield from ((text, row.target_language) for text in (row.positive, row.negative) if text)
