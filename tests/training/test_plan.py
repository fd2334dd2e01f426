"""The plan of a run against the run's own trainer, batches and losses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import Outcome
from peft import LoraConfig
from transformers import MistralConfig

from st_llm_embed import InputError, Recipe
from st_llm_embed.data import read_rows, write_dataset
from st_llm_embed.training import starting_model, training_arguments, training_set
from st_llm_embed.training.plan import USABLE, negatives_per_anchor, plan_training, plan_trainings
from st_llm_embed.training.trainer import build_trainer

RunCli = Callable[..., Outcome]


def with_own_batches(path: Path) -> Path:
    """The recipe without the stock sampler's name, which the batches section replaces."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    del content["training"]["batch_sampler"]
    path.write_text(yaml.safe_dump(content | {"batches": {}}), encoding="utf-8")
    return path


@pytest.mark.parametrize("own_batches", [False, True])
@pytest.mark.parametrize(
    "overrides",
    [
        ["training.max_steps=-1", "training.num_train_epochs=2"],
        ["training.max_steps=-1", "training.num_train_epochs=1", "training.gradient_accumulation_steps=2"],
        ["training.max_steps=5"],
    ],
)
def test_rows_and_steps_are_those_of_the_trainer(
    overrides: list[str], own_batches: bool, tiny_recipe: Path, tmp_path: Path
) -> None:
    recipe = Recipe.load(str(with_own_batches(tiny_recipe) if own_batches else tiny_recipe), overrides)
    write_dataset(read_rows(Path(recipe.data.rows)), tmp_path / "out" / "dataset", recipe.data.validation_fraction)
    from_rows = plan_training(recipe, tmp_path / "nowhere")
    planned = plan_training(recipe, tmp_path / "out")
    assert planned.configurations == from_rows.configurations
    rows = training_set([tmp_path / "out" / "dataset"])
    assert {part.name: part.rows for part in planned.configurations} == rows.num_rows
    trainer = build_trainer(recipe, starting_model(recipe), rows, training_arguments(recipe, tmp_path / "checkpoints"))
    *_, steps = trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())
    assert planned.steps == steps
    assert planned.warmup_steps == trainer.args.get_warmup_steps(planned.steps)


def test_negatives_are_those_of_the_loss() -> None:
    loss = Recipe.load("demo", ["loss.own_negatives_only=[long-short]"]).loss
    # 2048 rows of anchor, positive and one negative: one's own negative, and two documents of each other row.
    assert negatives_per_anchor(loss, "sts", 2_048, 3) == 1 + 2 * 2_047
    assert negatives_per_anchor(loss, "short-short", 2_048, 2) == 2_047
    assert negatives_per_anchor(loss, "long-short", 2_048, 4) == 2
    both = Recipe.load("demo", ["loss.directions=[query_to_doc, query_to_query, doc_to_query, doc_to_doc]"]).loss
    assert negatives_per_anchor(both, "sts", 4, 3) == 7 + 3 + 3 + 6


def test_devices_share_steps_and_weights(tiny_recipe: Path, tmp_path: Path) -> None:
    overrides = ["loss.mini_batch_num_tokens=256", "training.max_steps=-1", "training.per_device_train_batch_size=4"]
    recipe = Recipe.load(str(with_own_batches(tiny_recipe)), overrides)
    one, two = (plan_training(recipe, tmp_path, devices=devices) for devices in (1, 2))
    sharded = plan_training(recipe, tmp_path, devices=2, sharded=True)
    assert two.steps < one.steps
    assert two.memory.gradients == 2 * one.memory.gradients == 4 * sharded.memory.gradients
    assert two.memory.optimizer == 2 * sharded.memory.optimizer


