"""Tiny random bases of every family of decoders, with every family of tokenizers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    GemmaConfig,
    GPT2Config,
    GPTNeoConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from st_llm_embed import LLMSentenceTransformer

SENTENCES = [
    "the quick brown fox",
    "Instruct: find the answer to it\nQuery: ",
    "Ünïcödé façade",
    "文字化け",
    "1234 5678",
]


def byte_level_bpe() -> Tokenizer:
    """As GPT-2, NeoX, Llama 3 and Qwen."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=["<unk>", "<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=80, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return tokenizer


def byte_fallback_bpe() -> Tokenizer:
    """As SentencePiece BPE with byte fallback: Llama 2, Mistral, Gemma."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefghijklmnopqrstuvwxyz"]
    vocabulary = {piece: number for number, piece in enumerate([*pieces, "th", "▁the", "he", "▁t"])}
    merges = [("t", "h"), ("h", "e"), ("▁", "t"), ("▁t", "he")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in ("<unk>", "<s>", "</s>")])
    return tokenizer


TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {
    "byte-level BPE": byte_level_bpe,
    "Unigram": unigram,
    "byte-fallback BPE": byte_fallback_bpe,
}

COMMON = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
HEADS = {"num_key_value_heads": 4}
GEMMA = {"head_dim": 8}

MODELS: dict[str, Callable[[int], PreTrainedConfig]] = {
    "mistral": lambda size: MistralConfig(vocab_size=size, **COMMON),
    "mistral with a window": lambda size: MistralConfig(vocab_size=size, sliding_window=24, **COMMON),
    "llama": lambda size: LlamaConfig(vocab_size=size, **COMMON),
    "qwen2": lambda size: Qwen2Config(vocab_size=size, **COMMON),
    "qwen3": lambda size: Qwen3Config(vocab_size=size, head_dim=8, **COMMON),
    "gemma": lambda size: GemmaConfig(vocab_size=size, **COMMON | GEMMA),
    "gemma2": lambda size: Gemma2Config(vocab_size=size, sliding_window=24, **COMMON | GEMMA),
    "phi": lambda size: PhiConfig(vocab_size=size, **COMMON | HEADS),
    "phi3": lambda size: Phi3Config(vocab_size=size, **COMMON),
    "gpt2": lambda size: GPT2Config(
        vocab_size=size, n_embd=32, n_layer=2, n_head=4, n_positions=256, bos_token_id=1, eos_token_id=2
    ),
    "gpt-neo": lambda size: GPTNeoConfig(
        vocab_size=size,
        hidden_size=32,
        num_layers=2,
        attention_types=[[["global", "local"], 1]],
        num_heads=4,
        window_size=24,
        max_position_embeddings=256,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "bloom": lambda size: BloomConfig(
        vocab_size=size, hidden_size=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2
    ),
    "gpt-neox": lambda size: GPTNeoXConfig(
        vocab_size=size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        bos_token_id=1,
        eos_token_id=2,
    ),
}


ROTARY: dict[str, dict[str, object]] = {
    "default": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 64},
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64},
    "longrope": {"original_max_position_embeddings": 128},
}
"""Ways to scale rotary positions; with longrope they change above 128 tokens."""


def with_rotary(config: PreTrainedConfig, kind: str) -> PreTrainedConfig:
    if kind == "default":
        return config
    rope = config.rope_parameters | {"rope_type": kind} | ROTARY[kind]
    # Of 8 dimensions of a head a quarter is too few to be scaled.
    rope["partial_rotary_factor"] = max(rope.get("partial_rotary_factor", 1.0), 0.5)
    if kind == "longrope":
        pairs = int(8 * rope["partial_rotary_factor"]) // 2
        rope |= {"short_factor": [1.0] * pairs, "long_factor": [2.0 + pair for pair in range(pairs)]}
    config.rope_parameters = rope
    return config


def rotary_types(model: str) -> list[str]:
    """Return the types that a family can have."""
    if getattr(MODELS[model](330), "rope_parameters", None) is None:
        return ["default"]
    return ["default", "longrope"] if model == "phi3" else [*ROTARY]


def save_base(folder: Path, model: str, tokenizer: str, *, bos: bool, rotary: str = "default") -> Path:
    backend = TOKENIZERS[tokenizer]()
    if bos:
        backend.post_processor = processors.TemplateProcessing("<s> $A", "<s> $A <s> $B:1", [("<s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>", model_max_length=256
    )
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = with_rotary(MODELS[model](len(fast)), rotary)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def save_embedder(folder: Path, model: str, *, is_causal: bool = True) -> Path:
    """Save an embedder of a family as our users save theirs."""
    base = save_base(folder / "base", model, "byte-level BPE", bos=True)
    embedder = LLMSentenceTransformer.from_base(str(base), max_seq_length=64, device="cpu")
    embedder[0].config.is_causal = is_causal
    embedder.save_pretrained(str(folder / "model"), create_model_card=False)
    return folder / "model"
