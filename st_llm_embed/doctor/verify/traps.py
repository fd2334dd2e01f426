"""What explains a difference, told from ids, norms and vectors alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from st_llm_embed.doctor.probe import Probe, ProbeText

NORM_TOLERANCE = 0.01
"""A vector of norm 1 rounded to bfloat16 is within it."""

ROUNDING = 0.995
"""Cosine above which a difference of all texts looks like rounding: bfloat16 gives 0.999, eight bits less."""


class Embedding(NamedTuple):
    """What a runtime gives for one text."""

    ids: Sequence[int] | None
    """The tokens it was computed from; None where the runtime does not tell."""
    vector: NDArray[np.float32] | None
    """Shape (dimension,); None where the runtime refused the text."""
    refusal: str = ""


Runtime = Callable[[Sequence[str]], list[Embedding]]
"""Embeds full texts, the prompt already in front, as one batch."""


@dataclass(frozen=True)
class Explanation:
    """A trap that explains a difference."""

    trap: str
    sentence: str


TRAPS = {
    "missing EOS": "Texts do not end in the EOS token, where the embedding is read. Let the tokenizer's "
    "post-processor add it, and set add_eos_token for readers that go by flags.",
    "EOS cut off": "Texts that are too long lose their EOS token. Cut them before special tokens are added.",
    "doubled EOS": "Texts end in two EOS tokens. One is added by the tokenizer; do not append another.",
    "missing BOS": "Texts lack the BOS token at their beginning. Let the tokenizer add special tokens.",
    "doubled BOS": "Texts begin with two BOS tokens. The tokenizer adds one; do not put another in front.",
    "no special tokens": "Texts have neither BOS nor EOS. Let the tokenizer add special tokens.",
    "special tokens in texts": "A literal EOS token within a text is read as letters, or the other way round. Set "
    "whether special tokens are parsed as the model has it.",
    "prompt missing": "Queries are embedded without their prompt. Put it in front, or stop what takes it away.",
    "prompt doubled": "Queries get their prompt twice. The server adds it by itself; send the bare query, or turn the "
    "server's prompt off.",
    "prompt on documents": "Documents get the prompt of queries. Turn the server's default prompt off, or keep it to "
    "queries.",
    "prompt": "Queries alone differ: their prompt is doubled, or written in another way.",
    "not normalised": "The vectors are not of length 1, so that dot products are no cosines. Divide each by its norm, "
    "or switch the server's normalisation on.",
    "mean pooling": "The embedding is the mean of all tokens in place of the last one's. Set pooling to the last "
    "token.",
    "first-token pooling": "The embedding is that of the first token in place of the last one. Set pooling to the "
    "last token.",
    "padding": "A text in a batch with longer ones gets another vector than alone. Give the attention mask to the "
    "model, and read the last attended token.",
    "right padding": "In a batch that is padded on the right the last position is read, which is padding. Read the "
    "last attended token, or pad on the left.",
    "left padding": "In a batch that is padded on the left the padding is attended to. Give the attention mask.",
    "left padding read as right": "In a batch that is padded on the left the token is read whose place is the text's "
    "length. Read the last position.",
    "max length": "Texts are cut at another length. Set the longest text to max_seq_length.",
    "whitespace": "Blanks and line ends at the ends of texts are stripped, or another blank is put in front. Send "
    "texts as they are; or strip them everywhere, in the index too.",
    "tokenizer": "Texts are cut into other tokens, so the tokenizer is another one or was rebuilt wrongly. Use the "
    "tokenizer.json, or tokenizer.model, of this model.",
    "weights": "None of the known faults gives these vectors, so the weights are other ones: another model or "
    "revision, an adapter that is not applied, or heavy quantisation.",
    "precision": "Texts of all kinds differ a little, as by rounding in half precision or by quantised weights. If "
    "that is meant, lower the least cosine.",
    "pooling or weights": "The tokens are the same and the vectors are not: another pooling, or other weights. Of a "
    "decoder with last-token pooling, verify tells which when it is given the folder with the weights.",
    "ends, pooling or weights": "No text has the same vector: BOS or EOS is missing or doubled, the pooling is "
    "another one, or the weights are. Of a decoder with last-token pooling, verify tells which when it is given the "
    "folder with the weights.",
    "dimension": "The vectors are cut to their leading dimensions. Ask for all of them, or compare at that size.",
}


def trap(name: str, addition: str = "") -> Explanation:
    """Give a trap with its sentence."""
    return Explanation(name, f"{TRAPS[name]}{' ' if addition else ''}{addition}")


def cosine(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Cosine similarity; nan where a vector is zero."""
    norms = float(np.linalg.norm(one.astype(np.float64)) * np.linalg.norm(other.astype(np.float64)))
    return float(one.astype(np.float64) @ other.astype(np.float64)) / norms if norms else float("nan")


def is_same(expected: NDArray[np.float32], got: NDArray[np.float32] | None, minimum_cosine: float) -> bool:
    """Whether a vector points where the probe's does."""
    return got is not None and got.shape == expected.shape and cosine(expected, got) >= minimum_cosine


