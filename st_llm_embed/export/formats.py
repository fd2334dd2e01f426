"""An export from beginning to end: checked, written beside its place, compared with the model, then put there."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

from st_llm_embed.doctor.probe import PROBE_FILE, Probe, make_probe, write_probe
from st_llm_embed.doctor.runtimes import (
    Runtime,
    llama_cpp_runtime,
    onnx_runtime,
    openvino_runtime,
    sentence_transformers_runtime,
)
from st_llm_embed.doctor.verify import Verification, verify
from st_llm_embed.errors import InputError
from st_llm_embed.export.gguf import quantized_weights, write_gguf
from st_llm_embed.export.onnx import OPSET, write_onnx
from st_llm_embed.export.openvino import write_openvino
from st_llm_embed.export.quantize import (
    Loss,
    Retrieval,
    Vectors,
    encoder,
    measure_loss,
    quantize_onnx,
    read_retrieval,
)
from st_llm_embed.export.source import (
    check_installed,
    graph_tokenizer,
    is_last_token_decoder,
    is_static,
    load_source,
    longest_text,
    transformer_of,
)
from st_llm_embed.publishing.cards.templates import render

if TYPE_CHECKING:
    from st_llm_embed.modules import LLMSentenceTransformer

logger = logging.getLogger(__name__)

FORMATS = ("portable", "onnx", "openvino", "gguf")

QUANTIZATIONS = {"int8": "onnx", "q8_0": "gguf", "q4_0": "gguf"}
"""Kinds of quantized weights, and the format that has them."""

OF_DECODERS = ("portable", "gguf")
"""Formats of decoders with last-token pooling; the others also have encoders and static models."""

PACKAGES = {"onnx": "onnxruntime", "openvino": "openvino", "gguf": "gguf"}
"""Whose version is written down."""

MINIMUM_COSINE = {"portable": 0.9999, "onnx": 0.99999, "openvino": 0.99999, "gguf": 0.9999}
"""What an export has to reach to be kept."""


class Exported(NamedTuple):
    """One finished export."""

    format: str
    folder: Path
    verification: Verification | None
    """Of its vectors with the model's; None where the runtime is not installed."""
    losses: dict[str, Loss]
    """By the kind of quantized weights."""


class _Request(NamedTuple):
    """What all formats of one call share."""

    model: LLMSentenceTransformer
    probe: Probe
    name: str
    source: str
    quantize: Sequence[str]
    retrieval: Retrieval | None

    def encode(self, texts: Sequence[str]) -> Vectors:
        return self.model.encode(list(texts), show_progress_bar=False)

    def check(self, form: str, runtime: Runtime, probe: Probe | None = None) -> Verification:
        """Verify an export, all of the probe or a part of it."""
        found = verify(probe or self.probe, runtime, minimum_cosine=MINIMUM_COSINE[form], weights=self.source)
        if not found.same:
            reasons = " ".join(f"{one.trap}: {one.sentence}" for one in found.explanations)
            raise InputError(
                f"The export to {form} gives other vectors than the model: the lowest cosine over {len(found.rows)} "
                f"texts is {found.worst_cosine}, and {MINIMUM_COSINE[form]} is needed. {reasons} Nothing was kept of "
                "it. Models of this kind cannot be exported so; use another format."
            )
        return found


def export(
    model: str | Path,
    to: Sequence[str],
    output_dir: str | Path | None = None,
    *,
    quantize: Sequence[str] = (),
    rows: str | Path | None = None,
) -> list[Exported]:
    """Export an embedder; each format becomes a folder of its name, with its tokenizer, export.json and README.md.

    Args:
        model: folder or Hub id of a merged embedder.
        to: any of `FORMATS`.
        output_dir: where the folders come; by default runs/export/ and the model's name.
        quantize: any of `QUANTIZATIONS`, written beside the full weights.
        rows: with `quantize`, a .jsonl file of rows or a dataset folder, on which the loss is measured.

    Returns:
        The exports, in the order of `to`.

    Raises:
        InputError: a name is wrong, a package is missing, a folder exists already, the model is none that can be
            exported, or an export gives other vectors than the model. Then nothing of that export is left.
    """
    to = list(dict.fromkeys(to))
    name = Path(model).name or "model"
    target = Path(output_dir) if output_dir is not None else Path("runs") / "export" / name
    _check_names(to, quantize, rows)
    for one in to:
        check_installed(one)
        if (target / one).exists():
            raise InputError(
                f"{target / one} exists already, and an export overwrites nothing. Remove it, or choose another "
                "folder with --output-dir."
            )
    source = load_source(str(model), dtype="float32")
    refused = [one for one in to if one in OF_DECODERS]
    if refused and not is_last_token_decoder(source):
        raise InputError(
            f"{str(model)!r} is no decoder whose embedding is the last token's hidden state, and {', '.join(refused)} "
            "is for such alone. Models of another kind are exported with --to onnx,openvino."
        )
    instructed = bool(source.prompts.get("query"))
    retrieval = None if rows is None else read_retrieval(Path(rows), instructed=instructed)
    request = _Request(source, make_probe(source), name, str(model), quantize, retrieval)
    exported = []
    for one in to:
        with _put_in_place(target / one) as folder:
            verification, losses = WRITERS[one](request, folder)
        exported.append(Exported(one, target / one, verification, losses))
    return exported


