"""ONNX Runtime with the library tokenizers, on a real export of a tiny model."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from families import save_base
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn
from transformers import AutoModel

from st_llm_embed import InputError, LLMSentenceTransformer, verify
from st_llm_embed.doctor.probe import PROBE_FILE, make_probe, write_probe
from st_llm_embed.doctor.runtimes import llama_cpp_runtime

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "sentence_bert_config.json")


class Pooled(nn.Module):
    """From ids and mask to the embedding, whichever side is padded."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.decoder = AutoModel.from_pretrained(folder, attn_implementation="eager")

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        positions = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
        hidden = self.decoder(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=positions, use_cache=False
        ).last_hidden_state
        places = torch.arange(input_ids.shape[1])
        last = (attention_mask * places).argmax(dim=1)
        return nn.functional.normalize(hidden[torch.arange(input_ids.shape[0]), last], dim=1)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model with a probe and onnx/model.onnx in it."""
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("exported")
    base = save_base(folder / "base", "mistral", "Unigram", bos=True)
    model = LLMSentenceTransformer.from_base(str(base), max_seq_length=64, device="cpu")
    saved = folder / "saved"
    model.save_pretrained(str(saved), create_model_card=False)
    write_probe(make_probe(SentenceTransformer(str(saved), device="cpu")), saved / PROBE_FILE)
    (saved / "onnx").mkdir()
    example = torch.tensor([[1, 5, 6, 2], [1, 7, 2, 0]]), torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    shape = {0: "batch", 1: "sequence"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Pooled(saved).eval(),
            example,
            str(saved / "onnx" / "model.onnx"),
            input_names=["input_ids", "attention_mask"],
            output_names=["sentence_embedding"],
            dynamic_axes={"input_ids": shape, "attention_mask": shape, "sentence_embedding": {0: "batch"}},
            opset_version=18,
            dynamo=False,
        )
    return saved


def test_an_export_is_the_same_on_either_side_of_padding(exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported, tmp_path / "left")
    settings = json.loads((exported / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings["padding_side"] = "left"
    (tmp_path / "left" / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    for folder in (exported, tmp_path / "left"):
        verification = verify(exported, folder / "onnx" / "model.onnx", minimum_cosine=0.999999)
        assert verification.same
        assert verification.ids_equal


def test_an_export_with_another_length_is_named(exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported / "onnx", tmp_path / "onnx")
    for name in TOKENIZER_FILES:
        shutil.copy(exported / name, tmp_path / name)
    settings = json.loads((tmp_path / "sentence_bert_config.json").read_text(encoding="utf-8"))
    (tmp_path / "sentence_bert_config.json").write_text(
        json.dumps(settings | {"max_seq_length": 32}), encoding="utf-8"
    )
    # The folder of an export alone, named without its file.
    verification = verify(exported, tmp_path)
    assert [one.trap for one in verification.explanations] == ["max length"]
    verification = verify(exported / PROBE_FILE, tmp_path)
    assert [one.trap for one in verification.explanations] == ["max length"]


def test_an_export_that_cannot_be_used_is_one_message(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "alone.onnx").write_bytes(b"no graph")
    with pytest.raises(InputError, match=r"alone\.onnx cannot be used"):
        verify(exported, tmp_path / "alone.onnx")
    shutil.copy(exported / "onnx" / "model.onnx", tmp_path / "alone.onnx")
    with pytest.raises(InputError, match=r"There is no tokenizer\.json"):
        verify(exported, tmp_path / "alone.onnx")


def test_llama_cpp_that_is_not_installed_is_one_message(tmp_path: Path) -> None:
    try:
        import llama_cpp  # noqa: F401
    except ImportError:
        with pytest.raises(InputError, match="llama-cpp-python is not installed here"):
            llama_cpp_runtime(tmp_path / "model.gguf", 64)
    else:
        pytest.skip("llama-cpp-python is installed here")
