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

from st_llm_embed.doctor import merged
from st_llm_embed.doctor.checks.layout import ABSOLUTE
from st_llm_embed.doctor.finding import Check, Diagnosis, Finding, NotCheckedError
from st_llm_embed.doctor.probe import MINIMUM_COSINE, Probe
from st_llm_embed.doctor.repository import Repository
from st_llm_embed.errors import InputError, explained

NOT_LOADED = ["*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.onnx", "*.onnx_data", "*.gguf", "openvino/*"]
"""Pickles, which are never loaded, and formats of other libraries."""
TEXTS = ("", " ", "a", "two words", " edges \n", "Ünïcödé 文字 текст 🎈", "one two three four five six seven " * 4)
SAME = 0.9999
"""Cosine similarity of two vectors that differ by rounding alone."""
CUT_AT = 64
"""Tokens. A text need not fill thousands of tokens to be cut off like one that does."""


class LiveModel:
    """A repository loaded by stock sentence-transformers."""

    def __init__(self, repository: Repository, folder: Path, device: str | None) -> None:
        self.repository = repository
        with explained(f"{repository.name} cannot be loaded by sentence-transformers", "Mend what the message names."):
            self.model = SentenceTransformer(str(folder), device=device, model_kwargs={"use_safetensors": True})
        self.sixteen_bits = next(self.model.parameters()).dtype in (torch.bfloat16, torch.float16)

    @cached_property
    def vectors(self) -> NDArray[np.float32]:
        """The vectors of TEXTS, each encoded alone."""
        return np.concatenate([self.encode([text]) for text in TEXTS])

    def encode(self, texts: list[str], prompt: str = "") -> NDArray[np.float32]:
        """Encode texts in one batch under a prompt; the default prompt is not added."""
        with explained(f"{self.repository.name} cannot encode texts", "Mend what the message names."):
            found = self.model.encode(
                texts, prompt=prompt, batch_size=len(texts), convert_to_tensor=True, show_progress_bar=False
            )
        return found.float().cpu().numpy()

    def probed(self, probe: Probe) -> NDArray[np.float64]:
        """Give the cosine similarities of a probe's texts, encoded in its data type, with its vectors."""
        saved = next(self.model.parameters()).dtype
        # 16-bit weights are the same numbers in float32, and come back as they were.
        self.model.to(getattr(torch, probe.dtype))
        try:
            found = np.concatenate([self.encode([one.text], one.prompt) for one in probe.texts])
        finally:
            self.model.to(saved)
        return _cosines(found, np.stack([one.vector for one in probe.texts]))

    def attended(self, texts: list[str], max_length: int | None = None) -> list[list[int]]:
        """Give the token ids of each text that are not padding."""
        options = {} if max_length is None else {"text": {"max_length": max_length}}
        with warnings.catch_warnings():
            # Where truncation is switched off, which is told as a finding.
            warnings.filterwarnings("ignore", message="`max_length` is ignored")
            batch = self.model.preprocess(texts, processing_kwargs=options)
        mask: Tensor = batch.get("attention_mask", torch.ones_like(batch["input_ids"]))
        return [row[keep.bool()].tolist() for row, keep in zip(batch["input_ids"], mask, strict=True)]


LiveCheck = Callable[[LiveModel, Diagnosis], list[Finding]]


def check_live(repository: Repository, diagnosis: Diagnosis, *, device: str | None) -> None:
    """Make the live checks and add them, and what they find, to a diagnosis.

    A repository that sentence-transformers cannot load is a finding, too.

    Raises:
        InputError: it cannot be downloaded.
    """
    folder = repository.whole_folder(NOT_LOADED)
    try:
        model = LiveModel(repository, folder, device)
    except InputError as error:
        diagnosis.findings.append(_stops(error))
        diagnosis.checks.append(Check("layout", "live checks", live=True, not_checked="it cannot be loaded"))
        return
    for trap, what, check in LIVE_CHECKS:
        reason = None
        try:
            # What the files told already is not told again.
            told = {(finding.trap, finding.file) for finding in diagnosis.findings}
            diagnosis.findings += [one for one in check(model, diagnosis) if (one.trap, one.file) not in told]
        except NotCheckedError as error:
            reason = str(error)
        except InputError as error:
            reason = "encoding stops with an error"
            if _stops(error) not in diagnosis.findings:
                diagnosis.findings.append(_stops(error))
        diagnosis.checks.append(Check(trap, what, live=True, not_checked=reason))


