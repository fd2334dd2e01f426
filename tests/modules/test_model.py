from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from transformers import AutoModel, AutoTokenizer

from st_llm_embed import InputError, LLMSentenceTransformer

TEXTS = ["", "a", "several words here", "Instruct: Find it\nQuery: where?", "long " * 300]


@pytest.mark.parametrize("pooling_mode", ["mean", "weightedmean"])
def test_a_mean_is_over_all_tokens_with_eos_and_is_saved(pooling_mode: str, tiny_base: Path, tmp_path: Path) -> None:
    """Against transformers alone; the weights of a weighted mean are the positions, from 1 (arXiv 2202.08904)."""
    model = LLMSentenceTransformer.from_base(
        str(tiny_base), max_seq_length=32, pooling_mode=pooling_mode, device="cpu"
    )
    model.save_pretrained(str(tmp_path))
    tokenizer, backbone = AutoTokenizer.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)
    vectors = model.encode(TEXTS)
    for text, vector in zip(TEXTS, vectors, strict=True):
        ids = tokenizer(text, truncation=True, max_length=32, return_tensors="pt")
        assert ids["input_ids"][0, -1] == tokenizer.eos_token_id
        with torch.no_grad():
            hidden = backbone(**ids).last_hidden_state[0]
        weights = torch.ones(len(hidden)) if pooling_mode == "mean" else torch.arange(1, len(hidden) + 1)
        mean = (weights[:, None] * hidden).sum(dim=0) / weights.sum()
        np.testing.assert_allclose(vector, (mean / mean.norm()).numpy(), atol=1e-6)
    for loaded in (
        SentenceTransformer(str(tmp_path), device="cpu"),
        LLMSentenceTransformer(str(tmp_path), device="cpu"),
    ):
        np.testing.assert_array_equal(loaded.encode(TEXTS), vectors)
        assert loaded.max_seq_length == 32


def test_the_packaged_base_saved_gives_the_same_vectors(tmp_path: Path) -> None:
    model = LLMSentenceTransformer.from_base("embedded", max_seq_length=32, device="cpu")
    model.save_pretrained(str(tmp_path))
    loaded = SentenceTransformer(str(tmp_path), device="cpu")
    np.testing.assert_array_equal(loaded.encode(TEXTS), model.encode(TEXTS))
    # The shared instruction is computed once in ours, and with each text in stock.
    np.testing.assert_allclose(loaded.encode_query(TEXTS), model.encode_query(TEXTS), atol=1e-6)
    assert loaded.max_seq_length == 32
    assert loaded.tokenizer.padding_side == "right"
    assert loaded.tokenizer.pad_token is not None


def test_queries_carry_the_instruction_and_documents_do_not(tiny_base: Path) -> None:
    model = LLMSentenceTransformer.from_base(str(tiny_base), max_seq_length=128, device="cpu")
    prompt = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery: "
    np.testing.assert_allclose(model.encode_query("where?"), model.encode(f"{prompt}where?"), atol=1e-6)
    np.testing.assert_array_equal(model.encode_document("here"), model.encode("here"))


def test_a_chat_template_of_the_base_is_not_applied(tiny_base: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    tokenizer.chat_template = "[INST] {{ messages[0]['content'] }} [/INST]"
    tokenizer.save_pretrained(tmp_path)
    AutoModel.from_pretrained(tiny_base).save_pretrained(tmp_path)
    plain = LLMSentenceTransformer.from_base(str(tiny_base), max_seq_length=32, device="cpu")
    templated = LLMSentenceTransformer.from_base(str(tmp_path), max_seq_length=32, device="cpu")
    np.testing.assert_array_equal(templated.encode(TEXTS), plain.encode(TEXTS))


def test_random_init_keeps_tokenizer_and_shape_but_not_the_weights(tiny_base: Path) -> None:
    pretrained = LLMSentenceTransformer.from_base(str(tiny_base), max_seq_length=32, device="cpu")
    torch.manual_seed(1)
    fresh = LLMSentenceTransformer.from_base(str(tiny_base), max_seq_length=32, random_init=True, device="cpu")
    torch.manual_seed(1)
    again = LLMSentenceTransformer.from_base(str(tiny_base), max_seq_length=32, random_init=True, device="cpu")
    assert fresh.encode(TEXTS).shape == pretrained.encode(TEXTS).shape
    assert not np.allclose(fresh.encode(TEXTS), pretrained.encode(TEXTS), atol=0.1)
    np.testing.assert_array_equal(fresh.encode(TEXTS), again.encode(TEXTS))


def test_a_plain_base_is_refused_with_the_way_to_make_an_embedder(tiny_base: Path) -> None:
    with pytest.raises(InputError, match=r"LLMSentenceTransformer\.from_base"):
        LLMSentenceTransformer(str(tiny_base), device="cpu")


def test_stock_modules_are_refused(tiny_base: Path) -> None:
    ours = LLMSentenceTransformer.from_base(str(tiny_base), max_seq_length=32, device="cpu")
    stock = Transformer(str(tiny_base)), Pooling(32, pooling_mode="lasttoken")
    for modules in ([*stock, Normalize()], [ours[0], stock[1]], [stock[0], ours[1]]):
        with pytest.raises(InputError, match="give a DecoderTransformer and a LastTokenPooling"):
            LLMSentenceTransformer(modules=modules, device="cpu")
    again = LLMSentenceTransformer(modules=[ours[0], ours[1], Normalize()], device="cpu")
    np.testing.assert_array_equal(again.encode(TEXTS), ours.encode(TEXTS))


@pytest.mark.parametrize("option", [{"dtype": "foo"}, {"pooling_mode": "cls"}])
def test_unknown_options_of_from_base_are_refused(option: dict[str, str], tiny_base: Path) -> None:
    [(name, value)] = option.items()
    with pytest.raises(InputError, match=f"{name} is '{value}'; allowed are '"):
        LLMSentenceTransformer.from_base(str(tiny_base), max_seq_length=32, device="cpu", **option)
