from __future__ import annotations

from pathlib import Path

import pytest
from open_sets import THINGS, write_open_sets
from scipy.stats import spearmanr

from st_llm_embed import InputError, LLMSentenceTransformer
from st_llm_embed.evaluation.open_sets import BITEXT, RETRIEVAL, STS, check_open_sets, score_open_sets
from st_llm_embed.instructions import published_prompts


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    return write_open_sets(tmp_path)


@pytest.fixture(scope="module")
def model(tiny_base: Path) -> LLMSentenceTransformer:
    return LLMSentenceTransformer.from_base(str(tiny_base), max_seq_length=64, device="cpu")


def test_every_kind_of_set_is_scored(sets: Path, model: LLMSentenceTransformer) -> None:
    model.prompts.update(published_prompts("none"))
    scores = score_open_sets(model, sets)
    assert len(scores) == len(STS) + len(RETRIEVAL) + len(BITEXT)
    # Without instructions a query is its document, and a sentence its translation.
    assert {scores[f"retrieval: {name}"] for name in RETRIEVAL} == {1.0}
    assert {scores[f"bitext: {name}"] for name in BITEXT} == {1.0}
    similarity = model.similarity(model.encode(THINGS[:1]), model.encode(THINGS))[0].tolist()
    assert scores[f"STS: {STS[0]}"] == pytest.approx(spearmanr(similarity, range(len(THINGS))).statistic)


def test_prompts_are_those_saved_with_the_model(sets: Path, model: LLMSentenceTransformer) -> None:
    model.prompts.update(published_prompts("none"))
    bare = score_open_sets(model, sets)
    model.prompts.update(published_prompts("natural"))
    instructed = score_open_sets(model, sets)
    assert bare[f"STS: {STS[0]}"] != instructed[f"STS: {STS[0]}"]


def test_a_missing_set_is_named(sets: Path) -> None:
    (sets / "ntrex" / "eng.jsonl.gz").unlink()
    with pytest.raises(InputError, match=r"lacks ntrex/eng\.jsonl\.gz\. Put"):
        check_open_sets(sets)
