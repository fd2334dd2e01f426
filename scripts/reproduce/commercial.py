"""Table 3: MTEB next to commercial and open models.

    python scripts/reproduce/commercial.py [--scale tiny|small|full] [--runs FOLDER] [--hub-datasets FOLDER]

Calls `st-llm-embed evaluate` and shows its report, which has the published scores next to ours. tiny: two small tasks
of MTEB. small: seven, one of each category. full: all 56; the paper's authors needed about three days on 8 V100.
Tasks come from the Hub, or from FOLDER as <organisation>/<name>/. One model is measured, the first of --runs.

tiny: under a processor minute, 2 GiB, no money. small: not measured. full: the paper's three days on 8 V100 are 576
GPU hours, 1,728 USD at 3 an hour.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from models import add_arguments, releases, st_llm_embed, write

TASKS = {
    "tiny": ("--tasks", "STSBenchmark,Banking77Classification"),
    "small": (
        "--tasks",
        "STSBenchmark,Banking77Classification,TwentyNewsgroupsClustering,SprintDuplicateQuestions,"
        "StackOverflowDupQuestions,SciFact,SummEval",
    ),
    "full": ("--benchmark", "MTEB(eng, v1)"),
}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--hub-datasets", type=Path)
    given = parser.parse_args()
    folder = (given.output_dir or Path("runs/reproduce") / f"commercial-{given.scale}").resolve()
    [model, *_] = releases(given, folder)
    st_llm_embed(
        "evaluate",
        model.resolve(),
        *TASKS[given.scale],
        *("--prompts", "mteb", "--output-dir", folder / "mteb"),
        hub_datasets=given.hub_datasets,
    )
    report = folder / "mteb" / "report.md"
    section = report.read_text(encoding="utf-8").split("## Scores\n", 1)[1].split("\n## ", 1)[0]
    table = [line for line in section.splitlines() if line.startswith("|")]
    write(folder, {"report": str(report)}, "\n".join(table) + "\n")
