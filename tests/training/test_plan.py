"""The plan of a run against the run's own trainer and batches, and its counts against torch's of a real step."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import Outcome
from families import MODELS
from peft import LoraConfig
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModel, MistralConfig, MixtralConfig, PreTrainedConfig, PreTrainedModel

from st_llm_embed import InputError, LLMSentenceTransformer, Recipe
from st_llm_embed.data.dataset import write_dataset
from st_llm_embed.data.rows import read_rows
from st_llm_embed.training.adapter import starting_model
from st_llm_embed.training.arguments import training_arguments
from st_llm_embed.training.loss import InfoNCELoss, _Batch
from st_llm_embed.training.plan import SCORE_COPIES, USABLE, Plan, embedding_bytes, plan_trainings
from st_llm_embed.training.step import CPU_ATTENTION, peak_bytes, step_flops, step_peak
from st_llm_embed.training.train import training_set
from st_llm_embed.training.trainer import build_trainer

RunCli = Callable[..., Outcome]

VOCABULARY = 2_000

WAYS = [(lora, checkpointing) for lora in (False, True) for checkpointing in (False, True)]


def realistic(family: str) -> PreTrainedConfig:
    """A configuration of the family whose widths relate as those of large models do."""
    small = MODELS[family](VOCABULARY)
    sizes: dict[str, Any] = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 8, "head_dim": 32}
    if getattr(small, "num_key_value_heads", None) is not None:
        sizes["num_key_value_heads"] = 8 if family == "phi" else 2
    if getattr(small, "intermediate_size", None) is not None:
        sizes["intermediate_size"] = 896
    if family == "gpt-neo":
        sizes["attention_types"] = [[["global", "local"], 2]]
    known = {small.attribute_map.get(name, name): value for name, value in sizes.items() if hasattr(small, name)}
    return type(small)(vocab_size=VOCABULARY, pad_token_id=0, bos_token_id=1, eos_token_id=2, **known)


def trained(config: PreTrainedConfig, *, lora: bool, checkpointing: bool) -> PreTrainedModel:
    model = AutoModel.from_config(config)
    if lora:
        # GPT-2 has its matrices the other way round.
        turned = config.model_type == "gpt2"
        model.add_adapter(LoraConfig(r=16, target_modules="all-linear", lora_dropout=0.1, fan_in_fan_out=turned))
    if checkpointing:
        model.activation_checkpointing_enable()
    return model.train()


def on_meta(config: PreTrainedConfig, *, lora: bool, checkpointing: bool) -> PreTrainedModel:
    with torch.device("meta"):
        return trained(config, lora=lora, checkpointing=checkpointing)


def step(model: PreTrainedModel, texts: int, width: int) -> None:
    ids, mask = torch.ones(texts, width, dtype=torch.long), torch.ones(texts, width, dtype=torch.long)
    model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state[:, -1].sum().backward()


def profiled_peak(call: Callable[[], object], folder: Path) -> int:
    """The peak of what torch's CPU allocator has given out during a call, by torch's profiler."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    profile.export_chrome_trace(str(folder / "trace.json"))
    events = json.loads((folder / "trace.json").read_text(encoding="utf-8"))["traceEvents"]
    changes = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]")
    return max(accumulate(change for _, change in changes))


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize(("lora", "checkpointing"), [(False, False), (True, True)])
def test_flops_are_those_of_a_real_step(family: str, lora: bool, checkpointing: bool) -> None:
    model = trained(realistic(family), lora=lora, checkpointing=checkpointing)
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        step(model, 1, 96)
    both = counter.get_total_flops()
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter, torch.no_grad():
        model(input_ids=torch.ones(1, 96, dtype=torch.long), use_cache=False)
    counted = step_flops(on_meta(realistic(family), lora=lora, checkpointing=checkpointing), 96)
    assert counted == (counter.get_total_flops(), both)


def test_flops_are_those_of_the_published_formula() -> None:
    """Kaplan et al. (arXiv 2001.08361), with attention as PaLM (arXiv 2204.02311) and FlashAttention count it."""
    model = on_meta(realistic("mistral"), lora=False, checkpointing=False)
    matrices = sum(module.weight.numel() for module in model.modules() if isinstance(module, torch.nn.Linear))
    attention = 4 * 4 * 256 * 96
    forward, both = step_flops(model, 96)
    assert forward == 96 * (2 * matrices + attention)
    assert both == pytest.approx(96 * (6 * matrices + 3.5 * attention), rel=0.01)


