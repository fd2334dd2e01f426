"""Live checks: texts encoded by stock sentence-transformers, as those who download the repository do."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from torch import Tensor
from transformers.integrations.peft import PeftAdapterMixin

from st_llm_embed.doctor.probe import (
    CHECK_TEXTS,
    EXACT_COSINE,
    FLOAT32_NORM_TOLERANCE,
    MINIMUM_COSINE,
    NORM_TOLERANCE,
    PROBE_FILE,
    ROUNDED_COSINE,
    SIXTEEN_BIT_COSINE,
    Probe,
    cosines,
)
from st_llm_embed.doctor.repository import ADAPTER_WEIGHTS, SETTINGS_FILE, Repository
from st_llm_embed.doctor.runtimes import cast_in_place
from st_llm_embed.doctor.traps import Check, Diagnosis, Finding, NotCheckedError
from st_llm_embed.errors import InputError, explained

NOT_LOADED = ["*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.onnx", "*.onnx_data", "*.gguf", "openvino/*"]
"""Pickles, which are never loaded, and formats of other libraries."""

SIXTEEN_BITS = (torch.bfloat16, torch.float16)

CUT_AT = 64
"""Tokens. A text need not fill thousands of tokens to be cut like one that does."""

ADVICE = "Fix what the message names."


class LiveModel:
    """A repository loaded by stock sentence-transformers, in the data type on disk."""

    def __init__(self, repository: Repository, folder: Path, device: str | None) -> None:
        self.repository = repository
        with explained(f"{repository.name} cannot be loaded by sentence-transformers", ADVICE):
            self.model = SentenceTransformer(str(folder), device=device, model_kwargs={"use_safetensors": True})
            self.sixteen_bits = next(iter(self.model.parameters())).dtype in SIXTEEN_BITS

    @cached_property
    def vectors(self) -> NDArray[np.float32]:
        """The vectors of CHECK_TEXTS, each encoded alone."""
        return np.concatenate([self.encode([text]) for text in CHECK_TEXTS])

    def encode(self, texts: list[str], prompt: str = "") -> NDArray[np.float32]:
        """Encode texts in one batch under a prompt; the default prompt is not added."""
        with explained(f"{self.repository.name} cannot encode texts", ADVICE):
            found = self.model.encode(
                texts, prompt=prompt, batch_size=len(texts), convert_to_tensor=True, show_progress_bar=False
            )
        return found.float().cpu().numpy()

    def embedded(self, probe: Probe) -> NDArray[np.float32]:
        """Return the vectors of a probe's texts in its data type, in which the model stays."""
        cast_in_place(self.model, getattr(torch, probe.dtype))
        return np.concatenate([self.encode([one.text], one.prompt) for one in probe.texts])

    def probed(self, probe: Probe) -> NDArray[np.float64]:
        """Return the cosine similarities of a probe's texts with its vectors; the model stays in its data type."""
        return cosines(self.embedded(probe), np.stack([one.vector for one in probe.texts]))

    def attended(self, texts: list[str], max_length: int | None = None) -> list[list[int]]:
        """Return the token ids of each text that are not padding."""
        options = {} if max_length is None else {"text": {"max_length": max_length}}
        with warnings.catch_warnings():
            # Where truncation is switched off, which is a finding.
            warnings.filterwarnings("ignore", message="`max_length` is ignored")
            batch = self.model.preprocess(texts, processing_kwargs=options)
        mask: Tensor = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))
        return [row[keep.bool()].tolist() for row, keep in zip(batch["input_ids"], mask, strict=True)]


