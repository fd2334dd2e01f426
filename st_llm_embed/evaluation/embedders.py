"""Load the model to evaluate, anybody's, and say whether it takes instructions."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, cast

from transformers import PreTrainedTokenizerBase

from st_llm_embed.errors import InputError, explained
from st_llm_embed.instructions import INSTRUCTION_TEMPLATE
from st_llm_embed.modules.model import LLMSentenceTransformer

INSTRUCTED = re.compile(".+".join(map(re.escape, INSTRUCTION_TEMPLATE.split("{instruction}"))))
"""A saved prompt which shows that a model takes instructions in our template."""


def embedder_loader(
    name_or_path: str, *, revision: str | None = None, max_seq_length: int | None = None, device: str | None = None
) -> Callable[[], LLMSentenceTransformer]:
    """Return what loads a model by Hub id or from a local folder.

    Args:
        name_or_path: Hub id or local folder.
        revision: branch, tag or commit of a Hub model.
        max_seq_length: longest text in tokens, special ones included; None for the model's own.
        device: where it runs; None for the best there is.

    Raises:
        InputError: there is no such folder; when the model is loaded, also if it is not an embedder, is not on the
            Hub, or has no room for texts of this length.
    """
    folder = Path(name_or_path)
    if folder.is_dir() and revision is not None:
        raise InputError(f"{name_or_path} is a local folder, which has no revision {revision!r}. Omit --revision.")
    advice = "Give the folder or the Hub id of a sentence-transformers model, and a device that is there."
    # A typing error in a path must not become a question to the Hub.
    if not folder.is_dir() and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name_or_path):
        raise InputError(f"There is no model folder {name_or_path!r}. {advice}")

    def load() -> LLMSentenceTransformer:
        with explained(f"The model {name_or_path!r} cannot be loaded", advice):
            model = LLMSentenceTransformer(name_or_path, revision=revision, device=device)
        if max_seq_length is not None:
            _shorten(model, max_seq_length)
        return model

    return load


def takes_instructions(model: LLMSentenceTransformer) -> bool:
    """Return whether a model is a decoder with last-token pooling, or is saved with a prompt in our template."""
    return model.reads_last_token or any(INSTRUCTED.fullmatch(prompt or "") for prompt in model.prompts.values())


def saved_prompt(model: LLMSentenceTransformer, side: Literal["query", "document"]) -> str:
    """Return what `encode_query` or `encode_document` puts before a text."""
    names = ("query",) if side == "query" else ("document", "passage", "corpus")
    name = next((one for one in names if one in model.prompts), model.default_prompt_name)
    return model.prompts.get(name or "") or ""


def _shorten(model: LLMSentenceTransformer, max_seq_length: int) -> None:
    tokenizer = model.tokenizer
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise InputError(
            f"--max-seq-length is {max_seq_length}, but this model reads texts by a {type(tokenizer).__name__}, which "
            "cannot cut them. Omit --max-seq-length."
        )
    least = tokenizer.num_special_tokens_to_add() + 1
    most = getattr(cast(Any, model[0]).config.get_text_config(), "max_position_embeddings", None)
    if max_seq_length < least or (most is not None and max_seq_length > most):
        raise InputError(
            f"--max-seq-length is {max_seq_length}. Texts of this model need at least {least} tokens, special ones "
            f"included, and have room for {most or 'any number of'}."
        )
    model.max_seq_length = max_seq_length
