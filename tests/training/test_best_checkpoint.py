"""Scores during training: they disturb nothing, and the best checkpoint is what is saved, merged and gone on with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer

from st_llm_embed import InputError, Recipe
from st_llm_embed.data.dataset import write_dataset
from st_llm_embed.data.rows import read_rows
from st_llm_embed.evaluation.held_out import HeldOutEvaluator, evaluate_held_out, held_out_evaluator, load_held_out
from st_llm_embed.training.arguments import SCORES
from st_llm_embed.training.train import train

LORA = "lora={r: 4, lora_dropout: 0.5, target_modules: all-linear}"
SCORED = ["training.eval_strategy=steps", "training.eval_steps=2", "training.learning_rate=0.02"]
BEST = [*SCORED, "training.load_best_model_at_end=true", "training.save_total_limit=1"]


@pytest.fixture
def dataset(tmp_path: Path, rows_path: Path) -> Path:
    write_dataset(read_rows(rows_path), tmp_path / "dataset", 0.4)
    return tmp_path / "dataset"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return SentenceTransformer(str(folder), device="cpu").state_dict()


def same(folder: Path, other: Path) -> bool:
    one, two = weights(folder), weights(other)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def scored(recipe: Recipe, dataset: Path, folder: Path) -> list[dict[str, float]]:
    """Train and give the records of the log that hold scores."""
    train(recipe, [dataset], folder, evaluator=held_out_evaluator(recipe, dataset))
    log = json.loads((folder / "log.json").read_text(encoding="utf-8"))
    return [entry for entry in log if "eval_retrieval_ndcg_at_10" in entry]


@pytest.mark.parametrize("lora", [LORA, "lora=null"])
def test_scores_on_the_way_leave_the_weights_as_they_would_be(
    lora: str, tiny_recipe: Path, dataset: Path, tmp_path: Path
) -> None:
    """With dropout, whose draws an evaluation would shift."""
    plain = Recipe.load(str(tiny_recipe), [lora, "training.learning_rate=0.02"])
    assert scored(plain, dataset, tmp_path / "plain") == []
    entries = scored(Recipe.load(str(tiny_recipe), [lora, *SCORED]), dataset, tmp_path / "scored")
    assert [entry["step"] for entry in entries] == [2, 4, 6]
    assert same(tmp_path / "plain" / "model", tmp_path / "scored" / "model")
    model = SentenceTransformer(str(tmp_path / "scored" / "model"), device="cpu")
    final = evaluate_held_out(model, load_held_out(dataset), batch_size=64).summary
    # The adapter is merged by then, which rounds.
    assert {name: entries[-1][f"eval_{name}"] for name in SCORES} == pytest.approx(
        {name: final[name] for name in SCORES}, abs=1e-6
    )


class Falling(HeldOutEvaluator):
    """Scores as ever, but so that the second time is the best."""

    times = 0

    def __call__(self, *args: object, **kwargs: object) -> dict[str, float]:
        scores = super().__call__(*args, **kwargs)
        self.times += 1
        return scores | {"retrieval_ndcg_at_10": [0.1, 0.5, 0.4, 0.5][self.times - 1]}


def falling(recipe: Recipe, dataset: Path) -> Falling:
    return Falling(load_held_out(dataset), {}, batch_size=recipe.evaluation.batch_size)


@pytest.mark.parametrize("lora", [LORA, "lora=null"])
def test_the_best_checkpoint_is_what_is_saved(lora: str, tiny_recipe: Path, dataset: Path, tmp_path: Path) -> None:
    """The same training, ended at the best step, gives the same weights."""
    steady = "training.lr_scheduler_type=constant_with_warmup"
    recipe = Recipe.load(str(tiny_recipe), [lora, *BEST, steady, "training.max_steps=8", "training.warmup_steps=1"])
    train(recipe, [dataset], tmp_path / "best", evaluator=falling(recipe, dataset))
    last = recipe.model_copy(update={"training": recipe.training | {"load_best_model_at_end": False}})
    train(last, [dataset], tmp_path / "last", evaluator=falling(recipe, dataset))
    ended = last.model_copy(update={"training": last.training | {"max_steps": 4}})
    train(ended, [dataset], tmp_path / "ended", evaluator=falling(recipe, dataset))
    assert same(tmp_path / "best" / "model", tmp_path / "ended" / "model")
    assert not same(tmp_path / "best" / "model", tmp_path / "last" / "model")
    if lora == LORA:
        adapters = [tmp_path / name / "adapter" / "adapter_model.safetensors" for name in ("best", "ended")]
        assert adapters[0].read_bytes() == adapters[1].read_bytes()
    assert [path.name for path in (tmp_path / "best" / "checkpoints").glob("checkpoint-*")] == ["checkpoint-4"]


def test_a_moved_training_resumes_with_the_same_best(tiny_recipe: Path, dataset: Path, tmp_path: Path) -> None:
    """Killed after a checkpoint, the last one included, and moved: the recorded path of the best is not there."""
    recipe = Recipe.load(str(tiny_recipe), [LORA, *BEST, "training.save_total_limit=9", "training.max_steps=8"])
    train(recipe, [dataset], tmp_path / "whole", evaluator=falling(recipe, dataset))
    checkpoints = (tmp_path / "whole" / "checkpoints").rename(tmp_path / "elsewhere")
    for last in (4, 8):
        for step in range(2, last + 1, 2):
            name = f"checkpoint-{step}"
            shutil.copytree(checkpoints / name, tmp_path / f"moved-{last}" / "checkpoints" / name)
        evaluator = falling(recipe, dataset)
        evaluator.times = last // 2
        train(recipe, [dataset], tmp_path / f"moved-{last}", evaluator=evaluator)
        assert same(tmp_path / "whole" / "model", tmp_path / f"moved-{last}" / "model")


def test_a_best_checkpoint_that_is_torn_or_gone_is_asked_for(tiny_recipe: Path, dataset: Path, tmp_path: Path) -> None:
    recipe = Recipe.load(str(tiny_recipe), [*BEST, "training.save_total_limit=9", "training.max_steps=8"])
    train(recipe, [dataset], tmp_path / "out", evaluator=falling(recipe, dataset))
    shutil.rmtree(tmp_path / "out" / "model")
    best = tmp_path / "out" / "checkpoints" / "checkpoint-4"
    (best / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(InputError, match=r"checkpoint-4' cannot be loaded: .*header"):
        train(recipe, [dataset], tmp_path / "out", evaluator=falling(recipe, dataset))
    shutil.rmtree(best)
    with pytest.raises(InputError, match=r"checkpoint-4, the best checkpoint .* is not there"):
        train(recipe, [dataset], tmp_path / "out", evaluator=falling(recipe, dataset))
    assert not (tmp_path / "out" / "model").exists()
