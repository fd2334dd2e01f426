"""Small evaluation sets in the files of scripts/open_sets.py."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from open_sets import BITEXT, RETRIEVAL, STS


@pytest.fixture(scope="session")
def things() -> list[str]:
    """The texts of every set."""
    return [f"thing {number} with {'many ' * number}words" for number in range(6)]


@pytest.fixture
def open_sets(things: list[str], tmp_path: Path) -> Path:
    """A folder of open sets: each query is its document, and each sentence its own translation."""
    folder = tmp_path / "sets"
    for name in STS:
        rows = [{"sentence1": things[0], "sentence2": text, "score": score} for score, text in enumerate(things)]
        write(folder / f"{name}.jsonl.gz", rows)
    for name, split in RETRIEVAL.items():
        write(folder / name / "corpus.jsonl.gz", [{"_id": f"d{n}", "text": text} for n, text in enumerate(things)])
        write(folder / name / "queries.jsonl.gz", [{"_id": f"q{n}", "text": text} for n, text in enumerate(things)])
        qrels = [{"query-id": f"q{n}", "corpus-id": f"d{n}"} for n in range(len(things))]
        write(folder / name / f"qrels.{split}.jsonl.gz", qrels)
    for name in (*BITEXT, "ntrex/eng"):
        key = "text" if name.startswith("ntrex") else "sentence1"
        write(folder / f"{name}.jsonl.gz", [{key: text, "sentence2": text} for text in things])
    return folder


def write(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
