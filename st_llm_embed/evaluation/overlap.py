"""What a training set has in common with the test texts of MTEB tasks (paper, appendix B).

As in the paper, test texts are looked up in the training set ignoring case and spacing, here also with one word
changed. Short texts, which are equal by chance, are counted separately. So are the documents of a retrieval task,
since tasks and training sets share corpora such as Wikipedia, and only queries show that the task was seen.
"""

from __future__ import annotations

import json
import logging
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from datasets import Dataset
from mteb.abstasks import AbsTask, AbsTaskRetrieval
from mteb.abstasks.aggregated_task import AbsTaskAggregate

from st_llm_embed.data.contamination import EvaluationTexts, Match, strings_in
from st_llm_embed.data.dataset import is_text_column
from st_llm_embed.data.files import read_records
from st_llm_embed.data.rows import read_rows, rows_file
from st_llm_embed.errors import InputError, explained, shown
from st_llm_embed.evaluation.report import markdown_table
from st_llm_embed.recipe import EMBEDDED, SYNTHESIS, Recipe

logger = logging.getLogger(__name__)

Part = Literal["queries", "documents", "texts"]
"""Queries and documents of retrieval and reranking; texts of all other tasks."""

CHANCE = 0.01
"""The share of queries or texts that is put down to chance: the paper takes 4 of DBPedia's 400 test questions for
insignificant. Proverbs and stock phrases are long enough not to count as low-entropy."""

EXAMPLES = 5
"""Test texts shown for each part of a task."""

# Attributes of mteb's task classes that name the columns a model reads, for all types but bitext mining.
_COLUMN_ATTRIBUTES = ("column_names", *(f"{which}_column_name" for which in ("input", "input1", "input2", "text")))
_COLUMN_ATTRIBUTES += ("human_summaries_column_name", "machine_summaries_column_name")

TASKS_OF_SOURCES = {
    "eli5": (),
    "hotpotqa": ("HotpotQA",),
    "fever": ("FEVER",),
    "miracl": ("MIRACLRetrieval",),
    "msmarco-passage": ("MSMARCO",),
    "msmarco-document": ("MSMARCO",),
    "nq": ("NQ",),
    "natural-questions": ("NQ",),
    "wikipedia-nq": ("NQ",),
    "nli": ("XNLI",),  # its English rows are MultiNLI's
    "all-nli": ("XNLI",),
    "squad": ("XQuADRetrieval",),  # SQuAD's questions, translated
    "triviaqa": (),
    "trivia-qa": (),
    "quora": ("QuoraRetrieval",),
    "quora-duplicates": ("QuoraRetrieval",),
    "mr-tydi": ("MrTidyRetrieval",),
    "dureader": ("DuRetrieval",),
    "t2ranking": ("T2Retrieval", "T2Reranking"),
}
"""mteb's tasks of the public sets of the paper's mix (section 4.1), by their names in recipes and on the Hub. mteb
adds variants such as translations and Nano sets."""


class TrainedOn(NamedTuple):
    """What a recipe trains on."""

    tasks: frozenset[str]
    """mteb's tasks of the sources that are known."""
    unknown: tuple[str, ...]
    """Keys of the recipe, with their values, that name other data."""


class TaskOverlap(NamedTuple):
    """Test texts of one part of a task, each counted once however often it occurs."""

    task: str
    part: Part
    texts: int
    exact: int
    """In the training set up to case, spacing and punctuation."""
    one_word_edit: int
    low_entropy: int
    """In the training set in either way, but too short to say that they were taken from there."""
    training_sets: dict[str, int]
    """Counts of exact and one-word edits by config of the training set, or by its file."""
    examples: list[str]


class Overlap(NamedTuple):
    """What a training set has in common with tasks."""

    tasks: list[TaskOverlap]
    not_compared: dict[str, str]
    """Tasks whose texts could not be loaded, and why."""
    training_datasets: list[str]
    """For mteb: tasks of the recipe's sources, and those with more than `CHANCE` of their queries or texts found."""


def trained_on(recipe: Recipe) -> TrainedOn:
    """Return mteb's tasks that a recipe trains on, and what it trains on besides.

    Rows that an LLM wrote for the recipe, or those inside the package, belong to no task.
    """
    tasks: set[str] = set()
    unknown = []
    for name, source in recipe.data.sources.items():
        local = Path(source.path).exists() or source.path.startswith(("/", "."))
        names = [] if local else [one.casefold() for one in (name, source.path.rpartition("/")[2])]
        known = [TASKS_OF_SOURCES[one] for one in names if one in TASKS_OF_SOURCES]
        if known:
            tasks |= set(known[0])
        else:
            unknown.append(f"data.sources.{name} ({source.path})")
    if recipe.data.rows not in (EMBEDDED, SYNTHESIS):
        unknown.append(f"data.rows ({recipe.data.rows})")
    if recipe.base.adapter is not None:
        unknown.append(f"base.adapter ({recipe.base.adapter})")
    return TrainedOn(frozenset(tasks), tuple(unknown))


