"""Section 5 (test set contamination): how many test texts of MTEB are in the training set.

    python scripts/reproduce/contamination.py [--scale tiny|small|full] [--rows FILE|FOLDER] [--hub-datasets FOLDER]

Calls `st-llm-embed contamination` on the rows of the package, or on others. tiny: two small tasks. small and full:
all of MTEB(eng, v1), whose corpora are downloaded (tens of gigabytes). Tasks come from the Hub, or from --hub-datasets
as <organisation>/<name>/.

tiny: under a processor minute, 1 GiB, no money. small and full: scripts/bench_contamination.py gives the throughput on
your machine; no GPU.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from models import st_llm_embed, write

TASKS = {
    "tiny": ("--tasks", "STSBenchmark,Banking77Classification"),
    "small": ("--benchmark", "MTEB(eng, v1)"),
    "full": ("--benchmark", "MTEB(eng, v1)"),
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=tuple(TASKS), default="tiny")
    parser.add_argument("--rows", default="embedded", help="file of rows, or folder of a run; default: the package's")
    parser.add_argument("--output-dir", type=Path)
    parser.add_argument("--hub-datasets", type=Path)
    given = parser.parse_args()
    rows = given.rows if given.rows == "embedded" else Path(given.rows).resolve()
    found = st_llm_embed("contamination", rows, *TASKS[given.scale], hub_datasets=given.hub_datasets)
    write(given.output_dir or Path("runs/reproduce") / f"contamination-{given.scale}", {"rows": str(rows)}, found)
