from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from families import TOKENIZERS
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tokenizers import processors
from transformers import (
    AutoTokenizer,
    BartConfig,
    BertConfig,
    BertLMHeadModel,
    BertModel,
    ByT5Tokenizer,
    Gemma3Config,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    MistralConfig,
    ModernBertConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from st_llm_embed import InputError, LLMSentenceTransformer
from st_llm_embed.modules.base import is_decoder_only, load_tokenizer
from st_llm_embed.modules.eos import append_eos, check_eos, end_token_id

TEXTS = ["", " ", "a", "several words here", "Ünïcödé 文字 🎈", "word " * 400]


def tokenizer_of(kind: str, *, bos: bool, eos: bool) -> PreTrainedTokenizerFast:
    """A tokenizer of one family, with or without <s> before and </s> after a text."""
    tokenizer = TOKENIZERS[kind]()
    template = [*(["<s>"] if bos else []), "$A", *(["</s>"] if eos else [])]
    tokenizer.post_processor = processors.TemplateProcessing(template, [*template, "$B:1"], [("<s>", 1), ("</s>", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("eos", [True, False])
def test_every_text_ends_in_one_eos_and_bos_stays_as_it_was(kind: str, bos: bool, eos: bool, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(kind, bos=bos, eos=eos)
    bare = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    append_eos(tokenizer)
    tokenizer.save_pretrained(tmp_path)
    for candidate in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        for text, ids in zip(TEXTS, bare, strict=True):
            assert candidate(text)["input_ids"] == [*([1] if bos else []), *ids, 2]
            cut = candidate(text, truncation=True, max_length=8)["input_ids"]
            assert len(cut) <= 8
            assert cut[-1] == 2
            assert cut.count(2) == 1


@pytest.mark.parametrize("behind", [["<unk>"], ["<unk>", "</s>"], ["</s>", "<unk>"]])
def test_the_last_token_behind_a_text_is_the_one_it_ends_in(behind: list[str], tmp_path: Path) -> None:
    tokenizer = tokenizer_of("Unigram", bos=True, eos=False)
    special = [("<unk>", 0), ("<s>", 1), ("</s>", 2)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        ["<s>", "<s>", "$A", *behind], ["<s>", "$A", *behind, "$B:1"], special
    )
    end = tokenizer.convert_tokens_to_ids(behind[-1])
    assert end_token_id(tokenizer) == end
    append_eos(tokenizer)
    tokenizer.save_pretrained(tmp_path)
    bare = tokenizer("another text", add_special_tokens=False)["input_ids"]
    assert AutoTokenizer.from_pretrained(tmp_path)("another text")["input_ids"] == [1, 1, *bare, end]
    assert end_token_id(tokenizer) == end


def test_a_tokenizer_that_changes_texts_for_special_tokens_is_refused() -> None:
    class Reversing(ByT5Tokenizer):
        def build_inputs_with_special_tokens(
            self, token_ids_0: list[int], token_ids_1: list[int] | None = None
        ) -> list[int]:
            return super().build_inputs_with_special_tokens(token_ids_0[::-1], token_ids_1)

    with pytest.raises(InputError, match="it is unknown what it puts around a text"):
        end_token_id(Reversing())


def test_a_tokenizer_without_eos_is_refused() -> None:
    tokenizer = tokenizer_of("Unigram", bos=True, eos=False)
    tokenizer.eos_token = None
    with pytest.raises(InputError, match="no EOS token"):
        append_eos(tokenizer)


def test_check_eos_refuses_a_model_whose_tokenizer_lost_it(tiny_base: Path) -> None:
    model = LLMSentenceTransformer.from_base(str(tiny_base), max_seq_length=32, device="cpu")
    check_eos(model)
    model.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        "<s> $A", "<s> $A $B", [("<s>", 1)]
    )
    with pytest.raises(InputError, match="has to end in one '</s>'"):
        check_eos(model)


@pytest.mark.parametrize("name", ["no/such-model", "nowhere"])
def test_a_base_that_cannot_be_found_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=name):
        load_tokenizer(name)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (MistralConfig(), True),
        (GPTNeoXConfig(), True),
        (Gemma3Config(), True),
        (BertConfig(is_decoder=True), True),
        (BertConfig(), False),
        (ModernBertConfig(), False),
        (T5Config(), False),
        (BartConfig(), False),
    ],
    ids=lambda value: getattr(value, "model_type", None),
)
def test_decoders_are_distinguished_from_encoders(config: PreTrainedConfig, expected: bool) -> None:
    assert is_decoder_only(config) is expected


BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


@pytest.mark.parametrize("kind", ["bert", "t5"])
def test_an_encoder_is_refused_as_a_base(kind: str, tmp_path: Path) -> None:
    tokenizer = tokenizer_of("Unigram", bos=True, eos=True)
    tokenizer.save_pretrained(tmp_path)
    if kind == "bert":
        BertModel(BertConfig(vocab_size=len(tokenizer), **BERT)).save_pretrained(tmp_path)
    else:
        T5EncoderModel(T5Config(vocab_size=len(tokenizer), d_model=32, d_ff=48, num_layers=2)).save_pretrained(
            tmp_path
        )
    for build in (load_tokenizer, partial(LLMSentenceTransformer.from_base, max_seq_length=32, device="cpu")):
        with pytest.raises(InputError, match=f"'{kind}', which is not a decoder-only language model"):
            build(str(tmp_path))


@pytest.mark.parametrize("is_decoder", [True, False])
def test_bert_shares_an_instruction_only_as_a_decoder(is_decoder: bool, tmp_path: Path) -> None:
    tokenizer = tokenizer_of("Unigram", bos=True, eos=True)
    tokenizer.add_special_tokens({"pad_token": "<unk>"})
    tokenizer.save_pretrained(tmp_path / "base")
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(tokenizer), is_decoder=is_decoder, pad_token_id=0, **BERT)
    BertLMHeadModel(config).save_pretrained(tmp_path / "base")
    transformer = Transformer(str(tmp_path / "base"), max_seq_length=256)
    stock = SentenceTransformer(modules=[transformer, Pooling(32, pooling_mode="lasttoken")], device="cpu")
    stock.save_pretrained(str(tmp_path / "stock"))
    ours = LLMSentenceTransformer(str(tmp_path / "stock"), device="cpu")
    shapes: list[tuple[int, ...]] = []
    ours[0].model.get_input_embeddings().register_forward_pre_hook(lambda _, ids: shapes.append(ids[0].shape))
    texts = ["one", "another text", "a third"]
    np.testing.assert_allclose(
        ours.encode(texts, prompt="several words here: "),
        stock.encode(texts, prompt="several words here: "),
        atol=1e-6,
    )
    assert (1 in {rows for rows, _ in shapes}) is is_decoder, shapes


