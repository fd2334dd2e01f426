"""The report on an evaluation with mteb: scores beside published ones, how they came about, pictures."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, NamedTuple

import mteb
import numpy as np
import yaml
from mteb.cache import ResultCache
from mteb.results import TaskResult
from pydantic import BaseModel, ConfigDict

from st_llm_embed.errors import InputError, explained
from st_llm_embed.evaluation.plots import AFTER, figure
from st_llm_embed.evaluation.report import markdown_table
from st_llm_embed.languages import HIGH_RESOURCE_ISO639_3

BENCHMARK = "MTEB(eng, v1)"
"""The paper's: 56 tasks, English subsets."""
PAPER_SYSTEMS = {
    "paper-full": "paper, full data",
    "paper-synthetic-msmarco": "paper, synthetic + MS MARCO",
    "paper-synthetic": "paper, synthetic only",
}
"""Shown beside every score, under these names; the first is the paper's best."""
PAPER = next(iter(PAPER_SYSTEMS))
MEAN = "mean"
"""Key of the mean over all tasks of a benchmark in a table of categories."""
CATEGORIES = (
    "Classification",
    "Clustering",
    "PairClassification",
    "Reranking",
    "Retrieval",
    "STS",
    "Summarization",
    MEAN,
)
"""In the order of the paper's tables."""
UNCONFIRMED = " (?)"
"""Behind a source whose numbers were not read in its own text."""
UNRECORDED = {"query": "", "document": "", "source": "", "generic": False} | dict.fromkeys(
    ("tokens", "truncation_rate", "seconds")
)
"""What run.json says about a task, and the values where it does not."""
REFERENCE_COLOURS = ("#d55e00", "#e69f00", "#f0e442")


class ReferenceTable(BaseModel):
    """Scores of one system from one source, in percent."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    system: str
    by: Literal["category", "task", "language"]
    benchmark: str | None = None
    """For `category` and, where the scores are of its splits and subsets, `task`."""
    task: str | None = None
    """For `language`: whose scores they are."""
    source: str
    confirmed: bool
    """Whether the numbers were read in the source's own text."""
    note: str | None = None
    scores: dict[str, float]


class References(BaseModel):
    """All of references.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    systems: dict[str, str]
    """Short name of a system -> its name in reports."""
    tables: tuple[ReferenceTable, ...]

    def by(self, kind: Literal["category", "task", "language"]) -> list[ReferenceTable]:
        """Return the tables of one kind, in the order of the file."""
        return [table for table in self.tables if table.by == kind]


@cache
def load_references() -> References:
    """Read references.yaml."""
    text = (files("st_llm_embed") / "evaluation" / "references.yaml").read_text(encoding="utf-8")
    return References.model_validate(yaml.safe_load(text))


class Category(NamedTuple):
    """One type of task of the benchmark, or, as `mean`, all of them."""

    name: str
    score: float
    """Mean main score of the run in percent."""
    done: list[str]
    missing: list[str]
    references: dict[str, float]
    """By system, the mean over the same tasks; a system known only for all of them is omitted otherwise."""


def write_mteb_report(output_dir: Path) -> dict[str, Any]:
    """Write report.md, report.json, pictures and `.eval_results` for the run that an output folder's run.json names.

    mteb's own files are left as they are. All is written again each time, so this may be called after each task.

    Returns:
        The content of report.json.

    Raises:
        InputError: there is no run in the folder, or a file in it is damaged.
    """
    record, results = _read_run(output_dir)
    scores = _comparable_scores(results)
    compared = _categories(scores)
    report = _report(record, results, scores, compared)
    if compared:
        _plot_categories(compared, report["model"], output_dir / "categories.png")
    _write_eval_results(record, results, output_dir / ".eval_results")
    (output_dir / "report.md").write_text(_markdown(report, compared), encoding="utf-8")
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
def _benchmark_tasks() -> dict[str, tuple[str, list[str], list[str]]]:
    """Return type, splits and subsets of the benchmark's tasks, by name."""
    return {
        task.metadata.name: (str(task.metadata.type), list(task.eval_splits), list(task.hf_subsets))
        for task in mteb.get_benchmark(BENCHMARK).tasks
    }


