"""Recipes with several trainings, each of which goes on from the one before."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import forked
import pytest
import torch
import yaml
from conftest import write_rows
from safetensors.torch import load_file

from st_llm_embed import InputError, Recipe, run_pipeline
from st_llm_embed.pipeline import check_inputs
from st_llm_embed.training.adapter import starting_model

DOCUMENTATION = Path(__file__).parents[2] / "docs" / "training.md"

LORA = {"r": 4, "target_modules": "all-linear"}

KILLED = """
import os, signal, sys
from pathlib import Path
from torch.optim.optimizer import register_optimizer_step_post_hook
from st_llm_embed import Recipe, run_pipeline
steps = 0
def kill_when_due(*_):
    global steps
    steps += 1
    if steps == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
register_optimizer_step_post_hook(kill_when_due)
run_pipeline(Recipe.load(sys.argv[1]), Path(sys.argv[2]))
"""


def two_stages(tiny_recipe: Path, lora: dict | None = None) -> Path:
    """The tiny recipe in two stages of four and three steps, of which the first leaves hard negatives away."""
    content = yaml.safe_load(tiny_recipe.read_text(encoding="utf-8"))
    content["lora"] = lora
    content["loss"]["hardness_strength"] = {}
    content["training"] |= {"max_steps": 4, "learning_rate": 0.01, "save_steps": 1}
    content["stages"] = [
        {"name": "broad", "configurations": ["short"], "hard_negatives": False, "loss": {"temperature": 0.05}},
        {"name": "sharp", "batches": {}, "training": {"max_steps": 3, "learning_rate": 0.001}},
    ]
    tiny_recipe.write_text(yaml.safe_dump(content), encoding="utf-8")
    return tiny_recipe


def written(folder: Path) -> dict[str, int]:
    return {path.stem: path.stat().st_mtime_ns for path in (folder / "manifests").glob("*.json")}


def weights(out: Path, stage: str) -> dict[str, torch.Tensor]:
    return load_file(out / f"training-{stage}" / "model" / "model.safetensors")


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return float(torch.cat([(one[name] - other[name]).flatten() for name in one]).norm())


@pytest.mark.integration
@pytest.mark.parametrize("lora", [None, LORA], ids=["all weights", "lora"])
def test_each_stage_goes_on_from_the_one_before(lora: dict | None, tiny_recipe: Path, tmp_path: Path) -> None:
    """The second takes a tenth of the step size: what it ends with is near to the first one's end and not the base."""
    recipe, out = Recipe.load(str(two_stages(tiny_recipe, lora))), tmp_path / "out"
    run_pipeline(recipe, out)
    assert not (out / "training").exists()
    base = {name: weight.detach() for name, weight in starting_model(recipe)[0].model.named_parameters()}
    first, last = weights(out, "broad"), weights(out, "sharp")
    base = {name: base[name] for name in first}
    assert 0 < distance(first, last) < 0.5 * distance(base, last)
    assert distance(base, first) > 0.5 * distance(base, last)
    assert (out / "release" / "model.safetensors").read_bytes() == (
        out / "training-sharp" / "model" / "model.safetensors"
    ).read_bytes()
    steps = {
        name: json.loads((out / f"training-{name}" / "log.json").read_text())[-1]["step"]
        for name in ("broad", "sharp")
    }
    assert steps == {"broad": 4, "sharp": 3}
    report = (out / "evaluation" / "report.md").read_text(encoding="utf-8")
    assert "The last of 2 stages (broad, sharp)" in report
    assert "in the stages broad, sharp, the last of 3 steps" in (out / "release" / "README.md").read_text()
    for folder in ("release", "training-sharp/model"):
        for path in (out / folder).rglob("*.json"):
            assert str(out) not in path.read_text(encoding="utf-8"), path
    tokenizers = {(out / f"training-{name}/model/tokenizer.json").read_bytes() for name in ("broad", "sharp")}
    assert len(tokenizers) == 1
    if lora:
        for name in ("broad", "sharp"):
            config = json.loads((out / f"training-{name}" / "adapter" / "adapter_config.json").read_text())
            assert config["base_model_name_or_path"].startswith(Path(recipe.base.name_or_path).name)
            assert (config["revision"], config["r"]) == (None, 4)


