"""The judge over real HTTP: one request a row, and none when the journal has them."""

from __future__ import annotations

import inspect
import json
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from replay_server import Faults, ReplayServer, made_up_answer
from sentence_transformers import SentenceTransformer
from synthesis.planned import synthesis
from synthesis.running import records

from st_llm_embed.data.dataset import load_split
from st_llm_embed.modules.model import LLMSentenceTransformer
from st_llm_embed.pipeline import run_synthesis
from st_llm_embed.recipe import Recipe, Synthesis
from st_llm_embed.synthesis.generate import generate
from st_llm_embed.synthesis.output import write_synthetic_dataset
from st_llm_embed.synthesis.parsing import parse_answer

ROWS = 40


def section(server: ReplayServer, mode: str = "live", **filters: Any) -> Synthesis:
    content = synthesis(
        requests=ROWS,
        brainstorm_requests=0,
        task_types={"sts": 1, "bitext": 1},
        filters={"languages": False} | filters,
    ).model_dump(mode="json")
    content["endpoint"] |= {"base_url": server.base_url, "models": {"writer": 1}, "concurrency": 4, "mode": mode}
    content["budget"] |= {"prices": {name: {"input": 1, "output": 1} for name in ("writer", "judge")}}
    return Synthesis.model_validate(content)


def test_each_row_is_judged_once(tmp_path: Path) -> None:
    asked: Counter[str] = Counter()

    def answer(body: dict[str, Any]) -> str:
        asked[body["model"]] += 1
        if "Grade one training example" in body["messages"][0]["content"]:
            return json.dumps({"score": 2 if asked["judge"] % 4 == 0 else 4})
        return made_up_answer(body)

    journal = tmp_path / "journal"
    with ReplayServer(answer) as server:
        generate(section(server), journal)
        assert asked["judge"] == 0
        judged = section(server, judge_model="judge", judge_score=3)
        generate(judged, journal)
        before = dict(asked)
        assert ROWS <= asked["judge"] <= ROWS + 3  # besides, a few to find out how the model is made to answer in JSON
        generate(judged, journal)
        generate(section(server, judge_model="judge", judge_score=5), journal)
        assert dict(asked) == before
    (tmp_path / "dataset").mkdir()
    counts = write_synthetic_dataset(judged, journal, tmp_path / "dataset", 0.3, None)
    statistics = json.loads((tmp_path / "dataset" / "statistics.json").read_text(encoding="utf-8"))
    assert counts.total() + statistics["rejected"] == ROWS
    assert set(statistics["rejected_by_reason"]) == {"low grade"}
    assert ROWS // 4 - 1 <= statistics["rejected"] <= ROWS // 4 + 1
    assert set(statistics["cost"]["by_model"]) == {"writer", "judge"}
    assert statistics["cost"]["by_model"]["judge"]["answered"] == before["judge"]


@contextmanager
def counted() -> Iterator[dict[str, Counter[str]]]:
    """Counts the answers that are parsed, the anchors that are embedded and the models that are loaded."""
    counts: dict[str, Counter[str]] = {"parsed": Counter(), "embedded": Counter(), "loaded": Counter()}
    seen = {
        parse_answer.__code__: ("parsed", lambda local: [local["content"]]),
        inspect.unwrap(SentenceTransformer.encode_query).__code__: ("embedded", lambda local: local["inputs"]),
        inspect.unwrap(SentenceTransformer.__init__).__code__: ("loaded", lambda _: ["a model"]),
    }

    def note(frame: Any, event: str, _: Any) -> None:
        if event == "call" and frame.f_code in seen:
            name, of = seen[frame.f_code]
            counts[name].update(of(frame.f_locals))

    sys.setprofile(note)
    try:
        yield counts
    finally:
        sys.setprofile(None)


@pytest.mark.parametrize("mode", ["live", "batch"])
def test_each_answer_is_parsed_once_and_each_row_embedded_once(mode: str, tiny_base: Path, tmp_path: Path) -> None:
    LLMSentenceTransformer.from_base(str(tiny_base), max_seq_length=48).save_pretrained(str(tmp_path / "model"))
    graded: list[int] = []

    def answer(body: dict[str, Any]) -> str:
        if body["model"] == "judge":
            graded.append(1)
            return json.dumps({"score": 2 if len(graded) % 4 == 0 else 4, "thought": len(graded)})
        return made_up_answer(body)

    with ReplayServer(answer, faults=Faults(batch_polls=1)) as server:
        filters = {"judge_model": "judge", "consistency_model": str(tmp_path / "model"), "consistency_margin": -2}
        recipe = Recipe.load("demo").model_copy(update={"synthesis": section(server, mode, **filters)})
        with counted() as counts:
            statistics = run_synthesis(recipe, tmp_path / "run")
    answered = records(tmp_path / "run" / "journal", "answered")
    assert len(answered) == 2 * ROWS
    contents = Counter(json.loads(record["body"])["choices"][0]["message"]["content"] for record in answered)
    # While they come, live answers are looked at once more, so as not to pay for useless ones to the end.
    assert contents <= counts["parsed"] <= (contents + contents if mode == "live" else contents)
    dataset = tmp_path / "run" / "dataset"
    kept = [part["anchor"] for split in ("train", "validation") for part in load_split(dataset, split).values()]
    assert counts["embedded"].keys() >= {anchor for anchors in kept for anchor in anchors}
    assert set(counts["embedded"].values()) == {1}
    assert counts["embedded"].total() == ROWS
    assert counts["loaded"].total() == 1
    assert statistics["rejected_by_reason"]["low grade"] == ROWS // 4