def _stops(error: InputError) -> Finding:
    fix = "Mend what the message names; doctor without weights (--no-live) may tell why."
    return Finding("layout", "error", "modules.json", str(error), fix, ("sentence-transformers 6",))


def _broken(model: LiveModel, diagnosis: Diagnosis) -> list[Finding]:
    del diagnosis
    weights = dict(model.model.named_parameters())
    broken = sorted(name for name, weight in weights.items() if not torch.isfinite(weight).all())
    if broken or not np.isfinite(model.vectors).all():
        what = f"weights ({len(broken)}, such as {broken[0]})" if broken else "vectors"
        return [
            _finding(
                "weights",
                "model.safetensors",
                f"There are {what} that are NaN or infinite.",
                "Take an earlier checkpoint; train with a lower learning rate, in bfloat16 rather than float16.",
            )
        ]
    least = float(np.min(_cosines(model.vectors, np.roll(model.vectors, 1, axis=0))))
    rank = int(np.linalg.matrix_rank(model.vectors.astype(np.float64), tol=1e-3))
    if rank < 3 or least > 0.99999:
        return [
            _finding(
                "weights",
                "model.safetensors",
                f"The vectors of {len(TEXTS)} different texts span {rank} dimension(s): texts are not told apart.",
                "Take an earlier checkpoint, or train with a lower learning rate.",
            )
        ]
    return []


def _eos(model: LiveModel, diagnosis: Diagnosis) -> list[Finding]:
    end = _end(model, diagnosis)
    for text, ids in zip(TEXTS, model.attended(list(TEXTS)), strict=True):
        if not ids or ids[-1] != end:
            last = model.repository.token(ids[-1]) if ids else "nothing"
            return [
                _finding(
                    1,
                    "tokenizer.json",
                    f"sentence-transformers ends the text {text[:20]!r} in {last}, not in "
                    f"{model.repository.token(end)}.",
                    "Let the post-processor of tokenizer.json add EOS.",
                )
            ]
    return []


def _doubled(model: LiveModel, diagnosis: Diagnosis) -> list[Finding]:
    end = _end(model, diagnosis)
    [empty] = model.attended([""])
    [ids] = model.attended(["two words"])
    bare = set(ids[:1] + ids[-1:]) & set(empty)
    twice = [one for one in bare if ids.count(one) > 1 and not (one == end and ids[0] == end and ids.count(end) == 2)]
    if twice:
        return [
            _finding(
                2,
                "tokenizer.json",
                f"sentence-transformers puts {model.repository.token(twice[0])} {ids.count(twice[0])} times around a "
                "text.",
                "Let the template of the post-processor name each special token once.",
            )
        ]
    return []


def _cut(model: LiveModel, diagnosis: Diagnosis) -> list[Finding]:
    end = _end(model, diagnosis)
    longest = min(model.model.max_seq_length or CUT_AT, CUT_AT)
    [ids] = model.attended(["word " * (4 * longest)], longest)
    if ids[-1] != end:
        return [
            _finding(
                3,
                "tokenizer.json",
                f"A text cut off at {longest} tokens ends in {model.repository.token(ids[-1])!r}.",
                "Let the post-processor add EOS; truncation leaves room for what it adds.",
            )
        ]
    if len(ids) > longest:
        return [
            _finding(
                15,
                "sentence_bert_config.json",
                f"A text is read as {len(ids)} tokens where {longest} are allowed: it is not cut off.",
                "Remove truncation from processing_kwargs in sentence_bert_config.json.",
            )
        ]
    return []


