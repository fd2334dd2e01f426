"""The base: which models can be one, and its tokenizer made fit for embedding."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

from st_llm_embed.errors import InputError
from st_llm_embed.modules.eos import append_eos
from st_llm_embed.modules.layout import SENTENCEPIECE_FILE, base_path
from st_llm_embed.recipe import EMBEDDED

TOKENIZER_FILES = ("tokenizer.json", SENTENCEPIECE_FILE, "vocab.json")


def load_tokenizer(
    name_or_path: str, *, revision: str | None = None, max_seq_length: int | None = None
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a base model and make it end every text with EOS and able to pad.

    Args:
        name_or_path: Hub id or local folder of the base, or ``embedded``.
        revision: branch, tag or commit of a Hub model.
        max_seq_length: longest text in tokens, checked against what the model has positions for.

    Raises:
        InputError: there is no such model, it is not a decoder, it has no usable tokenizer, or too few positions.
    """
    path = base_path(name_or_path)
    if Path(path).is_dir() and not any((Path(path) / name).is_file() for name in TOKENIZER_FILES):
        raise InputError(
            f"The base model folder {name_or_path} has no tokenizer ({', '.join(TOKENIZER_FILES)}). Copy its files "
            "into it, or name another base."
        )
    try:
        config = AutoConfig.from_pretrained(path, revision=revision)
        tokenizer = cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(path, revision=revision))
    except (OSError, ValueError) as error:
        raise InputError(
            f"The base model {name_or_path!r} cannot be loaded: {str(error).splitlines()[0]} Set base.name_or_path to "
            f"{EMBEDDED!r}, or to the Hub id or local folder of a decoder-only transformers model."
        ) from error
    if not is_decoder_only(config):
        raise InputError(
            f"The base model {name_or_path!r} is of type {config.model_type!r}, which is not a decoder-only language "
            "model. Choose a decoder such as Mistral, Llama, Qwen, Gemma, Phi, GPT-2 or NeoX."
        )
    append_eos(tokenizer)
    if max_seq_length is not None:
        least = tokenizer.num_special_tokens_to_add() + 1
        most = getattr(config.get_text_config(), "max_position_embeddings", None)
        if max_seq_length < least or (most is not None and max_seq_length > most):
            raise InputError(
                f"max_seq_length is {max_seq_length}. Texts for the base model {name_or_path!r} need at least {least} "
                f"tokens, special ones included, and have room for {most or 'any number of'}. Set a number that fits."
            )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = "<pad>" if "<pad>" in tokenizer.get_vocab() else tokenizer.eos_token
    # GradCache cuts padding off the right only; with left padding a token budget no longer bounds memory.
    tokenizer.padding_side = "right"
    return tokenizer


def is_decoder_only(config: PreTrainedConfig) -> bool:
    """Return whether a configuration, or the text part of it, is that of a decoder-only language model."""
    text = config.get_text_config()
    if config.is_encoder_decoder or text.is_encoder_decoder or type(text) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return False
    # BERT and its like can be configured as decoders; GPT-NeoX is one although its is_decoder is False.
    return type(text) not in MODEL_FOR_MASKED_LM_MAPPING or getattr(text, "is_decoder", False)
