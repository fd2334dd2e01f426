"""The model: what turns a decoder-only language model into an embedder."""

from st_llm_embed.modules.eos import check_eos
from st_llm_embed.modules.from_base import base_path, from_base, load_tokenizer

__all__ = ["base_path", "check_eos", "from_base", "load_tokenizer"]
