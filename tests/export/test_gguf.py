"""What a GGUF file says, and what is refused because llama.cpp would compute something else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
from families import byte_level_bpe, save_base
from tokenizers import Regex, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from st_llm_embed import InputError, LLMSentenceTransformer
from st_llm_embed.export.gguf import write_gguf
from st_llm_embed.export.gguf_tokenizer import PRE_TOKENIZERS, read_tokenizer
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


@pytest.mark.parametrize(("pattern", "whole"), [key for key in PRE_TOKENIZERS if key[0]])
def test_pre_tokenizers_are_recognized_by_their_pattern(pattern: str, whole: bool) -> None:
    backend = byte_level_bpe()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.model.ignore_merges = whole
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    append_eos(fast)
    found = read_tokenizer(fast, len(fast))
    assert found.pre == PRE_TOKENIZERS[pattern, whole]
    assert found.differences == ()
    backend = fast.backend_tokenizer
    backend.normalizer = normalizers.NFC()
    assert "NFC" in read_tokenizer(fast, len(fast)).differences[0]
    backend.normalizer = normalizers.Lowercase()
    with pytest.raises(InputError, match="normalizers Lowercase"):
        read_tokenizer(fast, len(fast))
    backend.normalizer = None
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(InputError, match=r"which llama\.cpp lacks"):
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
