"""Section 3.1 and figure 2: synthetic rows by task type and language.

    python scripts/reproduce/synthetic_statistics.py [--rows FILE.jsonl]

Counts the rows in the package, or any file of rows. Tokens are those of the embedded base's tokenizer in anchors,
positives and negatives; the paper's 180 million are the LLM's, prompts included.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from models import write
from scales import errors_in_one_line

from st_llm_embed.data.rows import read_rows, rows_file
from st_llm_embed.modules.base import load_tokenizer
from st_llm_embed.recipe import EMBEDDED, TASK_TYPES

PAPER = {
    "rows": "500,000",
    "distinct instructions": "150,000",
    "languages": "93",
    "share of English": "43.1 %",
    "tokens": "180 million",
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=("tiny", "small", "full"), default="tiny")
    parser.add_argument("--rows", default=EMBEDDED)
    parser.add_argument("--output-dir", type=Path)
    given = parser.parse_args()
    with errors_in_one_line():
        rows = list(read_rows(rows_file(given.rows)))
    types = Counter(row.task_type for row in rows)
    texts = [text for row in rows for text in (row.anchor, row.positive, row.negative) if text is not None]
    tokens = sum(map(len, load_tokenizer(EMBEDDED)(texts)["input_ids"]))
    ours = {
        "rows": f"{len(rows):,}",
        "distinct instructions": f"{len({row.instruction for row in rows}):,}",
        "languages": str(len({row.language for row in rows} | {row.target_language for row in rows})),
        "share of English": f"{sum(row.language == 'en' for row in rows) / len(rows):.1%}".replace("%", " %"),
        "tokens": f"{tokens:,}",
    }
    lines = ["| | paper | here |", "|---|---|---|"]
    lines += [f"| {name} | {PAPER[name]} | {value} |" for name, value in ours.items()]
    lines += [f"| rows of {name} | | {types[name]:,} ({types[name] / len(rows):.0%}) |" for name in TASK_TYPES]
    folder = given.output_dir or Path("runs/reproduce") / f"synthetic-statistics-{given.scale}"
    write(folder, {"here": ours, "task_types": dict(types)}, "\n".join(lines) + "\n")
