"""Scores in the form in which the Hub reads them from a model's repository: `.eval_results/<Task>.yaml`."""

from __future__ import annotations

from pathlib import Path

import mteb
import yaml
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml
from mteb.results import TaskResult

from st_llm_embed.evaluation.benchmark.results import Run

FOLDER = ".eval_results"
SOURCE_URL = "https://github.com/embeddings-benchmark/mteb"


def write_eval_results(run: Run, output_dir: Path) -> list[Path]:
    """Write one file for each official task of a run; own tasks have no dataset on the Hub and are left out.

    Task ids are mteb's: `<Task>_<subset>_<split>`, and `<Task>` for the mean where the task is complete. Values are
    in percent.

    Args:
        run: what `read_run` gives.
        output_dir: gets the folder `.eval_results`; files of tasks of this run are replaced, others stay.
    """
    folder = output_dir / FOLDER
    written = []
    for result in run.results:
        try:
            task = mteb.get_task(result.task_name)
        except KeyError:
            continue
        folder.mkdir(exist_ok=True)
        path = folder / f"{result.task_name}.yaml"
        entries = _entries(result, task, run.record.mode)
        path.write_text(yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False), encoding="utf-8")
        written.append(path)
    return written


def _entries(result: TaskResult, task: mteb.AbsTask, mode: str) -> list[EvalResultEntry]:
    def entry(task_id: str, score: float) -> EvalResultEntry:
        return EvalResultEntry(
            dataset_id=str(task.metadata.dataset["path"]),
            task_id=task_id,
            value=round(100 * score, 5),
            dataset_revision=result.dataset_revision,
            date=None if result.date is None else result.date.date().isoformat(),
            source_url=SOURCE_URL,
            source_name="mteb",
            notes=f"mteb {result.mteb_version}, prompts: {mode}",
        )

    entries = [
        entry(f"{result.task_name}_{scores['hf_subset']}_{split}", scores["main_score"])
        for split, by_subset in result.scores.items()
        for scores in by_subset
    ]
    if not result.get_missing_evaluations(task):
        entries.append(entry(result.task_name, float(result.get_score())))
    return entries