@pytest.mark.integration
def test_only_the_changed_stage_and_those_after_it_run_again(
    tiny_recipe: Path, rows_path: Path, tmp_path: Path
) -> None:
    path, out = str(two_stages(tiny_recipe, LORA)), tmp_path / "out"
    run_pipeline(Recipe.load(path), out)
    first = written(out)
    run_pipeline(Recipe.load(path), out)
    assert written(out) == first

    content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    content["stages"][1]["training"]["max_steps"] = 2
    Path(path).write_text(yaml.safe_dump(content), encoding="utf-8")
    run_pipeline(Recipe.load(path), out)
    second = written(out)
    assert {name for name in first if first[name] != second[name]} == {"training-sharp", "evaluation", "release"}
    assert len(list(out.glob("training-sharp.*/model"))) == 1, "a training that is replaced has to be kept"

    content["stages"].append({"name": "more", "training": {"max_steps": 2}})
    Path(path).write_text(yaml.safe_dump(content), encoding="utf-8")
    run_pipeline(Recipe.load(path), out)
    third = written(out)
    assert {name for name in third if second.get(name) != third[name]} == {"training-more", "evaluation", "release"}

    content["stages"][0]["loss"]["temperature"] = 0.1
    Path(path).write_text(yaml.safe_dump(content), encoding="utf-8")
    run_pipeline(Recipe.load(path), out)
    fourth = written(out)
    assert {name for name in third if fourth[name] == third[name]} == {"dataset"}

    # Rows of which the first stage takes none.
    rows = [json.loads(line) for line in rows_path.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        row["positive"] += "!" if row["task_type"] == "sts" else ""
    write_rows(rows_path, rows)
    run_pipeline(Recipe.load(path), out)
    fifth = written(out)
    assert {name for name in fifth if fifth[name] == fourth[name]} == {"training-broad"}


@pytest.mark.integration
def test_killed_in_the_second_stage_it_resumes_there(tiny_recipe: Path, tmp_path: Path) -> None:
    path = two_stages(tiny_recipe, LORA)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_pipeline(Recipe.load(str(path)), whole)
    stopped = forked.run("-c", KILLED, path, killed, "6")
    assert stopped.returncode == -signal.SIGKILL, stopped.stderr
    assert not (killed / "training-sharp" / "model").exists()
    assert (killed / "training-sharp" / "checkpoints" / "checkpoint-1").is_dir()
    before = written(killed)["training-broad"]
    run_pipeline(Recipe.load(str(path)), killed)
    assert written(killed)["training-broad"] == before
    assert distance(weights(whole, "sharp"), weights(killed, "sharp")) == 0


def test_a_stage_has_its_own_sections(tiny_recipe: Path) -> None:
    recipe = Recipe.load(str(two_stages(tiny_recipe)))
    first, last = recipe.trainings()
    assert (first.loss.temperature, last.loss.temperature) == (0.05, recipe.loss.temperature)
    assert (first.batches, last.batches) == (None, None)
    assert (first.training["max_steps"], last.training["max_steps"]) == (4, 3)
    assert last.training["per_device_train_batch_size"] == recipe.training["per_device_train_batch_size"]


@pytest.mark.parametrize(
    ("last", "told"),
    [
        ("configurations: [sts, fever]", r"Stage b names the configurations fever.*bitext, short-long.*sts"),
        ("training: {learning_rat: 1}", r"Recipe tiny, stage b: training.learning_rat .*did you mean learning_rate"),
    ],
)
def test_a_bad_stage_is_refused_before_anything_is_written(
    last: str, told: str, tiny_recipe: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=told):
        run_pipeline(Recipe.load(str(tiny_recipe), [f"stages=[{{name: a}}, {{name: b, {last}}}]"]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_names_that_only_a_source_gives_are_refused_once_its_rows_are_there(tiny_recipe: Path, tmp_path: Path) -> None:
    """What a source gives is known when it is read."""
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(f'{{"a": "question {n}", "b": "answer {n}"}}\n' for n in range(8)), encoding="utf-8")
    content = yaml.safe_load(two_stages(tiny_recipe).read_text(encoding="utf-8"))
    source = {"path": str(pairs), "columns": {"anchor": "a", "positive": "b"}, "instruction": "Find it."}
    content["data"]["sources"] = {"own": source | {"task_type": "short-long", "language": "en", "license": "mit"}}
    content["stages"][1]["configurations"] = ["own", "fever"]
    tiny_recipe.write_text(yaml.safe_dump(content), encoding="utf-8")
    check_inputs(Recipe.load(str(tiny_recipe)))
    with pytest.raises(InputError, match=r"Stage sharp names the configurations fever, .*own"):
        run_pipeline(Recipe.load(str(tiny_recipe)), tmp_path / "out")
    assert not list((tmp_path / "out").glob("training*"))


@pytest.mark.parametrize(
    ("stages", "told"),
    [
        (
            "[{name: a}, {name: b, loss: {temperature: -1}}]",
            "stages.1.loss.temperature is -1: Input should be greater",
        ),
        (
            "[{name: a, batches: {mix: true}}]",
            r"stages.0.batches: unknown key mix \(did you mean mixed\?\) \(allowed here: mixed",
        ),
        ("[{name: a}, {name: a}]", "two stages have the name a"),
        ("[{name: a/b}]", "stages.0.name is 'a/b'"),
        ("[{}]", "stages.0.name is missing"),
        ("{name: a}", "stages is"),
        ("[{name: a, hard_negatives: false, loss: {own_negatives_only: [sts]}}]", "stage a has hard_negatives false"),
    ],
)
def test_bad_stages_are_refused_when_the_recipe_is_loaded(stages: str, told: str) -> None:
    with pytest.raises(InputError, match=told) as error:
        Recipe.load("demo", [f"stages={stages}"])
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 500


def test_a_folder_in_the_place_of_a_stages_is_left_as_it_is(tiny_recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "training-sharp").mkdir(parents=True)
    with pytest.raises(InputError, match="training-sharp was not written by a run"):
        run_pipeline(Recipe.load(str(two_stages(tiny_recipe))), tmp_path / "out")


def test_the_documented_stages_are_those_of_a_recipe() -> None:
    section = DOCUMENTATION.read_text(encoding="utf-8").split("## Several stages")[1].split("\n## ")[0]
    content = Recipe.load("e5-mistral-7b").model_dump(mode="json")
    for example in re.findall(r"```yaml\n(.*?)```", section, re.DOTALL):
        content |= yaml.safe_load(example)
    recipe = Recipe.model_validate(content)
    assert [stage.name for stage in recipe.stages] == ["broad", "sharp"]
    assert not recipe.stages[0].hard_negatives
    assert Recipe.model_validate(yaml.safe_load(recipe.to_yaml())) == recipe
