"""The report on an evaluation with mteb: scores beside published ones, and how they came about."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, NamedTuple

import mteb
import yaml
from mteb.cache import ResultCache
from mteb.results import TaskResult

from st_llm_embed.errors import InputError, explained
from st_llm_embed.evaluation.report import markdown_table

BENCHMARK = "MTEB(eng, v1)"
"""The paper's: 56 tasks, English subsets."""
PAPER_SYSTEMS = ("paper-full", "paper-synthetic-msmarco", "paper-synthetic")
"""Shown beside every score."""
MEAN = "mean"
"""Key of the mean over all tasks of a benchmark in a table of categories."""


class ReferenceTable(NamedTuple):
    """Scores of one system from one source, in percent."""

    system: str
    by: Literal["category", "task"]
    source: str
    scores: dict[str, float]
    benchmark: str | None = None
    """For `category` and, where the scores are of its splits and subsets, `task`."""


class References(NamedTuple):
    """All of references.yaml."""

    systems: dict[str, str]
    """Short name of a system -> its name in reports."""
    tables: list[ReferenceTable]

    def by(self, kind: Literal["category", "task"]) -> list[ReferenceTable]:
        """Return the tables of one kind, in the order of the file."""
        return [table for table in self.tables if table.by == kind]


@cache
def load_references() -> References:
    """Read references.yaml."""
    text = (files("st_llm_embed") / "evaluation" / "references.yaml").read_text(encoding="utf-8")
    content = yaml.safe_load(text)
    return References(content["systems"], [ReferenceTable(**table) for table in content["tables"]])


