"""ONNX and OpenVINO graphs of every family against stock sentence-transformers, alone and in mixed batches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
from families import MODELS, save_base
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer

from st_llm_embed import LLMSentenceTransformer
from st_llm_embed.export import onnx as onnx_export
from st_llm_embed.export.onnx import OPSET, write_onnx
from st_llm_embed.export.openvino import write_openvino
from st_llm_embed.export.source import load_source

TEXTS = ["", " ", "a", "two words", "the quick brown fox and one more", "Ünïcödé 文字 🎈", "x </s> y", "long " * 80]

Run = Callable[[dict[str, NDArray[np.int64]]], NDArray[np.float32]]


def make_embedder(folder: Path, model: str, *, is_causal: bool = True) -> str:
    base = save_base(folder / "base", model, "byte-level BPE", bos=True)
    embedder = LLMSentenceTransformer.from_base(str(base), max_seq_length=64, device="cpu")
    embedder[0].config.is_causal = is_causal
    embedder.save_pretrained(str(folder / "model"))
    return str(folder / "model")


def onnx_run(path: Path) -> Run:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(["sentence_embedding"], inputs)[0]


def check(model: str, run: Run) -> None:
    stock = SentenceTransformer(model, device="cpu")
    expected = stock.encode(TEXTS, batch_size=1)
    for side in ("left", "right"):
        batch = stock.tokenizer(
            TEXTS, padding=True, truncation=True, max_length=64, padding_side=side, return_tensors="np"
        )
        inputs = {name: batch[name].astype(np.int64) for name in ("input_ids", "attention_mask")}
        assert (inputs["attention_mask"] == 0).any()
        np.testing.assert_allclose(run(inputs), expected, atol=1e-5, rtol=0)
        # What stands where the mask is 0 must not matter.
        inputs["input_ids"] = np.where(inputs["attention_mask"] == 1, inputs["input_ids"], 7)
        np.testing.assert_allclose(run(inputs), expected, atol=1e-5, rtol=0)
    for text, vector in zip(TEXTS, expected, strict=True):
        ids = np.array(stock.tokenizer([text], truncation=True, max_length=64)["input_ids"])
        alone = run({"input_ids": ids, "attention_mask": np.ones_like(ids)})
        np.testing.assert_allclose(alone, [vector], atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", MODELS)
def test_onnx_gives_stocks_vectors(family: str, tmp_path: Path) -> None:
    model = make_embedder(tmp_path, family)
    path = write_onnx(load_source(model, dtype="float32"), tmp_path)
    check(model, onnx_run(path))


def test_bidirectional_attention_stays_so_in_onnx(tmp_path: Path) -> None:
    model = make_embedder(tmp_path, "llama", is_causal=False)
    path = write_onnx(load_source(model, dtype="float32"), tmp_path)
    check(model, onnx_run(path))


def test_the_graph_keeps_its_contract_and_large_weights_stand_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_embedder(tmp_path, "mistral")
    monkeypatch.setattr(onnx_export, "LARGEST_FILE", 1000)
    (tmp_path / "onnx").mkdir()
    path = write_onnx(load_source(model, dtype="float32"), tmp_path / "onnx")
    assert sorted(file.name for file in path.parent.iterdir()) == ["model.onnx", "model.onnx_data"]
    graph = onnx.load(path, load_external_data=False)
    assert [one.version for one in graph.opset_import if not one.domain] == [OPSET]
    shapes = {
        value.name: [part.dim_param or part.dim_value for part in value.type.tensor_type.shape.dim]
        for value in (*graph.graph.input, *graph.graph.output)
    }
    assert shapes == {
        "input_ids": ["batch", "sequence"],
        "attention_mask": ["batch", "sequence"],
        "sentence_embedding": ["batch", 32],
    }
    check(model, onnx_run(path))


@pytest.mark.parametrize("family", ["mistral with a window", "llama", "qwen3"])
def test_openvino_gives_stocks_vectors(family: str, tmp_path: Path) -> None:
    model = make_embedder(tmp_path, family)
    path = write_openvino(write_onnx(load_source(model, dtype="float32"), tmp_path), tmp_path)
    compiled = openvino.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    check(model, lambda inputs: np.array(compiled(inputs)["sentence_embedding"]))
