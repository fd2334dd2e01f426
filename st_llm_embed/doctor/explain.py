"""Why the vectors of a runtime are not those of a probe: from ids, norms and vectors, and from the model's weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from st_llm_embed.doctor.mistakes import TEXT_CHANGES, Explanation, Pair, Reference, explanation
from st_llm_embed.doctor.probe import (
    EXACT_COSINE,
    NORM_TOLERANCE,
    ROUNDED_COSINE,
    Probe,
    ProbeText,
    is_same,
)


def explain(
    probe: Probe, batch: list[Pair], alone: list[Pair], minimum_cosine: float, weights: str | Path | None
) -> list[Explanation]:
    """Explain a difference in texts that were embedded as one batch, and each alone.

    Args:
        probe: what was expected.
        batch: the texts that were embedded at once.
        alone: the same, each by itself.
        minimum_cosine: least cosine similarity of vectors that count as the same.
        weights: folder or Hub id of the model, which is loaded to make mistakes with it; None where it is not known.
    """
    sizes = {len(one.vector) for one in batch}
    if sizes != {probe.dimension}:
        return [_other_size(probe, batch, sizes, minimum_cosine)]
    found = []
    norms = [float(np.linalg.norm(one.vector)) for one in batch]
    if any(abs(norm - 1) > NORM_TOLERANCE for norm in norms):
        found.append(explanation("not normalised", f"Their norms are {min(norms):.4g} to {max(norms):.4g}."))
    if all(one.same for one in batch):
        return found
    trap = _batch_trap(batch, minimum_cosine)
    if trap and all(one.same for one in alone):
        return [*found, explanation(trap, "Alone each text has its own vector.")]
    reference = None if weights is None else Reference.load(weights, probe)
    singles = {one.text.name: one.vector for one in alone}
    nearer = min(minimum_cosine, ROUNDED_COSINE)
    both = [one for one in batch if one.text.name in singles]
    moved = [one.text.name for one in both if not is_same(singles[one.text.name], one.vector, nearer)]
    if moved:
        name = None if reference is None else reference.padding_trap(batch, minimum_cosine)
        found.append(explanation(name or "padding", seen=moved))
    if all(one.same for one in alone):
        return found if moved else [*found, explanation("precision")]
    recomputed = [] if reference is None else reference.mistakes(alone, minimum_cosine)
    if trap and not recomputed:
        return [*found, explanation(trap)]
    return [*found, *(recomputed or _explain_texts(probe, alone, minimum_cosine, weights_known=reference is not None))]


def _other_size(probe: Probe, batch: list[Pair], sizes: set[int], minimum_cosine: float) -> Explanation:
    """Explain vectors of another size by their leading numbers, if these are the model's."""
    read = f"They have {' or '.join(map(str, sorted(sizes)))} numbers, and the model's {probe.dimension}."
    least = min(*sizes, probe.dimension)
    if not all(is_same(one.text.vector[:least], one.vector[:least], minimum_cosine) for one in batch):
        return explanation("weights", read)
    return explanation("dimension" if least < probe.dimension else "extra dimensions", read)


def _batch_trap(batch: list[Pair], minimum_cosine: float) -> str | None:
    """Name what is wrong with a batch as a whole: all have one vector, or each has that of another text."""
    vectors, expected = [one.vector for one in batch], [one.text.vector for one in batch]
    if len(batch) > 2 and all(is_same(vectors[0], one, EXACT_COSINE) for one in vectors):
        return "one vector for all"
    is_reordered = all(
        any(is_same(one, other, minimum_cosine) for other in others)
        for these, others in ((vectors, expected), (expected, vectors))
        for one in these
    )
    return "order" if is_reordered else None


