"""What a training set has in common with the test texts of MTEB tasks (paper, appendix B).

As in the paper, test texts are looked up in the training set whatever their case and spacing, here also with one word
changed. Short texts, which are equal by chance, are counted apart; so are the documents of a retrieval task, since
tasks and training sets share corpora such as Wikipedia and only the queries tell whether the task was seen.
"""

from __future__ import annotations

import json
import logging
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from datasets import Dataset
from mteb.abstasks import AbsTask, AbsTaskRetrieval
from mteb.abstasks.aggregated_task import AbsTaskAggregate

from st_llm_embed.data import read_rows, rows_file
from st_llm_embed.data.contamination import EvaluationTexts, Match, strings_in
from st_llm_embed.data.dataset import is_text_column
from st_llm_embed.errors import InputError, explained, shown
from st_llm_embed.evaluation.report import markdown_table
from st_llm_embed.evaluation.submission.training_datasets import trained_on
from st_llm_embed.recipe import EMBEDDED, Recipe

logger = logging.getLogger(__name__)

Part = Literal["queries", "documents", "texts"]
"""Queries and documents of retrieval and reranking; texts of all other tasks."""

CHANCE = 0.01
"""The share of queries or texts that is put down to chance: the paper takes 4 of DBPedia's 400 test questions for
insignificant. Proverbs and stock phrases are long enough not to count as low-entropy."""

EXAMPLES = 5
"""So many of the test texts that were found are shown for each part of a task."""

# Attributes of mteb's task classes that name the columns a model reads, for all types but bitext mining.
_COLUMN_ATTRIBUTES = (
    "column_names",
    "input_column_name",
    "input1_column_name",
    "input2_column_name",
    "text_column_name",
    "human_summaries_column_name",
    "machine_summaries_column_name",
)


class TaskOverlap(NamedTuple):
    """Test texts of one part of a task, each counted once however often it stands there."""

    task: str
    part: Part
    texts: int
    exact: int
    """Of them in the training set, up to case, spacing and punctuation."""
    one_word_edit: int
    """Of them in the training set up to one word."""
    low_entropy: int
    """Of them in the training set in either way, but too short to say that they were taken from there."""
    training_sets: dict[str, int]
    """Where the exact ones and those up to one word are: configurations of the training set, or its file."""
    examples: list[str]


class Overlap(NamedTuple):
    """What a training set has in common with tasks."""

    tasks: list[TaskOverlap]
    not_compared: dict[str, str]
    """Tasks whose texts could not be loaded, and why."""
    training_datasets: list[str]
    """Entries for mteb: tasks of the recipe's sources, and those of whose queries or texts more than `CHANCE` are in
    the training set."""


def measure_overlap(dataset: str, tasks: Sequence[AbsTask]) -> Overlap:
    """Look up the test texts of tasks in a training set.

    Args:
        dataset: a run's folder, a dataset's folder, a .jsonl or .parquet file with rows, or `embedded`.
        tasks: of mteb; their data is loaded by their own classes.

    Raises:
        InputError: the training set cannot be read, or no task could be loaded.
    """
    known = _trained_on(Path(dataset))
    logger.info("overlap: reading %s", dataset)
    # The index finds a text in texts, whichever of the two was trained on.
    training = EvaluationTexts((text, file) for file in _training_files(dataset) for text in _row_texts(file))
    found: list[TaskOverlap] = []
    not_compared: dict[str, str] = {}
    # An aggregate's texts are those of its parts, which stand beside it.
    for task in (one for one in tasks if not isinstance(one, AbsTaskAggregate)):
        try:
            found += _task_overlap(training, task)
        except InputError as error:
            not_compared[task.metadata.name] = str(error)
    if not found:
        raise InputError(" ".join(not_compared.values()))
    seen = {
        row.task for row in found if row.part != "documents" and row.exact + row.one_word_edit > CHANCE * row.texts
    }
    return Overlap(found, not_compared, sorted(known | seen))


def overlap_markdown(overlap: Overlap) -> str:
    """Give the table for a card, and below it the entries for mteb's `training_datasets`."""
    header = ("task", "part", "test texts", "exact", "one word edited", "low-entropy", "found in")
    rows = [
        (
            row.task,
            row.part,
            f"{row.texts:,}",
            f"{row.exact:,}",
            f"{row.one_word_edit:,}",
            f"{row.low_entropy:,}",
            ", ".join(f"{name} {count:,}" for name, count in row.training_sets.items()),
        )
        for row in overlap.tasks
    ]
    entries = ", ".join(overlap.training_datasets) or "none"
    below = [f"Entries for mteb's `training_datasets`: {entries}."]
    below += [f"Not compared: {name}. {reason}" for name, reason in overlap.not_compared.items()]
    return "\n\n".join((markdown_table(header, rows), *below)) + "\n"


def overlap_json(overlap: Overlap) -> str:
    """Give everything as JSON; `submit --overlap` reads it."""
    content = overlap._asdict() | {"tasks": [row._asdict() for row in overlap.tasks]}
    return json.dumps(content, indent=2, ensure_ascii=False)


def _trained_on(folder: Path) -> frozenset[str]:
    recipe = folder / "recipe.yaml"
    return trained_on(Recipe.load(str(recipe))).tasks if recipe.is_file() else frozenset()