def _comparable_scores(results: Iterable[TaskResult]) -> dict[str, float]:
    """Return the score in percent of each task with published scores, where it is of the same splits and subsets.

    Those are the benchmark's for its tasks, and all for others.
    """
    found = {}
    for result in results:
        name = result.task_name
        if name in _benchmark_tasks():
            _, splits, subsets = _benchmark_tasks()[name]
        elif _task_references(name):
            task = mteb.get_task(name)
            splits, subsets = list(task.eval_splits), list(task.hf_subsets)
        else:
            continue
        scores = {(split, one["hf_subset"]): one["main_score"] for split, by in result.scores.items() for one in by}
        wanted = [(split, subset) for split in splits for subset in subsets]
        if all(one in scores for one in wanted):
            found[name] = 100 * fmean(scores[one] for one in wanted)
    return found


def _task_references(name: str) -> dict[str, float]:
    return {table.system: table.scores[name] for table in load_references().by("task") if name in table.scores}


def _categories(scores: dict[str, float]) -> list[Category]:
    """Compare the run with published means, by type of task and over all."""
    found = []
    tables = [table for table in load_references().tables if table.benchmark == BENCHMARK]
    for name in CATEGORIES:
        members = [task for task, (task_type, _, _) in _benchmark_tasks().items() if name in (task_type, MEAN)]
        done = [task for task in members if task in scores]
        if not done:
            continue
        references = {
            table.system: fmean(table.scores[task] for task in done)
            for table in tables
            if table.by == "task" and table.scores.keys() >= set(done)
        }
        missing = [task for task in members if task not in scores]
        if not missing:
            # As published, not as the mean of rounded scores.
            references |= {
                one.system: one.scores[name] for one in tables if one.by == "category" and name in one.scores
            }
        found.append(Category(name, fmean(scores[task] for task in done), done, missing, references))
    return found


def _report(
    record: dict[str, Any], results: list[TaskResult], comparable: dict[str, float], compared: list[Category]
) -> dict[str, Any]:
    def with_deltas(score: float | None, references: dict[str, float]) -> dict[str, dict[str, float | None]]:
        """Return each published score and how far the run is above it; None where the two cannot be compared."""
        return {
            system: {"score": round(value, 4), "delta": None if score is None else round(score - value, 4)}
            for system, value in references.items()
        }

    def task(result: TaskResult) -> dict[str, Any]:
        score = comparable.get(result.task_name)
        splits = {
            split: {one["hf_subset"]: round(100 * one["main_score"], 4) for one in entries}
            for split, entries in result.scores.items()
        }
        recorded = record["tasks"].get(result.task_name, {})
        return {
            "type": _task_type(result.task_name),
            "score": round(fmean(one for by_subset in splits.values() for one in by_subset.values()), 4),
            "splits": splits,
            "comparable_score": None if score is None else round(score, 4),
            "references": with_deltas(score, _task_references(result.task_name)),
            "dataset_revision": result.dataset_revision,
            "mteb_version": result.mteb_version,
            **{key: recorded.get(key, default) for key, default in UNRECORDED.items()},
        }

    tasks = {result.task_name: task(result) for result in results}
    seconds = [one["seconds"] for one in tasks.values() if one["seconds"] is not None]
    return {
        "model": record["model"],
        "revision": record["revision"],
        "prompts": record["mode"],
        "parameters": record.get("parameters"),
        "max_seq_length": record.get("max_seq_length"),
        "benchmark": BENCHMARK,
        "categories": {
            one.name: {
                "score": round(one.score, 4),
                "tasks": one.done,
                "missing": one.missing,
                "references": with_deltas(one.score, one.references),
            }
            for one in compared
        },
        "tasks": tasks,
        "languages": {
            result.task_name: by_language for result in results if len(by_language := _percent_by_language(result)) > 1
        },
        "wall_seconds": sum(seconds) if seconds else None,
        "hardware": record.get("hardware"),
        "versions": record.get("versions", {}),
    }


