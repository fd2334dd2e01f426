"""Tiny random embedders of three families, saved as our users save theirs."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, MistralConfig, Qwen3Config

from st_llm_embed import LLMSentenceTransformer

CONFIGS = {"mistral": MistralConfig, "qwen3": Qwen3Config, "llama": LlamaConfig}


def save_tiny_embedder(family: str, tiny_base: Path, folder: Path) -> Path:
    """Save an embedder of a family with the tokenizer of `tiny_base` into ``<folder>/<family>``."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    torch.manual_seed(1)
    config = CONFIGS[family](
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
    )
    base = folder / f"{family}-base"
    AutoModelForCausalLM.from_config(config).save_pretrained(base)
    tokenizer.save_pretrained(base)
    model = LLMSentenceTransformer.from_base(str(base), max_seq_length=64, device="cpu")
    model.save_pretrained(str(folder / family), create_model_card=False)
    return folder / family
