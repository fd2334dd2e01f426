"""ONNX graphs against stock sentence-transformers: decoders of every family, encoders, static models, poolings."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from families import MODELS, byte_level_bpe, save_embedder
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, StaticEmbedding, Transformer
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers import (
    AutoModel,
    BertConfig,
    DistilBertConfig,
    ModernBertConfig,
    MPNetConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    XLMRobertaConfig,
)

from st_llm_embed import InputError, LLMSentenceTransformer, export_model
from st_llm_embed.export import load_source
from st_llm_embed.export import onnx as onnx_export
from st_llm_embed.export.onnx import OPSET, onnx_graph, save_onnx
from st_llm_embed.export.readme import QUERY

TEXTS = ["", " ", "a", "two words", "the quick brown fox and one more", "Ünïcödé 文字 🎈", "x </s> y", "long " * 80]

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
SPECIAL = {"vocab_size": 330, "pad_token_id": 0, "max_position_embeddings": 80}

ENCODERS: dict[str, PreTrainedConfig] = {
    "bert": BertConfig(**SMALL, **SPECIAL),
    "distilbert": DistilBertConfig(dim=32, n_layers=2, n_heads=4, hidden_dim=64, **SPECIAL),
    "mpnet": MPNetConfig(**SMALL, **SPECIAL),
    "xlm-r": XLMRobertaConfig(**SMALL, **SPECIAL),
    "modernbert": ModernBertConfig(**SMALL, **SPECIAL, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2),
}

LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [4.0, 6.0, 8.0, 10.0],
    "original_max_position_embeddings": 48,
}

Run = Callable[[dict[str, NDArray[np.int64]]], NDArray[np.float32]]


def onnx_run(path: Path) -> Run:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(["sentence_embedding"], inputs)[0]


def check(model: Path, run: Run) -> None:
    stock = SentenceTransformer(str(model), device="cpu")
    expected = stock.encode(TEXTS, batch_size=1)
    for side in ("left", "right"):
        batch = stock.tokenizer(
            TEXTS, padding=True, truncation=True, max_length=64, padding_side=side, return_tensors="np"
        )
        inputs = {name: batch[name].astype(np.int64) for name in ("input_ids", "attention_mask")}
        assert (inputs["attention_mask"] == 0).any()
        np.testing.assert_allclose(run(inputs), expected, atol=1e-5, rtol=0)
        # The ids where the mask is 0 must not matter.
        inputs["input_ids"] = np.where(inputs["attention_mask"] == 1, inputs["input_ids"], 7)
        np.testing.assert_allclose(run(inputs), expected, atol=1e-5, rtol=0)
    for text, vector in zip(TEXTS, expected, strict=True):
        ids = np.array(stock.tokenizer([text], truncation=True, max_length=64)["input_ids"])
        alone = run({"input_ids": ids, "attention_mask": np.ones_like(ids)})
        np.testing.assert_allclose(alone, [vector], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("family", "is_causal"), [*((family, True) for family in MODELS), ("llama", False)])
def test_onnx_has_stocks_vectors(family: str, is_causal: bool, tmp_path: Path) -> None:
    model = save_embedder(tmp_path, family, is_causal=is_causal)
    check(model, onnx_run(save_onnx(onnx_graph(load_source(str(model))), tmp_path)))


def test_a_graph_that_cannot_be_made_is_not_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Positions that depend on the length of a text cannot be traced."""
    folder = save_embedder(tmp_path, "phi3")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"original_max_position_embeddings": 48, "rope_parameters": LONGROPE, "rope_scaling": None}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(InputError, match="'phi3' cannot be exported to ONNX"):
        export_model(folder, ["onnx"], tmp_path / "out")
    assert capfd.readouterr().out == ""


