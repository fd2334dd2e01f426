"""Good repositories of several families, each a folder to copy and to break."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, LlamaConfig, Qwen3Config

from st_llm_embed import LLMSentenceTransformer
from st_llm_embed.doctor.probe import PROBE_FILE, make_probe, write_probe

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL |= {"num_key_value_heads": 2, "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2}
FAMILIES: dict[str, Callable[[int], Any]] = {
    "llama": lambda size: LlamaConfig(vocab_size=size, **SMALL),
    "qwen3": lambda size: Qwen3Config(vocab_size=size, head_dim=8, **SMALL),
    "gpt2": lambda size: GPT2Config(
        vocab_size=size, n_embd=32, n_layer=2, n_head=4, n_positions=512, bos_token_id=1, eos_token_id=2
    ),
}


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Callable[[str], Path]:
    """Return the folder of a released model by family; each is made once."""
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
            model.prompts["SciFact-query"] = "Instruct: Given a claim, find documents\nQuery: "
            model.save_pretrained(str(made[family]), create_model_card=False)
            write_probe(make_probe(SentenceTransformer(str(made[family]), device="cpu")), made[family] / PROBE_FILE)
        return made[family]

    return release


@pytest.fixture
def broken(good: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of a good Mistral for a test that breaks it."""
    return shutil.copytree(good("mistral"), tmp_path / "broken")
