"""Export an embedder to ONNX Runtime and llama.cpp; an export is kept only if it has the model's vectors."""

from __future__ import annotations

import gc
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, cast
from unicodedata import category

import torch
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
from transformers import AutoConfig

from st_llm_embed.doctor.probe import EXACT_COSINE, MINIMUM_COSINE, PROBE_FILE, Probe, make_probe, write_probe
from st_llm_embed.doctor.repository import UNLIMITED
from st_llm_embed.doctor.verify import Verification, verify
from st_llm_embed.errors import InputError, explained
from st_llm_embed.export.gguf import write_gguf
from st_llm_embed.export.gguf_tokenizer import CAPITALS
from st_llm_embed.export.onnx import (
    OPSET,
    graph_tokenizer,
    is_static,
    longest_text,
    onnx_graph,
    quantize_onnx,
    save_onnx,
)
from st_llm_embed.export.readme import render
from st_llm_embed.modules.base import is_decoder_only
from st_llm_embed.modules.model import LLMSentenceTransformer

logger = logging.getLogger(__name__)

PACKAGES = {"portable": (), "onnx": ("onnx", "onnxruntime"), "gguf": ("gguf",)}
"""The formats, and what each needs; an extra of the format's name installs it."""

QUANTIZATIONS = {"int8": "onnx", "q8_0": "gguf", "q4_0": "gguf"}
"""Kinds of quantized weights, and the format that has them."""

LEAST_COSINE_OF_FORM = {"portable": MINIMUM_COSINE, "onnx": EXACT_COSINE, "gguf": MINIMUM_COSINE}
"""What an export has to reach to be kept."""


class Exported(NamedTuple):
    """One finished export."""

    format: str
    folder: Path
    verification: Verification | None
    """Of its vectors with the model's; None where the runtime is not installed."""
    quantized: dict[str, float | None]
    """By the kind of quantized weights, the lowest cosine of a text's vector with the model's; None as above."""


def export_model(
    model: str | Path, to: Sequence[str], output_dir: str | Path | None = None, *, quantize: Sequence[str] = ()
) -> list[Exported]:
    """Export an embedder; each format becomes a folder of its name, with its tokenizer, export.json and README.md.

    The model is loaded for each format, and freed before the export is loaded to be compared with it.

    Args:
        model: folder or Hub id of a merged embedder.
        to: any of portable, onnx, gguf.
        output_dir: gets the folders; by default runs/export/ and the model's name.
        quantize: any of int8 (onnx), q8_0 and q4_0 (gguf), written beside the full weights.

    Raises:
        InputError: a name is wrong, a package is missing, a folder exists already, the model cannot be exported, or
            an export has other vectors than the model. Then nothing of that export is left.
    """
    to, name = list(dict.fromkeys(to)), Path(model).name or "model"
    target = Path(output_dir) if output_dir is not None else Path("runs") / "export" / name
    _check_arguments(to, quantize, target)
    exported = []
    for form in to:
        source = load_source(str(model), to)
        probe = make_probe(source)
        target.mkdir(parents=True, exist_ok=True)
        # Renamed when it is whole, so that a stop leaves no half export under the name.
        with TemporaryDirectory(dir=target, prefix=f"{form}-", suffix=".partial") as scratch:
            folder = Path(scratch) / form
            folder.mkdir()
            write_probe(probe, folder / PROBE_FILE)
            if form == "portable":
                source.to(_saved_dtype(str(model))).save_pretrained(str(folder), create_model_card=False)
                settings, full, smaller = {}, folder, {}
            elif form == "onnx":
                settings, graph = _settings(source, name), onnx_graph(source)
                graph_tokenizer(source).save(str(folder / "tokenizer.json"))
            else:
                settings = _settings(source, name)
                full, smaller, differences = _write_ggufs(source, folder / name, _saved_dtype(str(model)), quantize)
                settings["differences"] = differences
                if differences:
                    end = source.tokenizer.eos_token
                    plain = (one for one in probe.texts if not _is_read_otherwise(one.whole, end, differences))
                    probe = replace(probe, texts=tuple(plain))
            del source
            gc.collect()  # A SentenceTransformer and its card refer to each other.
            if form == "onnx":
                full = save_onnx(graph, folder)
                del graph
                smaller = {"int8": quantize_onnx(full)} if "int8" in quantize else {}
            verification = _compare(form, probe, full, str(model))
            # Quantized weights are kept whatever they lose.
            quantized = {
                kind: verify(probe, path, minimum_cosine=0.5).worst_cosine if _runs_here(path) else None
                for kind, path in smaller.items()
            }
            if form != "portable":
                _describe(form, folder, settings | {"file": full.name}, verification, quantized)
            folder.rename(target / form)
        exported.append(Exported(form, target / form, verification, quantized))
    return exported


