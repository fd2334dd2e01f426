"""Made-up data in the layout of official MTEB tasks, for the folder that a test runs in.

`datasets` takes a folder `mteb/<name>` below the working directory for the repository of that name on the Hub.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SENTENCES = [
    ("A woman is slicing a ripe tomato with a small knife.", "A man slices bread in the kitchen.", 1.0),
    ("Two dogs are running across a wide green meadow.", "A pair of dogs runs over the grass.", 4.5),
    ("The committee postponed its vote until next Thursday.", "The vote was moved to Thursday.", 4.0),
    ("Yes, please.", "No, thank you.", 0.5),
]
"""STSBenchmark."""

QUERIES = {
    "q1": "Zinc supplements shorten the length of a common cold in adults.",
    "q2": "Sleep deprivation raises the level of cortisol in healthy men.",
}
CORPUS = {
    "d1": ("Zinc and colds", "In a trial of 120 adults, zinc lozenges shortened colds by two days on average."),
    "d2": (
        "Sleep and cortisol",
        "Men who slept four hours had higher evening cortisol than those who slept eight hours.",
    ),
}
"""SciFact: title and text."""


def write_repository(folder: Path, configs: dict[str, dict[str, list[dict[str, Any]]]]) -> None:
    """Write a dataset repository: rows by configuration and split."""
    lines = ["---", "configs:"]
    for config, splits in configs.items():
        lines += [f"- config_name: {config}", "  data_files:"]
        for split, rows in splits.items():
            path = folder / config / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            lines += [f"  - split: {split}", f"    path: {config}/{split}.jsonl"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]), encoding="utf-8")


def write_stsbenchmark(root: Path) -> None:
    """Write STSBenchmark with a few sentences, and a validation split that no score comes from."""
    pairs = [{"sentence1": first, "sentence2": second, "score": score} for first, second, score in SENTENCES]
    unseen = [{"sentence1": "Nobody is scored on this validation sentence.", "sentence2": "Nor here.", "score": 0.0}]
    write_repository(root / "mteb/stsbenchmark-sts", {"default": {"validation": unseen, "test": pairs}})


def write_scifact(root: Path) -> None:
    """Write SciFact with two queries and two documents."""
    queries = [{"_id": one, "text": text} for one, text in QUERIES.items()]
    corpus = [{"_id": one, "title": title, "text": text} for one, (title, text) in CORPUS.items()]
    relevant = [{"query-id": f"q{number}", "corpus-id": f"d{number}", "score": 1} for number in (1, 2)]
    write_repository(
        root / "mteb/scifact",
        {"corpus": {"corpus": corpus}, "queries": {"queries": queries}, "default": {"test": relevant}},
    )
