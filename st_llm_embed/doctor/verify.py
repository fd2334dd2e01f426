"""The comparison of a runtime's vectors with a model's probe, and why they differ.

A difference is explained from ids, norms and vectors, and where the model's own weights are known by making each
mistake with them. The model and the runtime are never in memory at once.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self, cast

import numpy as np
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from numpy.typing import NDArray

from st_llm_embed.doctor.probe import (
    MINIMUM_COSINE,
    NORM_TOLERANCE,
    PROBE_FILE,
    ROUNDED_COSINE,
    Probe,
    ProbeText,
    Role,
    cosines,
    make_probe,
    read_probe,
)
from st_llm_embed.doctor.runtimes import (
    Embedding,
    Runtime,
    llama_cpp_runtime,
    load_stock,
    onnx_runtime,
    sentence_transformers_runtime,
)
from st_llm_embed.doctor.server import server_runtime
from st_llm_embed.doctor.traps import TRAPS
from st_llm_embed.errors import InputError, explained

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

LENGTHS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, *(2**power for power in range(10, 16)))
"""Limits that servers have, in tokens."""

ToIds = Callable[[ProbeText], Sequence[int]]


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
    """None where the runtime does not say its ids, or only those of the text before it is cut."""
    same: bool | None
    """None where the runtime refused the text."""
    refusal: str


class Explanation(NamedTuple):
    """A trap that explains a difference."""

    trap: str
    """Its name in `TRAPS`."""
    sentence: str


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
        """Return all of it as JSON."""
        return {
            "same": self.same,
            "minimum_cosine": self.minimum_cosine,
            "worst_cosine": self.worst_cosine,
            "largest_difference": self.largest_difference,
            "ids_equal": self.ids_equal,
            "texts": [vars(row) for row in self.rows],
            "explanations": [one._asdict() for one in self.explanations],
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
        against: a runtime; or a folder or file (sentence-transformers, .onnx, .gguf), or the address of a server that
            embeds: OpenAI-compatible, or Text Embeddings Inference.
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
    together = _embed(model.texts, runtime)
    rows = tuple(_row(text, one, minimum_cosine) for text, one in zip(model.texts, together, strict=True))
    refusals = [row.refusal for row in rows if row.same is None]
    if len(refusals) == len(rows):
        raise InputError(f"None of the {len(rows)} texts was embedded. The first was refused with: {refusals[0]}")
    if all(row.same is not False for row in rows):
        return Verification(rows, minimum_cosine, ())
    batch = _pairs(model.texts, together, minimum_cosine)
    # Alone no text is padded.
    alone = [pair for one in batch for pair in _pairs([one.text], _embed([one.text], runtime), minimum_cosine)]
    del runtime, against
    return Verification(rows, minimum_cosine, tuple(_explain(model, batch, alone, minimum_cosine, weights)))


def probe_of(model: str | Path) -> tuple[Probe, str | Path | None]:
    """Read the probe of a folder, a file or a Hub repository, or compute it where there is none.

    Returns:
        The probe, and what to load the weights from if they are on this machine.

    Raises:
        InputError: there is no such model.
    """
    path = Path(model)
    if path.is_file():
        return read_probe(path), None
    if path.is_dir():
        if (path / PROBE_FILE).is_file():
            return read_probe(path / PROBE_FILE), path if any(path.glob("*.safetensors")) else None
        return make_probe(load_stock(path)), path
    with explained(f"There is no model {model}", "Give the folder of a model, its probe.json, or a Hub id."):
        try:
            return read_probe(Path(hf_hub_download(str(model), PROBE_FILE))), None
        except EntryNotFoundError:
            return make_probe(load_stock(model)), model


def runtime_of(against: str | Path, probe: Probe) -> Runtime:
    """Open what a model is compared with.

    Raises:
        InputError: it cannot embed texts.
    """
    if str(against).startswith(("http://", "https://")):
        return server_runtime(str(against), max_seq_length=probe.max_seq_length)
    # The weights that a probe was computed with are not used any more; see `load_stock`.
    gc.collect()
    path = Path(against)
    if path.is_dir():
        if (path / "modules.json").is_file():
            return sentence_transformers_runtime(path)
        path = next((one for one in (path / "model.onnx", path / "onnx" / "model.onnx") if one.is_file()), path)
    if path.is_file() and path.suffix == ".onnx":
        return onnx_runtime(path)
    if path.is_file() and path.suffix == ".gguf" and probe.max_seq_length is not None:
        return llama_cpp_runtime(path, probe.max_seq_length)
    raise InputError(
        f"A model cannot be compared with {against}. Allowed are the folder of a sentence-transformers model, an "
        ".onnx or .gguf file, and the address of a server, such as http://localhost:8000/v1/embeddings or "
        "http://localhost:8080/embed."
    )


def is_same(expected: NDArray[np.float32], got: NDArray[np.float32] | None, minimum_cosine: float) -> bool:
    """Return whether a vector points where the expected one does."""
    return got is not None and got.shape == expected.shape and bool(cosines(expected, got) >= minimum_cosine)


def _embed(texts: Sequence[ProbeText], runtime: Runtime) -> list[Embedding]:
    embeddings = runtime([text.whole for text in texts])
    for text, one in zip(texts, embeddings, strict=True):
        if one.vector is not None and (one.vector.ndim != 1 or not np.isfinite(one.vector).all()):
            raise InputError(
                f"For the text {text.name!r} the runtime returns something of shape {one.vector.shape} that is not a "
                "vector of finite numbers. Export or serve the model as an embedding model, and in float32 if half "
                "precision overflows."
            )
    return embeddings


def _row(text: ProbeText, one: Embedding, minimum_cosine: float) -> Row:
    ids_equal = None if one.ids is None else tuple(one.ids) == text.ids
    if one.vector is None:
        return Row(text.name, text.role, None, None, None, ids_equal, None, one.refusal)
    cosine = difference = None
    if one.vector.shape == text.vector.shape:
        cosine, difference = float(cosines(text.vector, one.vector)), float(np.abs(text.vector - one.vector).max())
    norm = float(np.linalg.norm(one.vector))
    same = is_same(text.vector, one.vector, minimum_cosine) and abs(norm - 1) <= NORM_TOLERANCE
    return Row(text.name, text.role, cosine, difference, norm, ids_equal, same, "")


class _Pair(NamedTuple):
    """A text that a runtime embedded, and what it returned."""

    text: ProbeText
    ids: tuple[int, ...] | None
    vector: NDArray[np.float32]
    same: bool
    """Whether the vector points where the probe's does."""