def explain_shape(
    probe: Probe, pairs: Sequence[tuple[ProbeText, Embedding]], minimum_cosine: float
) -> list[Explanation]:
    """Explain vectors of another number of dimensions."""
    sizes = {len(one.vector) for _, one in pairs if one.vector is not None}
    if sizes == {probe.dimension}:
        return []
    told = f"They have {' or '.join(map(str, sorted(sizes)))} numbers, and the model's {probe.dimension}."
    [size] = sizes if len(sizes) == 1 else [0]
    if 0 < size < probe.dimension and all(is_same(t.vector[:size], e.vector, minimum_cosine) for t, e in pairs):
        return [trap("dimension", told)]
    return [trap("weights", told)]


def explain_norms(embeddings: Iterable[Embedding]) -> list[Explanation]:
    """Explain vectors whose length is not 1."""
    norms = [float(np.linalg.norm(one.vector)) for one in embeddings if one.vector is not None]
    if all(abs(norm - 1) <= NORM_TOLERANCE for norm in norms):
        return []
    return [trap("not normalised", f"Their norms are {min(norms):.4g} to {max(norms):.4g}.")]


def explain_texts(
    probe: Probe, pairs: Sequence[tuple[ProbeText, Embedding]], minimum_cosine: float, *, weights_known: bool
) -> list[Explanation]:
    """Explain texts whose vectors differ although each was embedded alone.

    Args:
        probe: the expected ids and vectors.
        pairs: every text with what the runtime gave; refused ones left out.
        minimum_cosine: below it a vector differs.
        weights_known: whether the model's own weights were tried, and no fault in their use explained the vectors.
    """
    differ = [pair for pair in pairs if not is_same(pair[0].vector, pair[1].vector, minimum_cosine)]
    if not differ:
        return []
    if any(one.ids is not None and tuple(one.ids) != text.ids for text, one in differ):
        names = _by_ids(probe, differ)
        return [trap(name, f"Seen in: {', '.join(texts)}.") for name, texts in names.items()]
    plain = [text for text, _ in differ if text.role == "document" and not _is_special(probe, text)]
    if plain and all(is_same(text.vector, one.vector, ROUNDING) for text, one in differ):
        return [trap("precision")]
    if len(differ) == len(pairs):
        if weights_known:
            return [trap("weights")]
        known = any(one.ids is not None for _, one in differ)
        return [trap("pooling or weights" if known else "ends, pooling or weights")]
    return _by_vectors(probe, pairs, differ, minimum_cosine)


def _is_special(probe: Probe, text: ProbeText) -> bool:
    """Whether a text is cut, or has blanks at its ends."""
    return len(text.ids) == probe.max_seq_length or text.whole != text.whole.strip()


def _by_ids(probe: Probe, differ: Sequence[tuple[ProbeText, Embedding]]) -> dict[str, list[str]]:
    """Name what the ids of each text show."""
    found: dict[str, list[str]] = {}
    for text, one in differ:
        if one.ids is not None and tuple(one.ids) != text.ids:
            found.setdefault(_id_trap(probe, text, tuple(one.ids)), []).append(text.name)
    if "missing EOS" in found:
        found["missing EOS"] += found.pop("EOS cut off", [])
    return found


def _id_trap(probe: Probe, text: ProbeText, got: tuple[int, ...]) -> str:
    begin, end = _common([one.ids[0] for one in probe.texts]), _common([one.ids[-1] for one in probe.texts])
    expected, is_cut = text.ids, len(text.ids) == probe.max_seq_length
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
    return next((name for name, holds in rules.items() if holds), "tokenizer")


def _common(ids: Sequence[int]) -> int | None:
    return ids[0] if len(set(ids)) == 1 else None


def _by_vectors(
    probe: Probe,
    pairs: Sequence[tuple[ProbeText, Embedding]],
    differ: Sequence[tuple[ProbeText, Embedding]],
    minimum_cosine: float,
) -> list[Explanation]:
    """Explain texts that differ while others do not, by which they are and whom they are like."""
    got = {text.name: one.vector for text, one in pairs}
    left = {text.name: text for text, _ in differ}
    found: list[Explanation] = []

    def explain(name: str, texts: Sequence[str], addition: str = "") -> None:
        seen = [one for one in texts if left.pop(one, None) is not None]
        if seen:
            found.append(trap(name, f"Seen in: {', '.join(seen)}.{' ' if addition else ''}{addition}"))

    def like(text: ProbeText, role: str) -> bool:
        twins = [one for one in probe.texts if one.text == text.text and one.role == role != text.role]
        return any(is_same(one.vector, got[text.name], minimum_cosine) for one in twins)

    explain("prompt missing", [name for name, text in left.items() if like(text, "document")])
    explain("prompt on documents", [name for name, text in left.items() if like(text, "query")])
    cut = [text.name for text in probe.texts if len(text.ids) == probe.max_seq_length]
    explain("max length", cut, _cut_where([got.get(name) for name in cut], minimum_cosine))
    explain("whitespace", [name for name, text in left.items() if text.whole != text.whole.strip()])
    if left and all(text.role == "query" for text in left.values()):
        explain("prompt", list(left))
    explain("tokenizer", list(left))
    return found


def _cut_where(vectors: Sequence[NDArray[np.float32] | None], minimum_cosine: float) -> str:
    """Compare two texts that are the same up to max_seq_length and differ in their tails."""
    known = [vector for vector in vectors if vector is not None]
    if len(known) != 2:
        return ""
    if is_same(known[0], known[1], minimum_cosine):
        return "They are cut earlier than they should be, or without the EOS token."
    return "What lies beyond max_seq_length is embedded, too."