def _tokens(model: LiveModel, diagnosis: Diagnosis) -> list[Finding]:
    del diagnosis
    tokenizer = model.repository.tokenizer
    if tokenizer is None:
        raise NotCheckedError("there is no tokenizer.json")
    for text, ids in zip(TEXTS, model.attended(list(TEXTS)), strict=True):
        # A cut text is compared as far as it goes; its end is what other checks look at.
        plain = tokenizer.encode(text).ids
        same = ids == plain or (len(ids) < len(plain) and ids[:-1] == plain[: len(ids) - 1])
        if not same and not model.model[0].do_lower_case:
            return [
                _finding(
                    14,
                    "sentence_bert_config.json",
                    f"sentence-transformers reads {text!r} as {len(ids)} tokens other than those of tokenizer.json "
                    f"({len(plain)}), which servers read.",
                    "Remove modality_config and processing_kwargs from sentence_bert_config.json.",
                )
            ]
    return []


def _padding(model: LiveModel, diagnosis: Diagnosis) -> list[Finding]:
    del diagnosis
    tokenizer = model.model.tokenizer
    saved = tokenizer.padding_side
    worst = {}
    try:
        for side in ("left", "right"):
            tokenizer.padding_side = side
            worst[side] = float(np.min(_cosines(model.encode(list(TEXTS)), model.vectors)))
    finally:
        tokenizer.padding_side = saved
    enough = 0.999 if model.sixteen_bits else SAME
    # Absolute positions are right with padding behind the text alone, and that is the side such a model is saved with.
    heeded = (saved,) if model.repository.config.get("model_type") in ABSOLUTE else tuple(worst)
    wrong = {side: worst[side] for side in heeded if not worst[side] >= enough}
    if not wrong:
        return []
    told = " and ".join(f"{cosine:.4f} with padding on the {side}" for side, cosine in wrong.items())
    return [
        _finding(
            4,
            "tokenizer_config.json",
            f"The vector of a text depends on the texts beside it in the batch (cosine with the text alone: {told}).",
            "Let the tokenizer give an attention mask (model_input_names), and set padding_side to right.",
        )
    ]


def _norms(model: LiveModel, diagnosis: Diagnosis) -> list[Finding]:
    del diagnosis
    size = model.vectors.shape[1]
    given = model.repository.config.get("matryoshka_dimensions") or []
    for length in sorted({size, *(one for one in given if isinstance(one, int) and one <= size)}):
        vectors = model.vectors[:, :length]
        if length < size:
            vectors = torch.nn.functional.normalize(torch.from_numpy(vectors), dim=1).numpy()
        norms = np.linalg.norm(vectors, axis=1)
        if not np.all(np.abs(norms - 1) <= (1e-2 if model.sixteen_bits else 1e-3)):
            return [
                _finding(
                    12,
                    "modules.json",
                    f"At {length} dimensions vectors have lengths from {norms.min():.3f} to {norms.max():.3f}.",
                    "Add sentence_transformers.models.Normalize as the last module.",
                )
            ]
    return []


def _probe(model: LiveModel, diagnosis: Diagnosis) -> list[Finding]:
    probe = model.repository.probe
    if probe is None:
        raise NotCheckedError("there is no probe.json")
    texts = probe.texts
    if probe.dimension != model.vectors.shape[1]:
        raise NotCheckedError("the vectors of probe.json have another number of dimensions")
    cosines = dict(zip((one.name for one in texts), model.probed(probe), strict=True))
    wrong = {name: cosine for name, cosine in cosines.items() if not cosine >= MINIMUM_COSINE}
    # The tokens that changed were told by the static check; here the vectors of the same tokens.
    if not wrong or any(finding.file == "tokenizer.json" for finding in diagnosis.findings):
        return []
    worst = min(wrong, key=lambda name: wrong[name])
    told = (
        f"{len(wrong)} of {len(texts)} vectors of probe.json are not reproduced, worst {worst!r}: {wrong[worst]:.5f}"
    )
    if model.sixteen_bits and wrong[worst] > 0.99:
        return [
            _finding(
                9,
                "model.safetensors",
                f"{told}; the weights are 16 bits, and rounded more often than once.",
                "Merge in float32 and cast once at the end.",
            )
        ]
    if (mode := _pooling_that_fits(model, probe)) is not None:
        return [
            _finding(
                5,
                "1_Pooling/config.json",
                f"{told}; with {mode} pooling all are.",
                f"Set the pooling to {mode}: all booleans pooling_mode_*, that one true.",
            )
        ]
    return [
        _finding(
            "weights",
            "model.safetensors",
            f"{told}, with the same tokens: weights, pooling or normalisation are others than when it was published.",
            "Upload the weights that probe.json was made with, or make probe.json anew.",
        )
    ]


