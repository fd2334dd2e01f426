"""Repositories of other people: what is said of each is true, and nothing else is said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Outcome
from foreign_layouts import LAYOUTS
from sentence_transformers import SentenceTransformer

from st_llm_embed import InputError, diagnose
from st_llm_embed.doctor.fix import repair

FOUND = {
    "e5-mistral": {"missing EOS", "no query prompt", "unstated length"},
    "SFR-Embedding": {"missing EOS", "prompt missing by the card", "unstated length"},
    "Qwen3-Embedding": set(),
    "gte-Qwen2": {"missing EOS", "custom code", "attention"},
    "EmbeddingGemma": {"dense layers"},
    "NV-Embed": {"custom code", "unstated length"},
    "harrier": {"no query prompt"},
    "a plain LLM": {"no modules.json", "no pad token"},
}


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("layouts")
    for name, build in LAYOUTS.items():
        build(folder / name)
    return folder


@pytest.mark.parametrize("name", FOUND)
def test_what_is_said_of_a_published_layout_is_true(name: str, layouts: Path) -> None:
    found = diagnose(str(layouts / name), live=False).findings
    assert {finding.trap for finding in found} == FOUND[name]


def test_the_sentences_name_what_is_seen_and_who_is_affected(layouts: Path) -> None:
    by_trap = {finding.trap: finding for finding in diagnose(str(layouts / "gte-Qwen2"), live=False).findings}
    assert "transformers takes its own 'qwen2'" in by_trap["custom code"].message
    assert by_trap["attention"].readers == ("sentence-transformers 5", "transformers 4")
    [code] = [one for one in diagnose(str(layouts / "NV-Embed"), live=False).findings if one.trap == "custom code"]
    assert "does not know 'nvembed', and stops" in code.message
    [dense] = diagnose(str(layouts / "EmbeddingGemma"), live=False).findings
    assert dense.readers == ("llama.cpp",)
    with pytest.raises(InputError, match=r"is of type 'bert', an encoder\. Nothing was checked"):
        diagnose(str(layouts / "MiniLM"))


@pytest.mark.parametrize("name", ["Qwen3-Embedding", "EmbeddingGemma", "harrier"])
def test_what_is_published_right_is_right_when_texts_are_encoded(name: str, layouts: Path) -> None:
    assert {finding.trap for finding in diagnose(str(layouts / name), live=True, device="cpu").findings} == FOUND[name]


@pytest.mark.parametrize("name", FOUND)
def test_a_repair_makes_nothing_worse(name: str, layouts: Path, tmp_path: Path) -> None:
    repaired = repair(str(layouts / name), tmp_path / "fixed", live=False)
    before, after = ({finding.trap for finding in one.findings} for one in (repaired.before, repaired.after))
    assert after <= before
    if name in ("e5-mistral", "SFR-Embedding"):
        assert "missing EOS" not in after


def test_an_end_token_that_is_not_eos_stays_the_end_token(layouts: Path, tmp_path: Path) -> None:
    published = layouts / "Qwen3-Embedding"
    assert repair(str(published), tmp_path / "fixed").after.findings == []
    texts = ["", "a", "several words here"]
    one, other = (SentenceTransformer(str(folder), device="cpu") for folder in (published, tmp_path / "fixed"))
    assert (one.encode(texts) == other.encode(texts)).all()
    end = other.tokenizer.convert_tokens_to_ids("<|endoftext|>")
    assert [other.tokenizer(text)["input_ids"][-1] for text in texts] == [end] * 3


def test_the_command_distinguishes_findings_from_mistakes_of_the_user(
    run_cli: Callable[..., Outcome], layouts: Path
) -> None:
    codes = {name: run_cli("doctor", layouts / name, "--no-live").code for name in ("Qwen3-Embedding", "harrier")}
    assert codes == {"Qwen3-Embedding": 0, "harrier": 1}
    assert run_cli("doctor", layouts / "MiniLM").code == 2
