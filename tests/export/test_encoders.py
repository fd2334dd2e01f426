"""ONNX and OpenVINO graphs of encoders, static models and other poolings against stock sentence-transformers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import example_rows, write_rows
from families import byte_level_bpe
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

from st_llm_embed import InputError, LLMSentenceTransformer, export

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
SPECIAL = {"vocab_size": 330, "pad_token_id": 0, "max_position_embeddings": 80}

CONFIGS: dict[str, PreTrainedConfig] = {
    "bert": BertConfig(**SMALL, **SPECIAL),
    "distilbert": DistilBertConfig(dim=32, n_layers=2, n_heads=4, hidden_dim=64, **SPECIAL),
    "mpnet": MPNetConfig(**SMALL, **SPECIAL),
    "xlm-r": XLMRobertaConfig(**SMALL, **SPECIAL),
    "modernbert": ModernBertConfig(**SMALL, **SPECIAL, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2),
}


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


def check(model: Path, folder: Path) -> None:
    """Export, and run the code of both READMEs on texts of several lengths."""
    exported = export(model, ["onnx", "openvino"], folder)
    for one in exported:
        assert one.verification is not None
        assert one.verification.ids_equal
        assert one.verification.largest_difference < 1e-5
    stock = SentenceTransformer(str(model), device="cpu")
    texts = ["a", "two words", "the quick brown fox and one more", "Ünïcödé 文字 🎈", "x </s> y", "long " * 80]
    for one in exported:
        code = (one.folder / "README.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
        code += f"\nprint(json.dumps([queries.tolist(), embed({texts!r}).tolist()]))\n"
        done = subprocess.run([sys.executable, "-c", code], cwd=one.folder, check=True, capture_output=True, text=True)
        queries, vectors = json.loads(done.stdout.splitlines()[-1])
        wanted = stock.encode_query(["how to fix a slow database query"])
        np.testing.assert_allclose(queries, wanted, atol=1e-5, rtol=0)
        np.testing.assert_allclose(vectors, stock.encode(texts), atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", CONFIGS)
def test_an_encoders_exports_give_stocks_vectors(family: str, tmp_path: Path) -> None:
    check(save_encoder(tmp_path, CONFIGS[family], "mean"), tmp_path / "out")


def test_what_stands_behind_the_pooling_is_in_the_graph(tmp_path: Path) -> None:
    dense = Dense(32, 12, bias=False, activation_function=nn.Identity())
    model = save_encoder(tmp_path, CONFIGS["bert"], "cls", dense)
    check(model, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "onnx" / "export.json").read_text(encoding="utf-8"))["dimension"] == 12


def test_a_static_models_exports_give_stocks_vectors(tmp_path: Path) -> None:
    check(save_static(tmp_path), tmp_path / "out")
    settings = json.loads((tmp_path / "out" / "onnx" / "export.json").read_text(encoding="utf-8"))
    assert settings["max_seq_length"] is None


def test_a_decoder_that_takes_the_mean_can_be_exported(tiny_base: Path, tmp_path: Path) -> None:
    model = LLMSentenceTransformer.from_base(str(tiny_base), max_seq_length=48, pooling_mode="mean", device="cpu")
    model.save_pretrained(str(tmp_path / "model"))
    check(tmp_path / "model", tmp_path / "out")


def test_quantized_weights_are_measured_with_the_models_own_queries(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", example_rows())
    model = save_static(tmp_path)
    losses = {}
    for prompt in ("find: ", ""):
        loaded = SentenceTransformer(str(model), device="cpu")
        loaded.prompts["query"] = prompt
        folder = tmp_path / f"prompt {prompt}"
        loaded.save_pretrained(str(folder))
        [one] = export(folder, ["onnx"], tmp_path / "out" / prompt, quantize=["int8"], rows=rows)
        losses[prompt] = one.losses["int8"]
    # With a prompt the row's instruction stands before a query, without one nothing does.
    assert losses["find: "].ndcg_at_10 != losses[""].ndcg_at_10


@pytest.mark.parametrize("form", ["portable", "gguf"])
def test_formats_of_decoders_are_refused(form: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{form} is for such alone"):
        export(save_static(tmp_path), [form], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_prompt_that_is_left_out_of_the_pooling_is_refused(tmp_path: Path) -> None:
    model = save_encoder(tmp_path, CONFIGS["bert"], "mean", include_prompt=False)
    with pytest.raises(InputError, match="include_prompt is false"):
        export(model, ["onnx"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_model_without_a_vocabulary_or_a_longest_text_is_refused(tmp_path: Path) -> None:
    model = save_encoder(tmp_path, CONFIGS["bert"], "mean")
    settings = json.loads((model / "sentence_bert_config.json").read_text(encoding="utf-8"))
    for name, length in (
        ("sentence_bert_config.json", "max_seq_length"),
        ("tokenizer_config.json", "model_max_length"),
    ):
        content = json.loads((model / name).read_text(encoding="utf-8"))
        (model / name).write_text(json.dumps(content | {length: 10**30}), encoding="utf-8")
    with pytest.raises(InputError, match="states no longest text"):
        export(model, ["onnx"], tmp_path / "out")
    (model / "sentence_bert_config.json").write_text(json.dumps(settings | {"max_seq_length": 48}), encoding="utf-8")
    content = json.loads((model / "tokenizer_config.json").read_text(encoding="utf-8"))
    (model / "tokenizer_config.json").write_text(json.dumps(content | {"model_max_length": 48}), encoding="utf-8")
    tokens = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
    tokens["model"] |= {"vocab": {"<unk>": 0, "<s>": 1, "</s>": 2}, "merges": []}
    (model / "tokenizer.json").write_text(json.dumps(tokens), encoding="utf-8")
    with pytest.raises(InputError, match="knows no word"):
        export(model, ["onnx"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
