"""Damaged repositories: every way in refuses them with one message that names what is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Outcome
from peft import LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from transformers import AutoConfig, AutoTokenizer

from st_llm_embed import InputError, LLMSentenceTransformer, Recipe
from st_llm_embed.modules.stock import load_stock
from st_llm_embed.training.adapter import load_adapter, starting_model

TEXTS = ["a question", "Instruct: x\nQuery: y", ""]

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n"

Tensors = dict[str, torch.Tensor]
Damage = Callable[[Path], object]


def tensors(change: Callable[[Tensors], Tensors], name: str = "model.safetensors") -> Damage:
    def damage(folder: Path) -> None:
        # Copied, since what is loaded is a view of the file.
        weights = {key: weight.clone() for key, weight in load_file(folder / name).items()}
        save_file(change(weights), folder / name, {"format": "pt"})

    return damage


def renamed(*parts: tuple[str, str], name: str = "model.safetensors") -> Damage:
    def rename(key: str) -> str:
        for old, new in parts:
            key = key.replace(old, new)
        return key

    return tensors(lambda weights: {rename(key): weight for key, weight in weights.items()}, name)


def edited(name: str, **values: Any) -> Damage:
    def damage(folder: Path) -> None:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
        (folder / name).write_text(json.dumps(content | values), encoding="utf-8")

    return damage


def written(name: str, content: str) -> Damage:
    return lambda folder: (folder / name).write_text(content, encoding="utf-8")


def cut(name: str) -> Damage:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-100])


def without(part: str) -> Damage:
    return tensors(lambda weights: {key: weight for key, weight in weights.items() if part not in key})


def with_number(number: float, name: str = "layers.1.mlp.up_proj.weight") -> Damage:
    def change(weights: Tensors) -> Tensors:
        [key] = [key for key in weights if key.endswith(name)]
        weights[key][3, 3] = number
        return weights

    return tensors(change)


def with_token(token: str, **special: str) -> Damage:
    def damage(folder: Path) -> None:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        tokenizer.add_tokens([token])
        tokenizer.add_special_tokens(special)
        tokenizer.save_pretrained(folder)

    return damage


DAMAGES: dict[str, tuple[Damage, str]] = {
    "no layer 1": (without("layers.1."), r"9 are missing, and would be drawn at random \(layers\.1\.input_layernorm"),
    "no final norm": (without("norm.weight"), "are missing"),
    "other names": (renamed(("layers", "blocks")), r"18 are missing.*; 18 have names that it does not know"),
    "more layers in config": (edited("config.json", num_hidden_layers=4), "18 are missing"),
    "fewer layers in config": (edited("config.json", num_hidden_layers=1), "9 belong to layers that it does not have"),
    "another size": (edited("config.json", intermediate_size=80), r"6 have another shape \(layers.0.mlp.down_proj"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "no file named model.safetensors"),
    "NaN": (with_number(float("nan")), r"1 have a NaN or infinite number in them \(layers\.1\.mlp\.up_proj\.weight\)"),
    "infinity": (with_number(float("-inf")), "NaN or infinite"),
    "pointer as weights": (written("model.safetensors", POINTER), "model.safetensors is a Git LFS.*git lfs pull"),
    "pointer as tokenizer": (written("tokenizer.json", POINTER), "tokenizer.json is a Git LFS pointer"),
    "pointer as config": (written("config.json", POINTER), "config.json is a Git LFS pointer"),
    "weights cut": (cut("model.safetensors"), "model.safetensors is cut short or damaged"),
    "tokenizer cut": (cut("tokenizer.json"), "tokenizer.json is cut short or damaged"),
    "weights empty": (written("model.safetensors", ""), "model.safetensors is empty"),
    "config empty": (written("config.json", ""), "config.json is empty"),
    "a list as config": (
        written("tokenizer_config.json", "[1]"),
        r"tokenizer_config.json is cut short or damaged \(it holds a list",
    ),
    "config of nothing": (written("config.json", "{}"), "cannot be loaded: Unrecognized model"),
    "tokenizer of a newer library": (
        edited("tokenizer.json", pre_tokenizer={"type": "OfTomorrow"}),
        "cannot be loaded",
    ),
    "unknown architecture": (edited("config.json", model_type="tomorrow"), "cannot be loaded"),
    "a token without embedding": (with_token("<extra>"), "1 tokens that the model has no embedding for, such as '<ex"),
}


@pytest.fixture(scope="module")
def embedder(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("embedder") / "model"
    LLMSentenceTransformer.from_base(tiny_base, max_seq_length=32, device="cpu").save_pretrained(str(folder))
    return folder


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_model_is_refused_by_name(
    name: str, tiny_base: Path, embedder: Path, tmp_path: Path, run_cli: Callable[..., Outcome]
) -> None:
    damage, message = DAMAGES[name]
    for kind, whole in (("base", tiny_base), ("embedder", embedder)):
        shutil.copytree(whole, tmp_path / kind)
        damage(tmp_path / kind)
    with pytest.raises(InputError, match=message):
        LLMSentenceTransformer.from_base(tmp_path / "base", max_seq_length=32, device="cpu")
    with pytest.raises(InputError, match=message):
        LLMSentenceTransformer(tmp_path / "embedder", device="cpu")
    (tmp_path / "texts.jsonl").write_text('{"text": "a text"}\n')
    to = tmp_path / "to"
    refused = run_cli("encode", tmp_path / "texts.jsonl", "--model", tmp_path / "embedder", "--to", to)
    assert (refused.code, to.exists()) == (2, False), refused
    assert "Traceback" not in refused.err


def test_code_of_a_models_own_is_not_run(tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(tiny_base, tmp_path / "base")
    edited("config.json", auto_map={"AutoConfig": "own.Own"}, model_type="own")(tmp_path / "base")
    (tmp_path / "base" / "own.py").write_text("raise SystemExit('was run')")
    monkeypatch.setattr("builtins.input", lambda _: pytest.fail("asks on the terminal"))
    with pytest.raises(InputError, match=r"code of its own \(auto_map in a configuration\), which is not run"):
        LLMSentenceTransformer.from_base(tmp_path / "base", max_seq_length=32, device="cpu")


@pytest.mark.parametrize("length", [0, 1, -5, "16"])
def test_a_saved_length_without_room_is_refused(length: Any, embedder: Path, tmp_path: Path) -> None:
    shutil.copytree(embedder, tmp_path / "embedder")
    edited("sentence_bert_config.json", max_seq_length=length)(tmp_path / "embedder")
    with pytest.raises(InputError):
        LLMSentenceTransformer(tmp_path / "embedder", device="cpu")


@pytest.mark.parametrize("kind", ["gemma3", "mistral3", "llava", "smolvlm", "qwen2_5_vl", "qwen3_vl", "idefics3"])
def test_a_multimodal_checkpoint_without_its_processor_is_refused(kind: str, tiny_base: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_base, tmp_path / "base")
    AutoConfig.for_model(kind).save_pretrained(tmp_path / "base")
    with pytest.raises(InputError, match=r"Of a multimodal one, save the language|not a decoder-only"):
        LLMSentenceTransformer.from_base(tmp_path / "base", max_seq_length=32, device="cpu")


@pytest.mark.parametrize(
    ("special", "message"), [({"eos_token": "<|im_end|>"}, "'<|im_end|>' with the number"), ({}, "<x>")]
)
def test_a_base_whose_end_token_has_no_embedding_is_refused(
    special: dict[str, str], message: str, tiny_base: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_base, tmp_path / "base")
    with_token(special.get("eos_token", "<x>"), **special)(tmp_path / "base")
    with pytest.raises(InputError, match="no embedding for") as error:
        LLMSentenceTransformer.from_base(tmp_path / "base", max_seq_length=32, device="cpu")
    assert message in str(error.value)


def test_a_stock_encoder_has_every_weight_but_a_pooler_that_is_not_read(tmp_path: Path) -> None:
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "question"]))
    BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path / "bert")
    BertModel(BertConfig(vocab_size=7, **sizes)).save_pretrained(tmp_path / "bert")
    stock = SentenceTransformer(modules=[Transformer(str(tmp_path / "bert")), Pooling(32)], device="cpu")
    stock.save_pretrained(str(tmp_path / "saved"))
    without("pooler")(tmp_path / "saved")
    ours = LLMSentenceTransformer(tmp_path / "saved", device="cpu")
    np.testing.assert_array_equal(ours.encode(TEXTS), stock.encode(TEXTS))
    without("pooler")(tmp_path / "bert")
    for name, damage, message in (
        ("saved", renamed(("encoder", "body")), "16 are missing"),
        ("bert", without("output.dense.weight"), "2 are missing"),
        ("bert", with_number(np.nan, "layer.0.intermediate.dense.weight"), "have a NaN"),
        ("saved", written("model.safetensors", POINTER), "is a Git LFS pointer"),
    ):
        loaded = load_stock(str(tmp_path / name), "student", "Give an encoder.")
        assert [type(module) for module in (loaded, *loaded)] == [SentenceTransformer, Transformer, Pooling]
        np.testing.assert_array_equal(loaded.encode(TEXTS), stock.encode(TEXTS))
        shutil.copytree(tmp_path / name, tmp_path / "damaged", dirs_exist_ok=True)
        damage(tmp_path / "damaged")
        with pytest.raises(InputError, match=f"{message}.*"):
            load_stock(str(tmp_path / "damaged"), "student", "Give an encoder.")
        shutil.rmtree(tmp_path / "damaged")


ADAPTER = "adapter_model.safetensors"
DAMAGED_ADAPTERS: dict[str, tuple[Damage, str]] = {
    "other names": (renamed(("layers", "language_model.layers"), name=ADAPTER), "8 are missing.*8 belong to nothing"),
    "names of another layer": (renamed((".1.", ".7."), name=ADAPTER), "4 are missing"),
    "names with the adapter's": (renamed((".weight", ".default.weight"), name=ADAPTER), "8 are missing"),
    "half of it": (
        tensors(lambda weights: {key: one for key, one in weights.items() if "v_proj" not in key}, ADAPTER),
        r"4 are missing \(layers\.0\.self_attn\.v_proj",
    ),
    "another rank": (edited("adapter_config.json", r=8), "8 have another shape"),
    "pointer": (written(ADAPTER, POINTER), "adapter_model.safetensors is a Git LFS pointer"),
    "cut": (cut(ADAPTER), "adapter_model.safetensors is cut short"),
}


def save_trained(base: Path, folder: Path, **options: Any) -> LLMSentenceTransformer:
    """Save an adapter that changes the vectors, and return its model."""
    model = LLMSentenceTransformer.from_base(base, max_seq_length=32, device="cpu")
    model.add_adapter(LoraConfig(**{"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]} | options))
    torch.manual_seed(0)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data += torch.randn_like(weight)
    model.save_pretrained(str(folder), create_model_card=False)
    return model


@pytest.mark.parametrize("name", DAMAGED_ADAPTERS)
def test_a_damaged_adapter_is_refused_by_name(name: str, tiny_base: Path, tiny_recipe: Path, tmp_path: Path) -> None:
    save_trained(tiny_base, tmp_path / "adapter")
    damage, message = DAMAGED_ADAPTERS[name]
    damage(tmp_path / "adapter")
    recipe = Recipe.load(str(tiny_recipe), [f"base.adapter={tmp_path / 'adapter'}"])
    for load in (
        lambda: LLMSentenceTransformer(tmp_path / "adapter", device="cpu"),
        lambda: load_adapter(tmp_path / "adapter", tiny_base, max_seq_length=32),
        lambda: starting_model(recipe),
    ):
        with pytest.raises(InputError, match=message):
            load()


def test_an_adapter_on_a_damaged_base_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_base, tmp_path / "base")
    save_trained(tmp_path / "base", tmp_path / "adapter")
    without("layers.1.")(tmp_path / "base")
    with pytest.raises(InputError, match="9 are missing"):
        LLMSentenceTransformer(tmp_path / "adapter", device="cpu")


OPTIONS: dict[str, dict[str, Any]] = {
    "LoRA": {},
    "DoRA": {"use_dora": True},
    "rank-stabilised": {"use_rslora": True},
    "with a bias and a norm": {"bias": "lora_only", "modules_to_save": ["norm"]},
    "ranks of its own": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}},
    "on all layers": {"target_modules": "all-linear", "use_dora": True},
}


@pytest.mark.parametrize("kind", OPTIONS)
def test_a_saved_adapter_gives_the_same_vectors_everywhere(kind: str, tiny_base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    expected = save_trained(tiny_base, folder, **OPTIONS[kind]).encode(TEXTS)
    base = LLMSentenceTransformer.from_base(tiny_base, max_seq_length=32, device="cpu")
    assert (base.encode(TEXTS) * expected).sum(axis=1).max() < 0.99
    by_peft = LLMSentenceTransformer.from_base(tiny_base, max_seq_length=32, device="cpu")
    by_peft[0].model = PeftModel.from_pretrained(by_peft[0].model, str(folder))
    models = [
        LLMSentenceTransformer(folder, device="cpu"),
        load_adapter(folder, tiny_base, max_seq_length=32),
        SentenceTransformer(str(folder), device="cpu"),
        by_peft,
    ]
    # As peft writes it.
    renamed(("lora_magnitude_vector.weight", "lora_magnitude_vector"), name=ADAPTER)(folder)
    for model in [*models, LLMSentenceTransformer(folder, device="cpu")]:
        np.testing.assert_allclose(model.encode(TEXTS), expected, atol=1e-6)
