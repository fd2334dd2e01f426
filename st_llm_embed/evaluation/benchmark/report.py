"""The report on an evaluation with mteb: scores beside published ones, how they came about, pictures."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

from st_llm_embed.evaluation.benchmark.comparison import (
    BENCHMARK,
    PAPER,
    PAPER_SYSTEMS,
    Category,
    categories,
    comparable_scores,
    language_references,
    task_references,
)
from st_llm_embed.evaluation.benchmark.eval_results import FOLDER, write_eval_results
from st_llm_embed.evaluation.benchmark.plots import plot_before_after, plot_categories, plot_languages
from st_llm_embed.evaluation.benchmark.references import MEAN, ReferenceTable, load_references
from st_llm_embed.evaluation.benchmark.results import (
    Run,
    TaskRecord,
    is_high_resource,
    percent,
    percent_by_language,
    read_run,
    task_type,
)
from st_llm_embed.evaluation.report import markdown_table

UNCONFIRMED = " (?)"
"""Behind a number that was not read in its source's own text."""


def write_mteb_report(output_dir: Path, before: Path | None = None) -> dict[str, Any]:
    """Write report.md, report.json, pictures and `.eval_results` for the run that an output folder's run.json names.

    mteb's own files are read and left as they are. Everything is written anew each time, so the report may be asked
    for after each task.

    Args:
        output_dir: of the evaluation.
        before: output folder of another run to compare with, such as that of the model before training.

    Returns:
        What report.json holds.

    Raises:
        InputError: there is no run in a folder, or a file in it is damaged.
    """
    run = read_run(output_dir)
    earlier = None if before is None else read_run(before)
    report = _report(run, earlier)
    compared = categories(comparable_scores(run.results))
    if compared:
        plot_categories(compared, run.record.model, output_dir / "categories.png")
    if report["languages"]:
        plot_languages(report["languages"], output_dir / "languages.png")
    if report["before"]:
        old, new = (
            {task: score[key] for task, score in report["before"]["tasks"].items()} for key in ("before", "after")
        )
        labels = (report["before"]["run"], _label(run))
        plot_before_after(old, new, labels, output_dir / "before_after.png")
    write_eval_results(run, output_dir)
    (output_dir / "report.md").write_text(_markdown(run, report, compared), encoding="utf-8")
    (output_dir / "report.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return report


def _label(run: Run) -> str:
    return f"{run.record.model} @ {run.record.revision[:12]}, prompts: {run.record.mode}"


def _report(run: Run, earlier: Run | None) -> dict[str, Any]:
    record = run.record
    comparable = comparable_scores(run.results)
    recorded = {result.task_name: record.tasks.get(result.task_name, TaskRecord()) for result in run.results}
    seconds = [one.seconds for one in recorded.values() if one.seconds is not None]
    return {
        "model": record.model,
        "revision": record.revision,
        "prompts": record.mode,
        "parameters": record.parameters,
        "max_seq_length": record.max_seq_length,
        "benchmark": BENCHMARK,
        "categories": {
            category.name: {
                "score": round(category.score, 4),
                "tasks": category.done,
                "missing": category.missing,
                "references": _with_deltas(category.score, category.references),
            }
            for category in categories(comparable)
        },
        "tasks": {
            result.task_name: {
                "type": task_type(result.task_name),
                "score": round(percent(result), 4),
                "splits": {
                    split: {entry["hf_subset"]: round(100 * entry["main_score"], 4) for entry in entries}
                    for split, entries in result.scores.items()
                },
                "comparable_score": _rounded(comparable.get(result.task_name)),
                "references": _with_deltas(comparable.get(result.task_name), task_references(result.task_name)),
                "dataset_revision": result.dataset_revision,
                "mteb_version": result.mteb_version,
                **recorded[result.task_name].model_dump(),
            }
            for result in run.results
        },
        "languages": {
            result.task_name: {language: round(score, 4) for language, score in by_language.items()}
            for result in run.results
            if len(by_language := percent_by_language(result)) > 1
        },
        "before": None if earlier is None else _before(run, earlier),
        "wall_seconds": sum(seconds) if seconds else None,
        "hardware": record.hardware,
        "versions": record.versions,
    }


def _rounded(score: float | None) -> float | None:
    return None if score is None else round(score, 4)


def _with_deltas(score: float | None, references: dict[str, float]) -> dict[str, dict[str, float | None]]:
    """Give each published score and how far the run is above it; None where the two cannot be compared."""
    return {
        system: {"score": round(value, 4), "delta": None if score is None else round(score - value, 4)}
        for system, value in references.items()
    }


def _before(run: Run, earlier: Run) -> dict[str, Any] | None:
    old = {result.task_name: result for result in earlier.results}
    tasks = {}
    for result in run.results:
        other = old.get(result.task_name)
        # The mean over other splits or subsets would be another measure.
        if other is not None and _parts(other) == _parts(result):
            before, after = percent(other), percent(result)
            tasks[result.task_name] = {"before": before, "after": after, "change": after - before}
    return {"run": _label(earlier), "tasks": tasks} if tasks else None


def _parts(result: Any) -> set[tuple[str, str]]:
    return {(split, entry["hf_subset"]) for split, entries in result.scores.items() for entry in entries}


def _markdown(run: Run, report: dict[str, Any], compared: list[Category]) -> str:
    record = run.record
    sections = [
        f"# {record.model} on {len(run.results)} mteb tasks",
        f"Revision `{record.revision}`, prompts: {record.mode}. Scores are main scores in percent; a delta is this "
        "model minus the published score.",
    ]
    if compared:
        sections += [
            f"## {BENCHMARK} by category",
            _category_table(compared),
            "Means over the tasks done; those of the paper are over the same tasks, from its scores by task. "
            f"{_missing(compared)}",
            "![Means by category beside the paper's](categories.png)",
        ]
    if report["before"]:
        sections += ["## Before and after", _before_table(report["before"]), "![Before and after](before_after.png)"]
    sections += ["## By task", _task_table(report)]
    if report["languages"]:
        sections += [
            "## By language",
            _language_table(report["languages"]),
            "High-resource languages are English and those that the published reproduction of the paper's data (arXiv "
            "2509.06184) draws more often than the others; those that the paper calls so in its table 2 are among "
            "them, and those that it calls low-resource are not. A pair with English counts for the other language.",
            "![Scores by language](languages.png)",
            *_language_comparisons(report["languages"]),
        ]
    sections += ["## Prompts", _prompt_table(report), "## How it was run", _facts(run, report)]
    sections += ["## Published scores", *_published()]
    return "\n\n".join(filter(None, sections)) + "\n"


def _category_table(compared: list[Category]) -> str:
    header = ["", "tasks", "this model"]
    for label in PAPER_SYSTEMS.values():
        header += [label, "delta"]
    rows = []
    for one in compared:
        total = len(one.done) + len(one.missing)
        row = [_category_name(one.name), f"{len(one.done)} of {total}", f"{one.score:.2f}"]
        for system in PAPER_SYSTEMS:
            row += _beside(one.score, one.references.get(system))
        rows.append(tuple(row))
    return markdown_table(tuple(header), rows)


def _category_name(name: str) -> str:
    return "all" if name == MEAN else name


def _beside(score: float | None, reference: float | None) -> list[str]:
    if reference is None:
        return ["", ""]
    return [f"{reference:.1f}", "" if score is None else f"{score - reference:+.1f}"]


def _missing(compared: list[Category]) -> str:
    missing = next(one.missing for one in compared if one.name == MEAN)
    return f"Not done, or not in all splits and subsets of the benchmark: {', '.join(missing)}." if missing else ""


def _task_table(report: dict[str, Any]) -> str:
    header = ("task", "type", "score", "comparable", PAPER_SYSTEMS[PAPER], "delta", "cut texts", "time")
    rows = []
    for name, task in report["tasks"].items():
        paper = task["references"].get(PAPER, {}).get("score")
        comparable = task["comparable_score"]
        cut, seconds = task["truncation_rate"], task["seconds"]
        rows.append(
            (
                name,
                task["type"],
                f"{task['score']:.2f}",
                "" if comparable is None else f"{comparable:.2f}",
                *_beside(comparable, paper),
                "" if cut is None else f"{cut:.1%}",
                "" if seconds is None else f"{seconds:,.0f} s",
            )
        )
    note = (
        "`score` is the mean over all splits and subsets done, `comparable` over those that the published score is "
        f"of: {BENCHMARK} has the English subsets of multilingual tasks. Other tasks are compared where all is done."
    )
    return f"{markdown_table(header, rows)}\n\n{note}"


def _before_table(before: dict[str, Any]) -> str:
    rows = [
        (name, f"{one['before']:.2f}", f"{one['after']:.2f}", f"{one['change']:+.2f}")
        for name, one in before["tasks"].items()
    ]
    return f"Before: {before['run']}.\n\n{markdown_table(('task', 'before', 'after', 'change'), rows)}"


def _language_table(languages: dict[str, dict[str, float]]) -> str:
    rows = []
    for task, by_language in languages.items():
        row = [task]
        for high in (True, False):
            scores = [score for language, score in by_language.items() if is_high_resource(language) == high]
            row += [str(len(scores)), f"{fmean(scores):.2f}" if scores else ""]
        rows.append(tuple(row))
    return markdown_table(("task", "high-resource languages", "mean", "other languages", "mean"), rows)


def _language_comparisons(languages: dict[str, dict[str, float]]) -> list[str]:
    """Give a table by language for each task that has published ones."""
    systems = load_references().systems
    tables = []
    for task, by_language in languages.items():
        references = language_references(task)
        if not references:
            continue
        header = ["language", "", "this model", PAPER_SYSTEMS[PAPER], "delta"]
        others = [system for system in references if system != PAPER]
        rows = []
        for language in sorted(by_language, key=lambda code: (not is_high_resource(code), code)):
            score, group = by_language[language], "high-resource" if is_high_resource(language) else ""
            published = [references[system].get(language) for system in others]
            beside = _beside(score, references[PAPER].get(language))
            cells = ["" if value is None else f"{value:.1f}" for value in published]
            rows.append((language, group, f"{score:.2f}", *beside, *cells))
        tables += [f"### {task}", markdown_table((*header, *(systems[system] for system in others)), rows)]
    return tables


def _prompt_table(report: dict[str, Any]) -> str:
    rows = []
    for name, task in report["tasks"].items():
        origin = f"{task['source']}{', generic' if task['generic'] else ''}"
        rows.append((name, _code(task["query"]), _code(task["document"]), origin))
    return markdown_table(("task", "before queries", "before documents", "from"), rows)


def _code(prompt: str) -> str:
    shown = prompt.replace("\n", "\\n").replace("|", "\\|")
    return f"`{shown}`" if shown else "-"


def _facts(run: Run, report: dict[str, Any]) -> str:
    record = run.record
    tokens = [task["tokens"] for task in report["tasks"].values() if task["tokens"]]
    versions = ", ".join(f"{name} {number}" for name, number in record.versions.items())
    facts = {
        "Parameters": None if record.parameters is None else f"{record.parameters:,}",
        "Longest text": None if record.max_seq_length is None else f"{record.max_seq_length:,} tokens",
        "Tokens encoded": f"{sum(tokens):,}" if tokens else None,
        "Wall time": None if report["wall_seconds"] is None else f"{report['wall_seconds']:,.0f} s",
        "Hardware": record.hardware,
        "Versions": versions or None,
        "Scores": f"mteb's own files in `results/`; for the Hub in `{FOLDER}/`",
    }
    return "\n".join(f"- {name}: {fact}" for name, fact in facts.items() if fact)


def _published() -> list[str]:
    """Give the tables of published scores, with the source of each row."""
    references = load_references()
    sources: dict[str, int] = {}

    def cells(table: ReferenceTable, keys: list[str], digits: int = 1) -> tuple[str, ...]:
        number = sources.setdefault(table.source, len(sources) + 1)
        mark = "" if table.confirmed else UNCONFIRMED
        values = [f"{table.scores[key]:.{digits}f}{mark}" if key in table.scores else "" for key in keys]
        return (references.systems[table.system], *values, f"[{number}]")

    by_category = references.by("category")
    names = list(dict.fromkeys(key for table in by_category for key in table.scores))
    sections = [
        f"{BENCHMARK}, means by category:",
        markdown_table(
            ("system", *map(_category_name, names), "source"), [cells(table, names) for table in by_category]
        ),
    ]
    by_task: dict[str, list[ReferenceTable]] = defaultdict(list)
    for table in references.by("language"):
        by_task[str(table.task)].append(table)
    for task, tables in by_task.items():
        languages = sorted({language for table in tables for language in table.scores})
        rows = [cells(table, languages) for table in tables]
        sections += [f"{task} by language, nDCG@10:", markdown_table(("system", *languages, "source"), rows)]
    bitext = [table for table in references.by("task") if table.benchmark is None]
    names = list(dict.fromkeys(key for table in bitext for key in table.scores))
    sections += [
        "Bitext mining, F1:",
        markdown_table(("system", *names, "source"), [cells(one, names) for one in bitext]),
    ]
    sources.update({table.source: sources.get(table.source, len(sources) + 1) for table in references.by("task")})
    listed = "\n".join(f"- [{number}] {source}" for source, number in sources.items())
    marks = f"Numbers marked{UNCONFIRMED} were not read in the source's own text."
    unconfirmed = any(not table.confirmed for table in references.tables)
    return [*sections, listed, marks if unconfirmed else "All were read in the sources' own text."]
