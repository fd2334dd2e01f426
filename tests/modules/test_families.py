"""Every family of decoders and tokenizers: ours against transformers alone, and the EOS contract over any text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from families import COMMON, GEMMA, MODELS, TOKENIZERS, byte_level_bpe, rotary_types, save_base
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3Config,
    Gemma3ImageProcessorPil,
    PreTrainedTokenizerFast,
)

from st_llm_embed import InputError, LLMSentenceTransformer
from st_llm_embed.doctor import diagnose

TEXTS = ["", " ", "a", "two words", "the quick brown fox and one more", "Ünïcödé 文字 🎈", "</s>", "long " * 80]
INSTRUCTION = "find the answer to it among many others"


def reference(folder: Path, texts: list[str], max_length: int, side: str) -> NDArray[np.float32]:
    """The paper's own way: transformers, last attended token, unit length; the whole batch padded on one side."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.padding_side = side
    backbone = AutoModel.from_pretrained(folder).eval()
    batch = tokenizer(texts, padding=True, truncation=True, max_length=max_length, return_tensors="pt")
    positions = (batch["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
    with torch.no_grad():
        hidden = backbone(**batch, position_ids=positions).last_hidden_state
    last = (batch["attention_mask"] * torch.arange(hidden.shape[1])).argmax(dim=1)
    vectors = hidden[torch.arange(len(texts)), last]
    return torch.nn.functional.normalize(vectors, dim=1).numpy()


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_vectors_equal_transformers_alone(model: str, tokenizer: str, tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", model, tokenizer, bos=tokenizer != "byte-level BPE")
    ours = LLMSentenceTransformer.from_base(str(base), max_seq_length=64, device="cpu")
    saved = tmp_path / "saved"
    ours.save_pretrained(str(saved))
    stock = SentenceTransformer(str(saved), device="cpu")
    ids = [AutoTokenizer.from_pretrained(saved)(text, truncation=True, max_length=64)["input_ids"] for text in TEXTS]
    assert [list(row) for row in ours[0].token_ids(TEXTS)] == ids
    for text_ids in ids:
        assert text_ids[-1] == 2
        assert (text_ids[0] == 1) == (tokenizer != "byte-level BPE")
    expected = np.concatenate([reference(saved, [text], 64, "right") for text in TEXTS])
    for side in ("left", "right"):
        np.testing.assert_allclose(reference(saved, TEXTS, 64, side), expected, atol=2e-6)
    np.testing.assert_allclose(ours.encode(TEXTS), expected, atol=1e-6)
    np.testing.assert_allclose(ours.encode(TEXTS, batch_size=1), expected, atol=1e-6)
    np.testing.assert_array_equal(stock.encode(TEXTS), ours.encode(TEXTS))
    prompted = [f"Instruct: {INSTRUCTION}\nQuery: {text}" for text in TEXTS]
    np.testing.assert_allclose(ours.encode_query(TEXTS, instruction=INSTRUCTION), stock.encode(prompted), atol=1e-6)


POOLINGS = ("lasttoken", "mean", "weightedmean")
COMBINATIONS = [(model, rotary) for model in MODELS for rotary in rotary_types(model)]
# Each with one pooling and tokenization, and one with all.
SAVED = [
    *((model, rotary, POOLINGS[place % 3], place % 2 == 0) for place, (model, rotary) in enumerate(COMBINATIONS)),
    *(("llama", "llama3", pooling, split) for pooling in POOLINGS for split in (True, False)),
]


@pytest.mark.parametrize(("model", "rotary", "pooling", "split"), SAVED)
def test_what_is_saved_is_accepted(model: str, rotary: str, pooling: str, split: bool, tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", model, "byte-level BPE", bos=False, rotary=rotary)
    ours = LLMSentenceTransformer.from_base(base, max_seq_length=100, pooling_mode=pooling, device="cpu")
    if split:
        ours[0].processing_kwargs = {"text": {"split_special_tokens": True}}
    saved = tmp_path / "saved"
    ours.save_pretrained(str(saved), create_model_card=False)
    # A warning that is true: some readers have no such option.
    told = {"special tokens in texts"} if split else set()
    assert {finding.trap for finding in diagnose(str(saved)).findings} <= told
    for loaded in (SentenceTransformer(str(saved), device="cpu"), LLMSentenceTransformer(saved, device="cpu")):
        np.testing.assert_array_equal(loaded.encode(TEXTS), ours.encode(TEXTS))


@pytest.mark.parametrize(("rotary", "change"), [("longrope", 128), ("dynamic", 256)])
def test_a_texts_vector_does_not_depend_on_longer_ones_beside_it(rotary: str, change: int, tmp_path: Path) -> None:
    """Above this length a text has other positions, from its first token on, and so have all texts of its batch."""
    base = save_base(tmp_path / "base", "llama", "byte-level BPE", bos=False, rotary=rotary)
    ours = LLMSentenceTransformer.from_base(str(base), max_seq_length=100, device="cpu")
    ours.save_pretrained(str(tmp_path / "saved"))
    stock = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    ours.max_seq_length = stock.max_seq_length = change + 100
    texts = ["a", "b " * 20, "c " * 10, "d " * (change // 2), "e", "f " * 30]
    prompted = [f"Instruct: {INSTRUCTION}\nQuery: {text}" for text in texts]
    assert sum(len(ids) > change for ids in ours[0].token_ids(prompted)) == 1
    expected = np.concatenate([stock.encode([text]) for text in prompted])
    np.testing.assert_allclose(ours.encode_query(texts, instruction=INSTRUCTION), expected, atol=1e-6)


def test_a_window_in_the_text_part_of_a_config_is_respected(tmp_path: Path) -> None:
    tokens = {"image_token": "<image>", "boi_token": "<boi>", "eoi_token": "<eoi>"}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level_bpe(), bos_token="<s>", eos_token="</s>", extra_special_tokens=tokens
    )
    tokenizer.save_pretrained(tmp_path)
    Gemma3ImageProcessorPil().save_pretrained(tmp_path)
    config = Gemma3Config(
        text_config={"vocab_size": len(tokenizer), "sliding_window": 24, **COMMON, **GEMMA},
        vision_config={"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        | {"image_size": 28, "patch_size": 14},
        mm_tokens_per_image=1,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    model = LLMSentenceTransformer.from_base(str(tmp_path), max_seq_length=64, device="cpu")
    prompted = [f"Instruct: {INSTRUCTION}\nQuery: {text}" for text in TEXTS]
    expected = SentenceTransformer.encode(model, prompted, batch_size=1)
    np.testing.assert_allclose(model.encode_query(TEXTS, instruction=INSTRUCTION), expected, atol=1e-6)
    with pytest.raises(InputError, match="have room for 256"):
        LLMSentenceTransformer.from_base(str(tmp_path), max_seq_length=257, device="cpu")


def test_a_base_without_a_last_position_takes_any_length(tmp_path: Path) -> None:
    save_base(tmp_path, "bloom", "Unigram", bos=True)
    model = LLMSentenceTransformer.from_base(str(tmp_path), max_seq_length=10**9, device="cpu")
    assert model.max_seq_length == 10**9


@pytest.fixture(scope="module", params=list(TOKENIZERS))
def embedder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LLMSentenceTransformer:
    base = save_base(tmp_path_factory.mktemp("base"), "mistral", request.param, bos=True)
    model = LLMSentenceTransformer.from_base(str(base), max_seq_length=40, device="cpu")
    # A drawn text may hold a literal </s>.
    model[0].processing_kwargs = {"text": {"split_special_tokens": True}}
    return model


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(texts=st.lists(st.text(max_size=120), min_size=1, max_size=5), side=st.sampled_from(["left", "right"]))
def test_any_text_ends_in_eos_exactly_once(embedder: LLMSentenceTransformer, texts: list[str], side: str) -> None:
    embedder.tokenizer.padding_side = side
    batch = embedder.preprocess(texts)
    for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
        attended = ids[mask.bool()].tolist()
        assert attended[0] == 1
        assert attended[-1] == 2
        assert attended.count(2) == 1
        assert len(attended) <= 40


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(texts=st.lists(st.text(max_size=60), min_size=1, max_size=6))
def test_any_texts_get_stocks_vectors(embedder: LLMSentenceTransformer, texts: list[str]) -> None:
    embedder.tokenizer.padding_side = "right"
    expected = SentenceTransformer.encode(
        embedder, [f"Instruct: find it\nQuery: {text}" for text in texts], batch_size=1
    )
    np.testing.assert_allclose(embedder.encode(texts, instruction="find it"), expected, atol=1e-6)
