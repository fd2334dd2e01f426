from __future__ import annotations

import inspect
import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_multi_gpu_env
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from transformers import Trainer

from st_llm_embed import InputError, Recipe
from st_llm_embed.data.dataset import write_dataset
from st_llm_embed.data.rows import read_rows
from st_llm_embed.recipe import Instructions
from st_llm_embed.training.adapter import load_adapter, starting_model
from st_llm_embed.training.arguments import training_arguments
from st_llm_embed.training.train import last_complete_checkpoint, train, training_set
from st_llm_embed.training.trainer import EmbedderTrainer, build_trainer

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
    losses = [entry["loss"] for entry in json.loads((tmp_path / "training/log.json").read_text()) if "loss" in entry]
    assert len(losses) == 30
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])


@pytest.mark.parametrize("batches", ["null", "{}", "{mixed: true}"])
def test_a_resumed_training_ends_with_the_same_weights(
    batches: str, tiny_recipe: Path, dataset: Path, tmp_path: Path
) -> None:
    """The earlier checkpoint is what a killed run leaves, a torn later one beside it. It lies in the second epoch."""
    lora = "lora={r: 4, lora_dropout: 0.5, target_modules: all-linear}"
    content = yaml.safe_load(tiny_recipe.read_text(encoding="utf-8"))
    del content["training"]["batch_sampler"]
    content["training"]["per_device_train_batch_size"] = 10
    tiny_recipe.write_text(yaml.safe_dump(content), encoding="utf-8")
    recipe = Recipe.load(str(tiny_recipe), [lora, f"batches={batches}"])
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
    adapter = load_adapter(
        str(tmp_path / "training" / "adapter"), recipe.base.name_or_path, max_seq_length=recipe.base.max_seq_length
    ).encode(TEXTS)
    np.testing.assert_allclose(merged, adapter, atol=1e-6)
    assert np.max(np.abs(merged - starting_model(recipe).encode(TEXTS))) > 0.01


def test_a_batch_holds_one_task_type(dataset: Path) -> None:
    columns = {name: part.column_names for name, part in training_set([dataset]).items()}
    triplet = ["anchor", "positive", "negative", "instruction"]
    pair = ["anchor", "positive", "instruction"]
    assert columns == {"bitext": triplet, "short-long": triplet, "short-short": pair, "sts": triplet}


@pytest.mark.parametrize("instructions", ["natural", "task_type", "none"])
def test_a_batch_is_tokenized_under_what_the_recipe_has_for_instructions(
    instructions: Instructions, tiny_recipe: Path, dataset: Path, tmp_path: Path
) -> None:
    recipe = Recipe.load(str(tiny_recipe), [f"base.instructions={instructions}"])
    model = starting_model(recipe)
    rows = training_set([dataset], instructions=instructions)
    trainer = build_trainer(recipe, model, rows, training_arguments(recipe, tmp_path / "checkpoints"))
    batch = next(iter(trainer.get_train_dataloader()))
    texts = model.tokenizer.batch_decode(batch["anchor_input_ids"], skip_special_tokens=True)
    begins = {
        "natural": ("Instruct: ",),
        "task_type": tuple(f"Instruct: {name}\nQuery: question " for name in rows),
        "none": ("question ",),
    }[instructions]
    assert texts
    assert all(text.lstrip().startswith(begins) for text in texts), texts


def test_upstream_still_calls_the_private_methods_that_the_trainer_overrides() -> None:
    assert list(inspect.signature(SentenceTransformerTrainer._save).parameters) == ["self", "output_dir", "state_dict"]
    assert "self._save(output_dir" in inspect.getsource(SentenceTransformerTrainer.save_model)
    own = {name for name in vars(EmbedderTrainer) if name.startswith("_") and not name.startswith("__")}
    assert own - {"_abc_impl"} == {"_load_best_model", "_save", "_load_from_checkpoint"}

    # With FSDP it is given two arguments, and sentence-transformers takes one.
    assert "self._load_from_checkpoint(resume_from_checkpoint, self.model_wrapped)" in inspect.getsource(
        Trainer._prepare_for_training
    )
    assert list(inspect.signature(SentenceTransformerTrainer._load_from_checkpoint).parameters) == [
        "self",
        "checkpoint_path",
    ]
    # The stock method logs it when the best checkpoint cannot be loaded, and no more.
    source = inspect.getsource(SentenceTransformerTrainer._load_best_model)
    assert "self._load_from_checkpoint(self.state.best_model_checkpoint)" in source
    assert "logger.error" in source
    assert "self._load_best_model()" in inspect.getsource(Trainer._finalize_training)


@pytest.mark.parametrize("key", ["batch_sampler", "multi_dataset_batch_sampler"])
def test_two_things_that_make_the_batches_are_refused(key: str, tmp_path: Path) -> None:
    recipe = Recipe.load("e5-mistral-7b", ["training.use_cpu=true", f"training.{key}=x"])
    with pytest.raises(InputError, match=f"training.{key} and the batches section"):
        training_arguments(recipe, tmp_path)


def test_the_shipped_configurations_are_read_by_accelerate() -> None:
    folder = files("st_llm_embed") / "recipe" / "accelerate"
    fsdp2, zero3 = str(folder / "fsdp2.yaml"), str(folder / "zero3.yaml")
    config = load_config_from_file(zero3)
    assert config.distributed_type == DistributedType.DEEPSPEED
    expected = {"zero_stage": 3, "zero3_init_flag": False, "zero3_save_16bit_model": True}
    assert config.deepspeed_config.items() >= expected.items()

    assert load_config_from_file(fsdp2).distributed_type == DistributedType.FSDP
    arguments = launch_command_parser().parse_args(["--config_file", fsdp2, "-m", "st_llm_embed.cli"])
    environment = prepare_multi_gpu_env(_validate_launch_command(arguments)[0])
    assert environment.items() >= {"FSDP_VERSION": "2", "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"}.items()


@pytest.mark.parametrize("lora", ["null", "{r: 4, target_modules: all-linear}"])
def test_a_trained_model_says_which_dimensions_are_vectors_of_their_own(
    lora: str, tiny_recipe: Path, dataset: Path, tmp_path: Path
) -> None:
    short = ["training.max_steps=3", f"lora={lora}", "training.learning_rate=0.01"]
    first = Recipe.load(str(tiny_recipe), [*short, "loss.matryoshka_dims=[8,32,16]"])
    train(first, [dataset], tmp_path / "first")
    config = json.loads((tmp_path / "first" / "model" / "config.json").read_text(encoding="utf-8"))
    assert config["matryoshka_dimensions"] == [32, 16, 8]
    # A later training that did not care for them must not claim them.
    second = Recipe.load(str(tiny_recipe), [*short, f"base.name_or_path={tmp_path / 'first' / 'model'}"])
    train(second, [dataset], tmp_path / "second")
    assert "matryoshka_dimensions" not in (tmp_path / "second" / "model" / "config.json").read_text(encoding="utf-8")
