"""The model: what turns a decoder-only language model into an embedder."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from st_llm_embed.modules.base import load_tokenizer
    from st_llm_embed.modules.eos import append_eos, check_eos, end_token_id
    from st_llm_embed.modules.layout import base_path
    from st_llm_embed.modules.model import LLMSentenceTransformer
    from st_llm_embed.modules.transformer import DecoderTransformer, LastTokenPooling

__all__ = [
    "DecoderTransformer",
    "LLMSentenceTransformer",
    "LastTokenPooling",
    "append_eos",
    "base_path",
    "check_eos",
    "end_token_id",
    "load_tokenizer",
]

_HOMES = {
    "DecoderTransformer": "transformer",
    "LLMSentenceTransformer": "model",
    "LastTokenPooling": "transformer",
    "append_eos": "eos",
    "base_path": "layout",
    "check_eos": "eos",
    "end_token_id": "eos",
    "load_tokenizer": "base",
}


def __getattr__(name: str) -> Any:
    # Lazy, because doctor reads files by modules.layout, without torch.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
