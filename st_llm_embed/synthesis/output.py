"""The dataset of a journal: rows by task type, the tasks, the rejected answers, and what all of it is made of."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from st_llm_embed.data.dataset import DatasetWriter, Split, check_sizes, write_dataset
from st_llm_embed.data.rows import Row, content_hash
from st_llm_embed.errors import InputError
from st_llm_embed.recipe import Synthesis
from st_llm_embed.synthesis.generate import tasks_file
from st_llm_embed.synthesis.plan import RequestPlan
from st_llm_embed.synthesis.selection import Rejected, Selection, Similarities
from st_llm_embed.synthesis.statistics import Statistics
from st_llm_embed.synthesis.tasks import TaskFile

REJECTED_SCHEMA = pa.schema([(name, pa.string()) for name in Rejected.__dataclass_fields__])
TASKS_SCHEMA = pa.schema([("task_type", pa.string()), ("instruction", pa.string())])
# Not splits: each is one file of its own name, which loading a split of the dataset passes over.
REJECTED: Any = ("rejected", "rejected")
TASKS: Any = ("tasks", "tasks")


def write_synthetic_dataset(
    synthesis: Synthesis,
    journal_folder: Path,
    folder: Path,
    validation_fraction: float,
    similarities: Similarities | None,
    *,
    selection: Selection | None = None,
) -> Counter[tuple[str, Split]]:
    """Make a dataset of the journal's answers; nothing is sent and nothing is paid.

    Args:
        synthesis: the recipe's section.
        journal_folder: what `generate` wrote.
        folder: an existing folder; gets a folder of parquet files for each task type, tasks/, rejected/, plots/ and
            statistics.json.
        validation_fraction: share of instructions held out.
        similarities: of the consistency filter; None omits it.
        selection: of the same recipe and journal, if `generate` returned one, so that nothing is parsed again.

    Returns:
        The number of rows by (configuration, split).

    Raises:
        InputError: there are no answers, or the rows are too few to hold some out.
    """
    plan = RequestPlan(synthesis.plan, synthesis.endpoint)
    path, journal = tasks_file(synthesis, plan, journal_folder), journal_folder / "answers.jsonl"
    if not journal.is_file() or not path.is_file():
        raise InputError(
            f"{journal_folder} holds no answers to example requests yet. Run st-llm-embed synthesize with this recipe "
            "and --output-dir first."
        )
    tasks = TaskFile(path)
    if selection is None:
        selection = Selection(synthesis, plan, tasks, journal, similarities, workspace=folder)
    statistics = Statistics()
    with DatasetWriter(folder, REJECTED_SCHEMA) as rejected:
        counts = write_dataset(_accepted(selection, statistics, rejected), folder, validation_fraction)
    if not counts:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in statistics.rejected_by_reason.most_common())
        raise InputError(
            f"None of the answers in {journal} is a row: {reasons or 'none is to a request of this recipe'}. Look "
            "at the answers; try another model, or other filters."
        )
    check_sizes(counts, validation_fraction, "what the LLM wrote")
    _write_tasks(tasks, folder)
    figures = statistics.to_json(journal) | {"overlap_with_evaluation_texts": selection.overlap()}
    (folder / "statistics.json").write_text(json.dumps(figures, indent=2, ensure_ascii=False), encoding="utf-8")
    (folder / "plots").mkdir()
    statistics.plot(folder / "plots")
    return counts


def _accepted(selection: Selection, statistics: Statistics, rejected: DatasetWriter) -> Iterator[Row]:
    """Yield the rows; count them and the rejected answers, which are written."""
    for item in selection.rows():
        statistics.add(item)
        if isinstance(item, Rejected):
            rejected.add(REJECTED, asdict(item))
        else:
            yield item


def _write_tasks(tasks: TaskFile, folder: Path) -> None:
    """Write each instruction once."""
    seen = set()
    with DatasetWriter(folder, TASKS_SCHEMA) as written:
        for number in range(len(tasks)):
            task = tasks[number]
            digest = content_hash(task.task_type, task.instruction or "")
            if task.instruction is not None and digest not in seen:
                seen.add(digest)
                written.add(TASKS, {"task_type": task.task_type, "instruction": task.instruction})
