"""The saved layout: what each reader outside of this package takes from which file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import save_base
from hub import Hub
from peft import LoraConfig
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from st_llm_embed import InputError, LLMSentenceTransformer
from st_llm_embed.doctor import diagnose
from st_llm_embed.doctor.fix import repair
from st_llm_embed.modules.layout import sentencepiece_file

TEXTS = ["", "a", "several words here", "Instruct: Find it\nQuery: where?", "long " * 300]
COMMIT = "0123456789abcdef0123456789abcdef01234567"

FIND = """
import json, logging, sys, time
from st_llm_embed.modules.layout import sentencepiece_file

logged = []
logging.getLogger("st_llm_embed").addHandler(logging.Handler())
logging.getLogger("st_llm_embed").handlers[0].emit = lambda record: logged.append(record.getMessage())

def found(name, revision=None):
    try:
        return sentencepiece_file(name, revision)
    except OSError as error:
        return type(error).__name__

time.sleep = lambda _: None  # between the tries of huggingface_hub
print(json.dumps([found(*one.split("@")) for one in sys.argv[1:]] + logged))
"""


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture
def with_sentencepiece(tiny_base: Path, tmp_path: Path) -> Path:
    """A base with a file tokenizer.model, of which only llama.cpp's converter reads more than its name."""
    shutil.copytree(tiny_base, tmp_path / "base")
    (tmp_path / "base" / "tokenizer.model").write_bytes(b"pieces and scores")
    return tmp_path / "base"


def cached_on_the_hub(folder: Path, name: str, base: Path) -> Path:
    cache = folder / f"models--{name.replace('/', '--')}"
    (cache / "snapshots").mkdir(parents=True)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(COMMIT, encoding="utf-8")
    (cache / "snapshots" / COMMIT).symlink_to(base)
    return folder


def test_every_file_states_the_same_length(tiny_base: Path, tmp_path: Path) -> None:
    model = LLMSentenceTransformer.from_base(str(tiny_base), max_seq_length=100, device="cpu")
    # A call with a length and padding of its own leaves both in the tokenizer.
    model.tokenizer(["a", "a b c"], truncation=True, max_length=3, padding=True)
    model.save_pretrained(str(tmp_path), create_model_card=False)
    assert read(tmp_path / "sentence_bert_config.json")["max_seq_length"] == 100
    assert read(tmp_path / "tokenizer_config.json")["model_max_length"] == 100
    alone = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    whole = AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        assert alone.encode(text).ids == whole(text, truncation=True, max_length=100)["input_ids"]
    assert len(alone.encode("long " * 300).ids) == 100
    assert len(alone.encode_batch(["a", "several words here"])[0].ids) == 3
    assert SentenceTransformer(str(tmp_path), device="cpu").max_seq_length == 100
    # Nothing of how or from where it was loaded is saved, nor a file that the base does not have.
    config = read(tmp_path / "tokenizer_config.json")
    assert not config.keys() & {"backend", "extra_special_tokens", "is_local", "local_files_only", "name_or_path"}
    for path in tmp_path.rglob("*.json"):
        assert str(tiny_base.parent) not in path.read_text(encoding="utf-8")
    assert not (tmp_path / "tokenizer.model").exists()


