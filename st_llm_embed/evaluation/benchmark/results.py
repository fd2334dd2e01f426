"""Reads what an evaluation left in its output folder: mteb's results of one run, and the record beside them."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import mteb
from mteb.cache import ResultCache
from mteb.results import TaskResult
from pydantic import BaseModel

from st_llm_embed.errors import InputError, explained
from st_llm_embed.languages import HIGH_RESOURCE_ISO639_3

RUN_FILE = "run.json"


class TaskRecord(BaseModel):
    """What mteb does not keep of a task; what is not known is None."""

    query: str = ""
    """What stood before queries."""
    document: str = ""
    """What stood before documents."""
    source: str = ""
    """Where the instruction comes from."""
    generic: bool = False
    """Whether it is a default that says nothing about the task."""
    tokens: int | None = None
    truncation_rate: float | None = None
    """Share of the texts that were cut at the longest length, 0..1."""
    seconds: float | None = None


class RunRecord(BaseModel):
    """run.json: what was evaluated, how, and where."""

    model: str
    revision: str
    mode: str
    """Whose instructions were given."""
    experiment: str | None = None
    """Sub-folder of mteb's results, None for none."""
    parameters: int | None = None
    max_seq_length: int | None = None
    versions: dict[str, str] = {}
    hardware: str | None = None
    tasks: dict[str, TaskRecord] = {}


class Run(NamedTuple):
    """One model's results."""

    record: RunRecord
    results: list[TaskResult]
    """As mteb wrote them, sorted by task."""
    files: dict[str, Path]
    """Where they are, by task."""


def read_run(output_dir: Path) -> Run:
    """Read the run that was last written to an output folder.

    Raises:
        InputError: there is none, or a file of it is damaged.
    """
    path = output_dir / RUN_FILE
    if not path.is_file():
        raise InputError(
            f"{output_dir} holds no evaluation: there is no {RUN_FILE}. Evaluate a model first, or give the "
            "--output-dir of one."
        )
    with explained(f"{path} is no record of an evaluation", "Evaluate the model again; finished tasks are kept."):
        record = RunRecord.model_validate_json(path.read_bytes())
    example = ResultCache(output_dir).get_task_result_path(
        "any", record.model, record.revision, experiment_name=record.experiment
    )
    files = {file.stem: file for file in sorted(example.parent.glob("*.json")) if file.stem != "model_meta"}
    results = []
    for file in files.values():
        with explained(f"{file} is no result of mteb", "Remove the file and evaluate again."):
            results.append(TaskResult.from_disk(file))
    if not results:
        raise InputError(f"There are no results of {record.model} in {example.parent}. Evaluate the model again.")
    return Run(record, results, files)


def task_type(name: str) -> str:
    """Give mteb's type of an official task; `own task` for others."""
    try:
        return str(mteb.get_task(name).metadata.type)
    except KeyError:
        return "own task"


def percent(result: TaskResult) -> float:
    """Give the mean main score over all splits and subsets that were evaluated, in percent."""
    return 100 * fmean(entry["main_score"] for entries in result.scores.values() for entry in entries)


def percent_of(result: TaskResult, splits: list[str], subsets: list[str]) -> float | None:
    """Give the mean main score over certain splits and subsets, in percent; None where one was not evaluated."""
    scores = {
        (split, entry["hf_subset"]): entry["main_score"]
        for split, entries in result.scores.items()
        for entry in entries
    }
    wanted = [(split, subset) for split in splits for subset in subsets]
    return 100 * fmean(scores[one] for one in wanted) if all(one in scores for one in wanted) else None


def percent_by_language(result: TaskResult) -> dict[str, float]:
    """Give the mean main score of each language, ISO 639-3, in percent.

    What is in English and another language, such as a translation, counts for the other.
    """
    scores = defaultdict(list)
    for entries in result.scores.values():
        for entry in entries:
            codes = {language.partition("-")[0] for language in entry["languages"]}
            for code in codes - {"eng"} or codes:
                scores[code].append(entry["main_score"])
    return {code: 100 * fmean(values) for code, values in sorted(scores.items())}


def is_high_resource(language: str) -> bool:
    """Whether a language, ISO 639-3, is one of `HIGH_RESOURCE_ISO639_3`."""
    return language in HIGH_RESOURCE_ISO639_3