def _check_arguments(to: Sequence[str], quantize: Sequence[str], target: Path) -> None:
    unknown = [form for form in to if form not in PACKAGES]
    if unknown or not to:
        raise InputError(
            f"{', '.join(unknown) or 'Nothing'} is not a format of exports. Allowed are {', '.join(PACKAGES)}, as in "
            "--to onnx,gguf."
        )
    for kind in quantize:
        if QUANTIZATIONS.get(kind) not in to:
            allowed = ", ".join(f"{kind} ({form})" for kind, form in QUANTIZATIONS.items())
            raise InputError(
                f"--quantize {kind} does not fit --to {','.join(to)}. Allowed are {allowed}, each with its format."
            )
    for form in to:
        missing = [package for package in PACKAGES[form] if find_spec(package) is None]
        if missing:
            raise InputError(
                f"An export to {form} needs {' and '.join(missing)}. Install with: pip install 'st_llm_embed[{form}]'."
            )
        if (target / form).exists():
            raise InputError(f"{target / form} exists already. Remove it, or choose another folder with --output-dir.")


def load_source(model: str, to: Sequence[str] = ()) -> LLMSentenceTransformer:
    """Load an embedder on the CPU in float32.

    Raises:
        InputError: there is none, or it cannot be exported to each of the formats.
    """
    with explained(
        f"{model!r} cannot be loaded",
        "Give the release folder of a run, or the folder or Hub id of another sentence-transformers model.",
    ):
        embedder = LLMSentenceTransformer(model, device="cpu", model_kwargs={"dtype": torch.float32})
    if (problem := _problem(embedder, to)) is not None:
        raise InputError(f"{model!r} {problem}")
    return embedder


def _problem(embedder: LLMSentenceTransformer, to: Sequence[str]) -> str | None:
    """Return why a model cannot be exported, and what to do; None if it can."""
    static, types = is_static(embedder), [type(module) for module in embedder]
    first, *behind = cast(list[Any], list(embedder))
    pooled = isinstance(first, Transformer) and bool(behind) and isinstance(behind[0], Pooling)
    if (
        not (pooled or static)
        or not all(isinstance(module, Dense | Normalize) for module in behind[pooled:])
        or types[-1] is not Normalize
    ):
        return (
            f"consists of {', '.join(one.__name__ for one in types)}. Allowed are a Transformer with a Pooling, or a "
            "StaticEmbedding, with a Normalize at the end. Add a Normalize where there is none, and save it again."
        )
    if pooled and not behind[0].include_prompt and any(embedder.prompts.values()):
        return (
            "omits the prompt when it pools (include_prompt is false), which a graph cannot. Export a model that "
            "pools the prompt with the text, or one without prompts."
        )
    if pooled and longest_text(embedder) > UNLIMITED:
        return "states no longest text. Set model.max_seq_length and save it again."
    if pooled and getattr(first.model, "_hf_peft_config_loaded", False):
        return "is an adapter beside its base. Export the merged model: that is the release folder of a run."
    of_decoders = [form for form in to if form != "onnx"]
    if of_decoders and (reason := _no_last_token(embedder)) is not None:
        return (
            f"{reason}; {', '.join(of_decoders)} needs a decoder whose embedding is the last token's hidden state. "
            "Export it with --to onnx."
        )
    return None


