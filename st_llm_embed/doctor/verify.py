"""The comparison of a runtime's vectors with a model's probe.

The model and the runtime are never in memory at once.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError

from st_llm_embed.doctor.explain import explain
from st_llm_embed.doctor.mistakes import Explanation, Pair, explanation
from st_llm_embed.doctor.probe import (
    MINIMUM_COSINE,
    NORM_TOLERANCE,
    PROBE_FILE,
    Probe,
    ProbeText,
    Role,
    cosines,
    is_same,
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
from st_llm_embed.errors import InputError, explained


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
    """None where the runtime refused a text that it may refuse: one that is empty, or that is cut."""
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
        """Whether every text has the probe's vector, but for those that a runtime may refuse."""
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
    rows = tuple(_row(model, text, one, minimum_cosine) for text, one in zip(model.texts, together, strict=True))
    refusals = [row.refusal for row in rows if row.refusal]
    if len(refusals) == len(rows):
        raise InputError(f"None of the {len(rows)} texts was embedded. The first was refused with: {refusals[0]}")
    refused = [row.name for row in rows if row.refusal and row.same is False]
    found = [explanation("refused", seen=refused)] if refused else []
    if all(row.same is not False for row in rows if not row.refusal):
        return Verification(rows, minimum_cosine, tuple(found))
    batch = _pairs(model.texts, together, minimum_cosine)
    # Alone no text is padded.
    alone = [pair for one in batch for pair in _pairs([one.text], _embed([one.text], runtime), minimum_cosine)]
    del runtime, against
    found += explain(model, batch, alone, minimum_cosine, weights)
    return Verification(rows, minimum_cosine, tuple(found))


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


def _row(probe: Probe, text: ProbeText, one: Embedding, minimum_cosine: float) -> Row:
    ids_equal = None if one.ids is None else tuple(one.ids) == text.ids
    if one.vector is None:
        may_refuse = probe.is_cut(text) or not text.whole.strip()
        return Row(text.name, text.role, None, None, None, ids_equal, None if may_refuse else False, one.refusal)
    cosine = difference = None
    if one.vector.shape == text.vector.shape:
        cosine, difference = float(cosines(text.vector, one.vector)), float(np.abs(text.vector - one.vector).max())
    norm = float(np.linalg.norm(one.vector))
    same = is_same(text.vector, one.vector, minimum_cosine) and abs(norm - 1) <= NORM_TOLERANCE
    return Row(text.name, text.role, cosine, difference, norm, ids_equal, same, "")


def _pairs(texts: Sequence[ProbeText], embeddings: Sequence[Embedding], minimum_cosine: float) -> list[Pair]:
    return [
        Pair(
            text,
            None if one.ids is None else tuple(one.ids),
            one.vector,
            is_same(text.vector, one.vector, minimum_cosine),
        )
        for text, one in zip(texts, embeddings, strict=True)
        if one.vector is not None
    ]
