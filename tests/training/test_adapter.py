"""The life of an adapter, with real training of a tiny base, and a broken case for each check."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Transformer

from st_llm_embed import InputError, LLMSentenceTransformer, Recipe
from st_llm_embed.data.dataset import write_dataset
from st_llm_embed.data.rows import read_rows
from st_llm_embed.training.adapter import load_adapter, starting_model
from st_llm_embed.training.check import check_same_vectors, check_training, read_reference_vectors, vectors_of
from st_llm_embed.training.train import train

TEXTS = ["a question", "Instruct: x\nQuery: y", ""]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
LORA = ["lora={r: 4, target_modules: all-linear, lora_dropout: 0.1}", "training.learning_rate=0.01"]
SHORT = ["training.max_steps=3", "training.save_steps=2"]


@pytest.fixture
def dataset(tmp_path: Path, rows_path: Path) -> Path:
    write_dataset(read_rows(rows_path), tmp_path / "dataset", 0.4)
    return tmp_path / "dataset"


def adapter_config(training: Path) -> dict[str, object]:
    return json.loads((training / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_saved_adapter_names_no_folder_and_loads_on_its_base(
    dtype: str, tiny_recipe: Path, tiny_base: Path, dataset: Path, tmp_path: Path
) -> None:
    recipe = Recipe.load(str(tiny_recipe), [*LORA, *SHORT, f"base.dtype={dtype}"])
    training = tmp_path / "training"
    train(recipe, [dataset], training)
    for path in (training / "adapter").rglob("*"):
        if path.is_file():
            assert str(tmp_path).encode() not in path.read_bytes(), path.name
            assert str(tiny_base.parent).encode() not in path.read_bytes(), path.name
    assert adapter_config(training)["revision"] is None
    with pytest.raises(OSError, match=r"not on the Hub; st_llm_embed\.training\.load_adapter takes this adapter"):
        SentenceTransformer(str(training / "adapter"), device="cpu")
    loaded = load_adapter(str(training / "adapter"), str(tiny_base), max_seq_length=48, dtype=recipe.base.dtype)
    merged = SentenceTransformer(str(training / "model"), device="cpu")
    cosines = torch.cosine_similarity(vectors_of(loaded), vectors_of(merged))
    assert cosines.min() > (0.9999 if dtype == "float32" else 0.999)
    assert not any(weight.requires_grad for weight in loaded.parameters())


def test_an_adapter_of_a_hub_base_names_its_id_and_commit(
    tiny_recipe: Path, tiny_base: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The default branch has other weights, which neither a resumed training nor the merge may take."""
    cache = tmp_path / "cache" / "models--lab--tiny"
    (cache / "snapshots").mkdir(parents=True)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("f" * 40, encoding="utf-8")
    (cache / "snapshots" / COMMIT).symlink_to(tiny_base)
    (cache / "snapshots" / ("f" * 40)).mkdir()
    for path in tiny_base.iterdir():
        (cache / "snapshots" / ("f" * 40) / path.name).symlink_to(path)
    (cache / "snapshots" / ("f" * 40) / "model.safetensors").unlink()
    other = {name: weight + 1 for name, weight in load_file(tiny_base / "model.safetensors").items()}
    save_file(other, cache / "snapshots" / ("f" * 40) / "model.safetensors", {"format": "pt"})
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    hub_base = ["base.name_or_path=lab/tiny", f"base.revision={COMMIT}"]
    recipe = Recipe.load(str(tiny_recipe), [*LORA, *SHORT, *hub_base])
    check_training(recipe)
    train(recipe, [dataset], tmp_path / "training")
    config = adapter_config(tmp_path / "training")
    assert (config["base_model_name_or_path"], config["revision"]) == ("lab/tiny", COMMIT)

    resumed = tmp_path / "resumed"
    resumed.mkdir()
    (tmp_path / "training" / "checkpoints").rename(resumed / "checkpoints")
    (resumed / "checkpoints" / "checkpoint-3" / "trainer_state.json").unlink()
    train(recipe, [dataset], resumed)
    expected, got = (load_file(folder / "model" / "model.safetensors") for folder in (tmp_path / "training", resumed))
    assert all(torch.equal(expected[name], got[name]) for name in expected)

    with pytest.raises(InputError, match="was trained on 'lab/tiny', and the base is 'lab/other'"):
        load_adapter(str(resumed / "adapter"), "lab/other", max_seq_length=48)


