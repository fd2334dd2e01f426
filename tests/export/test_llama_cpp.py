"""GGUF files of ours read by llama.cpp, in an environment of its own: the same ids, the same vectors, no flags."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export.test_gguf import split_like
from families import MODELS, byte_level_bpe, save_base
from tokenizers import Tokenizer, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM

from st_llm_embed import LLMSentenceTransformer
from st_llm_embed.data.rows import read_rows, rows_file
from st_llm_embed.doctor.probe import DOCUMENTS
from st_llm_embed.export.gguf import write_gguf
from st_llm_embed.export.gguf_tokenizer import PRE_TOKENIZERS, PreTokenizer

ENVIRONMENT = Path(__file__).parents[2] / ".venv-llamacpp"

pytestmark = [
    pytest.mark.llamacpp,
    pytest.mark.skipif(
        not list(ENVIRONMENT.glob("lib/python*/site-packages/llama_cpp")),
        reason="make test-llamacpp builds llama.cpp from source; it was not run, or the build failed",
    ),
]

LONGEST = 200

TEXTS = [*DOCUMENTS.values(), "x </s> y", "</s>", "<s>a</s>"]

SPLIT_TEXTS = [
    *TEXTS,
    "It's We'LL DON'T 12345 1234567 x9y",
    "HelloWORLD camelCaseText iPhone",
    "ÄÖÜber ÉCOLE éCole",
    "e\u0301cole cafe\u0301s",
    "漢字かな交じりカタカナ한국어 文123",
    "\r\n\r\n a  b\t\tc \n",
    "a/b//c...\n\n",
    "<html>!x [y]_z `q` $5 +3=8 ~^|",
    "   lots   of   spaces   ",
    "नमस्ते दुनिया ไทยภาษา",
]
OTHERWISE = re.compile("[À-ÖØ-Þ\u0301\u093f\u0902\u0941\u094b\u094d]")
"""Capitals other than A to Z, and the marks of the texts above."""

# Special tokens inside a text are read as such, as llama-server does.
PROGRAM = """
import json, sys
import llama_cpp
longest = int(sys.argv[2])
model = llama_cpp.Llama(
    sys.argv[1],
    embedding=True,
    n_ctx=longest,
    n_batch=longest,
    n_ubatch=longest,
    n_threads=1,
    n_threads_batch=1,
    verbose=False,
)
tokenize = model.tokenize
model.tokenize = lambda text, *args, **kwargs: tokenize(text, add_bos=True, special=True)
texts = json.load(sys.stdin)
give = {
    "ids": lambda text: model.tokenize(text.encode("utf-8")),
    "vectors": lambda text: model.embed(text, normalize=True),
}[sys.argv[3]]
print(json.dumps([give(text) for text in texts]))
"""


def ask_llama_cpp(path: Path, texts: list[str], what: str) -> Any:
    result = subprocess.run(
        [str(ENVIRONMENT / "bin" / "python"), "-c", PROGRAM, str(path), str(LONGEST), what],
        input=json.dumps(texts),
        check=False,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def check(model: LLMSentenceTransformer, path: Path, texts: list[str]) -> None:
    assert ask_llama_cpp(path, texts, "ids") == [model.tokenizer(text)["input_ids"] for text in texts]
    assert (model.encode(texts) * np.array(ask_llama_cpp(path, texts, "vectors"))).sum(axis=1).min() >= 0.9999


@pytest.mark.parametrize(
    ("family", "tokenizer", "config"),
    [
        ("mistral", "byte-fallback BPE", {}),
        ("mistral", "byte-level BPE", {}),
        ("llama", "byte-fallback BPE", {"attention_bias": True, "mlp_bias": True}),
        ("llama", "byte-level BPE", {"is_causal": False}),
        (
            "llama",
            "byte-level BPE",
            {
                "rope_parameters": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "rope_theta": 10000.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 64,
                }
            },
        ),
        ("llama", "byte-level BPE", {"rope_parameters": {"rope_type": "linear", "factor": 4.0}}),
        ("qwen2", "byte-level BPE", {}),
        ("qwen3", "byte-level BPE", {}),
        ("qwen3", "byte-fallback BPE", {"is_causal": False}),
    ],
)
def test_llama_cpp_gives_the_same_ids_and_vectors(
    family: str, tokenizer: str, config: dict[str, Any], tmp_path: Path
) -> None:
    base = save_base(tmp_path / "base", family, tokenizer, bos=True)
    written = json.loads((base / "config.json").read_text(encoding="utf-8"))
    (base / "config.json").write_text(json.dumps(written | config), encoding="utf-8")
    model = LLMSentenceTransformer.from_base(str(base), max_seq_length=LONGEST, device="cpu")
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in model[0].model.named_parameters():
            if name.endswith("bias"):
                weight.normal_()
    for kind in ("F32", "F16"):
        write_gguf(model, tmp_path / f"{kind}.gguf", kind, "model")
        check(model, tmp_path / f"{kind}.gguf", TEXTS)


@pytest.mark.parametrize("known", PRE_TOKENIZERS, ids=lambda known: known.name)
def test_llama_cpp_splits_texts_alike(known: PreTokenizer, tmp_path: Path) -> None:
    fast = split_like(known, merged_over_all_splits())
    fast.save_pretrained(tmp_path / "base")
    AutoModelForCausalLM.from_config(MODELS["llama"](len(fast))).save_pretrained(tmp_path / "base")
    model = LLMSentenceTransformer.from_base(str(tmp_path / "base"), max_seq_length=LONGEST, device="cpu")
    write_gguf(model, tmp_path / "model.gguf", "F32", "model")
    texts = [text for text in SPLIT_TEXTS if not known.capitals or not OTHERWISE.search(text)]
    assert ask_llama_cpp(tmp_path / "model.gguf", texts, "ids") == [
        model.tokenizer(text)["input_ids"] for text in texts
    ]


def merged_over_all_splits() -> Tokenizer:
    """Make a tokenizer whose pieces reach over every place at which a text may be split: there the ids show it."""
    backend = byte_level_bpe()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=3000, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(SPLIT_TEXTS * 3, trainer)
    return backend


def test_the_packaged_base_has_the_same_ids_for_real_texts(tmp_path: Path) -> None:
    model = LLMSentenceTransformer.from_base("embedded", max_seq_length=LONGEST, device="cpu")
    differences = write_gguf(model, tmp_path / "model.gguf", "F32", "model")
    assert "begin with a space" in differences[0]
    texts = list(dict.fromkeys(row.anchor for row in read_rows(rows_file("embedded"))))
    fitting = [text for text in texts if len(model.tokenizer(text)["input_ids"]) <= LONGEST]
    assert ask_llama_cpp(tmp_path / "model.gguf", fitting, "ids") == [
        model.tokenizer(text)["input_ids"] for text in fitting
    ]
    check(model, tmp_path / "model.gguf", [text for text in DOCUMENTS.values() if not text.startswith(" ")])
