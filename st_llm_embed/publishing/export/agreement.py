"""How near the vectors of an export are to those of the model it was made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from st_llm_embed.errors import InputError
from st_llm_embed.publishing.export.runtimes import Encode, Vectors

TEXTS = (
    "",
    "word",
    " space at both ends ",
    "a line\nand\ta tab",
    "how to fix a slow database query",
    "Façade, naïve, Ångström, ß",
    "Съешь же ещё этих мягких французских булок",
    "السلام عليكم ورحمة الله",
    "नमस्ते दुनिया",
    "文字化けを直す。",
    "🎈 emoji 👩🏽‍🚀",
    "def mean(values): return sum(values) / len(values)  # 3.14",
    "Instruct: Given a question, retrieve passages that answer it\nQuery: why is the sky blue",
    "one two three four five six seven eight nine ten " * 60 + "tail",
)
"""Compared after every export. The last one is longer than the maximum length of most tests' models."""


class Agreement(NamedTuple):
    """A comparison of two sets of vectors over the same texts."""

    texts: int
    minimum_cosine: float
    maximum_difference: float
    """Largest absolute difference of two numbers at the same place."""


def compare(expected: Vectors, got: Vectors) -> Agreement:
    """Compare vectors of unit length; both have shape (texts, dimension)."""
    cosines = np.sum(expected.astype(np.float64) * got, axis=1)
    return Agreement(len(expected), float(cosines.min()), float(np.abs(expected - got).max()))


def check_agreement(
    texts: Sequence[str], expected: Vectors, encode: Encode, what: str, *, minimum_cosine: Mapping[str, float]
) -> Agreement:
    """Compare an export with its model.

    Args:
        texts: what is encoded.
        expected: the model's vectors of them, shape (texts, dimension).
        encode: the export in its runtime.
        what: the format.
        minimum_cosine: what each format has to reach.

    Raises:
        InputError: it gives other vectors, or numbers that are not finite.
    """
    found = compare(expected, encode(texts))
    if not found.minimum_cosine >= minimum_cosine[what]:
        raise InputError(
            f"The export to {what} gives other vectors than the model: the lowest cosine over {found.texts} texts is "
            f"{found.minimum_cosine:.6f}, and {minimum_cosine[what]} is needed. Nothing was kept of it. Models "
            "of this kind cannot be exported so; use another format."
        )
    return found
