"""Scores of a run beside published ones: like with like, or not at all."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from statistics import fmean
from typing import NamedTuple

import mteb
from mteb.results import TaskResult

from st_llm_embed.evaluation.benchmark.references import MEAN, load_references
from st_llm_embed.evaluation.benchmark.results import percent_of

BENCHMARK = "MTEB(eng, v1)"
"""The paper's: 56 tasks, English subsets."""
PAPER_SYSTEMS = {
    "paper-full": "paper, full data",
    "paper-synthetic-msmarco": "paper, synthetic + MS MARCO",
    "paper-synthetic": "paper, synthetic only",
}
"""Shown beside every score, under these names; the first is the paper's best."""
PAPER = next(iter(PAPER_SYSTEMS))
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


class Category(NamedTuple):
    """One type of task of the benchmark, or, as `mean`, all of them."""

    name: str
    score: float
    """Mean main score of the run in percent."""
    done: list[str]
    missing: list[str]
    references: dict[str, float]
    """By system, the mean over the same tasks; a system that is only known for all of them is left out otherwise."""


@cache
def benchmark_tasks() -> dict[str, tuple[str, list[str], list[str]]]:
    """Give type, splits and subsets of the benchmark's tasks, by name."""
    return {
        task.metadata.name: (str(task.metadata.type), list(task.eval_splits), list(task.hf_subsets))
        for task in mteb.get_benchmark(BENCHMARK).tasks
    }


def comparable_scores(results: Iterable[TaskResult]) -> dict[str, float]:
    """Give the score in percent of each task with published scores, where it is of the same splits and subsets.

    Those are the benchmark's for its tasks, and all for others.
    """
    scores = {}
    for result in results:
        name = result.task_name
        if name in benchmark_tasks():
            _, splits, subsets = benchmark_tasks()[name]
        elif task_references(name):
            task = mteb.get_task(name)
            splits, subsets = list(task.eval_splits), list(task.hf_subsets)
        else:
            continue
        score = percent_of(result, splits, subsets)
        if score is not None:
            scores[name] = score
    return scores


def task_references(name: str) -> dict[str, float]:
    """Give the published scores of a task, by system."""
    return {table.system: table.scores[name] for table in load_references().by("task") if name in table.scores}


def categories(scores: dict[str, float]) -> list[Category]:
    """Compare the run with published means, by type of task and over all.

    Args:
        scores: what `comparable_scores` gives.
    """
    found = []
    for name in CATEGORIES:
        members = [task for task, (task_type, _, _) in benchmark_tasks().items() if name in (task_type, MEAN)]
        done = [task for task in members if task in scores]
        if done:
            missing = [task for task in members if task not in scores]
            score = fmean(scores[task] for task in done)
            found.append(Category(name, score, done, missing, _category_references(name, done, whole=not missing)))
    return found


def _category_references(name: str, done: list[str], *, whole: bool) -> dict[str, float]:
    references = load_references()
    values = {
        table.system: fmean(table.scores[task] for task in done)
        for table in references.by("task")
        if table.benchmark == BENCHMARK and table.scores.keys() >= set(done)
    }
    if whole:
        # As published, not as the mean of rounded scores.
        values |= {
            table.system: table.scores[name]
            for table in references.by("category")
            if table.benchmark == BENCHMARK and name in table.scores
        }
    return values


def language_references(task: str) -> dict[str, dict[str, float]]:
    """Give the published scores of a task by language: system -> language, ISO 639-3 -> percent."""
    return {table.system: table.scores for table in load_references().by("language") if table.task == task}
