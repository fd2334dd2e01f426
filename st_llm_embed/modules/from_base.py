"""From a decoder-only language model to an untrained embedder."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import cast

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedTokenizerBase

from st_llm_embed.errors import InputError
from st_llm_embed.instructions import PUBLISHED_PROMPTS
from st_llm_embed.modules.eos import append_eos, check_eos
from st_llm_embed.recipe import EMBEDDED, Dtype

# Text only: without it, a base with a chat template renders every text as a chat message, without BOS and EOS.
TEXT_ONLY = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def base_path(name_or_path: str) -> str:
    """Give what transformers can load: the packaged base for ``embedded``, else the name or path itself."""
    if name_or_path == EMBEDDED:
        return str(files("st_llm_embed") / "modules" / "tiny-mistral-multilingual")
    return name_or_path


def load_tokenizer(name_or_path: str, *, revision: str | None = None) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a base model and make it end every text with EOS and able to pad.

    Raises:
        InputError: there is no such model, or it has no usable tokenizer.
    """
    path = base_path(name_or_path)
    if Path(path).is_dir() and not any((Path(path) / name).is_file() for name in TOKENIZER_FILES):
        raise InputError(
            f"The base model folder {name_or_path} holds no tokenizer ({', '.join(TOKENIZER_FILES)}). "
            "Copy the files of the model's tokenizer into it, or name another base."
        )
    try:
        AutoConfig.from_pretrained(path, revision=revision)
        tokenizer = cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(path, revision=revision))
    except (OSError, ValueError) as error:
        raise InputError(
            f"The base model {name_or_path!r} cannot be loaded: {str(error).splitlines()[0]} Allowed are {EMBEDDED!r} "
            "and the Hub id or local folder of a decoder-only transformers model. Set it with "
            "--set base.name_or_path=..."
        ) from error
    append_eos(tokenizer)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = "<pad>" if "<pad>" in tokenizer.get_vocab() else tokenizer.eos_token
    # GradCache cuts padding off the right only; with left padding a token budget no longer bounds memory.
    tokenizer.padding_side = "right"
    return tokenizer


def from_base(
    name_or_path: str,
    *,
    max_seq_length: int,
    revision: str | None = None,
    random_init: bool = False,
    dtype: Dtype = "float32",
    device: str | None = None,
) -> SentenceTransformer:
    """Build an embedder from a decoder-only base: EOS appended, last-token pooling, unit length.

    Args:
        name_or_path: Hub id or local folder of the base, or ``embedded`` for the one inside the package.
        max_seq_length: longest text in tokens, special tokens included.
        revision: branch, tag or commit of a Hub model.
        random_init: draw fresh weights from torch's current random state instead of the pretrained ones.
        dtype: data type of the weights.
        device: where the model is put; None for the best there is.

    Returns:
        A stock model whose embeddings have shape (number of texts, hidden size) and norm 1.

    Raises:
        InputError: there is no such base, or it cannot be made to end texts with EOS.
    """
    tokenizer = load_tokenizer(name_or_path, revision=revision)
    transformer = Transformer(
        base_path(name_or_path),
        model_kwargs={"dtype": getattr(torch, dtype), "revision": revision},
        config_kwargs={"revision": revision},
        processor_kwargs={"revision": revision},
        modality_config=TEXT_ONLY,
        module_output_name="token_embeddings",
    )
    transformer.processor = tokenizer
    if random_init:
        transformer.model = AutoModel.from_config(transformer.config, dtype=getattr(torch, dtype))
    transformer.max_seq_length = max_seq_length
    transformer.config.pad_token_id = tokenizer.pad_token_id
    pooling = Pooling(transformer.get_embedding_dimension(), pooling_mode="lasttoken")
    model = SentenceTransformer(
        modules=[transformer, pooling, Normalize()], device=device, prompts=dict(PUBLISHED_PROMPTS)
    )
    check_eos(model)
    return model