def _pairs(texts: Sequence[ProbeText], embeddings: Sequence[Embedding], minimum_cosine: float) -> list[_Pair]:
    return [
        _Pair(
            text,
            None if one.ids is None else tuple(one.ids),
            one.vector,
            is_same(text.vector, one.vector, minimum_cosine),
        )
        for text, one in zip(texts, embeddings, strict=True)
        if one.vector is not None
    ]


def _explanation(trap: str, addition: str = "", seen: Sequence[str] = ()) -> Explanation:
    texts = f"Seen in: {', '.join(seen)}." if seen else ""
    return Explanation(trap, " ".join(filter(None, (TRAPS[trap].message, TRAPS[trap].fix, texts, addition))))


def _explain(
    probe: Probe, batch: list[_Pair], alone: list[_Pair], minimum_cosine: float, weights: str | Path | None
) -> list[Explanation]:
    """Explain a difference in texts that were embedded as one batch, and each alone."""
    sizes = {len(one.vector) for one in batch}
    if sizes != {probe.dimension}:
        read = f"They have {' or '.join(map(str, sorted(sizes)))} numbers, and the model's {probe.dimension}."
        cut = all(is_same(one.text.vector[: min(sizes)], one.vector, minimum_cosine) for one in batch)
        return [_explanation("dimension" if cut else "weights", read)]
    found = []
    norms = [float(np.linalg.norm(one.vector)) for one in batch]
    if any(abs(norm - 1) > NORM_TOLERANCE for norm in norms):
        found.append(_explanation("not normalised", f"Their norms are {min(norms):.4g} to {max(norms):.4g}."))
    if all(one.same for one in batch):
        return found
    reference = None if weights is None else _Reference.load(weights, probe)
    singles = {one.text.name: one.vector for one in alone}
    nearer = min(minimum_cosine, ROUNDED_COSINE)
    both = [one for one in batch if one.text.name in singles]
    moved = [one.text.name for one in both if not is_same(singles[one.text.name], one.vector, nearer)]
    if moved:
        name = None if reference is None else reference.padding_trap(batch, minimum_cosine)
        found.append(_explanation(name or "padding", seen=moved))
    if all(one.same for one in alone):
        return found if moved else [*found, _explanation("precision")]
    recomputed = [] if reference is None else reference.mistakes(alone, minimum_cosine)
    return [*found, *(recomputed or _explain_texts(probe, alone, minimum_cosine, weights_known=reference is not None))]


