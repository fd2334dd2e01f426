"""What the reader says of a saved model is what the loaded model has."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding
from tokenizers import Tokenizer

from st_llm_embed import InputError
from st_llm_embed.doctor.repository import NoDecoderError, Repository


@pytest.mark.parametrize("family", ["embedded", "llama", "gpt2"])
def test_the_facts_are_those_of_the_loaded_model(family: str, good: Callable[[str], Path]) -> None:
    loaded, facts = SentenceTransformer(str(good(family)), device="cpu"), Repository(str(good(family)))
    assert (facts.kind, facts.pooling, facts.normalized) == ("transformer", "lasttoken", True)
    assert facts.dimension == loaded.get_embedding_dimension()
    assert facts.max_seq_length == loaded.max_seq_length
    assert facts.dtype == "float32"
    assert facts.prompts["query"] == loaded.prompts["query"]
    assert facts.special_token("eos") == loaded.tokenizer.eos_token
    assert not facts.split_special_tokens


def test_vectors_side_by_side_are_counted_together(broken: Path) -> None:
    path = broken / "1_Pooling" / "config.json"
    path.write_text(json.dumps({"embedding_dimension": 32, "pooling_mode": ["mean", "max"]}), encoding="utf-8")
    facts = Repository(str(broken))
    assert (facts.dimension, facts.pooling) == (64, "mean+max")


def test_a_length_without_a_limit_is_none(broken: Path) -> None:
    path = broken / "sentence_bert_config.json"
    path.write_text(json.dumps({"max_seq_length": 10**30}), encoding="utf-8")
    assert Repository(str(broken)).max_seq_length is None


def test_a_static_model_is_read_and_is_not_a_decoder(good: Callable[[str], Path], tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(good("mistral") / "tokenizer.json"))
    static = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=32), Normalize()], device="cpu")
    static.save_pretrained(str(tmp_path))
    facts = Repository(str(tmp_path))
    assert (facts.kind, facts.dimension, facts.normalized, facts.max_seq_length) == ("static", 32, True, None)
    with pytest.raises(NoDecoderError):
        facts.check_decoder()


def test_a_folder_that_states_no_dimension_is_refused(tmp_path: Path) -> None:
    content = '[{"type": "sentence_transformers.models.Normalize"}]'
    (tmp_path / "modules.json").write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match="does not say how many numbers a vector has"):
        _ = Repository(str(tmp_path)).dimension