def _training_files(dataset: str) -> list[Path]:
    if dataset == EMBEDDED:
        return [rows_file(EMBEDDED)]
    path = Path(dataset)
    if path.is_dir():
        parts = [part for part in (path / "dataset", path / "sources") if part.is_dir()] or [path]
        files = sorted(file for part in parts for file in part.glob("*/train.parquet"))
        if not files:
            raise InputError(
                f"{path} holds no training set: there is no <configuration>/train.parquet in it, nor in a folder "
                "dataset or sources below. Give the folder of a run, its dataset, or a .jsonl or .parquet file."
            )
        return files
    if not path.is_file() or path.suffix not in (".jsonl", ".parquet"):
        raise InputError(
            f"{shown(dataset)} is no training set. Give the folder of a run, a dataset's folder, a .jsonl or .parquet "
            f"file of rows with anchor and positive, or {EMBEDDED}, the rows inside the package."
        )
    return [path]


def _row_texts(file: Path) -> Iterator[str]:
    if file.suffix == ".jsonl":
        for row in read_rows(file):
            yield from filter(None, (row.anchor, row.positive, row.negative))
        return
    with explained(f"{file} cannot be read", "Give a .parquet file of rows that you may read."):
        names = [name for name in pq.read_schema(file).names if is_text_column(name)]
        if not names:
            raise InputError(
                f"{file} has none of the columns anchor, positive and negative; rename those that hold texts."
            )
        with pq.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=1_000, columns=names):
                for column in batch.columns:
                    yield from strings_in(column.to_pylist())


def _task_overlap(training: EvaluationTexts, task: AbsTask) -> list[TaskOverlap]:
    hashes: dict[Part, array[int]] = {}
    found: dict[Part, dict[str, Match]] = {}
    for part, text in _test_texts(task):
        hashes.setdefault(part, array("q")).append(hash(text))
        matches = found.setdefault(part, {})
        match = None if text in matches else training.match(text)
        if match is not None:
            matches[text] = match
    if not hashes:
        raise InputError(f"The test splits of {task.metadata.name} hold no texts. Leave the task out.")
    logger.info("overlap: %s done", task.metadata.name)
    return [
        _count(task.metadata.name, part, len(np.unique(np.asarray(seen))), found[part])
        for part, seen in hashes.items()
    ]


def _count(task: str, part: Part, texts: int, matches: dict[str, Match]) -> TaskOverlap:
    telling = {text: match for text, match in matches.items() if not match.low_entropy}
    kinds = Counter(match.kind for match in telling.values())
    return TaskOverlap(
        task=task,
        part=part,
        texts=texts,
        exact=kinds["exact"],
        one_word_edit=kinds["one-word edit"],
        low_entropy=len(matches) - len(telling),
        training_sets=dict(Counter(_set_name(match.file) for match in telling.values()).most_common()),
        examples=list(telling)[:EXAMPLES],
    )


def _set_name(file: Path) -> str:
    return file.parent.name if file.name == "train.parquet" else file.name


def _test_texts(task: AbsTask) -> Iterator[tuple[Part, str]]:
    """Give all texts of a task's test splits."""
    advice = "Check the network, or that its data is in the cache where HF_HUB_OFFLINE is set; closed sets have none."
    with explained(f"The test texts of {task.metadata.name} cannot be loaded", advice):
        task.load_data()
        if isinstance(task, AbsTaskRetrieval):
            task.convert_v1_dataset_format_to_v2(num_proc=None)
    for split in _splits(task.dataset or {}, task.eval_splits):
        for part, text in _split_texts(task, split):
            if text and not text.isspace():
                yield part, text
    task.unload_data()


def _splits(dataset: Mapping[str, Any], names: Sequence[str]) -> Iterator[Any]:
    """Find the test splits in {subset: {split: ...}} or {split: ...}."""
    for name, part in dataset.items():
        if name in names and (isinstance(part, Dataset) or "corpus" in part):
            yield part
        elif isinstance(part, Mapping):
            yield from _splits(part, names)


def _split_texts(task: AbsTask, split: Any) -> Iterator[tuple[Part, str]]:
    if isinstance(split, Dataset):
        for record in split.select_columns(_text_columns(task, split.column_names)):
            yield from (("texts", text) for text in strings_in(record))
        return
    for record in split["queries"]:
        yield from (("queries", text) for text in _without_id(record))
    for record in split["corpus"]:
        yield from (("documents", text) for text in _without_id(record))
        if record.get("title") and record.get("text"):
            yield "documents", f"{record['title']} {record['text']}"  # what a model reads


def _without_id(record: Mapping[str, Any]) -> Iterator[str]:
    return strings_in({name: value for name, value in record.items() if name not in ("id", "_id")})


def _text_columns(task: AbsTask, columns: Sequence[str]) -> list[str]:
    """Give the columns that a model reads, or all where the task's class does not say; a label is no harm there."""
    named: set[str] = set()
    for attribute in _COLUMN_ATTRIBUTES:
        value: str | Iterable[str] = getattr(task, attribute, ())
        named |= {value} if isinstance(value, str) else set(value)
    return [name for name in columns if name in named] or list(columns)
