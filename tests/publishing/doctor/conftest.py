"""Good repositories of several families, each a folder to copy and to spoil."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, LlamaConfig, Qwen3Config

from st_llm_embed import LLMSentenceTransformer

TEXTS = {
    "empty": "",
    "word": "word",
    "edges": "  edges ",
    "newline": "\ttwo\nlines ",
    "long": "answer about thing " * 40 + "tail",
    "literal": "x </s> y",
    "scripts": "Façade текст 文字 अक्षर 🎈",
    "query": "what is thing 3?",
}
SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL |= {"num_key_value_heads": 2, "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2}
FAMILIES: dict[str, Callable[[int], Any]] = {
    "llama": lambda size: LlamaConfig(vocab_size=size, **SMALL),
    "qwen3": lambda size: Qwen3Config(vocab_size=size, head_dim=8, **SMALL),
    "gpt2": lambda size: GPT2Config(
        vocab_size=size, n_embd=32, n_layer=2, n_head=4, n_positions=512, bos_token_id=1, eos_token_id=2
    ),
}


def write_probe(folder: Path) -> None:
    """Write probe.json of version 1, with the vectors of stock sentence-transformers."""
    model = SentenceTransformer(str(folder), device="cpu")
    texts = []
    for name, text in TEXTS.items():
        prompt = (model.prompts["query"] or "") if name == "query" else ""
        ids = model.preprocess([prompt + text])["input_ids"][0].tolist()
        texts.append(
            {"name": name, "role": "query" if prompt else "document", "text": text, "prompt": prompt, "ids": ids}
            | {"length": len(ids), "vector": [float(number) for number in model.encode(text, prompt=prompt)]}
        )
    probe = {"version": 1, "model": None, "max_seq_length": model.max_seq_length, "dtype": "float32"}
    probe |= {"dimension": model.get_embedding_dimension(), "prompts": model.prompts, "texts": texts}
    (folder / "probe.json").write_text(json.dumps(probe | {"tolerance": {"cosine": 0.9999}}), encoding="utf-8")


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Callable[[str], Path]:
    """Give the folder of a released model by family; each is made once."""
    made: dict[str, Path] = {}

    def release(family: str) -> Path:
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family) / "release"
            base = str(tiny_base)
            if family == "embedded":
                base = family
            elif family != "mistral":
                base = str(tmp_path_factory.mktemp(f"{family}-base"))
                tokenizer = AutoTokenizer.from_pretrained(tiny_base)
                tokenizer.save_pretrained(base)
                torch.manual_seed(0)
                AutoModelForCausalLM.from_config(FAMILIES[family](len(tokenizer))).save_pretrained(base)
            model = LLMSentenceTransformer.from_base(base, max_seq_length=48, device="cpu")
            model.save_pretrained(str(made[family]), create_model_card=False)
            write_probe(made[family])
        return made[family]

    return release


@pytest.fixture
def spoilt(good: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of a good Mistral for a test that spoils it."""
    return shutil.copytree(good("mistral"), tmp_path / "spoilt")