def _no_last_token(embedder: LLMSentenceTransformer) -> str | None:
    """Return what keeps a model's embedding from being a decoder's last hidden state; None if nothing does."""
    first, *behind = cast(list[Any], list(embedder))
    if is_static(embedder):
        return "is a static model"
    if not is_decoder_only(first.model.config):
        return f"is an encoder of type {first.model.config.model_type!r}"
    if behind[0].pooling_mode != "lasttoken":
        return f"pools by {behind[0].pooling_mode}"
    if len(behind) > 2:
        return f"has {', '.join(type(one).__name__ for one in behind[1:-1])} behind its pooling"
    return None if embedder.reads_last_token else "does not end texts in one token that its pooling could read"


def _saved_dtype(model: str) -> torch.dtype:
    return AutoConfig.from_pretrained(model).dtype or torch.float32


def _settings(source: LLMSentenceTransformer, name: str) -> dict[str, Any]:
    """Return what a user of an export has to know about texts."""
    static = is_static(source)
    return {
        "model": name,
        "dimension": source.get_embedding_dimension(),
        "max_seq_length": None if static else longest_text(source),
        "prompts": source.prompts,
        "pad_token_id": 0 if static else source.tokenizer.pad_token_id or 0,
        "split_special_tokens": not static and cast(Any, source[0]).splits_special_tokens,
    }


def _write_ggufs(
    source: LLMSentenceTransformer, stem: Path, dtype: torch.dtype, quantize: Sequence[str]
) -> tuple[Path, dict[str, Path], tuple[str, ...]]:
    """Write the full weights and quantized ones; return their paths, and the texts that llama.cpp reads otherwise."""
    full = "F32" if dtype.itemsize == 4 else "F16"
    smaller = [kind for kind in quantize if QUANTIZATIONS[kind] == "gguf"]
    paths = {kind: stem.with_name(f"{stem.name}-{kind.upper()}.gguf") for kind in (full, *smaller)}
    for kind, path in paths.items():
        differences = write_gguf(source, path, kind.upper(), stem.name)
    if differences:
        logger.warning("llama.cpp tokenizes these texts otherwise than the model: %s.", "; ".join(differences))
    return paths.pop(full), paths, differences


def _is_read_otherwise(text: str, end: str, differences: Sequence[str]) -> bool:
    """Whether a text of the probe is of those that llama.cpp is known to tokenize otherwise."""
    marks = CAPITALS[0] in differences and any(category(letter).startswith("M") for letter in text)
    return text.startswith(" ") or end in text or marks


def _compare(form: str, probe: Probe, path: Path, weights: str) -> Verification | None:
    """Refuse an export whose vectors differ from the model's probe; None where the runtime is not installed."""
    if not _runs_here(path):
        logger.warning("%s was not compared with the model: llama-cpp-python is not installed.", path.name)
        return None
    found = verify(probe, path, minimum_cosine=LEAST_COSINE_OF_FORM[form], weights=weights)
    if not found.same:
        reasons = " ".join(f"{one.trap}: {one.sentence}" for one in found.explanations)
        raise InputError(
            f"The export to {form} has other vectors than the model and was not kept: the lowest cosine is "
            f"{found.worst_cosine}, and {LEAST_COSINE_OF_FORM[form]} is needed. {reasons} Use another format."
        )
    return found


def _runs_here(path: Path) -> bool:
    return path.suffix != ".gguf" or find_spec("llama_cpp") is not None


def _describe(
    form: str,
    folder: Path,
    settings: dict[str, Any],
    verification: Verification | None,
    quantized: dict[str, float | None],
) -> None:
    """Write export.json and README.md."""
    content = settings | {
        "made_with": {one: version(one) for one in ("st_llm_embed", "torch", "transformers", PACKAGES[form][-1])},
        "verification": None if verification is None else verification.to_json(),
        "quantized": quantized,
    }
    if form == "onnx":
        content["opset"] = OPSET
    (folder / "export.json").write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(render(f"export_{form}.md", **settings) + "\n", encoding="utf-8")