def _check_names(to: Sequence[str], quantize: Sequence[str], rows: object) -> None:
    unknown = [name for name in to if name not in FORMATS]
    if unknown or not to:
        raise InputError(
            f"{', '.join(unknown) or 'Nothing'} is no format of exports. Allowed are {', '.join(FORMATS)}, with "
            "commas between: --to onnx,gguf."
        )
    for kind in quantize:
        if QUANTIZATIONS.get(kind) not in to:
            allowed = ", ".join(f"{kind} ({form})" for kind, form in QUANTIZATIONS.items())
            raise InputError(
                f"--quantize {kind} does not fit --to {','.join(to)}. Allowed are {allowed}, each with its format. "
                "OpenVINO's own quantization needs nncf, which is not used here."
            )
    if bool(quantize) != (rows is not None):
        raise InputError(
            "Quantized weights are written with what they lose in retrieval: give --quantize together with --rows, a "
            ".jsonl file of rows or the dataset folder of a run."
        )


@contextmanager
def _put_in_place(folder: Path) -> Generator[Path]:
    """Give a folder to write into, which gets its name when all of it is there, and vanishes otherwise."""
    unfinished = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _portable(request: _Request, folder: Path) -> tuple[Verification, dict[str, Loss]]:
    load_source(request.source, dtype="auto").save_pretrained(str(folder), create_model_card=False)
    write_probe(request.probe, folder / PROBE_FILE)
    return request.check("portable", sentence_transformers_runtime(folder)), {}


def _onnx(request: _Request, folder: Path) -> tuple[Verification, dict[str, Loss]]:
    settings = _write_texts_side(request, folder)
    write_onnx(request.model, folder)
    runtime = onnx_runtime(folder / "model.onnx")
    verification = request.check("onnx", runtime)
    losses = {}
    if "int8" in request.quantize and request.retrieval is not None:
        quantized = onnx_runtime(quantize_onnx(folder / "model.onnx"))
        losses["int8"] = measure_loss(request.retrieval, encoder(runtime), encoder(quantized))
    _describe(folder, "onnx", settings | {"file": "model.onnx", "opset": OPSET}, verification, losses)
    return verification, losses


def _openvino(request: _Request, folder: Path) -> tuple[Verification, dict[str, Loss]]:
    settings = _write_texts_side(request, folder)
    with TemporaryDirectory(dir=folder) as scratch:
        path = write_openvino(write_onnx(request.model, Path(scratch)), folder)
    verification = request.check("openvino", openvino_runtime(path))
    _describe(folder, "openvino", settings | {"file": path.name}, verification, {})
    return verification, {}


def _gguf(request: _Request, folder: Path) -> tuple[Verification | None, dict[str, Loss]]:
    settings = _settings(request)
    kind = "F32" if _saved_dtype(request.source) == "float32" else "F16"
    path = folder / f"{request.name}-{kind}.gguf"
    differences = write_gguf(request.model, path, kind, request.name)
    for difference in differences:
        logger.warning("llama.cpp tokenizes these texts otherwise than the model: %s.", difference)
    write_probe(request.probe, folder / PROBE_FILE)
    verification = None
    if find_spec("llama_cpp") is None:
        logger.warning("%s was not compared with the model: llama-cpp-python is not installed.", path.name)
    else:
        plain = tuple(text for text in request.probe.texts if not (differences and _is_special(request, text.whole)))
        runtime = llama_cpp_runtime(path, settings["max_seq_length"])
        verification = request.check("gguf", runtime, replace(request.probe, texts=plain))
    losses = {}
    for one in request.quantize:
        if QUANTIZATIONS[one] == "gguf" and request.retrieval is not None:
            write_gguf(request.model, folder / f"{request.name}-{one.upper()}.gguf", one.upper(), request.name)
            losses[one] = measure_loss(request.retrieval, request.encode, partial(_with_weights, request, one))
    _describe(folder, "gguf", settings | {"file": path.name, "differences": differences}, verification, losses)
    return verification, losses


def _is_special(request: _Request, text: str) -> bool:
    """Whether a text is one of those that some tokenizers of llama.cpp cut otherwise, for which it was warned."""
    return text.startswith(" ") or str(request.model.tokenizer.eos_token) in text


def _with_weights(request: _Request, kind: str, texts: Sequence[str]) -> Vectors:
    with quantized_weights(request.model, kind.upper()):
        return request.encode(texts)


WRITERS: dict[str, Callable[[_Request, Path], tuple[Verification | None, dict[str, Loss]]]] = {
    "portable": _portable,
    "onnx": _onnx,
    "openvino": _openvino,
    "gguf": _gguf,
}


def _saved_dtype(source: str) -> str:
    from transformers import AutoConfig

    return str(AutoConfig.from_pretrained(source).dtype).removeprefix("torch.")


def _settings(request: _Request) -> dict[str, Any]:
    """Give what a user of an export has to know about texts."""
    model = request.model
    return {
        "model": request.name,
        "dimension": model.get_embedding_dimension(),
        "max_seq_length": None if is_static(model) else longest_text(model),
        "prompts": model.prompts,
        "pad_token_id": 0 if is_static(model) else model.tokenizer.pad_token_id or 0,
        "split_special_tokens": not is_static(model)
        and bool(transformer_of(model).text_options.get("split_special_tokens", False)),
    }


def _write_texts_side(request: _Request, folder: Path) -> dict[str, Any]:
    """Write tokenizer and probe; give the settings."""
    graph_tokenizer(request.model).save(str(folder / "tokenizer.json"))
    write_probe(request.probe, folder / PROBE_FILE)
    return _settings(request)


def _describe(
    folder: Path, form: str, settings: dict[str, Any], verification: Verification | None, losses: dict[str, Loss]
) -> None:
    """Write export.json and README.md."""
    content = settings | {
        "made_with": {name: version(name) for name in ("st_llm_embed", "torch", "transformers", PACKAGES[form])},
        "verification": None if verification is None else verification.to_json(),
        "quantized": {kind: loss._asdict() for kind, loss in losses.items()},
    }
    (folder / "export.json").write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(render(f"export_{form}.md", **settings) + "\n", encoding="utf-8")