def _task_type(name: str) -> str:
    try:
        return str(mteb.get_task(name).metadata.type)
    except KeyError:
        return "own task"


def _percent_by_language(result: TaskResult) -> dict[str, float]:
    """Return the mean main score of each language, ISO 639-3, in percent.

    What is in English and another language, such as a translation, counts for the other.
    """
    scores = defaultdict(list)
    for entries in result.scores.values():
        for entry in entries:
            codes = {language.partition("-")[0] for language in entry["languages"]}
            for code in codes - {"eng"} or codes:
                scores[code].append(entry["main_score"])
    return {code: round(100 * fmean(values), 4) for code, values in sorted(scores.items())}


def _markdown(report: dict[str, Any], compared: list[Category]) -> str:
    sections = [
        f"# {report['model']} on {len(report['tasks'])} mteb tasks",
        f"Revision `{report['revision']}`, prompts: {report['prompts']}. Scores are main scores in percent; a delta "
        "is this model minus the published score.",
    ]
    if compared:
        missing = next(one.missing for one in compared if one.name == MEAN)
        sections += [
            f"## {BENCHMARK} by category",
            _category_table(compared),
            "Means over the tasks done; those of the paper are over the same tasks, from its scores by task.",
            f"Not done, or not in all splits and subsets of the benchmark: {', '.join(missing)}." if missing else "",
            "![Means by category beside the paper's](categories.png)",
        ]
    sections += ["## By task", _task_table(report["tasks"])]
    if report["languages"]:
        means, *tables = _language_tables(report["languages"])
        note = (
            "High-resource languages are English and those that the published reproduction of the paper's data (arXiv "
            "2509.06184) draws more often than the others. A pair with English counts for the other language."
        )
        sections += ["## By language", means, note, *tables]
    prompts = [
        (name, _code(one["query"]), _code(one["document"]), f"{one['source']}{', generic' if one['generic'] else ''}")
        for name, one in report["tasks"].items()
    ]
    sections += ["## Prompts", markdown_table(("task", "before queries", "before documents", "from"), prompts)]
    tokens = sum(one["tokens"] or 0 for one in report["tasks"].values())
    facts = {
        "Parameters": f"{report['parameters']:,}" if report["parameters"] else None,
        "Longest text": f"{report['max_seq_length']:,} tokens" if report["max_seq_length"] else None,
        "Tokens encoded": f"{tokens:,}" if tokens else None,
        "Wall time": f"{report['wall_seconds']:,.0f} s" if report["wall_seconds"] else None,
        "Hardware": report["hardware"],
        "Versions": ", ".join(f"{name} {number}" for name, number in report["versions"].items()),
        "Scores": "mteb's own files in `results/`; for the Hub in `.eval_results/`",
    }
    sections += ["## How it was run", "\n".join(f"- {name}: {fact}" for name, fact in facts.items() if fact)]
    sections += ["## Sources of published scores", _sources()]
    return "\n\n".join(filter(None, sections)) + "\n"


def _category_table(compared: list[Category]) -> str:
    header = ["", "tasks", "this model", *(cell for label in PAPER_SYSTEMS.values() for cell in (label, "delta"))]
    rows = []
    for one in compared:
        row = ["all" if one.name == MEAN else one.name, f"{len(one.done)} of {len(one.done) + len(one.missing)}"]
        row += [f"{one.score:.2f}"]
        for system in PAPER_SYSTEMS:
            row += _beside(one.score, one.references.get(system))
        rows.append(tuple(row))
    return markdown_table(tuple(header), rows)


def _beside(score: float | None, reference: float | None) -> list[str]:
    if reference is None:
        return ["", ""]
    return [f"{reference:.1f}", "" if score is None else f"{score - reference:+.1f}"]