@pytest.mark.parametrize("family", ["mistral", "qwen3", "gemma2", "gpt2", "gpt-neox"])
@pytest.mark.parametrize(("lora", "checkpointing"), WAYS)
def test_activations_are_those_of_a_real_step(family: str, lora: bool, checkpointing: bool, tmp_path: Path) -> None:
    config = realistic(family)
    planned = step_peak(on_meta(config, lora=lora, checkpointing=checkpointing), 8, 96)
    model = trained(config, lora=lora, checkpointing=checkpointing)
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight) if weight.requires_grad else None
    real = profiled_peak(lambda: step(model, 8, 96), tmp_path)
    assert planned == pytest.approx(real, rel=0.12)


@pytest.mark.parametrize(("rows", "dimensions"), [(2_048, 64), (2_048, 1_024), (512, 256)])
def test_the_loss_takes_no_more_than_planned(rows: int, dimensions: int, tiny_base: Path) -> None:
    model = LLMSentenceTransformer.from_base(str(tiny_base), max_seq_length=48, device="cpu")
    loss = InfoNCELoss(model, temperature=0.02, mini_batch_num_tokens=4_096)
    for dtype in (torch.float32, torch.bfloat16):
        vectors = torch.randn(rows * 3, dimensions, dtype=dtype).requires_grad_()
        place, hashes = torch.randperm(rows * 3), torch.randint(0, 10**12, (rows, 3))

        compute = partial(loss.calculate_loss, [[vectors]], _Batch(3, place, hashes), with_backward=True)
        real = vectors.nbytes + peak_bytes(compute, [vectors, place, hashes])
        planned = embedding_bytes(dimensions, 3 * rows, 3 * rows, dtype.itemsize)
        planned += 4 * SCORE_COPIES * 128 * 2 * rows
        assert real <= planned * 1.01
        assert planned < real * 1.35


def test_a_base_whose_code_does_not_run_on_fake_tensors_is_refused() -> None:
    config = MixtralConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    with pytest.raises(InputError, match=r"type 'mixtral' cannot be planned.*Train it without a plan"):
        step_flops(on_meta(config, lora=False, checkpointing=False), 16)


def plan_of(recipe: Recipe, output_dir: Path, **options: Any) -> Plan:
    [plan] = plan_trainings(recipe, output_dir, **options)
    return plan


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
    from_rows = plan_of(recipe, tmp_path / "nowhere")
    planned = plan_of(recipe, tmp_path / "out")
    assert planned.configurations == from_rows.configurations
    rows = training_set([tmp_path / "out" / "dataset"])
    assert planned.configurations == rows.num_rows
    trainer = build_trainer(recipe, starting_model(recipe), rows, training_arguments(recipe, tmp_path / "checkpoints"))
    *_, steps = trainer.set_initial_training_values(trainer.args, trainer.get_train_dataloader())
    assert planned.steps == steps
    assert planned.warmup_steps == trainer.args.get_warmup_steps(planned.steps)


def test_devices_share_steps_and_weights(tiny_recipe: Path, tmp_path: Path) -> None:
    overrides = ["loss.mini_batch_num_tokens=256", "training.max_steps=-1", "training.per_device_train_batch_size=4"]
    recipe = Recipe.load(str(with_own_batches(tiny_recipe)), overrides)
    one, two = (plan_of(recipe, tmp_path, devices=devices) for devices in (1, 2))
    sharded = plan_of(recipe, tmp_path, devices=2, sharded=True)
    assert two.steps < one.steps
    assert two.memory["gradients"] == 2 * one.memory["gradients"] == 4 * sharded.memory["gradients"]
    assert two.memory["optimizer"] == 2 * sharded.memory["optimizer"]


def test_the_base_of_an_adapter_takes_less_in_4_bits(tiny_recipe: Path, tmp_path: Path) -> None:
    lora = "lora={r: 4, target_modules: all-linear}"
    whole = plan_of(Recipe.load(str(tiny_recipe), [lora]), tmp_path)
    quantized = plan_of(Recipe.load(str(tiny_recipe), [lora, "base.quantization=nf4"]), tmp_path)
    assert quantized.trainable_parameters == whole.trainable_parameters < whole.parameters
    assert quantized.memory["weights"] < 0.8 * whole.memory["weights"]


def test_disk_has_checkpoints_and_the_weights_once(tiny_recipe: Path, tmp_path: Path) -> None:
    plan = plan_of(Recipe.load(str(tiny_recipe), ["training.save_total_limit=2"]), tmp_path)
    # Two checkpoints of weights and two states each, and the model, which the release links.
    assert plan.disk == (2 * 3 + 1) * 4 * plan.parameters