def write_mteb_report(output_dir: Path) -> dict[str, Any]:
    """Write report.md, report.json and `.eval_results` for the run that an output folder's run.json names.

    mteb's own files are left as they are. All is written again each time, so this may be called after each task.

    Returns:
        The content of report.json.

    Raises:
        InputError: there is no run in the folder, or a file in it is damaged.
    """
    record, results = _read_run(output_dir)
    comparable = {one.task_name: score for one in results if (score := _comparable_score(one)) is not None}
    report = _report(record, results, comparable)
    _write_eval_results(record, results, output_dir / ".eval_results")
    (output_dir / "report.md").write_text(_markdown(report), encoding="utf-8")
    (output_dir / "report.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return report


def _read_run(output_dir: Path) -> tuple[dict[str, Any], list[TaskResult]]:
    """Return run.json of the run that was last written to an output folder, and its results as mteb wrote them."""
    path = output_dir / "run.json"
    if not path.is_file():
        raise InputError(f"{output_dir} holds no evaluation: there is no {path.name}. Evaluate a model first.")
    with explained(f"{path} is not a record of an evaluation", "Evaluate the model again; finished tasks are kept."):
        record = json.loads(path.read_bytes())
        model, revision, experiment = record["model"], record["revision"], record["experiment"]
    example = ResultCache(output_dir).get_task_result_path("any", model, revision, experiment_name=experiment)
    results = []
    for file in sorted(example.parent.glob("*.json")):
        if file.stem != "model_meta":
            with explained(f"{file} is not a result of mteb", "Remove the file and evaluate again."):
                results.append(TaskResult.from_disk(file))
    if not results:
        raise InputError(f"There are no results of {model} in {example.parent}. Evaluate the model again.")
    return record, results


@cache
def _benchmark_tasks() -> dict[str, mteb.AbsTask]:
    return {task.metadata.name: task for task in mteb.get_benchmark(BENCHMARK).tasks}


def _comparable_score(result: TaskResult) -> float | None:
    """Return a task's score in percent over the splits and subsets that published scores are of, if all are done.

    Those are the benchmark's for its tasks, and all for others. None for a task without published scores.
    """
    task = _benchmark_tasks().get(result.task_name)
    if task is None and _task_references(result.task_name):
        task = mteb.get_task(result.task_name)
    if task is None:
        return None
    scores = {(split, one["hf_subset"]): one["main_score"] for split, by in result.scores.items() for one in by}
    wanted = [(split, subset) for split in task.eval_splits for subset in task.hf_subsets]
    return 100 * fmean(scores[one] for one in wanted) if scores.keys() >= set(wanted) else None


def _task_references(name: str) -> dict[str, float]:
    return {table.system: table.scores[name] for table in load_references().by("task") if name in table.scores}


def _categories(scores: dict[str, float]) -> dict[str, dict[str, Any]]:
    """Compare the run with published means over the same tasks, by type of task and over all.

    Systems whose scores by task are not known are compared where all tasks are done.
    """
    found = {}
    tables = [table for table in load_references().tables if table.benchmark == BENCHMARK]
    types = {str(task.metadata.type) for task in _benchmark_tasks().values()}
    for name in (*sorted(types), MEAN):
        members = [task for task, one in _benchmark_tasks().items() if name in (one.metadata.type, MEAN)]
        done = [task for task in members if task in scores]
        if not done:
            continue
        references = {
            table.system: fmean(table.scores[task] for task in done)
            for table in tables
            if table.by == "task" and table.scores.keys() >= set(done)
        }
        if done == members:
            # As published, not as the mean of rounded scores.
            references |= {
                one.system: one.scores[name] for one in tables if one.by == "category" and name in one.scores
            }
        score = fmean(scores[task] for task in done)
        found[name] = {
            "score": round(score, 4),
            "tasks": done,
            "missing": [task for task in members if task not in scores],
            "references": _with_deltas(score, references),
        }
    return found


def _report(record: dict[str, Any], results: list[TaskResult], comparable: dict[str, float]) -> dict[str, Any]:
    tasks = {one.task_name: _task(one, record["tasks"].get(one.task_name, {}), comparable) for one in results}
    seconds = [one["seconds"] for one in tasks.values() if one.get("seconds") is not None]
    return {
        "model": record["model"],
        "revision": record["revision"],
        "prompts": record["mode"],
        "benchmark": BENCHMARK,
        "categories": _categories(comparable),
        "tasks": tasks,
        "wall_seconds": sum(seconds) if seconds else None,
        **{key: record.get(key) for key in ("parameters", "max_seq_length", "hardware", "versions")},
    }


def _task(result: TaskResult, recorded: dict[str, Any], comparable: dict[str, float]) -> dict[str, Any]:
    splits = {
        split: {one["hf_subset"]: round(100 * one["main_score"], 4) for one in entries}
        for split, entries in result.scores.items()
    }
    score = comparable.get(result.task_name)
    return {
        "type": _task_type(result.task_name),
        "score": round(fmean(one for by_subset in splits.values() for one in by_subset.values()), 4),
        "splits": splits,
        "comparable_score": None if score is None else round(score, 4),
        "references": _with_deltas(score, _task_references(result.task_name)),
        "dataset_revision": result.dataset_revision,
        "mteb_version": result.mteb_version,
        **recorded,
    }


def _with_deltas(score: float | None, references: dict[str, float]) -> dict[str, dict[str, float | None]]:
    """Return each published score and how far the run is above it; None where the two cannot be compared."""
    return {
        system: {"score": round(value, 4), "delta": None if score is None else round(score - value, 4)}
        for system, value in references.items()
    }


def _task_type(name: str) -> str:
    try:
        return str(mteb.get_task(name).metadata.type)
    except KeyError:
        return "own task"


def _markdown(report: dict[str, Any]) -> str:
    prompts = [
        (name, _code(one["query"]), _code(one["document"]), f"{one['source']}{', generic' if one['generic'] else ''}")
        for name, one in report["tasks"].items()
        if "query" in one
    ]
    missing = report["categories"].get(MEAN, {}).get("missing")
    references = load_references()
    sources = [f"- {references.systems[table.system]}: {table.source}" for table in references.tables]
    sections = [
        f"# {report['model']} on {len(report['tasks'])} mteb tasks",
        f"Revision `{report['revision']}`, prompts: {report['prompts']}. Hardware, versions, tokens and times are in "
        "`run.json`, mteb's own files in `results/`.",
        "## Scores",
        _score_table(report),
        "Main scores in percent, and in brackets how far this model is above the published score. Means by category "
        f"of {BENCHMARK} are over the tasks done, the paper's too. A task's score is over the splits and subsets that "
        "the published one is of, or, where some of them are not done, over those done.",
        f"Not done, or not in all splits and subsets of {BENCHMARK}: {', '.join(missing)}." if missing else "",
        "## Prompts",
        markdown_table(("task", "before queries", "before documents", "from"), prompts),
        "## Sources of published scores",
        "\n".join(dict.fromkeys(sources)),
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


def _score_table(report: dict[str, Any]) -> str:
    rows = []
    for name, one in report["categories"].items():
        tasks = f"{len(one['tasks'])} of {len(one['tasks']) + len(one['missing'])} tasks"
        rows.append(("all" if name == MEAN else name, tasks, f"{one['score']:.2f}", *_beside(one)))
    for name, one in report["tasks"].items():
        score = one["score"] if one["comparable_score"] is None else one["comparable_score"]
        rows.append((name, one["type"], f"{score:.2f}", *_beside(one)))
    systems = load_references().systems
    return markdown_table(("", "", "this model", *(systems[name] for name in PAPER_SYSTEMS)), rows)


def _beside(compared: dict[str, Any]) -> list[str]:
    found = [compared["references"].get(system) for system in PAPER_SYSTEMS]
    return [f"{one['score']:.1f} ({one['delta']:+.1f})" if one and one["delta"] is not None else "" for one in found]


def _code(prompt: str) -> str:
    shown = prompt.replace("\n", "\\n").replace("|", "\\|")
    return f"`{shown}`" if shown else "-"


def _write_eval_results(record: dict[str, Any], results: list[TaskResult], folder: Path) -> None:
    """Write `<Task>.yaml` for each official task of a run, in the form that the Hub reads from `.eval_results`."""
    for result in results:
        if _task_type(result.task_name) == "own task":  # its dataset is not on the Hub
            continue
        entries = result._to_hf_benchmark_result()
        for entry in entries.root:
            entry.notes = f"mteb {result.mteb_version}, prompts: {record['mode']}"
        folder.mkdir(exist_ok=True)
        (folder / f"{result.task_name}.yaml").write_text(entries.to_yaml(), encoding="utf-8")