def measure_overlap(dataset: str, tasks: Sequence[AbsTask]) -> Overlap:
    """Look up the test texts of tasks in a training set.

    Args:
        dataset: a run's folder, a dataset's folder, a .jsonl or .parquet file with rows, or `embedded`.
        tasks: of mteb; their data is loaded by their own classes.

    Raises:
        InputError: the training set cannot be read, or no task could be loaded.
    """
    path = Path(dataset) / "recipe.yaml"
    known = trained_on(Recipe.load(str(path))).tasks if path.is_file() else frozenset()
    logger.info("contamination: reading %s", dataset)
    # The index finds a text in texts, whichever of the two was trained on.
    training = EvaluationTexts((text, file) for file in _training_files(dataset) for text in _row_texts(file))
    found: list[TaskOverlap] = []
    not_compared: dict[str, str] = {}
    # An aggregate's texts are those of its parts, which are in the list as well.
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
    """Return the table for a card, and below it the entries for mteb's `training_datasets`."""
    header = ("task", "part", "test texts", "exact", "one word edited", "low-entropy", "found in")
    rows = []
    for row in overlap.tasks:
        counts = (f"{count:,}" for count in (row.texts, row.exact, row.one_word_edit, row.low_entropy))
        found_in = ", ".join(f"{name} {count:,}" for name, count in row.training_sets.items())
        rows.append((row.task, row.part, *counts, found_in))
    entries = ", ".join(overlap.training_datasets) or "none"
    below = [f"Entries for mteb's `training_datasets`: {entries}."]
    below += [f"Not compared: {name}. {reason}" for name, reason in overlap.not_compared.items()]
    return "\n\n".join((markdown_table(header, rows), *below)) + "\n"


def overlap_json(overlap: Overlap) -> str:
    """Return everything as JSON; `submit --contamination` reads it."""
    content = overlap._asdict() | {"tasks": [row._asdict() for row in overlap.tasks]}
    return json.dumps(content, indent=2, ensure_ascii=False)


def _training_files(dataset: str) -> list[Path]:
    path = rows_file(EMBEDDED) if dataset == EMBEDDED else Path(dataset)
    parts = [part for part in (path / "dataset", path / "sources") if part.is_dir()] or [path]
    files = sorted(file for part in parts for file in part.glob("*/train.parquet"))
    if path.is_file() and path.suffix in (".jsonl", ".parquet"):
        files = [path]
    if not files:
        raise InputError(
            f"{shown(dataset)} is not a training set. Give the folder of a run, a dataset's folder with "
            f"<config>/train.parquet, a .jsonl or .parquet file with anchor and positive, or {EMBEDDED}."
        )
    return files


def _row_texts(file: Path) -> Iterator[str]:
    if file.suffix == ".jsonl":
        for row in read_rows(file):
            yield from filter(None, (row.anchor, row.positive, row.negative))
        return
    for record in read_records(str(file)):
        columns = [name for name in record if is_text_column(name)]
        if not columns:
            raise InputError(f"{file} has none of the columns anchor, positive and negative; rename those with texts.")
        yield from (record[name] for name in columns if isinstance(record[name], str))


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
        raise InputError(f"The test splits of {task.metadata.name} hold no texts. Omit the task.")
    logger.info("contamination: %s done", task.metadata.name)
    rows = []
    for part, seen in hashes.items():
        telling = {text: match for text, match in found[part].items() if not match.low_entropy}
        kinds = Counter(match.kind for match in telling.values())
        files = (match.file for match in telling.values())
        sets = Counter(file.parent.name if file.name == "train.parquet" else file.name for file in files)
        rows.append(
            TaskOverlap(
                task=task.metadata.name,
                part=part,
                texts=len(np.unique(np.asarray(seen))),
                exact=kinds["exact"],
                one_word_edit=kinds["one-word edit"],
                low_entropy=len(found[part]) - len(telling),
                training_sets=dict(sets.most_common()),
                examples=list(telling)[:EXAMPLES],
            )
        )
    return rows


def _test_texts(task: AbsTask) -> Iterator[tuple[Part, str]]:
    """Yield all texts of a task's test splits."""
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
    """Yield the test splits of {subset: {split: ...}} or {split: ...}."""
    for name, part in dataset.items():
        if name in names and (isinstance(part, Dataset) or "corpus" in part):
            yield part
        elif isinstance(part, Mapping):
            yield from _splits(part, names)


def _split_texts(task: AbsTask, split: Any) -> Iterator[tuple[Part, str]]:
    if isinstance(split, Dataset):
        values = [getattr(task, attribute, ()) for attribute in _COLUMN_ATTRIBUTES]
        named = {name for value in values for name in ((value,) if isinstance(value, str) else value)}
        # All columns where the task's class names none that the model reads; a label does no harm there.
        columns = [name for name in split.column_names if name in named] or split.column_names
        for record in split.select_columns(columns):
            yield from (("texts", text) for text in strings_in(record))
        return
    sides: tuple[tuple[Part, str], ...] = (("queries", "queries"), ("documents", "corpus"))
    for part, name in sides:
        for record in split[name]:
            texts = {name: value for name, value in record.items() if name not in ("id", "_id")}
            yield from ((part, text) for text in strings_in(texts))
            if part == "documents" and record.get("title") and record.get("text"):
                yield part, f"{record['title']} {record['text']}"  # what a model reads