@pytest.mark.parametrize(("length", "expected"), [(513, "have room for 512"), (2, "need at least 3 tokens")])
def test_a_length_that_the_base_cannot_have_is_refused(length: int, expected: str, tiny_base: Path) -> None:
    for build in (load_tokenizer, partial(LLMSentenceTransformer.from_base, device="cpu")):
        with pytest.raises(InputError, match=expected):
            build(str(tiny_base), max_seq_length=length)


def test_a_slow_tokenizer_stays_as_saved(tmp_path: Path) -> None:
    tokenizer = ByT5Tokenizer()
    tokenizer.save_pretrained(tmp_path / "base")
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=64)
    torch.manual_seed(0)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    pooling = Pooling(32, pooling_mode="lasttoken")
    stock = SentenceTransformer(modules=[Transformer(str(tmp_path / "base")), pooling], device="cpu")
    stock.save_pretrained(str(tmp_path / "stock"))
    ours = LLMSentenceTransformer(str(tmp_path / "stock"), device="cpu")
    ours.save_pretrained(str(tmp_path / "ours"))
    saved = json.loads((tmp_path / "ours" / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert saved["tokenizer_class"] == "ByT5Tokenizer"
    again = SentenceTransformer(str(tmp_path / "ours"), device="cpu")
    np.testing.assert_array_equal(again.encode(TEXTS[:5]), stock.encode(TEXTS[:5]))