def check_live(repository: Repository, diagnosis: Diagnosis, *, device: str | None) -> None:
    """Make the live checks and add them, and what they find, to a diagnosis; the model is loaded once.

    Raises:
        InputError: it cannot be downloaded.
    """
    folder = repository.whole_folder(NOT_LOADED)
    try:
        model = LiveModel(repository, folder, device)
    except InputError as error:
        diagnosis.findings.append(_stops(error))
        diagnosis.checks.append(Check("live checks", live=True, not_checked="it cannot be loaded"))
        return
    for what, check in LIVE_CHECKS:
        reason = None
        try:
            with explained(f"In the check that {what}", ADVICE):
                found = check(model)
        except NotCheckedError as error:
            found, reason = [], str(error)
        except InputError as error:
            found, reason = [_stops(error)], "encoding stops with an error"
        # What the files have shown is not said again, nor that the vectors of other tokens differ.
        known = {(finding.trap, finding.file) for finding in diagnosis.findings}
        other_tokens = any(finding.file == "tokenizer.json" for finding in diagnosis.findings)
        diagnosis.findings += [
            one for one in found if (one.trap, one.file) not in known and not (check is _probe and other_tokens)
        ]
        diagnosis.checks.append(Check(what, live=True, not_checked=reason))


def _stops(error: InputError) -> Finding:
    return Finding("not loaded", "modules.json", str(error), ("sentence-transformers 6",))


def _broken(model: LiveModel) -> list[Finding]:
    weights = dict(model.model.named_parameters())
    broken = sorted(name for name, weight in weights.items() if not torch.isfinite(weight).all())
    if broken or not np.isfinite(model.vectors).all():
        detail = f"{len(broken)} tensors hold some, such as {broken[0]}." if broken else "The vectors hold some."
        return [Finding("not finite", "model.safetensors", detail)]
    least = float(np.min(cosines(model.vectors, np.roll(model.vectors, 1, axis=0))))
    rank = int(np.linalg.matrix_rank(model.vectors.astype(np.float64), tol=1e-3))
    if rank < 3 or least > EXACT_COSINE:
        detail = f"The vectors of {len(CHECK_TEXTS)} texts span {rank} dimension(s)."
        return [Finding("collapsed", "model.safetensors", detail)]
    return []


def _tokens(model: LiveModel) -> list[Finding]:
    """Compare the tokens with those of tokenizer.json, of which the static checks know what is wrong."""
    tokenizer = model.repository.tokenizer
    if tokenizer is None:
        raise NotCheckedError("there is no tokenizer.json")
    longest = min(model.model.max_seq_length or CUT_AT, CUT_AT)
    [cut] = model.attended(["word " * (4 * longest)], longest)
    if len(cut) > longest:
        detail = f"A text is read as {len(cut)} tokens where {longest} are allowed: processing_kwargs is in the way."
        return [Finding("max length", SETTINGS_FILE, detail)]
    for text, ids in zip(CHECK_TEXTS, model.attended(list(CHECK_TEXTS)), strict=True):
        # A cut text is compared as far as it goes; its end is what other checks look at.
        plain = tokenizer.encode(text).ids
        same = ids == plain or (len(ids) < len(plain) and ids[:-1] == plain[: len(ids) - 1])
        if not same:
            keys = "modality_config, processing_kwargs or do_lower_case"
            detail = f"sentence-transformers reads {text!r} otherwise, by {keys}."
            return [Finding("tokenizer", SETTINGS_FILE, detail)]
    return []


def _padding(model: LiveModel) -> list[Finding]:
    # On the side that the repository states: with positions that are counted from it, the other one is never right.
    worst = float(np.min(cosines(model.encode(list(CHECK_TEXTS)), model.vectors)))
    if worst >= (SIXTEEN_BIT_COSINE if model.sixteen_bits else MINIMUM_COSINE):
        return []
    detail = f"The cosine of the two is {worst:.4f} with padding on the {model.model.tokenizer.padding_side}."
    return [Finding("padding", "tokenizer_config.json", detail)]


def _norms(model: LiveModel) -> list[Finding]:
    size = model.vectors.shape[1]
    stated = model.repository.matryoshka_dimensions or []
    for length in sorted({size, *(one for one in stated if isinstance(one, int) and one <= size)}):
        vectors = model.vectors[:, :length]
        if length < size:
            vectors = torch.nn.functional.normalize(torch.from_numpy(vectors), dim=1).numpy()
        norms = np.linalg.norm(vectors, axis=1)
        if not np.all(np.abs(norms - 1) <= (NORM_TOLERANCE if model.sixteen_bits else FLOAT32_NORM_TOLERANCE)):
            detail = f"At {length} dimensions vectors have lengths from {norms.min():.3f} to {norms.max():.3f}."
            return [Finding("not normalised", "modules.json", detail)]
    return []


