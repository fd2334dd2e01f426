"""Exports through the command line: kept when right, compared, described, and used as their READMEs say."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Outcome
from peft import LoraConfig
from safetensors.torch import load_file

from st_llm_embed import InputError, LLMSentenceTransformer, export_model


@pytest.fixture(scope="module")
def model(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    LLMSentenceTransformer.from_base(str(tiny_base), max_seq_length=48, device="cpu").save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module")
def exports(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exports")
    done = export_model(model, ["portable", "onnx", "gguf"], folder, quantize=["int8", "q8_0", "q4_0"])
    assert [one.format for one in done] == ["portable", "onnx", "gguf"]
    for one in done[:2]:
        assert one.verification is not None
        assert one.verification.ids_equal
        assert one.verification.largest_difference < 1e-5
    return folder


def test_each_format_is_a_folder_of_its_own(exports: Path) -> None:
    found = {one.name: sorted(file.name for file in one.iterdir()) for one in exports.iterdir() if one.is_dir()}
    described = ["README.md", "export.json", "probe.json"]
    assert found["onnx"] == sorted([*described, "model.onnx", "model_int8.onnx", "tokenizer.json"])
    assert found["gguf"] == [*described, "tiny-F32.gguf", "tiny-Q4_0.gguf", "tiny-Q8_0.gguf"]
    assert "modules.json" in found["portable"]
    assert set(found) == {"portable", "onnx", "gguf"}


def test_quantized_weights_are_smaller_and_compared_where_they_can_be_run(exports: Path) -> None:
    read = {one: json.loads((exports / one / "export.json").read_text(encoding="utf-8")) for one in ("onnx", "gguf")}
    # The weights did change, and the vectors are still those of this model.
    assert 0.5 < read["onnx"]["quantized"]["int8"] < 0.999999
    assert set(read["gguf"]["quantized"]) == {"q8_0", "q4_0"}
    assert (exports / "onnx" / "model_int8.onnx").stat().st_size < (exports / "onnx" / "model.onnx").stat().st_size
    size = {kind: (exports / "gguf" / f"tiny-{kind}.gguf").stat().st_size for kind in ("F32", "Q8_0", "Q4_0")}
    assert size["Q4_0"] < size["Q8_0"] < size["F32"]


def test_a_16_bit_model_is_saved_as_such_and_exported_from_the_same_numbers(tiny_base: Path, tmp_path: Path) -> None:
    model = LLMSentenceTransformer.from_base(str(tiny_base), max_seq_length=48, device="cpu", dtype="bfloat16")
    model.save_pretrained(str(tmp_path / "half"))
    export_model(tmp_path / "half", ["portable", "gguf"], tmp_path / "out")
    saved, portable = (
        load_file(one / "model.safetensors") for one in (tmp_path / "half", tmp_path / "out" / "portable")
    )
    assert all(torch.equal(portable[name], weight) for name, weight in saved.items())
    assert {weight.dtype for weight in portable.values()} == {torch.bfloat16}
    assert (tmp_path / "out" / "gguf" / "half-F16.gguf").is_file()


def test_the_command_prints_what_was_compared(model: Path, tmp_path: Path, run_cli: Callable[..., Outcome]) -> None:
    outcome = run_cli("export", model, "--to", "onnx", "--output-dir", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    assert "over 17 texts" in outcome.out
    again = run_cli("export", model, "--to", "onnx", "--output-dir", tmp_path / "out")
    assert again.code == 2
    assert "exists already" in again.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["tflite"], "tflite is not a format.*portable, onnx, gguf"),
        (["onnx", "--quantize", "q8_0"], "q8_0 does not fit --to onnx"),
    ],
)
def test_wrong_names_are_reported_before_anything_is_written(
    options: list[str], message: str, model: Path, tmp_path: Path, run_cli: Callable[..., Outcome]
) -> None:
    outcome = run_cli("export", model, "--output-dir", tmp_path / "out", "--to", *options)
    assert outcome.code == 2
    assert re.search(message, outcome.err)
    assert not (tmp_path / "out").exists()


def test_an_export_that_cannot_be_finished_leaves_nothing(model: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    LLMSentenceTransformer(str(model), device="cpu").save_pretrained(str(broken))
    config = json.loads((broken / "config.json").read_text(encoding="utf-8"))
    (broken / "config.json").write_text(json.dumps(config | {"hidden_act": "gelu"}), encoding="utf-8")
    with pytest.raises(InputError, match="activation 'gelu'"):
        export_model(broken, ["gguf"], tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_other_models_are_refused(model: Path, tmp_path: Path) -> None:
    LLMSentenceTransformer(str(model), device="cpu").save_pretrained(str(tmp_path / "mean"))
    pooling = tmp_path / "mean" / "1_Pooling" / "config.json"
    flags = json.loads(pooling.read_text(encoding="utf-8"))
    flags |= {"pooling_mode_lasttoken": False, "pooling_mode_mean_tokens": True}
    pooling.write_text(json.dumps(flags), encoding="utf-8")
    for form in ("portable", "gguf"):
        with pytest.raises(InputError, match=rf"pools by mean; {form} needs a decoder"):
            export_model(tmp_path / "mean", [form], tmp_path / "out")
    shutil.copytree(tmp_path / "mean", tmp_path / "long")
    modules = json.loads((tmp_path / "long" / "modules.json").read_text(encoding="utf-8"))
    (tmp_path / "long" / "modules.json").write_text(json.dumps(modules[:2]), encoding="utf-8")
    with pytest.raises(InputError, match="with a Normalize at the end"):
        export_model(tmp_path / "long", ["onnx"], tmp_path / "out")
    with pytest.raises(InputError, match="cannot be loaded"):
        export_model(tmp_path / "nothing", ["onnx"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_adapter_beside_its_base_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    embedder = LLMSentenceTransformer.from_base(str(tiny_base), max_seq_length=48, device="cpu")
    embedder[0].model.add_adapter(LoraConfig(target_modules=["q_proj"]))
    embedder.save_pretrained(str(tmp_path / "adapter"))
    with pytest.raises(InputError, match="adapter beside its base"):
        export_model(tmp_path / "adapter", ["onnx"], tmp_path / "out")
