"""One of two processes is killed: the job ends and says so, and the same command goes on as if nothing had been."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from st_llm_embed.data import read_rows, write_dataset

pytestmark = pytest.mark.integration

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def test_a_killed_process_ends_the_job_and_resuming_gives_the_same_weights(
    tiny_recipe: Path, rows_path: Path, tmp_path: Path
) -> None:
    """Killed in the second epoch, whose batches differ from the first one's."""
    write_dataset(read_rows(rows_path), tmp_path / "dataset", 0.4)
    content = yaml.safe_load(tiny_recipe.read_text(encoding="utf-8"))
    del content["training"]["batch_sampler"]
    content["batches"] = {}
    content["loss"]["hardness_strength"] = {}
    content["lora"] = {"r": 4, "lora_dropout": 0.5, "target_modules": "all-linear"}
    content["training"] |= {"per_device_train_batch_size": 4, "max_steps": 7, "save_steps": 1, "learning_rate": 0.01}
    tiny_recipe.write_text(yaml.safe_dump(content), encoding="utf-8")

    def run(out: Path, killed_at: int) -> subprocess.CompletedProcess[str]:
        program = [Path(__file__).with_name("killed_rank.py"), tiny_recipe, tmp_path / "dataset", out, killed_at]
        return subprocess.run([*TORCHRUN, *map(str, program)], check=False, capture_output=True, text=True)

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finished = run(whole, 0)
    assert finished.returncode == 0, finished.stderr
    stopped = run(killed, 6)
    assert stopped.returncode != 0
    assert "SIGKILL" in stopped.stderr
    assert "rank      : 1" in stopped.stderr
    assert not (killed / "model").exists()
    assert "checkpoint-5" in {path.name for path in (killed / "checkpoints").iterdir()}
    resumed = run(killed, 0)
    assert resumed.returncode == 0, resumed.stderr
    for part in ("adapter/adapter_model.safetensors", "model/model.safetensors"):
        expected, got = load_file(whole / part), load_file(killed / part)
        assert expected.keys() == got.keys()
        assert all(torch.equal(expected[name], got[name]) for name in expected)
