"""The probe: what each of its texts is there for, and what is refused to be read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from st_llm_embed import InputError, LLMSentenceTransformer
from st_llm_embed.doctor.probe import LONGEST_PROBE, TAIL, Probe, make_probe, read_probe, write_probe


@pytest.fixture(scope="module")
def folder(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = LLMSentenceTransformer.from_base(str(tiny_base), max_seq_length=100, dtype="bfloat16", device="cpu")
    folder = tmp_path_factory.mktemp("saved")
    model.save_pretrained(str(folder), create_model_card=False)
    return folder


@pytest.fixture(scope="module")
def probe(folder: Path) -> Probe:
    stock = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": torch.float32})
    return make_probe(stock, "org/tiny")


def test_ids_and_vectors_are_those_of_stock_in_float32(folder: Path, probe: Probe) -> None:
    stock = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": torch.float32})
    for text in probe.texts:
        assert text.ids == tuple(stock.preprocess([text.whole])["input_ids"][0].tolist())
        assert text.ids[0] == 1
        assert text.ids[-1] == 2
        np.testing.assert_allclose(text.vector, stock.encode(text.whole, normalize_embeddings=True), atol=1e-6)
    by_name = {text.name: text for text in probe.texts}
    np.testing.assert_allclose(by_name["query"].vector, stock.encode_query(by_name["query"].text), atol=1e-6)
    np.testing.assert_allclose(by_name["question"].vector, stock.encode_document(by_name["query"].text), atol=1e-6)
    assert (probe.max_seq_length, probe.dimension, probe.dtype, probe.model) == (100, 32, "float32", "org/tiny")


def test_each_text_shows_what_it_is_for(probe: Probe) -> None:
    by_name = {text.name: text for text in probe.texts}
    assert by_name["empty"].text == ""
    assert by_name["end of text inside"].ids.count(2) == 2
    assert [text.name for text in probe.texts if text.text.strip() != text.text] == ["edge whitespace"]
    long, short = by_name["over-long"], by_name["over-long without its tail"]
    assert long.text == short.text + TAIL
    assert len(long.ids) == len(short.ids) == 100
    assert long.ids == short.ids
    others = [text.ids for text in probe.texts if text is not long]
    assert len(set(others)) == len(others)


def test_a_length_that_no_text_reaches_is_bounded(folder: Path) -> None:
    model = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": torch.float32})
    # The tiny base has positions for 512, which RoPE does not mind.
    model.max_seq_length = 32_768
    probe = make_probe(model)
    longest = {text.name: len(text.ids) for text in probe.texts}["over-long without its tail"]
    assert LONGEST_PROBE < longest < LONGEST_PROBE + 40


def test_a_probe_reads_back_as_it_was_written(probe: Probe, tmp_path: Path) -> None:
    write_probe(probe, tmp_path / "probe.json")
    read = read_probe(tmp_path / "probe.json")
    for one, other in zip(probe.texts, read.texts, strict=True):
        np.testing.assert_array_equal(one.vector, other.vector)
        assert (one.name, one.role, one.text, one.prompt, one.ids) == (
            other.name,
            other.role,
            other.text,
            other.prompt,
            other.ids,
        )
    assert (read.model, read.max_seq_length, read.prompts) == (probe.model, probe.max_seq_length, probe.prompts)
    content = json.loads((tmp_path / "probe.json").read_text(encoding="utf-8"))
    assert content["version"] == 1
    assert content["tolerance"] == {"cosine": 0.9999}
    assert [one["length"] for one in content["texts"]] == [len(one.ids) for one in probe.texts]


def change(content: dict[str, Any], place: str, value: Any) -> None:
    target: Any = content
    *path, last = [int(part) if part.isdecimal() else part for part in place.split(".")]
    for part in path:
        target = target[part]
    target[last] = value


@pytest.mark.parametrize(
    ("place", "value", "expected"),
    [
        ("version", 2, "version"),
        ("texts", [], "texts"),
        ("texts.1.vector", [1.0, 0.0], "the vector of 'word' is not one of length 1 with 32 numbers"),
        ("texts.1.vector.0", 5.0, "the vector of 'word'"),
        ("texts.1.vector.0", "1", r"texts\.1\.vector\.0"),
        ("texts.1.ids.0", -1, r"texts\.1\.ids\.0"),
        ("texts.0.role", "title", r"texts\.0\.role"),
        ("dimension", None, "dimension"),
    ],
)
def test_a_broken_probe_is_refused(place: str, value: Any, expected: str, probe: Probe, tmp_path: Path) -> None:
    write_probe(probe, tmp_path / "probe.json")
    content = json.loads((tmp_path / "probe.json").read_text(encoding="utf-8"))
    change(content, place, value)
    (tmp_path / "probe.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(InputError, match=f"is not a probe that can be read: {expected}"):
        read_probe(tmp_path / "probe.json")


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b'{"version": 1', None])
def test_what_is_not_a_probe_is_refused(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "probe.json").write_bytes(content)
    with pytest.raises(InputError, match=r"probe.*Give the probe\.json of a released model"):
        read_probe(tmp_path / "probe.json")
