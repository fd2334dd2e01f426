"""The recipe demo-real through the real command line, on a few pairs of the shapes that its sets have."""

from __future__ import annotations

import json
from pathlib import Path

import forked
import pytest
from sentence_transformers import SentenceTransformer

pytestmark = pytest.mark.integration

COMMAND = ["-m", "st_llm_embed.cli", "run", "demo-real", "--output-dir", "out"]
SHORT = ["--set", "training.max_steps=2", "--set", "base.max_seq_length=32"]
PAIRS = {
    "jaquad": {"query": "{n}番目の都市はどこですか?", "positive": "{n}番目の都市は東京である。", "title": "都市"},
    "cmrc_trial": {"query": "第{n}个城市在哪里?", "positive": "第{n}个城市是北京。"},
    "afriqa": {
        "query": "Kuphi idolobha {n}?",
        "positive": "City {n} lies in the south.",
        "title": "City",
        "lang": "zul",
    },
    "epqa": {"query": "does it fit model {n}?", "positive": "Yes, it fits {n}.", "title": "Drawer", "passage": "fits"},
}


def run(folder: Path) -> forked.Outcome:
    return forked.run(*COMMAND, *SHORT, cwd=folder)


def test_demo_real_trains_on_its_pairs_and_says_which_file_it_lacks(tmp_path: Path) -> None:
    missing = run(tmp_path)
    assert missing.returncode == 2
    assert "There is no folder or file ./data/train_jaquad.jsonl" in missing.stderr
    assert "Traceback" not in missing.stderr
    assert not (tmp_path / "out").exists()

    (tmp_path / "data").mkdir()
    for name, shape in PAIRS.items():
        pairs = [{key: text.format(n=number) for key, text in shape.items()} for number in range(100)]
        lines = "".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs)
        (tmp_path / "data" / f"train_{name}.jsonl").write_text(lines, encoding="utf-8")
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    assert {folder.name for folder in (tmp_path / "out" / "sources").iterdir()} == PAIRS.keys()
    report = json.loads((tmp_path / "out" / "evaluation" / "report.json").read_text(encoding="utf-8"))
    assert report["before"]["retrieval_ndcg_at_10"] != report["after"]["retrieval_ndcg_at_10"]
    assert SentenceTransformer(str(tmp_path / "out" / "release"), device="cpu").encode(["a text"]).shape == (1, 192)
