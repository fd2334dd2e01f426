from __future__ import annotations

from collections import defaultdict
from statistics import fmean

import mteb
import pytest

from st_llm_embed.evaluation.mteb_report import MEAN, load_references

ENGLISH = mteb.get_benchmark("MTEB(eng, v1)")
CATEGORY = {task.metadata.name: task.metadata.type for task in ENGLISH.tasks}
PAPER = ("paper-full", "paper-synthetic", "paper-synthetic-msmarco")


def scores(system: str, by: str, task: str | None = None) -> dict[str, float]:
    return next(
        table.scores
        for table in load_references().tables
        if (table.system, table.by, table.task) == (system, by, task) and (by != "task" or table.benchmark)
    )


@pytest.mark.parametrize("system", PAPER)
def test_the_papers_scores_by_task_have_the_means_of_its_first_table(system: str) -> None:
    tasks, categories = scores(system, "task"), scores(system, "category")
    assert set(tasks) == set(CATEGORY)
    groups = defaultdict(list)
    for name, value in tasks.items():
        groups[CATEGORY[name]].append(value)
    groups[MEAN] = list(tasks.values())
    # Each of them was rounded to 0.1 before its mean was taken.
    assert {name: pytest.approx(fmean(values), abs=0.1) for name, values in groups.items()} == categories


def test_every_mean_is_that_of_its_categories() -> None:
    sizes = {category: list(CATEGORY.values()).count(category) for category in CATEGORY.values()}
    complete = [table for table in load_references().by("category") if len(table.scores) == 8]
    assert len(complete) == 15
    for table in complete:
        total = sum(table.scores[category] * size for category, size in sizes.items())
        assert table.scores[MEAN] == pytest.approx(total / 56, abs=0.1), table.system


def test_the_papers_miracl_means() -> None:
    means = {"bm25": 39.3, "mdpr": 41.5, "me5-base": 62.3, "me5-large": 66.5, "paper-full": 62.9}
    for system, mean in means.items():
        languages = scores(system, "language", "MIRACLRetrieval")
        assert len(languages) == 16
        assert fmean(languages.values()) == pytest.approx(mean, abs=0.1)


def test_every_table_names_a_known_system_and_its_source() -> None:
    references = load_references()
    assert {table.system for table in references.tables} == set(references.systems)
    assert all("arXiv" in table.source or "github.com" in table.source for table in references.tables)
