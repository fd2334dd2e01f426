from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from st_llm_embed import InputError, LLMSentenceTransformer
from st_llm_embed.modules import check_eos, load_tokenizer
from st_llm_embed.modules.eos import append_eos

TEXTS = ["", " ", "a", "several words here", "Ünïcödé 文字 🎈", "word " * 400]


def tokenizer_of(kind: str, *, bos: bool, eos: bool) -> PreTrainedTokenizerFast:
    """A trained tokenizer of one family, with or without <s> before and </s> after a text."""
    if kind == "byte-level BPE":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=350, special_tokens=["<unk>", "<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
        )
    else:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.normalizer = normalizers.NFKC()
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=60, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>", show_progress=False
        )
    tokenizer.train_from_iterator(TEXTS, trainer)
    template = [*(["<s>"] if bos else []), "$A", *(["</s>"] if eos else [])]
    if bos or eos:
        pair = [*template, "$B:1"]
        tokenizer.post_processor = processors.TemplateProcessing(template, pair, [("<s>", 1), ("</s>", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize("kind", ["byte-level BPE", "Unigram"])
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


def test_a_folder_without_a_tokenizer_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((tiny_base / name).read_bytes())
    with pytest.raises(InputError, match="holds no tokenizer"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize("name", ["no/such-model", "nowhere"])
def test_a_base_that_cannot_be_found_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=name):
        load_tokenizer(name)
