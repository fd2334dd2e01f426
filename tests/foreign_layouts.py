"""Repositories of other people, rebuilt from their published configuration files, with tiny random weights.

What a reader can stumble over is as published: spelling, missing files, special tokens, prompts, module lists. Sizes,
vocabularies and weights are not.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from break_repository import pieces
from families import COMMON, byte_fallback_bpe, byte_level_bpe
from safetensors.torch import save_model
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, processors
from transformers import AutoModel, BertConfig, Gemma3TextConfig, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

SEARCH = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery:"
E5_PROMPTS = {
    "web_search_query": f"{SEARCH} ",
    "sts_query": "Instruct: Retrieve semantically similar text.\nQuery: ",
    "bitext_query": "Instruct: Retrieve parallel sentences.\nQuery: ",
}
LEGACY = "sentence_transformers.models"
NO_LIMIT = 1000000000000000019884624838656
"""What transformers writes where a tokenizer has no limit."""
POOLINGS = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")


def around(tokenizer: Tokenizer, *names: str) -> Any:
    """Return a post-processor that puts these tokens around a text, which is A."""
    single = ["$A" if name == "A" else name for name in names]
    special = [(name, tokenizer.token_to_id(name)) for name in names if name != "A"]
    return processors.TemplateProcessing(single, [*single, "$B:1"], special)


def llama_tokenizer() -> Tokenizer:
    tokenizer = byte_fallback_bpe()
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.post_processor = around(tokenizer, "<s>", "A")
    return tokenizer


def qwen_tokenizer(*ends: str) -> Tokenizer:
    tokenizer = byte_level_bpe()
    tokenizer.normalizer = normalizers.NFC()
    names = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in names])
    if ends:
        template = around(tokenizer, "A", *ends)
        tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return tokenizer


def gemma_tokenizer() -> Tokenizer:
    tokenizer = byte_fallback_bpe()
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in ("<pad>", "<eos>", "<bos>")])
    tokenizer.post_processor = around(tokenizer, "<bos>", "A", "<eos>")
    return tokenizer


class Layout:
    """Writes one repository."""

    def __init__(self, folder: Path, tokenizer: Tokenizer, tokenizer_config: dict[str, Any]) -> None:
        folder.mkdir()
        self.folder = folder
        self.size = tokenizer.get_vocab_size()
        tokenizer.save(str(folder / "tokenizer.json"))
        self.json("tokenizer_config.json", tokenizer_config)

    def json(self, name: str, content: Any) -> None:
        (self.folder / name).parent.mkdir(exist_ok=True)
        (self.folder / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")

    def model(self, config: Any, **published: Any) -> None:
        """Write weights, and config.json in the spelling of transformers 4; None removes a key."""
        torch.manual_seed(0)
        model = AutoModel.from_config(config).to(getattr(torch, str(published.get("torch_dtype", "float32"))))
        save_model(model, str(self.folder / "model.safetensors"), metadata={"format": "pt"})
        content = config.to_dict() | {"architectures": [type(model).__name__], "transformers_version": "4.51.3"}
        rope = content.pop("rope_parameters", None) or {}
        if "rope_theta" in rope:
            content["rope_theta"] = rope["rope_theta"]
        content |= published
        self.json("config.json", {key: value for key, value in content.items() if value is not None})

    def modules(self, pooling: str, size: int = 32, dense: tuple[tuple[int, int], ...] = ()) -> None:
        """Write the modules of sentence-transformers before 6: Transformer, Pooling, Dense layers, Normalize."""
        kinds = ["Transformer", "Pooling", *("Dense" for _ in dense), "Normalize"]
        paths = ["", *(f"{number}_{kind}" for number, kind in enumerate(kinds) if number)]
        entries = [
            {"idx": number, "name": str(number), "path": path, "type": f"{LEGACY}.{kind}"}
            for number, (kind, path) in enumerate(zip(kinds, paths, strict=True))
        ]
        self.json("modules.json", entries)
        flags = {f"pooling_mode_{mode}": mode == pooling for mode in POOLINGS}
        self.json("1_Pooling/config.json", {"word_embedding_dimension": size, **flags, "include_prompt": True})
        for number, (inner, outer) in enumerate(dense, start=2):
            config = {"in_features": inner, "out_features": outer, "bias": False}
            self.json(
                f"{number}_Dense/config.json", config | {"activation_function": "torch.nn.modules.linear.Identity"}
            )
            layer = torch.nn.Module()
            layer.linear = torch.nn.Linear(inner, outer, bias=False)
            save_model(layer, str(self.folder / f"{number}_Dense" / "model.safetensors"))

    def settings(self, length: int) -> None:
        self.json("sentence_bert_config.json", {"max_seq_length": length, "do_lower_case": False})

    def prompts(self, prompts: dict[str, str]) -> None:
        versions = {"sentence_transformers": "2.7.0", "transformers": "4.41.2", "pytorch": "2.3.1"}
        content = {"__version__": versions, "prompts": prompts, "default_prompt_name": None}
        self.json("config_sentence_transformers.json", content | {"similarity_fn_name": "cosine"})


LLAMA_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True, "legacy": True}
QWEN_TOKENS = {"bos_token": None, "pad_token": "<|endoftext|>", "add_prefix_space": False, "unk_token": None}
GEMMA_TOKENS = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}

GEMMA_ROPE = {"rope_theta": 1000000.0, "rope_local_base_freq": 10000.0}


def mistral_embedder(folder: Path) -> Layout:
    """What e5-mistral-7b-instruct and SFR-Embedding-Mistral share."""
    tokens = LLAMA_TOKENS | {"pad_token": "</s>", "tokenizer_class": "LlamaTokenizer", "model_max_length": NO_LIMIT}
    layout = Layout(folder, llama_tokenizer(), tokens | {"add_eos_token": True})
    layout.model(MistralConfig(vocab_size=layout.size, **COMMON), torch_dtype="float16", sliding_window=4096)
    vocabulary = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab()
    pieces(folder / "tokenizer.model", sorted(vocabulary, key=lambda piece: vocabulary[piece]))
    layout.modules("lasttoken")
    layout.settings(256)
    return layout


def e5_mistral(folder: Path) -> None:
    mistral_embedder(folder).prompts(E5_PROMPTS)


def sfr_embedding(folder: Path) -> None:
    mistral_embedder(folder)
    card = "def get_detailed_instruct(task, query):\n    return f'Instruct: {task}\\nQuery: {query}'\n"
    (folder / "README.md").write_text(card, encoding="utf-8")


def qwen3_embedding(folder: Path) -> None:
    """Texts end in <|endoftext|>, and eos_token is <|im_end|>; no sentence_bert_config.json, and a chat template."""
    tokens = QWEN_TOKENS | {"eos_token": "<|im_end|>", "tokenizer_class": "Qwen2Tokenizer", "add_bos_token": False}
    tokens |= {"model_max_length": 1024, "chat_template": "{{ messages[0].content }}<|im_end|>"}
    layout = Layout(folder, qwen_tokenizer("<|endoftext|>"), tokens)
    config = Qwen3Config(vocab_size=layout.size, head_dim=8, **COMMON)
    layout.model(config, architectures=["Qwen3ForCausalLM"], rope_scaling=None, torch_dtype="float32")
    layout.modules("lasttoken")
    layout.prompts({"query": SEARCH, "document": ""})


def gte_qwen2(folder: Path) -> None:
    tokens = QWEN_TOKENS | {"eos_token": "<|endoftext|>", "tokenizer_class": "Qwen2Tokenizer", "add_eos_token": True}
    tokens |= {"auto_map": {"AutoTokenizer": ["tokenization_qwen.Qwen2Tokenizer", None]}, "model_max_length": 256}
    layout = Layout(folder, qwen_tokenizer(), tokens)
    maps = {"AutoModel": "modeling_qwen.Qwen2Model", "AutoModelForCausalLM": "modeling_qwen.Qwen2ForCausalLM"}
    config = Qwen2Config(vocab_size=layout.size, **COMMON)
    layout.model(config, architectures=["Qwen2ForCausalLM"], auto_map=maps, is_causal=False)
    layout.modules("lasttoken")
    layout.settings(256)
    layout.prompts({"query": f"{SEARCH} "})


def gemma_config(size: int, **others: Any) -> Gemma3TextConfig:
    return Gemma3TextConfig(vocab_size=size, head_dim=8, sliding_window=64, **COMMON | others)


def embedding_gemma(folder: Path) -> None:
    tokens = GEMMA_TOKENS | {"add_bos_token": True, "add_eos_token": True, "model_max_length": 256}
    layout = Layout(folder, gemma_tokenizer(), tokens | {"tokenizer_class": "GemmaTokenizer"})
    layout.model(gemma_config(layout.size, use_bidirectional_attention=True), **GEMMA_ROPE)
    layout.modules("mean_tokens", dense=((32, 128), (128, 32)))
    layout.settings(256)
    layout.prompts({"query": "task: search result | query: ", "document": "title: none | text: "})


def nv_embed(folder: Path) -> None:
    """Code of its own, under a model type that transformers does not know."""
    tokens = LLAMA_TOKENS | {"pad_token": "</s>", "tokenizer_class": "LlamaTokenizer", "padding_side": "right"}
    layout = Layout(folder, llama_tokenizer(), tokens | {"add_eos_token": False, "model_max_length": NO_LIMIT})
    maps = {"AutoConfig": "configuration_nvembed.NVEmbedConfig", "AutoModel": "modeling_nvembed.NVEmbedModel"}
    config = MistralConfig(vocab_size=layout.size, **COMMON)
    layout.model(config, architectures=["NVEmbedModel"], auto_map=maps, model_type="nvembed")
    layout.modules("mean_tokens")
    layout.settings(256)


def harrier(folder: Path) -> None:
    """Gemma 3 with last-token pooling, and named prompts as e5-mistral has."""
    tokens = GEMMA_TOKENS | {"add_bos_token": True, "add_eos_token": True, "model_max_length": 256}
    layout = Layout(folder, gemma_tokenizer(), tokens | {"tokenizer_class": "GemmaTokenizer"})
    layout.model(gemma_config(layout.size), **GEMMA_ROPE)
    layout.modules("lasttoken")
    layout.settings(256)
    layout.prompts(E5_PROMPTS)


def mini_lm(folder: Path) -> None:
    layout = Layout(folder, byte_level_bpe(), {"tokenizer_class": "BertTokenizer", "model_max_length": 512})
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    layout.model(BertConfig(vocab_size=layout.size, **sizes))
    layout.modules("mean_tokens")
    layout.settings(256)


def plain_llm(folder: Path) -> None:
    """As Llama 3: a language model with BOS and neither pad token nor modules."""
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"}
    tokenizer = byte_level_bpe()
    tokenizer.post_processor = around(tokenizer, "<s>", "A")
    layout = Layout(folder, tokenizer, tokens | {"model_max_length": 256})
    config = LlamaConfig(vocab_size=layout.size, **COMMON)
    layout.model(config, architectures=["LlamaForCausalLM"])


LAYOUTS: dict[str, Callable[[Path], None]] = {
    "e5-mistral": e5_mistral,
    "SFR-Embedding": sfr_embedding,
    "Qwen3-Embedding": qwen3_embedding,
    "gte-Qwen2": gte_qwen2,
    "EmbeddingGemma": embedding_gemma,
    "NV-Embed": nv_embed,
    "harrier": harrier,
    "MiniLM": mini_lm,
    "a plain LLM": plain_llm,
}
