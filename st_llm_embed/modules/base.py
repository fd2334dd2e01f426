"""The base: which models can be one, and its tokenizer made fit for embedding."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import cast

from tokenizers import Tokenizer
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

from st_llm_embed.errors import InputError
from st_llm_embed.modules.eos import append_eos, end_token_id
from st_llm_embed.modules.layout import SENTENCEPIECE_FILE, base_path
from st_llm_embed.modules.loading import loading
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
    with loading_base(name_or_path):
        # Left open, transformers asks on the terminal whether a model's own code may run.
        config = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=False)
        tokenizer = cast(
            PreTrainedTokenizerBase,
            AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=False),
        )
        if config.get_text_config() is not config:
            # What a multimodal checkpoint needs besides, such as an image processor.
            AutoProcessor.from_pretrained(path, revision=revision, trust_remote_code=False)
    if not is_decoder_only(config):
        raise InputError(
            f"The base model {name_or_path!r} is of type {config.model_type!r}, which is not a decoder-only language "
            "model. Choose a decoder such as Mistral, Llama, Qwen, Gemma, Phi, GPT-2 or NeoX."
        )
    append_eos(tokenizer)
    if max_seq_length is not None:
        if not isinstance(max_seq_length, int):
            raise InputError(f"max_seq_length is {max_seq_length!r}; it has to be a whole number of tokens.")
        least = tokenizer.num_special_tokens_to_add() + 1
        most = getattr(config.get_text_config(), "max_position_embeddings", None)
        if max_seq_length < least or (most is not None and max_seq_length > most):
            raise InputError(
                f"max_seq_length is {max_seq_length}. Texts for the base model {name_or_path!r} need at least {least} "
                f"tokens, special ones included, and have room for {most or 'any number of'}. Set a number that fits."
            )
    if tokenizer.pad_token is None:
        end = tokenizer.convert_ids_to_tokens(cast(int, end_token_id(tokenizer)))
        tokenizer.pad_token = "<pad>" if "<pad>" in tokenizer.get_vocab() else end
    # GradCache cuts padding off the right only; with left padding a token budget no longer bounds memory.
    tokenizer.padding_side = "right"
    return tokenizer


def loading_base(name_or_path: str) -> AbstractContextManager[None]:
    """Re-raise what goes wrong while a base is loaded as an InputError."""
    return loading(
        f"The base model {name_or_path!r} cannot be loaded",
        name_or_path,
        f"Set base.name_or_path to {EMBEDDED!r}, or to the Hub id or local folder of a decoder-only transformers "
        "model, complete with weights and tokenizer. Of a multimodal one, save the language model and the tokenizer "
        "as a folder of their own.",
    )


def fit_vocabulary(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, name: str) -> None:
    """Check that the model has an embedding for every token; a pad token without one is replaced by the end token.

    Args:
        tokenizer: as `load_tokenizer` returns it, or of a saved embedder.
        config: of the model.
        name: of the model, for the message.

    Raises:
        InputError: other tokens are beyond the model's embeddings.
    """
    embeddings = config.get_text_config().vocab_size
    if len(tokenizer) <= embeddings:
        return
    end, pad = end_token_id(tokenizer), tokenizer.pad_token_id
    if end is not None and pad not in (None, end) and pad >= embeddings and tokenizer.is_fast:
        # Qwen's tokenizer class adds a pad token of its own to a vocabulary that lacks it.
        content = json.loads(tokenizer.backend_tokenizer.to_str())
        content["added_tokens"] = [one for one in content["added_tokens"] if one["id"] != pad]
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(end)
        tokenizer._tokenizer = Tokenizer.from_str(json.dumps(content))
    beyond = sorted((number, token) for token, number in tokenizer.get_vocab().items() if number >= embeddings)
    if beyond:
        number, token = beyond[0]
        raise InputError(
            f"The tokenizer of {name!r} has {len(beyond)} tokens that the model has no embedding for, such as "
            f"{token!r} with the number {number}: there are {embeddings} embeddings, counted from 0. Give a tokenizer "
            "and weights that belong together."
        )


def is_decoder_only(config: PreTrainedConfig) -> bool:
    """Return whether a configuration, or the text part of it, is that of a decoder-only language model."""
    text = config.get_text_config()
    if config.is_encoder_decoder or text.is_encoder_decoder or type(text) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return False
    # BERT and its like can be configured as decoders; GPT-NeoX is one although its is_decoder is False.
    return type(text) not in MODEL_FOR_MASKED_LM_MAPPING or getattr(text, "is_decoder", False)