def test_openvino_reads_the_graph(tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    model = save_embedder(tmp_path, "mistral with a window")
    path = save_onnx(onnx_graph(load_source(str(model))), tmp_path)
    compiled = openvino.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    check(model, lambda inputs: np.array(compiled(inputs)["sentence_embedding"]))


def test_the_graph_keeps_its_contract_and_large_weights_are_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save_embedder(tmp_path, "mistral")
    monkeypatch.setattr(onnx_export, "LARGEST_FILE", 1000)
    (tmp_path / "onnx").mkdir()
    path = save_onnx(onnx_graph(load_source(str(model))), tmp_path / "onnx")
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


def tokenizer(**options: Any) -> PreTrainedTokenizerFast:
    backend = byte_level_bpe()
    backend.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    names = {"pad_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names, **options)


def save_encoder(
    folder: Path, config: PreTrainedConfig, pooling: str, *behind: nn.Module, include_prompt: bool = True
) -> Path:
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(folder / "base")
    tokenizer(model_max_length=48).save_pretrained(folder / "base")
    pool = Pooling(32, pooling_mode=pooling, include_prompt=include_prompt)
    modules = [Transformer(str(folder / "base")), pool, *behind, Normalize()]
    model = SentenceTransformer(modules=modules, device="cpu", prompts={"query": "find: "})
    model.max_seq_length = 48
    model.save_pretrained(str(folder / "model"))
    return folder / "model"


def save_static(folder: Path) -> Path:
    vectors = np.random.default_rng(0).normal(size=(330, 24)).astype(np.float32)
    model = SentenceTransformer(modules=[StaticEmbedding(tokenizer(), embedding_weights=vectors), Normalize()])
    model.save_pretrained(str(folder / "model"))
    return folder / "model"


def check_export(model: Path, folder: Path) -> dict[str, Any]:
    """Export, run the code of the README on texts of several lengths, and return export.json."""
    [one] = export_model(model, ["onnx"], folder)
    assert one.verification is not None
    assert one.verification.ids_equal
    assert one.verification.largest_difference < 1e-5
    stock = SentenceTransformer(str(model), device="cpu")
    code = (one.folder / "README.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    made: dict[str, Any] = {}
    with contextlib.chdir(one.folder):
        exec(code, made)  # noqa: S102
    wanted = stock.encode_query([QUERY])
    np.testing.assert_allclose(made["queries"], wanted, atol=1e-5, rtol=0)
    np.testing.assert_allclose(made["embed"](TEXTS[2:]), stock.encode(TEXTS[2:]), atol=1e-5, rtol=0)
    return json.loads((one.folder / "export.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("family", ENCODERS)
def test_an_encoders_export_has_stocks_vectors(family: str, tmp_path: Path) -> None:
    check_export(save_encoder(tmp_path, ENCODERS[family], "mean"), tmp_path / "out")


def test_modules_after_the_pooling_are_in_the_graph(tmp_path: Path) -> None:
    dense = Dense(32, 12, bias=False, activation_function=nn.Identity())
    assert check_export(save_encoder(tmp_path, ENCODERS["bert"], "cls", dense), tmp_path / "out")["dimension"] == 12


def test_a_static_models_export_has_stocks_vectors(tmp_path: Path) -> None:
    assert check_export(save_static(tmp_path), tmp_path / "out")["max_seq_length"] is None


def test_a_decoder_that_takes_the_mean_can_be_exported(tiny_base: Path, tmp_path: Path) -> None:
    model = LLMSentenceTransformer.from_base(str(tiny_base), max_seq_length=48, pooling_mode="mean", device="cpu")
    model.save_pretrained(str(tmp_path / "model"))
    check_export(tmp_path / "model", tmp_path / "out")


def test_a_prompt_that_is_omitted_from_the_pooling_is_refused(tmp_path: Path) -> None:
    model = save_encoder(tmp_path, ENCODERS["bert"], "mean", include_prompt=False)
    with pytest.raises(InputError, match="include_prompt is false"):
        export_model(model, ["onnx"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_without_a_vocabulary_or_a_longest_text_is_refused(tmp_path: Path) -> None:
    model = save_encoder(tmp_path, ENCODERS["bert"], "mean")

    def change(name: str, **values: Any) -> None:
        content = json.loads((model / name).read_text(encoding="utf-8"))
        (model / name).write_text(json.dumps(content | values), encoding="utf-8")

    for length, reason in ((10**30, "states no longest text"), (48, "knows no word")):
        change("sentence_bert_config.json", max_seq_length=length)
        change("tokenizer_config.json", model_max_length=length)
        if length == 48:
            tokens = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
            change(
                "tokenizer.json",
                model=tokens["model"] | {"vocab": {"<unk>": 0, "<s>": 1, "</s>": 2}, "merges": []},
            )
        with pytest.raises(InputError, match=reason):
            export_model(model, ["onnx"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
