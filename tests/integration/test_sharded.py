"""Two processes that share the weights by the shipped FSDP2 configuration, on CPUs, against two that each have all."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import forked
import pytest
import torch
import yaml
from safetensors.torch import load_file

from st_llm_embed.data.dataset import write_dataset
from st_llm_embed.data.rows import read_rows

pytestmark = pytest.mark.integration

FSDP2 = Path(__file__).parents[2] / "st_llm_embed" / "recipe" / "accelerate" / "fsdp2.yaml"


@pytest.mark.parametrize("lora", [None, {"r": 4, "target_modules": "all-linear"}], ids=["all weights", "lora"])
def test_sharded_weights_train_resume_and_are_saved_as_whole_ones(
    lora: dict | None, tiny_recipe: Path, rows_path: Path, tmp_path: Path
) -> None:
    """With activation checkpointing and GradCache; LoRA is killed in the second epoch and resumes sharded files."""
    write_dataset(read_rows(rows_path), tmp_path / "dataset", 0.4)
    content = yaml.safe_load(tiny_recipe.read_text(encoding="utf-8"))
    del content["training"]["batch_sampler"]
    content["batches"] = {}
    content["lora"] = lora
    content["loss"] |= {"hardness_strength": {}, "mini_batch_num_tokens": 100}
    content["training"] |= {"per_device_train_batch_size": 4, "max_steps": 5, "save_steps": 1, "learning_rate": 0.003}
    content["training"]["activation_checkpointing"] = True
    tiny_recipe.write_text(yaml.safe_dump(content), encoding="utf-8")

    def run(config: str | Path, out: Path, killed_at: int = 0) -> list[forked.Outcome]:
        program = Path(__file__).with_name("sharded.py")
        return forked.run_ranks(program, config, tiny_recipe, tmp_path / "dataset", out, killed_at)

    whole, sharded = tmp_path / "whole", tmp_path / "sharded"
    finished = run("none", whole)
    assert [rank.returncode for rank in finished] == [0, 0], finished
    if lora:
        stopped = run(FSDP2, sharded, 5)
        assert stopped[1].returncode == -signal.SIGKILL, stopped
        assert not (sharded / "model").exists()
        assert (sharded / "checkpoints" / "checkpoint-4" / "pytorch_model_fsdp_0").is_dir()
    finished = run(FSDP2, sharded)
    assert [rank.returncode for rank in finished] == [0, 0], finished

    units = json.loads((sharded / "units.json").read_text(encoding="utf-8"))
    assert units["units"] == ["FSDPLLMSentenceTransformer", "FSDPMistralDecoderLayer"]
    part, all_of_it = units["numbers"]
    assert 0.4 * all_of_it < part < 0.6 * all_of_it
    for name in ("model/model.safetensors", *(["adapter/adapter_model.safetensors"] if lora else [])):
        expected, got = load_file(whole / name), load_file(sharded / name)
        assert expected.keys() == got.keys()
        for key, weight in expected.items():
            torch.testing.assert_close(got[key], weight, atol=1e-5, rtol=0, msg=f"{name}: {key}")