def test_a_trained_adapter_is_trained_further(tiny_recipe: Path, dataset: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    train(Recipe.load(str(tiny_recipe), [*LORA, *SHORT]), [dataset], first)
    recipe = Recipe.load(
        str(tiny_recipe),
        [f"base.adapter={first / 'adapter'}", "lora=null", "training.learning_rate=0.001", *SHORT],
    )
    check_training(recipe)
    start = starting_model(recipe)
    np.testing.assert_allclose(
        start.encode(TEXTS), SentenceTransformer(str(first / "model"), device="cpu").encode(TEXTS), atol=1e-5
    )
    train(recipe, [dataset], second)
    before, after = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (first, second))
    assert before.keys() == after.keys()
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert moved == list(before)
    assert adapter_config(second)["r"] == 4

    killed = tmp_path / "killed"
    killed.mkdir()
    (second / "checkpoints").rename(killed / "checkpoints")
    (killed / "checkpoints" / "checkpoint-3" / "trainer_state.json").unlink()
    train(recipe, [dataset], killed)
    resumed = load_file(killed / "adapter" / "adapter_model.safetensors")
    assert all(torch.equal(after[name], resumed[name]) for name in after)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ([*LORA, "training.learning_rate=0"], "every lora_B weight is zero"),
        (["training.learning_rate=0"], "are those of the untrained model"),
        ([*LORA, "training.learning_rate=1e38"], "not finite"),
        (["training.learning_rate=1e38"], "not finite"),
    ],
)
def test_a_training_that_did_nothing_or_broke_the_weights_fails(
    overrides: list[str], told: str, tiny_recipe: Path, dataset: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=told) as error:
        train(Recipe.load(str(tiny_recipe), [*overrides, *SHORT]), [dataset], tmp_path / "training")
    assert "learning_rate" in str(error.value)
    assert {path.name for path in (tmp_path / "training").iterdir()} == {"checkpoints", "log.json"}


@pytest.mark.parametrize(
    "lora", [LORA[0], "lora={r: 4, target_modules: [q_proj], use_dora: true, modules_to_save: [norm]}"]
)
def test_an_adapter_is_merged_in_place_as_peft_merges_it(
    lora: str, tiny_recipe: Path, tiny_base: Path, dataset: Path, tmp_path: Path
) -> None:
    recipe = Recipe.load(str(tiny_recipe), [lora, *SHORT, "training.learning_rate=0.01"])
    train(recipe, [dataset], tmp_path / "training")
    base = LLMSentenceTransformer.from_base(str(tiny_base), max_seq_length=48)[0].model
    peft = PeftModel.from_pretrained(base, str(tmp_path / "training" / "adapter")).merge_and_unload()
    expected, got = peft.state_dict(), load_file(tmp_path / "training" / "model" / "model.safetensors")
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_after_the_last_step_no_model_is_loaded(
    tiny_recipe: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One load, before the first step; and what the release is compared with is written down."""
    loads: list[str] = []
    load = Transformer._load_model

    def counted(self: Transformer, *args: Any, **kwargs: Any) -> Any:
        loads.append("load")
        return load(self, *args, **kwargs)

    monkeypatch.setattr(Transformer, "_load_model", counted)
    for name, lora in (("adapter", LORA[0]), ("all", "lora=null")):
        loads.clear()
        train(Recipe.load(str(tiny_recipe), [lora, *SHORT, "training.learning_rate=0.01"]), [dataset], tmp_path / name)
        assert loads == ["load"]
        texts, vectors = read_reference_vectors(tmp_path / name)
        stock = SentenceTransformer(str(tmp_path / name / "model"), device="cpu")
        np.testing.assert_allclose(stock.encode(texts), vectors, atol=1e-5)


@pytest.mark.parametrize("value", [0.99, float("nan")])
def test_vectors_that_differ_are_told_apart_by_their_cosine(value: float) -> None:
    one, other = torch.tensor([[1.0, 0.0]]), torch.tensor([[value, (1 - value**2) ** 0.5]])
    check_same_vectors("a", one, "b", one, "float32")
    with pytest.raises(InputError, match="cosine similarity"):
        check_same_vectors("a", one, "b", other, "bfloat16")


def test_quantization_is_refused_where_it_cannot_be(tiny_recipe: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    recipe = Recipe.load(str(tiny_recipe), ["base.quantization=nf4", *LORA])
    for use in (check_training, starting_model):
        with pytest.raises(InputError, match="there is no CUDA device") as error:
            use(recipe)
        assert "base.quantization is 'nf4'" in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["base.quantization=nf4"], "base.quantization is for training an adapter"),
        (["base.quantization=int3", *LORA], "base.quantization is 'int3'"),
        (["base.random_init=true", *LORA], "set base.random_init to false"),
        (["base.adapter=x", *LORA], "omit one of them"),
    ],
)
def test_sections_that_do_not_go_together_are_refused(overrides: list[str], told: str, tiny_recipe: Path) -> None:
    with pytest.raises(InputError, match=told):
        Recipe.load(str(tiny_recipe), overrides)


def test_an_adapter_that_is_not_there_is_refused(tiny_recipe: Path, tmp_path: Path) -> None:
    recipe = Recipe.load(str(tiny_recipe), [f"base.adapter={tmp_path / 'nowhere'}"])
    for use in (check_training, starting_model):
        with pytest.raises(InputError, match=r"The adapter .* cannot be loaded"):
            use(recipe)
