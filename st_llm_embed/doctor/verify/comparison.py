"""The comparison of a runtime's vectors with a probe's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from st_llm_embed.doctor.probe import MINIMUM_COSINE, Probe, ProbeText, Role
from st_llm_embed.doctor.verify.against import probe_of, runtime_of
from st_llm_embed.doctor.verify.recompute import Reference
from st_llm_embed.doctor.verify.traps import (
    NORM_TOLERANCE,
    ROUNDING,
    Embedding,
    Explanation,
    Runtime,
    cosine,
    explain_norms,
    explain_shape,
    explain_texts,
    is_same,
    trap,
)
from st_llm_embed.errors import InputError


@dataclass(frozen=True)
class Row:
    """One text of a probe, compared."""

    name: str
    role: Role
    cosine: float | None
    """With the probe's vector; None where there is none, or of another number of dimensions."""
    difference: float | None
    """Largest absolute difference of two numbers at the same place; None where `cosine` is."""
    norm: float | None
    ids_equal: bool | None
    """None where the runtime does not tell its ids, or only those of the text before it is cut."""
    same: bool | None
    """None where the runtime refused the text."""
    refusal: str


@dataclass(frozen=True)
class Verification:
    """What came of a comparison."""

    rows: tuple[Row, ...]
    minimum_cosine: float
    explanations: tuple[Explanation, ...]
    """Of a difference, where there is one."""

    @property
    def same(self) -> bool:
        """Whether every text that was embedded has the probe's vector."""
        return all(row.same is not False for row in self.rows)

    @property
    def worst_cosine(self) -> float | None:
        """The least cosine similarity of all texts."""
        return min((row.cosine for row in self.rows if row.cosine is not None), default=None)

    @property
    def largest_difference(self) -> float | None:
        """The largest absolute difference of two numbers of all texts."""
        return max((row.difference for row in self.rows if row.difference is not None), default=None)

    @property
    def ids_equal(self) -> bool | None:
        """Whether all token ids that are known are equal; None where none are."""
        known = [row.ids_equal for row in self.rows if row.ids_equal is not None]
        return all(known) if known else None

    def to_json(self) -> dict[str, Any]:
        """Give all of it as JSON."""
        return {
            "same": self.same,
            "minimum_cosine": self.minimum_cosine,
            "worst_cosine": self.worst_cosine,
            "largest_difference": self.largest_difference,
            "ids_equal": self.ids_equal,
            "texts": [vars(row) for row in self.rows],
            "explanations": [vars(one) for one in self.explanations],
        }


def verify(
    model: Probe | str | Path,
    against: Runtime | str | Path,
    *,
    minimum_cosine: float = MINIMUM_COSINE,
    weights: str | Path | None = None,
) -> Verification:
    """Embed the probe texts of a model with another runtime, compare, and explain a difference.

    Args:
        model: a probe; or the model: a folder, a probe.json or a Hub id. Without a probe.json one is computed.
        against: a runtime; or a folder or file (sentence-transformers, .onnx, OpenVINO's .xml, .gguf), or the address
            of a server that embeds: OpenAI-compatible, or Text Embeddings Inference.
        minimum_cosine: least cosine similarity of vectors that count as the same.
        weights: folder or Hub id of the model, whose weights are loaded to explain a difference; for a folder given as
            `model` it is that one.

    Raises:
        InputError: the model or the runtime cannot be used, or the runtime embeds none of the texts.
    """
    if not 0 < minimum_cosine <= 1:
        raise InputError(f"The least cosine is {minimum_cosine}; it has to be above 0 and at most 1.")
    if not isinstance(model, Probe):
        model, own_weights = probe_of(model)
        weights = weights or own_weights
    runtime = runtime_of(against, model) if isinstance(against, str | Path) else against
    together = _embedded(model.texts, runtime)
    rows = tuple(_row(text, one, minimum_cosine) for text, one in zip(model.texts, together, strict=True))
    refusals = [row.refusal for row in rows if row.same is None]
    if len(refusals) == len(rows):
        raise InputError(f"None of the {len(rows)} texts was embedded. Of the first was said: {refusals[0]}")
    explanations: list[Explanation] = []
    if any(row.same is False for row in rows):
        explanations = _explain(model, runtime, together, minimum_cosine, weights)
    return Verification(rows, minimum_cosine, tuple(explanations))


def _embedded(texts: Sequence[ProbeText], runtime: Runtime) -> list[Embedding]:
    embeddings = runtime([text.whole for text in texts])
    for text, one in zip(texts, embeddings, strict=True):
        if one.vector is not None and (one.vector.ndim != 1 or not np.isfinite(one.vector).all()):
            raise InputError(
                f"The runtime gives for the text {text.name!r} something of shape {one.vector.shape} that is no "
                "vector of finite numbers. Export or serve the model as an embedding model, and in float32 if half "
                "precision overflows."
            )
    return embeddings


def _row(text: ProbeText, one: Embedding, minimum_cosine: float) -> Row:
    ids_equal = None if one.ids is None else tuple(one.ids) == text.ids
    if one.vector is None:
        return Row(text.name, text.role, None, None, None, ids_equal, None, one.refusal)
    alike = difference = None
    if one.vector.shape == text.vector.shape:
        alike, difference = cosine(text.vector, one.vector), float(np.abs(text.vector - one.vector).max())
    norm = float(np.linalg.norm(one.vector))
    same = is_same(text.vector, one.vector, minimum_cosine) and abs(norm - 1) <= NORM_TOLERANCE
    return Row(text.name, text.role, alike, difference, norm, ids_equal, same, "")


def _explain(
    probe: Probe,
    runtime: Runtime,
    together: Sequence[Embedding],
    minimum_cosine: float,
    weights: str | Path | None,
) -> list[Explanation]:
    batch = [(text, one) for text, one in zip(probe.texts, together, strict=True) if one.vector is not None]
    if shape := explain_shape(probe, batch, minimum_cosine):
        return shape
    found = explain_norms(one for _, one in batch)
    if all(is_same(text.vector, one.vector, minimum_cosine) for text, one in batch):
        return found
    # Alone no text is padded.
    singles = [(text, _embedded([text], runtime)[0]) for text, _ in batch]
    alone = [(text, one) for text, one in singles if one.vector is not None]
    reference = None if weights is None else Reference.load(weights, probe)
    moved = [
        text.name
        for (text, one), (_, single) in zip(batch, singles, strict=True)
        if single.vector is not None
        and one.vector is not None
        and not is_same(single.vector, one.vector, min(minimum_cosine, ROUNDING))
    ]
    if moved:
        name = None if reference is None else reference.padding_trap(batch, minimum_cosine)
        found.append(trap(name or "padding", f"Seen in: {', '.join(moved)}."))
    if all(is_same(text.vector, one.vector, minimum_cosine) for text, one in alone):
        return found if moved else [*found, trap("precision")]
    recomputed = None if reference is None else reference.traps(alone, minimum_cosine)
    if recomputed:
        return [*found, *(trap(name, addition) for name, addition in recomputed)]
    return [*found, *explain_texts(probe, alone, minimum_cosine, weights_known=reference is not None)]
