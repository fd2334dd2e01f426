"""What the requests of each task type vary, and how often each value is drawn (paper, appendix C).

The values are the paper's. The weights of short-long and long-short are those of the sampling code of SPEED
(arXiv 2410.18634), by the paper's authors; where neither has weights, values are equally likely.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from math import inf
from typing import Any

from st_llm_embed.errors import InputError, shown
from st_llm_embed.languages import LANGUAGE_CODES, SAMPLING_WEIGHTS
from st_llm_embed.recipe import Plan, TaskType

UNSPECIFIED = "unspecified"
"""A drawn value that omits the attribute from the prompt and the row."""

Weights = Mapping[Any, float]

TWO_STEP: tuple[TaskType, ...] = ("short-long", "long-short", "short-short", "long-long")
"""Task types whose instructions are brainstormed first; the others have fixed ones."""

TASK_TYPES: Weights = {
    "short-long": 167,
    "long-short": 122,
    "short-short": 13,
    "long-long": 17,
    "sts": 99,
    "bitext": 89,
}
"""Thousands of examples by task type (paper, figure 2; read from the figure, not confirmed by a text)."""

_CLARITY = {"clear": 0.6, "understandable with some effort": 0.2, "ambiguous": 0.2}
_DIFFICULTY = {"high school": 1, "college": 1, "PhD": 1, UNSPECIFIED: 3}
_SCHOOL_DIFFICULTY = {"elementary school": 1, "high school": 1, "college": 1, UNSPECIFIED: 3}
_UNIT = {"sentence": 0.9, "phrase": 0.05, "passage": 0.05}
_SCORES = {"high_score": {"4": 1, "4.5": 1, "5": 1}, "low_score": {"2.5": 1, "3": 1, "3.5": 1}}

ATTRIBUTES: Mapping[TaskType, Mapping[str, Weights]] = {
    "short-long": {
        "query_type": {"extremely long-tail": 0.4, "long-tail": 0.5, "common": 0.1},
        "query_length": {"fewer than 5 words": 0.4, "5 to 15 words": 0.4, "at least 10 words": 0.2},
        "clarity": _CLARITY,
        "num_words": {"50": 1, "100": 1, "200": 1, "300": 1, "400": 1, "500": 1},
        "difficulty": _DIFFICULTY,
    },
    "long-short": {
        "num_words": {"fewer than 10": 0.1, "at least 10": 0.3, "at least 50": 0.2, "at least 100": 0.2}
        | {"at least 200": 0.2},
        "clarity": _CLARITY,
        "difficulty": _DIFFICULTY,
    },
    "short-short": {},
    "long-long": {},
    "sts": {"unit": _UNIT, **_SCORES, "difficulty": _SCHOOL_DIFFICULTY},
    "bitext": {"unit": _UNIT, **_SCORES, "difficulty": _SCHOOL_DIFFICULTY},
}


SUBJECTS = tuple((files("st_llm_embed") / "synthesis" / "subjects.txt").read_text(encoding="utf-8").split("\n")[:-1])
"""Of sts and bitext requests, where a custom plan names no topics."""


def task_type_weights(plan: Plan) -> Weights:
    """Return the shares of the task types."""
    return _usable(plan.task_types, "task_types") if plan.task_types else TASK_TYPES


def language_weights(plan: Plan) -> Weights:
    """Return the shares of the languages; raise an InputError if a name is not one of the 93."""
    if not plan.languages:
        return SAMPLING_WEIGHTS
    if unknown := [name for name in plan.languages if name not in LANGUAGE_CODES]:
        raise InputError(
            f"synthesis.plan.languages names {shown(', '.join(unknown))}. Allowed are the English names in "
            f"st_llm_embed/languages.py: {', '.join(LANGUAGE_CODES)}."
        )
    return _usable(plan.languages, "languages")


def attribute_weights(plan: Plan, task_type: TaskType) -> Mapping[str, Weights]:
    """Return the values and weights of each attribute of a task type.

    An attribute in the recipe that the task type's prompt does not have raises an InputError.
    """
    own = plan.attributes.get(task_type, {})
    if unknown := [name for name in own if name not in ATTRIBUTES[task_type]]:
        raise InputError(
            f"synthesis.plan.attributes.{task_type} names {shown(', '.join(unknown))}; the prompt of {task_type} has "
            f"{', '.join(ATTRIBUTES[task_type]) or 'no attributes but the language'}. Fix or remove the name."
        )
    return {
        name: _usable(own[name], f"attributes.{task_type}.{name}") if name in own else weights
        for name, weights in ATTRIBUTES[task_type].items()
    }


def _usable(weights: Weights, key: str) -> Weights:
    positive = {name: weight for name, weight in weights.items() if weight > 0}
    if not positive:
        raise InputError(
            f"synthesis.plan.{key} has no value with a weight above 0. Set a weight, or omit the key for the paper's."
        )
    if not all(name.strip() for name in positive) or sum(positive.values()) == inf:
        raise InputError(
            f"synthesis.plan.{key} is {shown(weights)}; names have to be words ({UNSPECIFIED} omits the attribute), "
            "and weights may not add up to infinity."
        )
    return positive
