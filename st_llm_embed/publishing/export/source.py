"""The embedder that exports are made of, and what has to hold before one is made."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, cast

from st_llm_embed.errors import InputError, explained

if TYPE_CHECKING:
    from st_llm_embed.modules import DecoderTransformer, LLMSentenceTransformer

EXTRAS = {"onnx": ("onnx", "onnxruntime"), "openvino": ("openvino", "onnx"), "gguf": ("gguf",)}
"""The packages that an export needs, by the name of the extra that installs them."""


def check_installed(extra: str) -> None:
    """Check that the packages of an extra are there.

    Raises:
        InputError: one is not; names the command that installs it.
    """
    missing = [package for package in EXTRAS.get(extra, ()) if find_spec(package) is None]
    if missing:
        raise InputError(
            f"An export to {extra} needs {' and '.join(missing)}, which this environment lacks. Install what it needs "
            f"with: pip install 'st_llm_embed[{extra}]'."
        )


def load_source(model: str, *, dtype: str) -> LLMSentenceTransformer:
    """Load an embedder on the CPU.

    Args:
        model: folder or Hub id of a saved sentence-transformers model.
        dtype: data type of the weights, or `auto` for the one that they are saved in.

    Raises:
        InputError: there is none, or it is not a decoder with last-token pooling and unit length, merged.
    """
    import torch
    from sentence_transformers.sentence_transformer.modules import Normalize

    from st_llm_embed.modules import DecoderTransformer, LastTokenPooling, LLMSentenceTransformer

    with explained(
        f"{model!r} cannot be loaded",
        "Give the release folder of a run, or the folder or Hub id of another sentence-transformers model.",
    ):
        kind = dtype if dtype == "auto" else getattr(torch, dtype)
        loaded = LLMSentenceTransformer(model, device="cpu", model_kwargs={"dtype": kind})
    names = [type(module) for module in loaded]
    if not loaded.reads_last_token or names != [DecoderTransformer, LastTokenPooling, Normalize]:
        raise InputError(
            f"{model!r} consists of {', '.join(name.__name__ for name in names)}. Exported are decoders whose "
            "embedding is the last token's hidden state, normalised: a Transformer, a Pooling with lasttoken, a "
            "Normalize. Save the model so, as LLMSentenceTransformer.from_base makes it, and export that."
        )
    if getattr(decoder_of(loaded), "_hf_peft_config_loaded", False):
        raise InputError(
            f"{model!r} is an adapter beside its base, and an export holds one set of weights. Export the merged "
            "model: that is the release folder of a run."
        )
    return loaded


def transformer_of(model: LLMSentenceTransformer) -> DecoderTransformer:
    """Give the module that tokenizes and computes hidden states."""
    return cast("DecoderTransformer", model[0])


def decoder_of(model: LLMSentenceTransformer) -> Any:
    """Give the transformers model inside."""
    return transformer_of(model).model


def longest_text(model: LLMSentenceTransformer) -> int:
    """Give the number of tokens, special ones included, at which texts are cut off."""
    return model.max_seq_length or model.tokenizer.model_max_length
