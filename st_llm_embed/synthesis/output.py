"""The dataset of a journal: rows by task type, the tasks, the rejected answers, and what all of it is made of."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from st_llm_embed.data.dataset import DatasetWriter, Split, check_sizes, write_dataset
from st_llm_embed.data.rows import Row, content_hash
from st_llm_embed.errors import InputError
from st_llm_embed.recipe import HoldOut, Synthesis
from st_llm_embed.synthesis.generate import tasks_file
from st_llm_embed.synthesis.journal import read_journal
from st_llm_embed.synthesis.plan import RequestPlan
from st_llm_embed.synthesis.selection import TEXTS, Rejected, Selection, Similarities
from st_llm_embed.synthesis.tasks import TaskFile

REJECTED_SCHEMA = pa.schema([(name, pa.string()) for name in Rejected.__dataclass_fields__])
TASKS_SCHEMA = pa.schema([("task_type", pa.string()), ("instruction", pa.string())])
# Not splits: each is one file of its own name, which loading a split of the dataset passes over.
REJECTED: Any = ("rejected", "rejected")
TASKS: Any = ("tasks", "tasks")

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def write_synthetic_dataset(
    synthesis: Synthesis,
    journal_folder: Path,
    folder: Path,
    validation_fraction: float,
    similarities: Similarities | None,
    *,
    hold_out: HoldOut | None = None,
    selection: Selection | None = None,
) -> Counter[tuple[str, Split]]:
    """Make a dataset of the journal's answers; nothing is sent and nothing is paid.

    Args:
        synthesis: the recipe's section.
        journal_folder: what `generate` wrote.
        folder: an existing folder; gets a folder of parquet files for each task type, tasks/, rejected/ and
            statistics.json.
        validation_fraction: share held out.
        similarities: of the consistency filter; None omits it.
        hold_out: what is held out as a whole; None for the default.
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
        counts = write_dataset(_accepted(selection, statistics, rejected), folder, validation_fraction, hold_out)
    if not counts:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in statistics.rejected_by_reason().items())
        raise InputError(
            f"None of the answers in {journal} is a row: {reasons or 'none is to a request of this recipe'}. Look "
            "at the answers; try another model, or other filters."
        )
    check_sizes(counts, validation_fraction, "what the LLM wrote")
    _write_tasks(tasks, folder)
    figures = statistics.to_json(journal) | {"overlap_with_evaluation_texts": selection.overlap()}
    (folder / "statistics.json").write_text(json.dumps(figures, indent=2, ensure_ascii=False), encoding="utf-8")
    return counts


def _accepted(selection: Selection, statistics: Statistics, rejected: DatasetWriter) -> Iterator[Row]:
    """Yield the rows, write the rejected answers, and count both."""
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


class Statistics:
    """What a set of rows is made of; memory grows with distinct instructions alone, by eight bytes or so each."""

    def __init__(self) -> None:
        """Count nothing yet."""
        self._rows: Counter[tuple[str, ...]] = Counter()
        """By task type, language and generator."""
        self._rejected: Counter[tuple[str, ...]] = Counter()
        """By task type, language and reason."""
        self._lengths: dict[tuple[str, str], Counter[int]] = defaultdict(Counter)
        """By task type and column: characters of the texts, rounded to two digits."""
        self._instructions: set[int] = set()

    def add(self, item: Row | Rejected) -> None:
        """Count one row or one rejected answer."""
        if isinstance(item, Rejected):
            self._rejected[item.task_type, item.language, item.reason] += 1
            return
        self._rows[item.task_type, item.language, item.generator] += 1
        self._instructions.add(hash((item.task_type, item.instruction)))
        for column in TEXTS:
            text = getattr(item, column)
            if text is not None:
                self._lengths[item.task_type, column][_two_digits(len(text))] += 1

    def rejected_by_reason(self) -> dict[str, int]:
        """Return how many answers were rejected, by reason, the most frequent first."""
        return _totals(self._rejected, 2)

    def to_json(self, journal: Path) -> dict[str, Any]:
        """Return all figures, with what was paid by the journal."""
        rows, rejected = _totals(self._rows, 1), _totals(self._rejected, 1)
        duplicates = {names: n for names, n in self._rejected.items() if names[2] in ("duplicate", "near duplicate")}

        def shares(counts: dict[str, int]) -> dict[str, float]:
            return {name: round(n / (rejected[name] + rows.get(name, 0)), 4) for name, n in sorted(counts.items())}

        return {
            "rows": self._rows.total(),
            "rejected": self._rejected.total(),
            "distinct_instructions": len(self._instructions),
            "rows_by_task_type": _totals(self._rows, 0),
            "rows_by_language": rows,
            "rows_by_generator": _totals(self._rows, 2),
            "rejected_by_reason": self.rejected_by_reason(),
            "rejected_by_task_type": _totals(self._rejected, 0),
            "share_rejected_by_language": shares(rejected),
            "share_duplicates_by_language": shares(_totals(duplicates, 1)),
            "characters": {
                f"{task_type}.{column}": {f"p{q * 100:.0f}": _quantile(counts, q) for q in QUANTILES}
                for (task_type, column), counts in sorted(self._lengths.items())
            },
            "cost": _cost(journal),
        }


def _totals(counts: Mapping[tuple[str, ...], int], place: int) -> dict[str, int]:
    """Add counts up by one part of their names, the most frequent first."""
    totals: Counter[str] = Counter()
    for names, count in counts.items():
        totals[names[place]] += count
    return dict(totals.most_common())


def _cost(journal: Path) -> dict[str, Any]:
    """Add up what was paid, by model; what may have been paid apart."""
    by_model: dict[str, Counter[str]] = defaultdict(Counter)
    usd: dict[str, float] = defaultdict(float)
    for record, _ in read_journal(journal):
        if "model" in record and "tokens" in record:
            by_model[record["model"]][record["status"]] += 1
            by_model[record["model"]]["tokens"] += record["tokens"]
            usd[record["model"]] += record["usd"]
    return {
        "usd": round(sum(usd.values()), 6),
        "by_model": {model: {**counts, "usd": round(usd[model], 6)} for model, counts in sorted(by_model.items())},
    }


def _two_digits(number: int) -> int:
    unit = 10 ** max(0, len(str(number)) - 2)
    return number // unit * unit


def _quantile(counts: Counter[int], share: float) -> int:
    wanted = share * counts.total()
    reached = 0
    for value, count in sorted(counts.items()):
        reached += count
        if reached >= wanted:
            return value
    return 0
