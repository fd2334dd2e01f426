"""An evaluation's output folder with results of official tasks, written by mteb's own classes, and its run.json."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import mteb
from mteb.cache import ResultCache
from mteb.models import ModelMeta
from mteb.results import TaskResult

REVISION = "0123456789abcdef"


def scores_of(task: mteb.AbsTask, score: float, languages: dict[str, float]) -> dict[str, dict[str, Any]]:
    """One score for all subsets, but for those that `languages` names."""
    return {
        split: {subset: {"main_score": languages.get(subset, score)} for subset in task.hf_subsets}
        for split in task.eval_splits
    }


def write_run(
    output_dir: Path,
    scores: dict[str, float],
    *,
    model: str = "local/tiny",
    mode: str = "paper",
    benchmark: str | None = "MTEB(eng, v1)",
    subsets: dict[str, dict[str, float]] | None = None,
) -> Path:
    """Write main scores (0..1) of tasks, with the splits and subsets of a benchmark or all of the task's own."""
    experiment = {} if mode == "mteb" else {"prompts": mode}
    meta = ModelMeta.create_empty({"name": model, "revision": REVISION, "experiment_kwargs": experiment or None})
    members = {task.metadata.name: task for task in mteb.get_benchmark(benchmark).tasks} if benchmark else {}
    cache = ResultCache(output_dir)
    for name, score in scores.items():
        task = members.get(name) or mteb.get_task(name)
        result = TaskResult.from_task_results(
            task, scores_of(task, score, (subsets or {}).get(name, {})), evaluation_time=1.5, kg_co2_emissions=None
        ).model_copy(update={"date": datetime(2026, 11, 1, tzinfo=UTC)})
        cache.save_to_cache(result, meta)
    run = {
        "model": model,
        "revision": REVISION,
        "mode": mode,
        "experiment": meta.experiment_name,
        "parameters": 4_400_000,
        "max_seq_length": 512,
        "batch_size": 32,
        "versions": {"mteb": "2.26.24", "torch": "2.13.0"},
        "hardware": "2 cores x86_64",
        "tasks": {
            name: {
                "query": f"Instruct: Do {name}.\nQuery: ",
                "document": "",
                "source": "task",
                "generic": name == "STS12",
                "texts": 100,
                "tokens": 1200,
                "truncated": 5,
                "truncation_rate": 0.05,
                "seconds": 12.5,
                "finished": "2026-11-01T00:00:00+00:00",
            }
            for name in scores
        },
    }
    (output_dir / "run.json").write_text(json.dumps(run), encoding="utf-8")
    return output_dir
