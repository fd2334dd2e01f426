"""Two processes train and score: both know the same, a killed one ends the job, and resuming gives equal weights."""

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


def same(one: Path, other: Path) -> bool:
    for part in ("model/model.safetensors", "adapter/adapter_model.safetensors"):
        first, second = load_file(one / part), load_file(other / part)
        if first.keys() != second.keys() or not all(torch.equal(first[name], second[name]) for name in first):
            return False
    return True


def test_two_processes_agree_on_the_best_checkpoint(tiny_recipe: Path, rows_path: Path, tmp_path: Path) -> None:
    write_dataset(read_rows(rows_path), tmp_path / "dataset", 0.4)
    content = yaml.safe_load(tiny_recipe.read_text(encoding="utf-8"))
    del content["training"]["batch_sampler"]
    content["batches"] = {}
    content["loss"]["hardness_strength"] = {}
    content["lora"] = {"r": 4, "lora_dropout": 0.5, "target_modules": "all-linear"}
    content["training"] |= {"per_device_train_batch_size": 4, "max_steps": 7, "save_steps": 2, "learning_rate": 0.05}
    scored = {"eval_strategy": "steps", "eval_steps": 2, "save_total_limit": 1}

    def run(out: str, choices: dict[str, object], killed_at: int = 0) -> list[forked.Outcome]:
        recipe = tmp_path / f"{out}.yaml"
        recipe.write_text(yaml.safe_dump(content | {"training": content["training"] | choices}), encoding="utf-8")
        program = Path(__file__).with_name("scored_ranks.py")
        return forked.run_ranks(program, recipe, tmp_path / "dataset", tmp_path / out, killed_at)

    def known(out: str) -> list[dict]:
        """What both processes know after each evaluation, the same."""
        found = []
        for step in (2, 4, 6, 7):
            first, second = (json.loads((tmp_path / f"{out}-{rank}-{step}.json").read_text()) for rank in (0, 1))
            assert first == second
            assert len(first["scores"]) == 4
            found.append(first)
        return found

    for out, choices in (("plain", {}), ("scored", scored), ("best", scored | {"load_best_model_at_end": True})):
        done = run(out, choices)
        assert [rank.returncode for rank in done] == [0, 0], done
    assert same(tmp_path / "plain", tmp_path / "scored")
    assert [step["scores"] for step in known("scored")] == [step["scores"] for step in known("best")]
    ndcg = {step["at"]: step["scores"]["eval_retrieval_ndcg_at_10"] for step in known("best")}
    step = max(ndcg, key=lambda at: ndcg[at])
    kept = {path.name for path in (tmp_path / "best" / "checkpoints").glob("checkpoint-*")}
    assert kept == {f"checkpoint-{step}"}

    # In the second epoch, whose batches differ from the first one's.
    again = scored | {"load_best_model_at_end": True}
    stopped = run("killed", again, killed_at=6)
    assert stopped[1].returncode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "model").exists()
    resumed = run("killed", again)
    assert [rank.returncode for rank in resumed] == [0, 0], resumed
    assert known("killed") == known("best")
    assert same(tmp_path / "killed", tmp_path / "best")