def _explain_texts(
    probe: Probe, pairs: list[Pair], minimum_cosine: float, *, weights_known: bool
) -> list[Explanation]:
    """Explain texts whose vectors differ although each was embedded alone, by their ids, or else by vectors."""
    differ = [one for one in pairs if not one.same]
    if (trap := _text_trap(pairs)) is not None:
        return [explanation(trap, seen=[one.text.name for one in differ])]
    found: dict[str, list[str]] = {}
    for one in differ:
        if one.ids is not None and one.ids != one.text.ids:
            found.setdefault(_id_trap(probe, one.text, one.ids), []).append(one.text.name)
    if "missing EOS" in found:
        found["missing EOS"] += found.pop("EOS cut off", [])
    if not found:
        whole = [one.text for one in differ if one.text.role == "document" and not probe.is_cut(one.text)]
        rounded = all(is_same(one.text.vector, one.vector, ROUNDED_COSINE) for one in differ)
        if rounded and any(text.whole == text.whole.strip() for text in whole):
            return [explanation("precision")]
        if len(differ) == len(pairs):
            unknown = "ends, pooling or weights" if all(one.ids is None for one in differ) else "pooling or weights"
            return [explanation("weights" if weights_known else unknown)]
        for one in differ:
            found.setdefault(_vector_trap(probe, one, minimum_cosine), []).append(one.text.name)
    return [explanation(trap, seen=texts) for trap, texts in found.items()]


def _text_trap(pairs: list[Pair]) -> str | None:
    """Name the change of texts that concerns all those which differ, and most of which differ.

    Of several that do it is the one that changes the fewest; the vector of one text may hardly show it.
    """
    differ = {one.text.name for one in pairs if not one.same}
    concerned = [
        (len(changed), trap)
        for trap, change in TEXT_CHANGES
        if (changed := {one.text.name for one in pairs if change(one.text.whole) != one.text.whole}) >= differ
        and len(changed) < 2 * len(differ)
    ]
    return min(concerned)[1] if concerned else None


def _id_trap(probe: Probe, text: ProbeText, got: tuple[int, ...]) -> str:
    """Name the trap that turns a text's ids into those that were got."""
    begins, ends = ({one.ids[place] for one in probe.texts} for place in (0, -1))
    begin = begins.pop() if len(begins) == 1 else None
    end = ends.pop() if len(ends) == 1 else None
    expected, is_cut = text.ids, probe.is_cut(text)
    inner = expected[begin is not None : -1]
    reached = min(len(got), len(expected)) - 1
    twins = {one.ids: one.role for one in probe.texts if one.text == text.text and one.role != text.role}
    rules = {
        "no special tokens": got[: len(inner)] == inner and got[-1] != end and begin not in (None, got[0]),
        "missing BOS": begin is not None and got[:1] != (begin,) and got == expected[1:],
        "doubled BOS": begin is not None and got[:2] == (begin, begin) and got[2:3] == expected[1:2],
        "doubled EOS": got == (*expected, end) or (is_cut and got == (*expected[:-2], end, end)),
        "EOS cut off": is_cut and len(got) == len(expected) and got[:-1] == expected[:-1],
        "missing EOS": got == expected[:-1],
        "prompt missing": twins.get(got) == "document",
        "prompt on documents": twins.get(got) == "query",
        "max length": len(got) != len(expected) and got[:reached] == expected[:reached] and got[-1] == end,
        "whitespace": text.whole != text.whole.strip(),
    }
    return next((trap for trap, holds in rules.items() if holds), "tokenizer")


def _vector_trap(probe: Probe, pair: Pair, minimum_cosine: float) -> str:
    """Name the trap of a text that differs while others do not, by what it is and whose vector it has."""
    text = pair.text
    twins = [one for one in probe.texts if one.text == text.text and one.role != text.role]
    if any(is_same(one.vector, pair.vector, minimum_cosine) for one in twins):
        return "prompt missing" if text.role == "query" else "prompt on documents"
    if probe.is_cut(text):
        return "max length"
    if text.whole != text.whole.strip():
        return "whitespace"
    return "prompt" if text.role == "query" else "tokenizer"