def _pooling_that_fits(model: LiveModel, probe: Probe) -> str | None:
    """Find another pooling that reproduces a probe's vectors."""
    pooling = next((module for module in model.model if isinstance(module, Pooling)), None)
    if pooling is None:
        return None
    saved = pooling.pooling_mode
    try:
        for mode in ("lasttoken", "mean", "cls"):
            pooling.pooling_mode = mode
            if np.min(model.probed(probe)) >= MINIMUM_COSINE:
                return mode
    finally:
        pooling.pooling_mode = saved
    return None


def _adapter(model: LiveModel, diagnosis: Diagnosis) -> list[Finding]:
    del diagnosis
    if not model.repository.adapter:
        raise NotCheckedError("the repository is a whole model, no adapter")
    decoder = cast(Transformer, model.model[0]).model
    if not isinstance(decoder, PeftAdapterMixin):
        raise NotCheckedError("the decoder holds no adapter that could be switched off")
    decoder.disable_adapters()
    try:
        base = np.concatenate([model.encode([text]) for text in TEXTS])
    finally:
        decoder.enable_adapters()
    if float(np.min(_cosines(base, model.vectors))) > 0.99999:
        return [
            _finding(
                7,
                "adapter_model.safetensors",
                "With and without the adapter the vectors are the same: it is not applied.",
                "Save the adapter anew from the trained model with save_pretrained, or publish the merged model.",
            )
        ]
    return []


def _merged(model: LiveModel, diagnosis: Diagnosis) -> list[Finding]:
    del diagnosis
    return merged.check_merge(model.repository)


def _end(model: LiveModel, diagnosis: Diagnosis) -> int:
    """Give the id that every text has to end in."""
    if diagnosis.readings[0].pooling != "lasttoken":
        raise NotCheckedError(f"pooling is {diagnosis.readings[0].pooling}, so that no embedding is read at EOS")
    named = diagnosis.readings[0].ends_with
    tokenizer = model.repository.tokenizer
    end = tokenizer.token_to_id(named) if named and tokenizer is not None else model.model.tokenizer.eos_token_id
    if end is None:
        raise NotCheckedError("the tokenizer has no EOS token")
    return end


def _cosines(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float64]:
    a, b = one.astype(np.float64), other.astype(np.float64)
    return (a * b).sum(axis=1) / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-12)


def _finding(trap: int | str, file: str, message: str, fix: str) -> Finding:
    return Finding(trap, "error", file, message, fix)


LIVE_CHECKS: tuple[tuple[int | str, str, LiveCheck], ...] = (
    ("weights", "weights and vectors are finite and tell texts apart", _broken),
    (1, "texts end in EOS: empty, whitespace, several scripts", _eos),
    (2, "special tokens stand once around a text", _doubled),
    (3, "a text that is cut off ends in EOS", _cut),
    (4, "a text alone and in a batch padded on either side", _padding),
    (7, "vectors differ from those without the adapter", _adapter),
    (9, "the merged weights are those of base and adapter, rounded once", _merged),
    (12, "vectors have length 1 at each Matryoshka dimension", _norms),
    (14, "sentence-transformers has the tokens of tokenizer.json", _tokens),
    (14, "the vectors of probe.json are reproduced", _probe),
)
