from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoTokenizer, BertConfig, BertModel

from st_llm_embed import LLMSentenceTransformer, Recipe

BERT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
TRAINING = {
    "per_device_train_batch_size": 8,
    "max_steps": 6,
    "save_strategy": "steps",
    "save_steps": 2,
    "logging_steps": 2,
    "learning_rate": 1e-2,
}

MakeRecipe = Callable[..., Recipe]


@pytest.fixture(scope="session")
def teacher(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random decoder as a saved embedder of 32 dimensions."""
    folder = tmp_path_factory.mktemp("teacher")
    LLMSentenceTransformer.from_base(str(tiny_base), max_seq_length=48).save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="session")
def checkpoint(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT of four layers, which are all different."""
    folder = tmp_path_factory.mktemp("bert")
    tokenizer = AutoTokenizer.from_pretrained(str(tiny_base))
    tokenizer.add_special_tokens({"pad_token": "<unk>"})
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(**(BERT | {"num_hidden_layers": 4, "vocab_size": len(tokenizer)}))
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def make_recipe(tiny_recipe: Path, teacher: Path) -> MakeRecipe:
    """Make the tiny recipe with a section distillation, some of whose keys are given."""

    def make(name: str = "tiny", **section: Any) -> Recipe:
        content = yaml.safe_load(tiny_recipe.read_text(encoding="utf-8"))
        content["name"] = name
        content["distillation"] = {
            "teacher": {"name_or_path": str(teacher)},
            "student": {"kind": "encoder", "bert": BERT, "max_seq_length": 48},
            "training": TRAINING,
            **section,
        }
        tiny_recipe.write_text(yaml.safe_dump(content), encoding="utf-8")
        return Recipe.load(str(tiny_recipe))

    return make


@pytest.fixture
def texts_file(tmp_path: Path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("".join(f"a text about thing {number}\n\n" for number in range(24)), encoding="utf-8")
    return path