@pytest.mark.parametrize(
    ("family", "architecture"),
    [("mistral", "MistralForCausalLM"), ("llama", "LlamaForCausalLM"), ("qwen3", "Qwen3ForCausalLM")],
)
def test_the_architecture_is_one_that_converters_know(family: str, architecture: str, tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", family, "Unigram", bos=True)
    model = LLMSentenceTransformer.from_base(str(base), max_seq_length=32, device="cpu")
    model.save_pretrained(str(tmp_path / "saved"))
    config = read(tmp_path / "saved" / "config.json")
    assert config["architectures"] == [architecture]
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
    loaded = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    np.testing.assert_array_equal(loaded.encode(TEXTS), model.encode(TEXTS))


@pytest.mark.parametrize("through", ["a folder", "the Hub"])
def test_tokenizer_model_is_kept(
    through: str, with_sentencepiece: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = str(with_sentencepiece)
    if through == "the Hub":
        cache = cached_on_the_hub(tmp_path / "cache", "lab/tiny", with_sentencepiece)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
        name = "lab/tiny"
    model = LLMSentenceTransformer.from_base(
        name, max_seq_length=32, revision=COMMIT if through == "the Hub" else None, device="cpu"
    )
    model.save_pretrained(str(tmp_path / "first"))
    again = LLMSentenceTransformer(str(tmp_path / "first"), device="cpu")
    again.save_pretrained(str(tmp_path / "second"))
    # Over what it was loaded from.
    again.save_pretrained(str(tmp_path / "first"))
    for folder in ("first", "second"):
        assert (tmp_path / folder / "tokenizer.model").read_bytes() == b"pieces and scores"
        stock = SentenceTransformer(str(tmp_path / folder), device="cpu")
        np.testing.assert_array_equal(stock.encode(TEXTS), model.encode(TEXTS))


def test_an_adapter_without_tokenizer_model_takes_that_of_its_base(with_sentencepiece: Path, tmp_path: Path) -> None:
    model = LLMSentenceTransformer.from_base(str(with_sentencepiece), max_seq_length=32, device="cpu")
    model.add_adapter(LoraConfig(r=2, target_modules=["q_proj"]))
    model.save_pretrained(str(tmp_path / "adapter"))
    assert (tmp_path / "adapter" / "tokenizer.model").is_file()
    (tmp_path / "adapter" / "tokenizer.model").unlink()
    loaded = LLMSentenceTransformer(str(tmp_path / "adapter"), device="cpu")
    loaded.save_pretrained(str(tmp_path / "again"))
    assert (tmp_path / "again" / "tokenizer.model").read_bytes() == b"pieces and scores"
    assert (tmp_path / "again" / "adapter_model.safetensors").is_file()


def test_a_tokenizer_model_is_missed_where_the_hub_says_so(hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    hub.run("from huggingface_hub import create_repo; create_repo('lab/without'); print('null')")
    asked = ("lab/without", "lab/absent", "no/name/of/the/hub", "lab/without@v9")
    assert hub.run(FIND, *asked) == [None, None, None, "RevisionNotFoundError"]
    hub.fail({"method": "HEAD", "path": "/tokenizer.model", "times": 99, "status": 500})
    found, logged = hub.run(FIND, "lab/without")
    hub.fail()
    assert found is None
    assert "does not say whether lab/without has a tokenizer.model" in logged
    # Offline, as here, nobody knows.
    assert sentencepiece_file("lab/without") is None
    assert not caplog.records


def test_the_data_type_of_the_weights_is_kept(tiny_base: Path, tmp_path: Path) -> None:
    model = LLMSentenceTransformer.from_base(str(tiny_base), max_seq_length=32, dtype="bfloat16", device="cpu")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    model.save_pretrained(str(tmp_path / "first"))
    LLMSentenceTransformer(str(tmp_path / "first"), device="cpu").save_pretrained(str(tmp_path / "second"))
    assert read(tmp_path / "second" / "config.json")["dtype"] == "bfloat16"
    released = SentenceTransformer(str(tmp_path / "second"), device="cpu")
    assert {parameter.dtype for parameter in released.parameters()} == {torch.bfloat16}


def test_the_end_token_is_that_of_the_post_processor(tiny_base: Path, tmp_path: Path) -> None:
    """As Qwen3-Embedding is published: its texts do not end in the token that its files call EOS."""
    shutil.copytree(tiny_base, tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing("<s> $A <unk>", None, [("<s>", 1), ("<unk>", 0)])
    tokenizer.save_pretrained(tmp_path / "base")
    model = LLMSentenceTransformer.from_base(tmp_path / "base", max_seq_length=32, device="cpu")
    assert [(ids[0], ids[-1]) for ids in model[0].token_ids(TEXTS)] == [(1, 0)] * len(TEXTS)
    model.save_pretrained(str(tmp_path / "ours"), create_model_card=False)
    transformer = Transformer(str(tmp_path / "base"), max_seq_length=32)
    transformer.tokenizer.pad_token_id = 0
    modules = [transformer, Pooling(32, pooling_mode="lasttoken"), Normalize()]
    foreign = SentenceTransformer(modules=modules, prompts={"query": "query: ", "document": ""}, device="cpu")
    foreign.save_pretrained(str(tmp_path / "foreign"), create_model_card=False)
    repair(str(tmp_path / "foreign"), tmp_path / "fixed")
    for name in ("ours", "fixed"):
        config = read(tmp_path / name / "tokenizer_config.json")
        assert (config["eos_token"], config["add_eos_token"]) == ("<unk>", True), name
        assert diagnose(str(tmp_path / name)).findings == []
        stock = SentenceTransformer(str(tmp_path / name), device="cpu")
        np.testing.assert_array_equal(stock.encode(TEXTS), model.encode(TEXTS))
        assert LLMSentenceTransformer(tmp_path / name, device="cpu")[1].end_token_id == 0


def test_a_pointer_as_tokenizer_model_is_refused(with_sentencepiece: Path) -> None:
    (with_sentencepiece / "tokenizer.model").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(InputError, match=r"tokenizer\.model is a Git LFS pointer"):
        sentencepiece_file(str(with_sentencepiece))
