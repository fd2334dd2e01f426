"""Measure how often pairs that people wrote have the whole query, word for word, in the text that answers it.

    python scripts/measure_leaks.py pairs.jsonl.gz ...

Each file has an object a line with `query` and `positive` (or `passage`, which is taken first). Prints the share of
pairs that the filter "query leaks into positive" would reject, and the shares whose longest common run of characters
makes up so much of the query.
"""

from __future__ import annotations

import gzip
import json
import random
import sys
from pathlib import Path

from st_llm_embed.data.rows import fold, read_rows, rows_file
from st_llm_embed.synthesis.filters import leaks

SHARES = (0.5, 0.7, 0.8, 0.9, 1.0)
PAIRS = 1_500


def main() -> None:
    """Print a line for each file, and one for the sample rows."""
    print(f"| pairs | count | rejected | {' | '.join(f'run of {share:.0%}' for share in SHARES)} |")
    print("|---" * (len(SHARES) + 3) + "|")
    sample = [(row.anchor, row.positive) for row in read_rows(rows_file("embedded")) if row.task_type == "short-long"]
    report("sample", sample)
    for path in map(Path, sys.argv[1:]):
        opened = gzip.open if path.suffix == ".gz" else open
        with opened(path, "rt", encoding="utf-8") as lines:
            records = [json.loads(line) for line in lines]
        pairs = [(record["query"], record.get("passage") or record["positive"]) for record in records]
        report(path.parent.name, random.Random(0).sample(pairs, min(PAIRS, len(pairs))))  # noqa: S311


def report(name: str, pairs: list[tuple[str, str]]) -> None:
    """Print one line."""
    folded = [(fold(query), fold(text)) for query, text in pairs]
    rejected = sum(leaks(query, text) for query, text in folded) / len(folded)
    runs = [longest_run(query.strip(" ?？"), text) for query, text in folded]  # noqa: RUF001
    shares = " | ".join(f"{sum(run >= share for run in runs) / len(runs):.2%}" for share in SHARES)
    print(f"| {name} | {len(pairs):,} | {rejected:.2%} | {shares} |", flush=True)


def longest_run(query: str, text: str) -> float:
    """Return the share of a query that its longest substring in a text makes up."""
    least, most = 0, len(query)
    while least < most:
        middle = (least + most + 1) // 2
        if any(query[start : start + middle] in text for start in range(len(query) - middle + 1)):
            least = middle
        else:
            most = middle - 1
    return least / max(1, len(query))


if __name__ == "__main__":
    main()
