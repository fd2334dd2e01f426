"""Shared fixtures: a tiny random base with a real tokenizer, rows to train on, and the command line."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

# Read at import by huggingface_hub: nothing may ask the network.
os.environ["HF_HUB_OFFLINE"] = "1"
# Read at import by torch: processes that test side by side would take each other's cores.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
import yaml
from hub import Hub
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

from st_llm_embed import cli
from st_llm_embed.recipe import Recipe

INSTRUCTIONS = [f"Given a question about subject {number}, retrieve the answer." for number in range(12)]


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


def example_rows(count: int = 48) -> list[dict[str, str]]:
    """Rows of all shapes: retrieval with negatives, sts, bitext, and pairs without a negative."""
    rows: list[dict[str, str]] = []
    for number in range(count):
        task_type = ("short-long", "sts", "bitext", "short-short")[number % 4]
        row = {
            "anchor": f"question {number} about thing {number % 7}",
            "positive": f"answer {number} about thing {number % 7}",
            "instruction": INSTRUCTIONS[number // 4 % 12],
            "task_type": task_type,
            "language": "en",
        }
        if task_type != "short-short":
            row["negative"] = f"question {number} about another thing"
        if task_type == "bitext":
            row["target_language"] = "de"
        rows.append(row)
    return rows


def write_rows(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files whose tests take longest, so that two workers end together."""
    items.sort(key=lambda item: "integration" not in item.nodeid.split("/"))


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Mistral of two layers with a byte-level BPE tokenizer that puts <s> before a text, as a folder."""
    folder = tmp_path_factory.mktemp("tiny-mistral")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([row["positive"] for row in example_rows()] + INSTRUCTIONS, trainer)
    from tokenizers.processors import TemplateProcessing

    tokenizer.post_processor = TemplateProcessing("<s> $A", "<s> $A <s> $B", [("<s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=len(fast),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=True,
    )
    MistralForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def rows_path(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", example_rows())


@pytest.fixture
def tiny_recipe(tmp_path: Path, tiny_base: Path) -> Path:
    """The demo recipe on the tiny base and the example rows: seconds instead of minutes."""
    return write_tiny_recipe(tmp_path, tiny_base)


@pytest.fixture(scope="session")
def tiny_run_recipe(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Callable[..., Recipe]:
    """Return the tiny recipe with overrides, for runs that several tests share."""
    path = write_tiny_recipe(tmp_path_factory.mktemp("tiny-recipe"), tiny_base)
    return lambda *overrides: Recipe.load(str(path), overrides)


def write_tiny_recipe(folder: Path, base: Path) -> Path:
    content = Recipe.load("demo").model_dump(mode="json")
    content["name"] = "tiny"
    content["base"] |= {"name_or_path": str(base), "max_seq_length": 48}
    rows = write_rows(folder / "rows.jsonl", example_rows())
    content["data"] |= {"rows": str(rows), "validation_fraction": 0.4}
    content["training"] |= {
        "per_device_train_batch_size": 8,
        "max_steps": 6,
        "save_steps": 2,
        "logging_steps": 1,
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A local Hub with nothing in it."""
    with Hub(tmp_path_factory.mktemp("hub")) as hub:
        yield hub


@pytest.fixture
def run_cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """Call the command line in this process as its console script does."""

    def call(*arguments: str | Path) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["st-llm-embed", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main()
        captured = capsys.readouterr()
        code = stop.value.code
        return Outcome(code if isinstance(code, int) else int(bool(code)), captured.out, captured.err)

    return call
