"""Measure the demo: three seeds, pretrained against random weights, held-out rows and STSBenchmark.

    python scripts/measure_demo.py --output-dir runs/measure [--hub-datasets FOLDER]

Runs `st-llm-embed run demo` for each seed, from pretrained and from random weights, scores the model before and after
training on mteb's STSBenchmark test set, and prints the table of docs/demo.md: mean over the seeds, and the lowest and
highest. Finished runs are kept, so it can be stopped and restarted. FOLDER holds datasets as <organisation>/<name>/
for machines without the Hub. About 5 minutes a run on two cores, six runs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import mean

MEASURES = {
    "Retrieval nDCG@10": lambda run, moment: run[moment]["retrieval_ndcg_at_10"],
    "Retrieval recall@1": lambda run, moment: run[moment]["retrieval_recall_at_1"],
    "nDCG@10, English": lambda run, moment: run[moment]["by_language"]["English"]["retrieval_ndcg_at_10"],
    "nDCG@10, other languages": lambda run, moment: run[moment]["by_language"]["other languages"][
        "retrieval_ndcg_at_10"
    ],
    "STS triplet accuracy": lambda run, moment: run[moment]["sts_triplet_accuracy"],
    "Bitext accuracy": lambda run, moment: run[moment]["bitext_accuracy"],
    "STSBenchmark test, Spearman": lambda run, moment: run["sts_benchmark"][moment],
}


def main() -> None:
    """Run, score, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--hub-datasets", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="SECTION.KEY=VALUE")
    arguments = parser.parse_args()
    runs: dict[str, list[dict]] = {"pretrained": [], "random": []}
    for seed in arguments.seeds:
        for start, reports in runs.items():
            folder = (arguments.output_dir / f"{start}-{seed}").resolve()
            overrides = [f"seed={seed}", f"base.random_init={start == 'random'}", *arguments.overrides]
            run_demo(folder, overrides)
            report = json.loads((folder / "evaluation" / "report.json").read_text(encoding="utf-8"))
            report["sts_benchmark"] = sts_benchmark(folder, arguments.hub_datasets)
            reports.append(report)
    print(table(runs))


def run_demo(folder: Path, overrides: list[str]) -> None:
    """Run the demo into a folder, unless it is finished."""
    options = [part for override in overrides for part in ("--set", override)]
    command = [sys.executable, "-m", "st_llm_embed.cli", "run", "demo", *options, "--output-dir", str(folder)]
    subprocess.run(command, check=True, stdout=sys.stderr)


def sts_benchmark(folder: Path, hub_datasets: Path | None) -> dict[str, float]:
    """Spearman correlation on mteb's STSBenchmark test set, 0..1, before and after training."""
    scores_path = folder / "sts_benchmark.json"
    if not scores_path.exists():
        # In another process: datasets finds a local folder by its Hub name only in the current directory.
        program = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import measure_demo"
        program += f"; measure_demo.score_sts_benchmark({str(folder)!r})"
        environment = os.environ | {"HF_DATASETS_CACHE": str(folder / "datasets-cache")}
        subprocess.run([sys.executable, "-c", program], check=True, cwd=hub_datasets, env=environment)
    return json.loads(scores_path.read_text(encoding="utf-8"))


def score_sts_benchmark(folder: str) -> None:
    """Score the start and the result of a finished run; writes sts_benchmark.json into its folder."""
    import mteb
    from sentence_transformers import SentenceTransformer

    from st_llm_embed import Recipe
    from st_llm_embed.training.adapter import starting_model

    recipe = Recipe.load(f"{folder}/recipe.yaml")
    models = {"before": starting_model(recipe), "after": SentenceTransformer(f"{folder}/release")}
    scores = {}
    for moment, model in models.items():
        # No cache: all local models have the same name in mteb, so it would return the first one's scores.
        result = mteb.evaluate(model, mteb.get_tasks(tasks=["STSBenchmark"], eval_splits=["test"]), cache=None)
        scores[moment] = result.task_results[0].get_score()
    (Path(folder) / "sts_benchmark.json").write_text(json.dumps(scores), encoding="utf-8")


def table(runs: dict[str, list[dict]]) -> str:
    """Render mean (lowest to highest) over the seeds as a Markdown table."""

    def cell(start: str, moment: str, measure: Callable[[dict, str], float]) -> str:
        values = [measure(run, moment) for run in runs[start]]
        return f"{mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"

    columns = [(start, moment) for start in runs for moment in ("before", "after")]
    lines = ["| | " + " | ".join(f"{start}, {moment}" for start, moment in columns) + " |", "|---|---|---|---|---|"]
    for name, measure in MEASURES.items():
        lines.append(f"| {name} | " + " | ".join(cell(start, moment, measure) for start, moment in columns) + " |")
    for start, reports in runs.items():
        seconds = ", ".join(f"{report['training']['seconds']:.0f}" for report in reports)
        lines.append(f"\nTraining from {start} weights took {seconds} s.")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
