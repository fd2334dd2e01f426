"""Which rows are trained on and which are held out: whole groups of rows, and no text in both parts.

A row's group is its instruction, anchor, positive or document, and the group's hash decides, so that a row stays where
it is when others are added. Texts are compared without case and spacing. A training row with the anchor or positive of
a held-out row is omitted, and a negative that is a text of the other part is taken from its row. The labels of
long-short rows, which many rows share, may be in both parts.
"""

from __future__ import annotations

import logging
from array import array
from collections import Counter
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from st_llm_embed.data.rows import RESPONSE_KEYS, Row, content_hash, fold
from st_llm_embed.errors import InputError
from st_llm_embed.recipe import TASK_TYPES, HoldOut, TaskType

logger = logging.getLogger(__name__)

Split = Literal["train", "validation"]

HOLD_OUTS: tuple[HoldOut, ...] = get_args(HoldOut)

MOST_OMITTED = 0.05
"""Share of the rows that a choice of the program's own may omit."""

NONE = 0
"""In place of the hash of a text that is not there, or that is not compared."""


class Parts(NamedTuple):
    """Where each row belongs, in the order in which they were added; arrays of shape (rows,)."""

    hold_out: HoldOut
    held: NDArray[np.bool_]
    omitted: NDArray[np.bool_]
    """Training rows that repeat a held-out text."""
    negative_omitted: NDArray[np.bool_]

    @property
    def share(self) -> float:
        """Share of the rows that are left which is held out."""
        return self.held.sum() / max(1, len(self.held) - self.omitted.sum())

    def split(self, place: int) -> Split | None:
        """Return the split of a row; None for one that is omitted."""
        return None if self.omitted[place] else "validation" if self.held[place] else "train"


class Splitter:
    """Remembers hashes of rows, about 50 bytes each, and divides them."""

    def __init__(self) -> None:
        self._hashes, self._types, self._has_negative = array("Q"), array("B"), array("B")

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._types)

    def add(self, row: Row) -> None:
        """Remember a row."""
        label = row.task_type == "long-short"
        anchor, positive = _number(row.anchor), _number(row.positive)
        groups = {
            "instruction": int(content_hash(f"{row.task_type}\n{fold(row.instruction)}"), 16),
            "anchor": anchor,
            "positive": anchor if label else positive,
            "document": NONE if row.document is None else _number(row.document),
        }
        self._hashes.extend(
            [
                anchor,
                NONE if label else positive,
                NONE if label or row.negative is None else _number(row.negative),
                *(groups[name] for name in HOLD_OUTS),
            ]
        )
        self._types.append(TASK_TYPES.index(row.task_type))
        self._has_negative.append(row.negative is not None)

    def parts(self, validation_fraction: float, hold_out: HoldOut | None = None) -> Parts:
        """Divide the rows.

        Args:
            validation_fraction: share of the groups that is held out.
            hold_out: what the groups are; None: the first of document, instruction, anchor and positive that holds out
                about this share and omits few rows.

        Raises:
            InputError: rows name no document, and documents are to be held out.
        """
        hashes = np.asarray(self._hashes).reshape(-1, 3 + len(HOLD_OUTS))
        named = hashes[:, 3 + HOLD_OUTS.index("document")] != NONE
        if hold_out == "document" and not named.all():
            raise InputError(
                f"data.hold_out is document, and {len(named) - named.sum():,} of {len(named):,} rows have no "
                "document. Name one in each row, or hold out by instruction, anchor or positive."
            )
        if hold_out is not None:
            return _divided(hashes, validation_fraction, hold_out)
        choices: list[HoldOut] = ["instruction", "anchor", "positive"]
        if named.all():
            choices.insert(0, "document")
        divided = [_divided(hashes, validation_fraction, choice) for choice in choices]
        good = [parts for parts in divided if _is_good(parts, validation_fraction)]
        some = [parts for parts in divided if parts.held.any() and not (parts.held | parts.omitted).all()]
        return good[0] if good else min(some or divided, key=lambda parts: parts.omitted.sum())

    def has_documents(self) -> bool:
        """Whether any row names a document."""
        return any(self._hashes[3 + HOLD_OUTS.index("document") :: 3 + len(HOLD_OUTS)])

    def counts(self, parts: Parts) -> Counter[tuple[str, Split]]:
        """Return the number of rows by (configuration, split)."""
        found: Counter[tuple[str, Split]] = Counter()
        for place, (number, has_negative) in enumerate(zip(self._types, self._has_negative, strict=True)):
            if (split := parts.split(place)) is not None:
                with_negative = bool(has_negative) and not parts.negative_omitted[place]
                found[configuration(TASK_TYPES[number], with_negative=with_negative), split] += 1
        return found


def configuration(task_type: TaskType, *, with_negative: bool) -> str:
    """Return the configuration of a row: its task type.

    Rows with a negative more or less than their type has go to ``<task type>-triplets`` or ``<task type>-pairs``: no
    text column ever holds a null.
    """
    if with_negative == (len(RESPONSE_KEYS[task_type]) == 3):
        return task_type
    return f"{task_type}-{'triplets' if with_negative else 'pairs'}"


def has_negatives(name: str) -> bool:
    """Whether the rows of a configuration have a negative."""
    plain = {task_type for task_type in TASK_TYPES if len(RESPONSE_KEYS[task_type]) == 3}
    return name.endswith("-triplets") or name in plain


def _divided(hashes: NDArray[np.uint64], fraction: float, hold_out: HoldOut) -> Parts:
    anchor, positive, negative = hashes[:, :3].T
    held = hashes[:, 3 + HOLD_OUTS.index(hold_out)].astype(np.float64) / 2.0**64 < fraction
    own = hashes[held, :2]
    omitted = ~held & (_among(anchor, own) | _among(positive, own))
    train = ~held & ~omitted
    of_held = held & _among(negative, hashes[train, :2])
    of_train = train & _among(negative, np.append(own, negative[held & ~of_held]))
    return Parts(hold_out, held, omitted, of_held | of_train)


def _among(texts: NDArray[np.uint64], others: NDArray[np.uint64]) -> NDArray[np.bool_]:
    return np.isin(texts, others) & (texts != NONE)


def _is_good(parts: Parts, fraction: float) -> bool:
    about = fraction / 3 <= parts.share <= min(2 * fraction, (1 + fraction) / 2)
    return about and parts.omitted.sum() <= MOST_OMITTED * len(parts.held)


def _number(text: str) -> int:
    return int(content_hash(fold(text)), 16)