def test_json_has_the_numbers_and_nothing_is_written(run_cli: RunCli, tiny_recipe: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    outcome = run_cli("plan", tiny_recipe, "--json", "--output-dir", tmp_path / "out", "--device-memory", "1")
    assert outcome.code == 0, outcome.err
    plan = json.loads(outcome.out)
    assert plan["rows"] == sum(part["rows"] for part in plan["configurations"])
    assert plan["tokens"] == pytest.approx(plan["steps"] * plan["tokens_per_step"])
    assert plan["padded_tokens"] >= plan["tokens"]
    assert plan["fits"]
    assert plan["largest_mini_batch"] >= 48
    assert sorted(tmp_path.rglob("*")) == before
    table = run_cli("plan", tiny_recipe, "--output-dir", tmp_path / "out", "--device-memory", "1").out
    assert f"--set loss.mini_batch_num_tokens={plan['largest_mini_batch']}" in table


def with_stages(path: Path, *stages: dict[str, object], **sections: object) -> Path:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    content["loss"]["hardness_strength"] = {}
    path.write_text(yaml.safe_dump(content | sections | {"stages": stages}), encoding="utf-8")
    return path


def test_each_stage_is_planned_with_its_own_rows_loss_and_steps(
    run_cli: RunCli, tiny_recipe: Path, tmp_path: Path
) -> None:
    broad = {
        "name": "broad",
        "configurations": ["short", "sts"],
        "hard_negatives": False,
        "training": {"max_steps": 3},
    }
    path = with_stages(tiny_recipe, broad, {"name": "sharp", "loss": {"mini_batch_num_tokens": 64}})
    outcome = run_cli("plan", path, "--json", "--output-dir", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    first, last = json.loads(outcome.out)
    assert (first["recipe"], first["steps"], first["mini_batch_num_tokens"]) == ("tiny, stage broad", 3, None)
    assert (last["recipe"], last["steps"], last["mini_batch_num_tokens"]) == ("tiny, stage sharp", 6, 64)
    hard_negatives = [
        {part["name"]: part["hard_negatives"] for part in plan["configurations"]} for plan in (first, last)
    ]
    assert hard_negatives == [
        {"short-long": 0, "short-short": 0, "sts": 0},
        {"bitext": 1, "short-long": 1, "short-short": 0, "sts": 1},
    ]
    table = run_cli("plan", path, "--output-dir", tmp_path / "out").out
    assert table.index("tiny, stage broad") < table.index("tiny, stage sharp")


def test_a_stages_rows_that_are_not_known_yet_are_said_to_be_left_out(tiny_recipe: Path, tmp_path: Path) -> None:
    hub = {"path": "org/set", "columns": {"anchor": "a", "positive": "b"}, "instruction": "Find it."}
    data = yaml.safe_load(tiny_recipe.read_text(encoding="utf-8"))["data"] | {
        "sources": {"elsewhere": hub | {"task_type": "short-long", "language": "en", "license": "mit"}}
    }
    stages = ({"name": "known", "configurations": ["sts"]}, {"name": "both", "configurations": ["sts", "elsewhere"]})
    path = with_stages(tiny_recipe, *stages, {"name": "unknown", "configurations": ["elsewhere"]}, data=data)
    known, both, unknown = plan_trainings(Recipe.load(str(path)), tmp_path / "out")
    assert not known.notes
    assert both.rows == known.rows < unknown.rows
    assert [("elsewhere of data.sources" in plan.notes[0]) for plan in (both, unknown)] == [True, True]
    assert "Stage both: no rows of elsewhere are known yet; they are not counted." in both.notes
    assert unknown.notes[1].endswith("they are taken to be bitext, short-long, short-short, sts.")


def test_rows_that_nobody_has_asked_for_are_said_to_be_a_bound(run_cli: RunCli, tmp_path: Path) -> None:
    plan = json.loads(run_cli("plan", "demo", "--json", "--output-dir", tmp_path).out)
    assert plan["rows"] == pytest.approx(1_920 * 0.8, abs=3)
    assert "upper bound" in plan["notes"][0]


@pytest.fixture(scope="module")
def base_of_7b(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """Mistral-7B's configuration and some tokenizer, without weights."""
    folder = tmp_path_factory.mktemp("7b")
    for path in tiny_base.glob("tokenizer*"):
        shutil.copy(path, folder)
    config = MistralConfig(
        vocab_size=32_000,
        hidden_size=4_096,
        intermediate_size=14_336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
    )
    config.save_pretrained(folder)
    return folder


def test_the_largest_mini_batch_of_7b_fits_and_the_next_does_not(base_of_7b: Path, tmp_path: Path) -> None:
    own = [f"base.name_or_path={base_of_7b}", "data.rows=embedded", "data.sources={}", "data.mining=null"]
    own += ["batches=null"]
    found = plan_training(Recipe.load("e5-mistral-7b", own), tmp_path, device_memory=40).largest_mini_batch
    assert found is not None
    for budget, fits in ((found, True), (2 * found, False)):
        recipe = Recipe.load("e5-mistral-7b", [*own, f"loss.mini_batch_num_tokens={budget}"])
        assert (plan_training(recipe, tmp_path).memory.total <= USABLE * 40 * 2**30) == fits
    with pytest.raises(InputError, match=r"14.0 GiB.*alone take 13.*Train an adapter"):
        plan_training(Recipe.load("e5-mistral-7b", own), tmp_path, device_memory=14)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--device-memory", "0"], "--device-memory is 0.0"),
        (["--set", "base.name_or_path=no/such-model"], "no/such-model"),
        (["--set", "training.per_device_train_batch_size=0"], "per_device_train_batch_size"),
        (["--set", "data.rows=nowhere.jsonl"], "nowhere.jsonl"),
        (["--devices", "9", "--set", "training.max_steps=-1"], "fill no batch"),
        (["--device-memory", "0.0001"], "alone take"),
    ],
)
def test_what_cannot_be_planned_is_one_message(
    options: list[str], told: str, run_cli: RunCli, tiny_recipe: Path, tmp_path: Path
) -> None:
    outcome = run_cli("plan", tiny_recipe, "--output-dir", tmp_path / "out", *options)
    assert outcome.code == 2
    assert outcome.err.startswith("Error: ")
    assert told in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1


def test_an_adapter_at_fault_is_named_in_place_of_the_lora_section(
    run_cli: RunCli, tiny_recipe: Path, tiny_base: Path, tmp_path: Path
) -> None:
    adapter = LoraConfig(r=4, target_modules=["nothing"], base_model_name_or_path=str(tiny_base))
    adapter.save_pretrained(str(tmp_path / "adapter"))
    for command in ("plan", "run"):
        outcome = run_cli(command, tiny_recipe, "--set", f"base.adapter={tmp_path / 'adapter'}")
        assert outcome.code == 2
        assert "base.adapter is refused" in outcome.err


@pytest.mark.parametrize(
    ("overrides", "moved"),
    [
        ([], 2 * 7 * 32),
        (["lora=null", "base.pooling_mode=mean"], 32 * 9 + 2),
    ],
)
def test_a_base_of_seven_billion_goes_through_its_first_step_without_weights(
    overrides: list[str], moved: int, tiny_base: Path, tmp_path: Path
) -> None:
    """The shape of Mistral-7B with a small tokenizer; no weight of it is ever there."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_base / name, tmp_path / name)
    MistralConfig(sliding_window=4096, max_position_embeddings=32768).save_pretrained(tmp_path)
    small_data = ["data.rows=embedded", "synthesis=null", "data.sources={}", "data.mining=null"]
    small_data.append("training.per_device_train_batch_size=128")
    recipe = Recipe.load("e5-mistral-7b", [*small_data, f"base.name_or_path={tmp_path}", *overrides])
    plan = plan_training(recipe, tmp_path / "out", devices=8, sharded=True)
    assert plan.decoder.parameters - (plan.decoder.trainable if recipe.lora else 0) == 7_110_660_096
    assert plan.rehearsed == moved
    weights = plan.decoder.parameters * 2
    if recipe.lora is None:
        # Two checkpoints of weights and two states each, the model and the release.
        assert plan.disk == 2 * 3 * weights + 2 * weights
    else:
        assert 2 * weights < plan.disk < 2.1 * weights


def test_a_price_gives_a_cost(run_cli: RunCli, tiny_recipe: Path, tmp_path: Path) -> None:
    planned = run_cli("plan", tiny_recipe, "--output-dir", tmp_path / "out", "--usd-per-hour", "3")
    assert planned.code == 0, planned.err
    assert "USD at 3 for an hour of one device" in planned.out
    assert "disk: checkpoints, model, release" in planned.out
    assert "cost" not in run_cli("plan", tiny_recipe, "--output-dir", tmp_path / "out").out
