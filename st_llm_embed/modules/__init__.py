"""The model: what turns a decoder-only language model into an embedder."""

from st_llm_embed.modules.base import base_path, load_tokenizer
from st_llm_embed.modules.eos import append_eos, check_eos, end_token_id
from st_llm_embed.modules.model import LLMSentenceTransformer
from st_llm_embed.modules.pooling import LastTokenPooling
from st_llm_embed.modules.transformer import DecoderTransformer

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