def _task_table(tasks: dict[str, Any]) -> str:
    header = ("task", "type", "score", "comparable", PAPER_SYSTEMS[PAPER], "delta", "cut texts", "time")
    rows = []
    for name, task in tasks.items():
        comparable, cut, seconds = task["comparable_score"], task["truncation_rate"], task["seconds"]
        row = (name, task["type"], f"{task['score']:.2f}", "" if comparable is None else f"{comparable:.2f}")
        beside = _beside(comparable, task["references"].get(PAPER, {}).get("score"))
        rows.append(
            (*row, *beside, "" if cut is None else f"{cut:.1%}", "" if seconds is None else f"{seconds:,.0f} s")
        )
    note = (
        "`score` is the mean over all splits and subsets done, `comparable` over those that the published score is "
        f"of: {BENCHMARK} has the English subsets of multilingual tasks. Other tasks are compared where all is done."
    )
    return f"{markdown_table(header, rows)}\n\n{note}"


def _language_tables(languages: dict[str, dict[str, float]]) -> list[str]:
    """Return the means by resources of all tasks, and a table by language for each task that has published ones."""
    means, tables = [], []
    for task, by_language in languages.items():
        cells = [task]
        for high in (True, False):
            scores = [one for code, one in by_language.items() if (code in HIGH_RESOURCE_ISO639_3) == high]
            cells += [str(len(scores)), f"{fmean(scores):.2f}" if scores else ""]
        means.append(tuple(cells))
        references = {table.system: table.scores for table in load_references().by("language") if table.task == task}
        if not references:
            continue
        others = [system for system in references if system != PAPER]
        rows = []
        for language in sorted(by_language, key=lambda code: (code not in HIGH_RESOURCE_ISO639_3, code)):
            group = "high-resource" if language in HIGH_RESOURCE_ISO639_3 else ""
            published = [references[system].get(language) for system in others]
            rows.append(
                (
                    language,
                    group,
                    f"{by_language[language]:.2f}",
                    *_beside(by_language[language], references[PAPER].get(language)),
                    *("" if value is None else f"{value:.1f}" for value in published),
                )
            )
        names = [load_references().systems[system] for system in others]
        header = ("language", "", "this model", PAPER_SYSTEMS[PAPER], "delta", *names)
        tables += [f"### {task}", markdown_table(header, rows)]
    header = ("task", "high-resource languages", "mean", "other languages", "mean")
    return [markdown_table(header, means), *tables]


def _code(prompt: str) -> str:
    shown = prompt.replace("\n", "\\n").replace("|", "\\|")
    return f"`{shown}`" if shown else "-"


def _sources() -> str:
    """Return where published scores come from, by system."""
    references = load_references()
    lines = [
        f"- {references.systems[table.system]}: {table.source}{'' if table.confirmed else UNCONFIRMED}"
        for table in references.tables
    ]
    return "\n".join(dict.fromkeys(lines))


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


def _plot_categories(categories: list[Category], model: str, path: Path) -> None:
    """Draw the means by type of task beside the paper's over the same tasks."""
    bars = {model: [category.score for category in categories]} | {
        label: [category.references.get(system, np.nan) for category in categories]
        for system, label in PAPER_SYSTEMS.items()
    }
    width = 0.84 / len(bars)
    with figure(path, width=2.2 + 1.5 * len(categories), height=4.6) as [axes]:
        for number, (label, heights) in enumerate(bars.items()):
            places = np.arange(len(categories)) + (number - (len(bars) - 1) / 2) * width
            colour = (AFTER, *REFERENCE_COLOURS)[number]
            drawn = axes.bar(places, heights, width=0.94 * width, color=colour, label=label)
            axes.bar_label(drawn, fmt="%.1f", fontsize=7, padding=1)
        labels = [
            f"{'all' if one.name == MEAN else one.name}\n{len(one.done)} of {len(one.done) + len(one.missing)} tasks"
            for one in categories
        ]
        axes.set_xticks(range(len(categories)), labels, fontsize=8)
        axes.set(
            title=f"{BENCHMARK}, means over the same tasks",
            ylabel="mean main score (%)",
            ylim=(min(0, *bars[model]), 115),
        )
        axes.set_yticks(range(0, 101, 20))
        axes.legend(loc="upper left", ncols=2, fontsize=8)
