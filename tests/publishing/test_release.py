"""The released folders, made by a real training of a tiny base in the cache of a Hub."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from conftest import example_rows, write_rows
from modules.test_layout import COMMIT, cached_on_the_hub
from sentence_transformers import SentenceTransformer
from transformers import PreTrainedModel, Trainer

from st_llm_embed import InputError, Recipe, run_pipeline, verify
from st_llm_embed.data.dataset import write_dataset
from st_llm_embed.data.rows import read_rows
from st_llm_embed.doctor.fix import repair
from st_llm_embed.doctor.probe import read_probe
from st_llm_embed.evaluation.report import write_report
from st_llm_embed.publishing.release import write_adapter_release, write_release
from st_llm_embed.training.train import train


class Run(NamedTuple):
    recipe: Recipe
    dataset: Path
    training: Path
    evaluation: Path
    release: Path


@pytest.fixture(scope="module")
def run(
    tiny_run_recipe: Callable[..., Recipe], tiny_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Run]:
    folder = tmp_path_factory.mktemp("release")
    recipe = tiny_run_recipe(
        "base.name_or_path=lab/tiny",
        "lora={r: 4, target_modules: all-linear}",
        "training.learning_rate=0.01",
        "training.max_steps=3",
        "base.dtype=bfloat16",
        "publishing.repo_id=lab/embedder",
        "evaluation.batch_size=8",
    )
    run = Run(recipe, *(folder / name for name in ("dataset", "training", "evaluation", "release")))
    with pytest.MonkeyPatch.context() as patch:
        cache = cached_on_the_hub(folder / "cache", "lab/tiny", tiny_base)
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
        write_dataset(read_rows(write_rows(folder / "more.jsonl", example_rows())), run.dataset, 0.4)
        train(recipe, [run.dataset], run.training)
        run.evaluation.mkdir()
        write_report(recipe, run.dataset, run.training, run.evaluation)
        write_release(recipe, [run.dataset], run.training, run.evaluation, run.release)
        yield run


@pytest.fixture
def changed(run: Run, tmp_path: Path) -> Run:
    """A copy of the run for a test that breaks it."""
    names = ("dataset", "training", "evaluation", "release")
    shutil.copytree(run.release.parent, tmp_path / "changed")
    return Run(run.recipe, *(tmp_path / "changed" / name for name in names))


@pytest.mark.parametrize("lora", ["null", "{r: 4, target_modules: all-linear}"])
def test_a_model_is_loaded_three_times_from_the_last_step_to_the_release(
    lora: str, tiny_run_recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_run_recipe(f"lora={lora}", "training.max_steps=2", "training.learning_rate=0.01")
    loads: list[Path] = []
    load, train_steps = PreTrainedModel.from_pretrained.__func__, Trainer.train

    def counted(cls: type, name: Any, *args: Any, **kwargs: Any) -> Any:
        loads.append(Path(name))
        return load(cls, name, *args, **kwargs)

    def then_count(trainer: Trainer, *args: Any, **kwargs: Any) -> Any:
        outcome = train_steps(trainer, *args, **kwargs)
        loads.clear()
        return outcome

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", classmethod(counted))
    monkeypatch.setattr(Trainer, "train", then_count)
    run_pipeline(recipe, tmp_path / "run")
    base, trained, released = loads[-3:]
    assert base == Path(recipe.base.name_or_path)
    assert trained == tmp_path / "run" / "training" / "model"
    assert released.name == ".release.partial"
    assert len(loads) == 3


def test_weights_are_on_disk_once_and_small_files_are_the_releases_own(run: Run) -> None:
    for path in (run.training / "model").rglob("*"):
        released = run.release / path.relative_to(run.training / "model")
        if path.is_file():
            assert path.samefile(released) == (path.suffix == ".safetensors"), path


def test_across_file_systems_weights_are_copied(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    write_release(run.recipe, [run.dataset], run.training, run.evaluation, tmp_path / "copied")
    weights, copied = run.training / "model" / "model.safetensors", tmp_path / "copied" / "model.safetensors"
    assert copied.read_bytes() == weights.read_bytes()
    assert not copied.samefile(weights)


def test_a_release_with_other_vectors_than_the_trained_model_is_refused(changed: Run, tmp_path: Path) -> None:
    path = changed.training / "model" / "1_Pooling" / "config.json"
    flags = json.loads(path.read_text(encoding="utf-8"))
    flags |= {"pooling_mode_lasttoken": False, "pooling_mode_mean_tokens": True}
    path.write_text(json.dumps(flags), encoding="utf-8")
    with pytest.raises(RuntimeError, match="must not be published: its vectors are not"):
        write_release(changed.recipe, [changed.dataset], changed.training, changed.evaluation, tmp_path / "other")


def test_a_repaired_copy_of_a_release_leaves_the_training_as_it_was(run: Run, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in run.training.rglob("*") if path.is_file()}
    write_release(run.recipe, [run.dataset], run.training, run.evaluation, tmp_path / "release")
    path = tmp_path / "release" / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(tokenizer | {"post_processor": None}), encoding="utf-8")
    assert repair(str(tmp_path / "release"), tmp_path / "fixed").changed
    assert {path: path.read_bytes() for path in run.training.rglob("*") if path.is_file()} == before


def test_a_release_of_a_bfloat16_training_has_its_type_and_a_probe_of_its_weights_in_float32(run: Run) -> None:
    released = SentenceTransformer(str(run.release), device="cpu")
    assert {parameter.dtype for parameter in released.parameters()} == {torch.bfloat16}
    probe = read_probe(run.release / "probe.json")
    assert (probe.model, probe.dtype, probe.max_seq_length) == ("lab/embedder", "float32", 48)
    assert probe.prompts == {role: released.prompts[role] for role in ("query", "document")}
    verification = verify(run.release, run.release)
    assert verification.same
    assert verification.ids_equal


def test_the_adapters_repository_loads_by_itself_with_the_merged_models_vectors(run: Run, tmp_path: Path) -> None:
    write_adapter_release(run.release, run.training / "adapter", tmp_path / "lora")
    config = json.loads((tmp_path / "lora" / "adapter_config.json").read_text(encoding="utf-8"))
    assert (config["base_model_name_or_path"], config["revision"]) == ("lab/tiny", COMMIT)
    assert not [path.name for path in (tmp_path / "lora").glob("model*")]
    assert not (tmp_path / "lora" / "config.json").exists()
    adapter, merged = (SentenceTransformer(str(folder), device="cpu") for folder in (tmp_path / "lora", run.release))
    assert adapter.prompts == merged.prompts
    assert adapter.max_seq_length == 48
    vectors, others = (one.encode_query(["what is it", "why"]).astype(np.float64) for one in (adapter, merged))
    norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(others, axis=1)
    # The adapter's weights are float32, the merged ones were rounded to bfloat16.
    assert ((vectors * others).sum(axis=1) / norms).min() > 0.999
    assert verify(tmp_path / "lora" / "probe.json", tmp_path / "lora", minimum_cosine=0.999).ids_equal


def test_an_adapter_whose_base_has_no_commit_is_refused_before_anything_is_written(
    changed: Run, tmp_path: Path
) -> None:
    path = changed.training / "adapter" / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for base, revision in (("lab/tiny", "main"), ("lab/tiny", None), (str(tmp_path), COMMIT), ("", COMMIT)):
        path.write_text(json.dumps(config | {"base_model_name_or_path": base, "revision": revision}))
        with pytest.raises(InputError, match="a commit of 40 hex digits"):
            write_adapter_release(changed.release, changed.training / "adapter", tmp_path / "lora")
    with pytest.raises(InputError, match=r"has no adapter_config\.json"):
        write_adapter_release(changed.release, changed.training / "model", tmp_path / "lora")
    assert not (tmp_path / "lora").exists()