def _explain_texts(
    probe: Probe, pairs: list[_Pair], minimum_cosine: float, *, weights_known: bool
) -> list[Explanation]:
    """Explain texts whose vectors differ although each was embedded alone, by their ids, or else by vectors."""
    differ = [one for one in pairs if not one.same]
    found: dict[str, list[str]] = {}
    for one in differ:
        if one.ids is not None and one.ids != one.text.ids:
            found.setdefault(_id_trap(probe, one.text, one.ids), []).append(one.text.name)
    if "missing EOS" in found:
        found["missing EOS"] += found.pop("EOS cut off", [])
    if not found:
        whole = [one.text for one in differ if one.text.role == "document" and not _is_cut(probe, one.text)]
        rounded = all(is_same(one.text.vector, one.vector, ROUNDED_COSINE) for one in differ)
        if rounded and any(text.whole == text.whole.strip() for text in whole):
            return [_explanation("precision")]
        if len(differ) == len(pairs):
            unknown = "ends, pooling or weights" if all(one.ids is None for one in differ) else "pooling or weights"
            return [_explanation("weights" if weights_known else unknown)]
        for one in differ:
            found.setdefault(_vector_trap(probe, one, minimum_cosine), []).append(one.text.name)
    return [_explanation(trap, seen=texts) for trap, texts in found.items()]


def _id_trap(probe: Probe, text: ProbeText, got: tuple[int, ...]) -> str:
    """Name the trap that turns a text's ids into those that were got."""
    begins, ends = ({one.ids[place] for one in probe.texts} for place in (0, -1))
    begin = begins.pop() if len(begins) == 1 else None
    end = ends.pop() if len(ends) == 1 else None
    expected, is_cut = text.ids, _is_cut(probe, text)
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


def _vector_trap(probe: Probe, pair: _Pair, minimum_cosine: float) -> str:
    """Name the trap of a text that differs while others do not, by what it is and whose vector it has."""
    text = pair.text
    twins = [one for one in probe.texts if one.text == text.text and one.role != text.role]
    if any(is_same(one.vector, pair.vector, minimum_cosine) for one in twins):
        return "prompt missing" if text.role == "query" else "prompt on documents"
    if _is_cut(probe, text):
        return "max length"
    if text.whole != text.whole.strip():
        return "whitespace"
    return "prompt" if text.role == "query" else "tokenizer"


def _is_cut(probe: Probe, text: ProbeText) -> bool:
    return len(text.ids) == probe.max_seq_length


