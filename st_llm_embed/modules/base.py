"""The base: where it lies, and its tokenizer made fit for embedding."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import cast

from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from st_llm_embed.errors import InputError
from st_llm_embed.modules.eos import append_eos
from st_llm_embed.recipe import EMBEDDED

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
