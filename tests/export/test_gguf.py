"""What a GGUF file says, and what is refused because llama.cpp would compute something else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
from families import byte_level_bpe, save_base
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from st_llm_embed import InputError, LLMSentenceTransformer
from st_llm_embed.export.gguf import write_gguf
from st_llm_embed.export.gguf_tokenizer import CAPITALS, PRE_TOKENIZERS, PreTokenizer, read_tokenizer
from st_llm_embed.modules.eos import append_eos


def make_embedder(
    folder: Path, family: str, tokenizer: str = "byte-level BPE", *, config: dict[str, Any] | None = None
) -> LLMSentenceTransformer:
    base = save_base(folder, family, tokenizer, bos=True)
    written = json.loads((base / "config.json").read_text(encoding="utf-8"))
    (base / "config.json").write_text(json.dumps(written | (config or {})), encoding="utf-8")
    return LLMSentenceTransformer.from_base(str(base), max_seq_length=64, device="cpu")


@pytest.mark.parametrize(
    ("family", "tokenizer", "architecture", "algorithm"),
    [
        ("mistral", "byte-fallback BPE", "llama", "llama"),
        ("llama", "byte-level BPE", "llama", "gpt2"),
        ("qwen2", "byte-level BPE", "qwen2", "gpt2"),
        ("qwen3", "byte-level BPE", "qwen3", "gpt2"),
    ],
)
def test_a_file_says_all_that_llama_cpp_needs(
    family: str, tokenizer: str, architecture: str, algorithm: str, tmp_path: Path
) -> None:
    model = make_embedder(tmp_path, family, tokenizer)
    write_gguf(model, tmp_path / "model.gguf", "F32", "model")
    reader = gguf.GGUFReader(tmp_path / "model.gguf")
    fields = {name: field.contents() for name, field in reader.fields.items()}
    wanted = {
        "general.architecture": architecture,
        f"{architecture}.pooling_type": gguf.PoolingType.LAST,
        f"{architecture}.context_length": 64,
        f"{architecture}.attention.causal": True,
        "tokenizer.ggml.model": algorithm,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": True,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    assert {name: fields[name] for name in wanted} == wanted
    assert len(fields["tokenizer.ggml.tokens"]) == model[0].model.get_input_embeddings().num_embeddings
    stored = {tensor.name for tensor in reader.tensors}
    assert {"token_embd.weight", "output_norm.weight", "blk.1.attn_q.weight", "blk.1.ffn_down.weight"} <= stored
    assert len(stored) == len(model[0].model.state_dict())


def test_pieces_score_in_the_order_of_merges(tmp_path: Path) -> None:
    model = make_embedder(tmp_path, "mistral", "byte-fallback BPE")
    found = read_tokenizer(model.tokenizer, len(model.tokenizer))
    assert found.scores is not None
    score = dict(zip(found.pieces, found.scores, strict=True))
    assert [score[piece] for piece in ("th", "he", "▁t", "▁the")] == [0, -1, -2, -3]
    kind = dict(zip(found.pieces, found.types, strict=True))
    assert [kind[piece] for piece in ("<unk>", "</s>", "<0x0A>", "▁the")] == [2, 3, 6, 1]


def split_like(known: PreTokenizer, backend: Tokenizer | None = None) -> PreTrainedTokenizerFast:
    """Make a tokenizer that splits texts as one that llama.cpp knows."""
    backend = backend or byte_level_bpe()
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in known.patterns]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
    backend.model.ignore_merges = known.ignore_merges
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.model_max_length = 256
    append_eos(fast)
    return fast


@pytest.mark.parametrize("known", PRE_TOKENIZERS, ids=lambda known: known.name)
def test_pre_tokenizers_are_recognized_by_their_patterns(known: PreTokenizer) -> None:
    fast = split_like(known)
    found = read_tokenizer(fast, len(fast))
    assert found.pre == known.name
    assert found.differences == (CAPITALS if known.capitals else ())
    if not any(one is not known and one.patterns == known.patterns for one in PRE_TOKENIZERS):
        fast.backend_tokenizer.model.ignore_merges = not known.ignore_merges
        with pytest.raises(InputError, match=f"ignore_merges .* pre-tokenizer {known.name} has"):
            read_tokenizer(fast, len(fast))


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        ([pre_tokenizers.ByteLevel(add_prefix_space=True)], "a space put in front of each text"),
        ([pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)], "Whitespace"),
        ([pre_tokenizers.Split(Regex("x+"), "isolated")], r"splits at x\+, which llama\.cpp lacks"),
        ([pre_tokenizers.Split(Regex("x+"), "removed")], '"behavior": "Removed"'),
        ([pre_tokenizers.Digits(individual_digits=False)], "Digits"),
        ([pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)], "splits at nothing"),
    ],
)
def test_the_reason_why_a_pre_tokenizer_is_refused_is_the_true_one(
    steps: list[pre_tokenizers.PreTokenizer], reason: str
) -> None:
    fast = split_like(PRE_TOKENIZERS[0])
    fast.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    with pytest.raises(InputError, match=reason):
        read_tokenizer(fast, len(fast))


def test_normalizers_are_known_or_refused() -> None:
    fast = split_like(PRE_TOKENIZERS[0])
    fast.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    assert read_tokenizer(fast, len(fast)).pre == "smollm"
    fast.backend_tokenizer.normalizer = normalizers.NFC()
    assert "NFC" in read_tokenizer(fast, len(fast)).differences[0]
    fast.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(InputError, match="normalizers Lowercase"):
        read_tokenizer(fast, len(fast))


@pytest.mark.parametrize(
    ("family", "tokenizer", "config", "message"),
    [
        ("mistral", "Unigram", {}, "a Unigram model"),
        ("mistral with a window", "byte-level BPE", {}, "sliding window of 24"),
        ("gpt2", "byte-level BPE", {}, "type 'gpt2'; allowed are mistral, llama, qwen2, qwen3"),
        ("llama", "byte-level BPE", {"hidden_act": "gelu"}, "activation 'gelu'"),
        (
            "llama",
            "byte-level BPE",
            {
                "rope_parameters": {
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "rope_theta": 10000.0,
                    "original_max_position_embeddings": 64,
                }
            },
            "position scaling 'yarn'",
        ),
    ],
)
def test_what_llama_cpp_computes_otherwise_is_refused(
    family: str, tokenizer: str, config: dict[str, Any], message: str, tmp_path: Path
) -> None:
    model = make_embedder(tmp_path / "base", family, tokenizer, config=config)
    with pytest.raises(InputError, match=message):
        write_gguf(model, tmp_path / "model.gguf", "F32", "model")
    assert not (tmp_path / "model.gguf").exists()