class _Reference:
    """The model itself, stock and in float32, to be used wrongly on purpose."""

    def __init__(self, model: SentenceTransformer, probe: Probe, limit: int) -> None:
        self._decoder = cast(Any, model[0]).model.eval()
        self._tokenizer = cast("PreTrainedTokenizerBase", model.tokenizer)
        self._probe = probe
        self._limit = limit
        self._hidden: dict[tuple[int, ...], Tensor] = {}

    @classmethod
    def load(cls, weights: str | Path, probe: Probe) -> Self | None:
        """Load a model; None if it is more than a transformer, last-token pooling and normalisation."""
        from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

        if probe.max_seq_length is None:
            return None
        model = load_stock(weights)
        kinds = [type(module) for module in model]
        if kinds[:2] != [Transformer, Pooling] or not set(kinds[2:]) <= {Normalize}:
            return None
        reads_last_token = cast(Pooling, model[1]).pooling_mode == "lasttoken"
        return cls(model, probe, probe.max_seq_length) if reads_last_token else None

    def mistakes(self, alone: list[_Pair], minimum_cosine: float) -> list[Explanation]:
        """Find the mistakes that give the vectors of all texts, each embedded alone; as few as explain them."""
        shortest_first = sorted(alone, key=lambda one: len(one.text.ids))
        poolings: dict[str, Callable[[Tensor], Tensor]] = {
            "": lambda hidden: hidden[-1],
            "mean pooling": lambda hidden: hidden.mean(dim=0),
            "first-token pooling": lambda hidden: hidden[0],
        }
        for pooling, pool in poolings.items():
            for trap, addition, to_ids in self._ways_to_ids():

                def explains(one: _Pair, pool: Callable = pool, to_ids: ToIds = to_ids) -> bool:
                    ids = tuple(to_ids(one.text))
                    return bool(ids) and is_same(pool(self._states(ids)).numpy(), one.vector, minimum_cosine)

                if all(map(explains, shortest_first)):
                    found = [_explanation(trap, addition)] if trap else []
                    return [*found, _explanation(pooling)] if pooling else found
        return []

    def padding_trap(self, batch: list[_Pair], minimum_cosine: float) -> str | None:
        """Find the mistake in padding that gives the vectors of all texts of a batch."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        rows = [torch.tensor(one.text.ids) for one in batch]
        ones = [torch.ones_like(row) for row in rows]
        lengths = torch.tensor([len(row) for row in rows])
        pad = self._tokenizer.pad_token_id or 0
        right, left = (pad_sequence(rows, True, pad, side) for side in ("right", "left"))
        right_mask, left_mask = (pad_sequence(ones, True, 0, side) for side in ("right", "left"))
        last, every = right.shape[1] - 1, torch.arange(len(rows))
        tried: list[tuple[str, Tensor, Tensor, Any]] = [
            ("right padding", right, right_mask, last),
            ("left padding", left, torch.ones_like(left), last),
            ("left padding read as right", left, left_mask, lengths - 1),
        ]
        for name, ids, mask, place in tried:
            with torch.inference_mode():
                vectors = self._decoder(input_ids=ids, attention_mask=mask).last_hidden_state[every, place].numpy()
            if all(is_same(made, one.vector, minimum_cosine) for one, made in zip(batch, vectors, strict=True)):
                return name
        return None

    def _states(self, ids: tuple[int, ...]) -> Tensor:
        """Return the hidden states of tokens, shape (number of tokens, hidden size)."""
        import torch

        if ids not in self._hidden:
            with torch.inference_mode():
                self._hidden[ids] = self._decoder(input_ids=torch.tensor([ids])).last_hidden_state[0].float()
        return self._hidden[ids]

    def _ids(self, text: str, limit: int | None = None, **options: Any) -> list[int]:
        cut: dict[str, Any] = {"truncation": False} if limit is None else {"truncation": True, "max_length": limit}
        return self._tokenizer(text, verbose=False, **cut, **options)["input_ids"]

    def _ways_to_ids(self) -> Iterator[tuple[str, str, ToIds]]:
        """Yield ways to make tokens of a text: name of the trap, addition to its sentence, the way."""
        limit, prompt = self._limit, self._probe.prompts.get("query", "")
        begins, ends = ({text.ids[place] for text in self._probe.texts} for place in (0, -1))
        yield "", "", lambda text: text.ids
        if len(ends) == 1:
            yield "missing EOS", "", lambda text: self._ids(text.whole)[:-1][:limit]
            yield "EOS cut off", "", lambda text: self._ids(text.whole)[:limit]
            yield "doubled EOS", "", lambda text: [*text.ids[: limit - 1], *ends]
        if len(begins) == 1:
            yield "missing BOS", "", lambda text: text.ids[1:]
            yield "doubled BOS", "", lambda text: [*begins, *text.ids]
            yield "doubled BOS", "", lambda text: [*begins, *self._ids(text.whole, limit - 1)]
        yield "no special tokens", "", lambda text: self._ids(text.whole, limit, add_special_tokens=False)
        yield "whitespace", "", lambda text: self._ids(text.whole.strip(), limit)
        yield "special tokens in texts", "", lambda text: self._ids(text.whole, limit, split_special_tokens=True)
        yield "special tokens in texts", "", lambda text: self._ids(text.whole, limit, split_special_tokens=False)
        yield "prompt missing", "", lambda text: self._ids(text.text, limit)
        yield "prompt doubled", "", lambda text: self._ids(text.prompt + text.whole, limit)
        if prompt:
            yield "prompt missing", "", lambda text: self._ids(text.whole.removeprefix(prompt), limit)
            yield "prompt on documents", "", lambda text: self._prompted(text, prompt, "document")
            yield "prompt on documents", "Queries have it twice.", lambda text: self._ids(prompt + text.whole, limit)
            yield "prompt doubled", "", lambda text: self._prompted(text, prompt, "query")
        yield "max length", "They are not cut at all.", lambda text: self._ids(text.whole)
        for length in (one for one in LENGTHS if one != limit):
            addition = f"They are cut at {length} tokens, and have to be at {limit}."
            yield "max length", addition, lambda text, length=length: self._ids(text.whole, length)

    def _prompted(self, text: ProbeText, prompt: str, role: Role) -> list[int]:
        return self._ids(prompt + text.whole if text.role == role else text.whole, self._limit)
