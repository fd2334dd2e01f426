"""Small evaluation sets in the files of `st_llm_embed.evaluation.open_sets`."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from st_llm_embed.evaluation.open_sets import BITEXT, RETRIEVAL, STS

THINGS = [f"thing {number} with {'many ' * number}words" for number in range(6)]


def write_open_sets(folder: Path, *, falling: bool = False) -> Path:
    """Write them: each query is its document, and each sentence its own translation.

    Args:
        folder: gets the files.
        falling: turn the scores of STS round.
    """
    for name in STS:
        scores = range(len(THINGS))[:: -1 if falling else 1]
        rows = [
            {"sentence1": THINGS[0], "sentence2": text, "score": score}
            for text, score in zip(THINGS, scores, strict=True)
        ]
        _write(folder / f"{name}.jsonl.gz", rows)
    for name, split in RETRIEVAL.items():
        _write(folder / name / "corpus.jsonl.gz", [{"_id": f"d{n}", "text": text} for n, text in enumerate(THINGS)])
        _write(folder / name / "queries.jsonl.gz", [{"_id": f"q{n}", "text": text} for n, text in enumerate(THINGS)])
        qrels = [{"query-id": f"q{n}", "corpus-id": f"d{n}"} for n in range(len(THINGS))]
        _write(folder / name / f"qrels.{split}.jsonl.gz", qrels)
    for name in (*BITEXT, "ntrex/eng"):
        key = "text" if name.startswith("ntrex") else "sentence1"
        _write(folder / f"{name}.jsonl.gz", [{key: text, "sentence2": text} for text in THINGS])
    return folder


def _write(path: Path, rows: list[dict[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
