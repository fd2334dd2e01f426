from __future__ import annotations

from pathlib import Path

import pytest
from open_sets import BITEXT, RETRIEVAL, STS, check_open_sets, score_open_sets
from scipy.stats import spearmanr

from st_llm_embed import InputError, LLMSentenceTransformer
from st_llm_embed.instructions import published_prompts


@pytest.fixture(scope="module")
def model(tiny_base: Path) -> LLMSentenceTransformer:
    return LLMSentenceTransformer.from_base(str(tiny_base), max_seq_length=64, device="cpu")


def test_every_kind_of_set_is_scored_with_the_prompts_of_the_model(
    open_sets: Path, things: list[str], model: LLMSentenceTransformer
) -> None:
    model.prompts.update(published_prompts("none"))
    scores = score_open_sets(model, open_sets)
    assert len(scores) == len(STS) + len(RETRIEVAL) + len(BITEXT)
    # Without instructions a query is its document, and a sentence its translation.
    assert {scores[f"retrieval: {name}"] for name in RETRIEVAL} == {1.0}
    assert {scores[f"bitext: {name}"] for name in BITEXT} == {1.0}
    similarity = model.similarity(model.encode(things[:1]), model.encode(things))[0].tolist()
    assert scores[f"STS: {STS[0]}"] == pytest.approx(spearmanr(similarity, range(len(things))).statistic)
    model.prompts.update(published_prompts("natural"))
    assert score_open_sets(model, open_sets)[f"STS: {STS[0]}"] != scores[f"STS: {STS[0]}"]


def test_a_missing_set_is_named(open_sets: Path) -> None:
    (open_sets / "ntrex" / "eng.jsonl.gz").unlink()
    with pytest.raises(InputError, match=r"lacks ntrex/eng\.jsonl\.gz\. "):
        check_open_sets(open_sets)