def test_json_has_the_numbers_and_nothing_is_written(run_cli: RunCli, tiny_recipe: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    outcome = run_cli("plan", tiny_recipe, "--json", "--output-dir", tmp_path / "out", "--device-memory", "1")
    assert outcome.code == 0, outcome.err
    plan = json.loads(outcome.out)
    assert plan["rows"] == sum(plan["configurations"].values())
    assert plan["tokens"] == pytest.approx(plan["steps"] * plan["tokens_per_step"])
    assert plan["padded_tokens"] >= plan["tokens"]
    assert plan["fits"]
    assert sorted(tmp_path.rglob("*")) == before
    # Memory is a GPU's; without it, and without a GPU here, a pass is timed on the CPU.
    assert plan["cpu_flops"] is None
    assert plan["hours"] == pytest.approx(plan["flops"] / 1e14 / 3600)
    here = ("--output-dir", tmp_path / "out", "--set", "base.max_seq_length=24")
    timed = json.loads(run_cli("plan", tiny_recipe, "--json", *here).out)
    assert timed["hours"] == pytest.approx(timed["flops"] / timed["cpu_flops"] / 3600)
    assert 0 < timed["lengths"]["cut"] < timed["lengths"]["texts"]
    assert timed["lengths"]["read"] < timed["lengths"]["tokens"]
    table = run_cli("plan", tiny_recipe, *here).out
    assert "time on this CPU" in table
    assert "TFLOP/s" not in table
    options = ("--device-memory", "1", "--usd-per-hour", "3")
    table = run_cli("plan", tiny_recipe, "--output-dir", tmp_path / "out", *options).out
    assert "The recipe fits 1 GiB" in table
    assert "USD at 3 for an hour of one device" in table
    table = run_cli("plan", tiny_recipe, "--output-dir", tmp_path / "out", "--device-memory", "0.0001").out
    assert "The recipe does not fit" in table
    assert "loss.mini_batch_num_tokens" in table


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
    assert (first["recipe"], first["steps"]) == ("tiny, stage broad", 3)
    assert (last["recipe"], last["steps"]) == ("tiny, stage sharp", 6)
    assert set(first["configurations"]) == {"short-long", "short-short", "sts"}
    assert set(last["configurations"]) == {"bitext", *first["configurations"]}
    # Of a row the first stage takes anchor and positive, and in sts rows all texts are about as long.
    assert first["tokens_per_step"] < 0.8 * last["tokens_per_step"]
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
    assert both.configurations == known.configurations
    assert unknown.configurations.keys() > known.configurations.keys()
    [missing], [stands_in] = both.notes, unknown.notes
    assert missing.startswith("No rows of elsewhere are known before a run reads them; they are not counted")
    assert stands_in.endswith("they are taken to be bitext, short-long, short-short, sts.")


def test_rows_that_nobody_has_asked_for_are_said_to_be_a_bound(run_cli: RunCli, tmp_path: Path) -> None:
    plan = json.loads(run_cli("plan", "demo", "--json", "--output-dir", tmp_path).out)
    assert plan["rows"] == pytest.approx(1_920 * 0.8, abs=3)
    assert "upper bound" in plan["notes"][0]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--device-memory", "0"], "--device-memory is 0.0"),
        (["--set", "base.name_or_path=no/such-model"], "no/such-model"),
        (["--set", "training.per_device_train_batch_size=0"], "per_device_train_batch_size"),
        (["--set", "data.rows=nowhere.jsonl"], "nowhere.jsonl"),
        (["--devices", "9", "--set", "training.max_steps=-1"], "fill no batch"),
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
        assert "base.adapter.target_modules has 'nothing'" in outcome.err


@pytest.mark.full_scale
def test_a_base_of_seven_billion_is_planned_without_weights(tiny_base: Path, tmp_path: Path) -> None:
    """The shape of Mistral-7B with a small tokenizer; no weight of it is ever there."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_base / name, tmp_path / name)
    MistralConfig(sliding_window=4096, max_position_embeddings=32768).save_pretrained(tmp_path)
    overrides = ["data.rows=embedded", "synthesis=null", "data.sources={}", "data.mining=null"]
    overrides += ["training.per_device_train_batch_size=128", f"base.name_or_path={tmp_path}"]
    recipe = Recipe.load("e5-mistral-7b", overrides)
    plan = plan_of(recipe, tmp_path / "out", devices=8, sharded=True, device_memory=80)
    assert plan.parameters - plan.trainable_parameters == 7_110_660_096
    assert plan.fits == (plan.memory["total"] <= USABLE * 80 * 2**30)
    assert 2 * plan.parameters < plan.disk < 1.1 * 2 * plan.parameters