def _probe(model: LiveModel) -> list[Finding]:
    probe = model.repository.probe
    if probe is None:
        raise NotCheckedError("there is no probe.json")
    if probe.dimension != model.vectors.shape[1]:
        detail = f"Its vectors have {probe.dimension} numbers, and those of the model {model.vectors.shape[1]}."
        return [Finding("probe", PROBE_FILE, detail)]
    found = dict(zip((one.name for one in probe.texts), model.probed(probe), strict=True))
    wrong = {name: cosine for name, cosine in found.items() if not cosine >= MINIMUM_COSINE}
    if not wrong:
        return []
    worst = min(wrong, key=lambda name: wrong[name])
    detail = f"{len(wrong)} of {len(probe.texts)} are not reproduced, worst {worst!r}: {wrong[worst]:.5f}."
    stored = getattr(torch, model.repository.stored_dtype or "float32")
    if stored in SIXTEEN_BITS and wrong[worst] >= _rounded_again(model, probe, stored):
        return []
    if stored in SIXTEEN_BITS and wrong[worst] > ROUNDED_COSINE:
        return [Finding("precision", "model.safetensors", detail)]
    if (mode := fitting_pooling(model, probe)) is not None:
        file = model.repository.file_of("Pooling")
        return [Finding("pooling", file, f"{detail} With {mode} pooling all are.")]
    return [Finding("weights", "model.safetensors", detail)]


def _rounded_again(model: LiveModel, probe: Probe, stored: torch.dtype) -> float:
    """Return the least cosine that rounding to the data type on disk explains; the weights are as they were after it.

    Each weight is moved by up to half of its last place, as rounding does; four times what is lost of the cosine
    then, twice in length, is still rounding.
    """
    exact = model.embedded(probe)
    half, chance = torch.finfo(stored).eps / 2, torch.Generator()

    def moved(back: bool) -> None:
        chance.manual_seed(0)
        for weight in model.model.parameters():
            factor = 1 + half * (2 * torch.rand(weight.shape, generator=chance).to(weight) - 1)
            weight.data = weight.data / factor if back else weight.data * factor

    moved(back=False)
    least = float(np.min(cosines(model.embedded(probe), exact)))
    moved(back=True)
    return 1 - 4 * (1 - least)


def fitting_pooling(model: LiveModel, probe: Probe) -> str | None:
    """Find the pooling that reproduces a probe's vectors, and leave it in the model."""
    for pooling in (module for module in model.model if isinstance(module, Pooling)):
        for mode in ("lasttoken", "mean", "cls"):
            pooling.pooling_mode = mode
            if np.min(model.probed(probe)) >= MINIMUM_COSINE:
                return mode
    return None


def _adapter(model: LiveModel) -> list[Finding]:
    if not model.repository.adapter:
        raise NotCheckedError("the repository is a whole model, not an adapter")
    decoder = cast(Transformer, model.model[0]).model
    if not isinstance(decoder, PeftAdapterMixin):
        raise NotCheckedError("the decoder holds no adapter that could be switched off")
    decoder.disable_adapters()
    try:
        base = np.concatenate([model.encode([text]) for text in CHECK_TEXTS])
    finally:
        decoder.enable_adapters()
    if float(np.min(cosines(base, model.vectors))) > EXACT_COSINE:
        return [Finding("adapter not applied", ADAPTER_WEIGHTS, "With and without it the vectors are the same.")]
    return []


LIVE_CHECKS: tuple[tuple[str, Callable[[LiveModel], list[Finding]]], ...] = (
    ("weights and vectors are finite and distinguish texts", _broken),
    ("sentence-transformers has the tokens of tokenizer.json, and cuts texts", _tokens),
    ("a text alone and in a padded batch", _padding),
    ("vectors differ from those without the adapter", _adapter),
    ("vectors have length 1 at each Matryoshka dimension", _norms),
    # The last one, because it leaves the model in another data type or pooling.
    ("the vectors of probe.json are reproduced", _probe),
)
