from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from st_llm_embed import Recipe
from st_llm_embed.data import read_rows, write_dataset
from st_llm_embed.training import train, training_set, untrained_embedder
from st_llm_embed.training.train import last_complete_checkpoint

TEXTS = ["a question", "Instruct: x\nQuery: y", ""]


@pytest.fixture
def dataset(tmp_path: Path, rows_path: Path) -> Path:
    write_dataset(read_rows(rows_path), tmp_path / "dataset", 0.4)
    return tmp_path / "dataset"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return SentenceTransformer(str(folder), device="cpu").state_dict()


def test_training_lowers_the_loss_and_moves_the_weights(tiny_recipe: Path, dataset: Path, tmp_path: Path) -> None:
    recipe = Recipe.load(str(tiny_recipe), ["training.max_steps=30", "training.learning_rate=0.01"])
    train(recipe, [dataset], tmp_path / "training")
    import json

    losses = [entry["loss"] for entry in json.loads((tmp_path / "training/log.json").read_text()) if "loss" in entry]
    assert len(losses) == 30
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])


def test_a_resumed_training_ends_with_the_same_weights(tiny_recipe: Path, dataset: Path, tmp_path: Path) -> None:
    """The earlier checkpoint is what a killed run leaves, a torn later one beside it."""
    recipe = Recipe.load(str(tiny_recipe), ["lora={r: 4, lora_dropout: 0.5, target_modules: all-linear}"])
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    train(recipe, [dataset], whole)
    checkpoint = whole / "checkpoints" / "checkpoint-4"
    (killed / "checkpoints" / "checkpoint-6").mkdir(parents=True)
    (killed / "checkpoints" / "checkpoint-6" / "trainer_state.json").write_text('{"global_step": 6', encoding="utf-8")
    checkpoint.rename(killed / "checkpoints" / "checkpoint-4")
    assert last_complete_checkpoint(killed / "checkpoints") == killed / "checkpoints" / "checkpoint-4"
    train(recipe, [dataset], killed)
    expected, got = weights(whole / "model"), weights(killed / "model")
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_there_is_no_checkpoint_before_the_first(tmp_path: Path) -> None:
    assert last_complete_checkpoint(tmp_path / "checkpoints") is None


def test_what_is_no_checkpoint_is_passed_over(tmp_path: Path) -> None:
    good, *others = (tmp_path / f"checkpoint-{name}" for name in ("2", "10", "30", "best"))
    for folder, state in zip((good, *others), (b"{}", b"\xff\xfe\x00", b"", b"{}"), strict=True):
        folder.mkdir()
        (folder / "trainer_state.json").write_bytes(state)
    (tmp_path / "checkpoint-40").write_bytes(b"")
    assert last_complete_checkpoint(tmp_path) == good


def test_a_merged_adapter_gives_the_adapters_vectors_and_not_the_bases(
    tiny_recipe: Path, dataset: Path, tmp_path: Path
) -> None:
    recipe = Recipe.load(str(tiny_recipe), ["lora={r: 4, target_modules: all-linear}", "training.learning_rate=0.05"])
    train(recipe, [dataset], tmp_path / "training")
    merged = SentenceTransformer(str(tmp_path / "training" / "model"), device="cpu").encode(TEXTS)
    adapter = SentenceTransformer(str(tmp_path / "training" / "adapter"), device="cpu").encode(TEXTS)
    np.testing.assert_allclose(merged, adapter, atol=1e-6)
    assert np.max(np.abs(merged - untrained_embedder(recipe).encode(TEXTS))) > 0.01


def test_a_batch_holds_one_task_type(dataset: Path) -> None:
    columns = {name: part.column_names for name, part in training_set([dataset]).items()}
    triplet = ["anchor", "positive", "negative"]
    assert columns == {"bitext": triplet, "short-long": triplet, "short-short": triplet[:2], "sts": triplet}
