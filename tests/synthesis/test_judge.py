"""The judge over real HTTP: one request a row, and none when the journal has them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from replay_server import ReplayServer, made_up_answer
from synthesis.planned import synthesis

from st_llm_embed.recipe import Synthesis
from st_llm_embed.synthesis.generate import generate
from st_llm_embed.synthesis.output import write_synthetic_dataset

ROWS = 40


def section(server: ReplayServer, **filters: Any) -> Synthesis:
    content = synthesis(
        requests=ROWS,
        brainstorm_requests=0,
        task_types={"sts": 1, "bitext": 1},
        filters={"languages": False} | filters,
    ).model_dump(mode="json")
    content["endpoint"] |= {"base_url": server.base_url, "models": {"writer": 1}, "concurrency": 4}
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
        written = asked["writer"]
        judgements = asked["judge"]
        assert ROWS <= judgements <= ROWS + 3  # besides, a few to find out how the model is made to answer in JSON
        generate(judged, journal)
        generate(section(server, judge_model="judge", judge_score=5), journal)
        assert (asked["writer"], asked["judge"]) == (written, judgements)
        (tmp_path / "dataset").mkdir()
        counts = write_synthetic_dataset(judged, journal, tmp_path / "dataset", 0.3, None)
    statistics = json.loads((tmp_path / "dataset" / "statistics.json").read_text(encoding="utf-8"))
    assert counts.total() + statistics["rejected"] == ROWS
    assert set(statistics["rejected_by_reason"]) == {"low grade"}
    assert ROWS // 4 - 1 <= statistics["rejected"] <= ROWS // 4 + 1
    assert set(statistics["cost"]["by_model"]) == {"writer", "judge"}
    assert statistics["cost"]["by_model"]["judge"]["answered"] == judgements
