"""The embedder that exports are made of, and what has to hold before one is made."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, cast

from st_llm_embed.errors import InputError, explained
from st_llm_embed.publishing.cards.saved_model import NO_LIMIT

if TYPE_CHECKING:
    from tokenizers import Tokenizer

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
        InputError: there is none, or it is neither a transformer with pooling nor a static model, or its vectors are
            not of unit length, or it is an adapter beside its base.
    """
    import torch

    from st_llm_embed.modules import LLMSentenceTransformer

    with explained(
        f"{model!r} cannot be loaded",
        "Give the release folder of a run, or the folder or Hub id of another sentence-transformers model.",
    ):
        kind = dtype if dtype == "auto" else getattr(torch, dtype)
        loaded = LLMSentenceTransformer(model, device="cpu", model_kwargs={"dtype": kind})
    _check_modules(loaded, model)
    return loaded


def is_static(model: LLMSentenceTransformer) -> bool:
    """Whether a text's vector is the mean of its tokens' vectors."""
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    return isinstance(model[0], StaticEmbedding)


def is_last_token_decoder(model: LLMSentenceTransformer) -> bool:
    """Whether a model is nothing but a decoder whose embedding is the last token's hidden state, normalised."""
    from sentence_transformers.sentence_transformer.modules import Normalize

    from st_llm_embed.modules import DecoderTransformer, LastTokenPooling

    kinds = [type(module) for module in model]
    return model.reads_last_token and kinds == [DecoderTransformer, LastTokenPooling, Normalize]


def transformer_of(model: LLMSentenceTransformer) -> DecoderTransformer:
    """Give the module that tokenizes and computes hidden states."""
    return cast("DecoderTransformer", model[0])


def inner_model(model: LLMSentenceTransformer) -> Any:
    """Give the transformers model inside."""
    return transformer_of(model).model


def longest_text(model: LLMSentenceTransformer) -> int:
    """Give the number of tokens, special ones included, at which texts are cut off."""
    return model.max_seq_length or model.tokenizer.model_max_length


def graph_tokenizer(model: LLMSentenceTransformer) -> Tokenizer:
    """Give a tokenizer that by itself makes the token ids that a model's graph wants; the model's own stays as it is.

    It cuts texts where the model does, and pads none. A static model has no special tokens and cuts nothing.
    """
    from tokenizers import Tokenizer

    own: Any = model.tokenizer
    copy = Tokenizer.from_str((own if isinstance(own, Tokenizer) else own.backend_tokenizer).to_str())
    copy.no_padding()
    if is_static(model):
        copy.no_truncation()
        copy.post_processor = None
    else:
        copy.enable_truncation(longest_text(model))
    return copy


def _check_modules(embedder: LLMSentenceTransformer, name: str) -> None:
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer

    first, *others = embedder
    pooled = isinstance(first, Transformer) and bool(others) and isinstance(others[0], Pooling)
    behind = others[1:] if pooled else others
    if (
        not (pooled or is_static(embedder))
        or not all(isinstance(module, Dense | Normalize) for module in behind)
        or not isinstance([*embedder][-1], Normalize)
    ):
        raise InputError(
            f"{name!r} consists of {', '.join(map(_stock_name, embedder))}. Exported are a Transformer with a "
            "Pooling, or a StaticEmbedding, with a Normalize at the end. Of an asymmetric pair export each model by "
            "itself; add a Normalize to what has none, and save it again."
        )
    if pooled and not others[0].include_prompt and any(embedder.prompts.values()):
        raise InputError(
            f"{name!r} leaves the prompt out when it pools (include_prompt is false), and a graph cannot tell the "
            "prompt from the text. Export a model that pools the prompt with the text, or one without prompts."
        )
    if not is_static(embedder) and longest_text(embedder) > NO_LIMIT:
        raise InputError(
            f"{name!r} states no longest text, so that an export would not know where to cut. Set "
            "model.max_seq_length and save it again."
        )
    if not is_static(embedder) and getattr(inner_model(embedder), "_hf_peft_config_loaded", False):
        raise InputError(
            f"{name!r} is an adapter beside its base, and an export holds one set of weights. Export the merged "
            "model: that is the release folder of a run."
        )


def _stock_name(module: object) -> str:
    """Give the name of a module's class in sentence-transformers, which ours are derived from."""
    return next((one.__name__ for one in type(module).__mro__ if "sentence_transformers" in one.__module__), "")
