"""Official mteb tasks, one after the other: found by name, checked before anything long, every finished score kept."""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import mteb
import numpy as np
import torch
from mteb.abstasks.aggregated_task import AbsTaskAggregate
from mteb.cache import ResultCache
from mteb.models import ModelMeta
from sentence_transformers import SentenceTransformer

from st_llm_embed.doctor.probe import CHECK_TEXTS, SIXTEEN_BIT_COSINE, cosines
from st_llm_embed.errors import InputError, did_you_mean, explained
from st_llm_embed.evaluation.mteb_models import LocalModel
from st_llm_embed.evaluation.served import ServedModel
from st_llm_embed.instructions import TaskPrompt
from st_llm_embed.modules.eos import check_eos
from st_llm_embed.modules.lengths import Lengths
from st_llm_embed.modules.model import LLMSentenceTransformer
from st_llm_embed.processes import is_on_terminal

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask
    from mteb.results import TaskResult

logger = logging.getLogger(__name__)

EvaluatedModel = LocalModel | ServedModel

PACKAGES = (
    "st_llm_embed",
    "mteb",
    "sentence-transformers",
    "transformers",
    "torch",
    "datasets",
    "numpy",
    "scikit-learn",
)
"""Whose versions scores can depend on."""


class PlannedTask(NamedTuple):
    """One task before it is run."""

    name: str
    prompt: TaskPrompt
    texts: int | None
    """None where mteb has no statistics."""
    characters: int


def resolve_tasks(names: Sequence[str], benchmark: str | None) -> list[AbsTask]:
    """Find tasks, and those of a benchmark, by name, the cheapest first; the parts of an aggregate come before it.

    ``Tatoeba:fra-eng`` is one subset of a task, which may be named again for another.

    Raises:
        InputError: there is no such task, subset or benchmark, a task is not about texts, or none is named.
    """
    subsets: dict[str, list[str]] = {}
    for name in names:
        task_name, _, subset = name.strip().partition(":")
        subsets.setdefault(task_name, []).extend([subset] if subset else [])
    tasks = [_task(name, asked) for name, asked in subsets.items()]
    if benchmark:
        with explained(f"mteb has no benchmark {benchmark!r}", "`mteb available-benchmarks` lists all."):
            # Last, and so instead of a named one: a benchmark without some of its subsets is not that benchmark.
            tasks += mteb.get_benchmark(benchmark).tasks
    if not tasks:
        raise InputError(
            "No tasks are given. Name some, --tasks STSBenchmark,Tatoeba:fra-eng, or a benchmark, --benchmark "
            "'MTEB(eng, v1)'."
        )
    not_text = [task.metadata.name for task in tasks if set(task.metadata.modalities) != {"text"}]
    if not_text:
        raise InputError(f"Only tasks about texts can be evaluated; {', '.join(not_text)} need other media.")

    single = {one.metadata.name: one for task in tasks for one in _parts(task) or [task]}
    aggregates = {task.metadata.name: task for task in tasks if _parts(task)}
    return [*sorted(single.values(), key=lambda task: text_count(task)[1] or math.inf), *aggregates.values()]


def _task(name: str, subsets: list[str]) -> AbsTask:
    with explained(f"mteb has no task {name!r}", "`mteb available-tasks` lists all."):
        task = mteb.get_task(name)
    unknown = [subset for subset in subsets if subset not in task.hf_subsets]
    if unknown:
        raise InputError(
            f"{name} has no subset {unknown[0]!r}{did_you_mean(unknown[0], task.hf_subsets)}. It has "
            f"{len(task.hf_subsets)}, among them {', '.join(task.hf_subsets[:5])}."
        )
    return mteb.get_task(name, hf_subsets=subsets) if subsets else task


def _parts(task: AbsTask) -> list[AbsTask]:
    """Return the tasks that an aggregate such as CQADupstackRetrieval is the mean of; none for other tasks."""
    return task.metadata.tasks if isinstance(task, AbsTaskAggregate) else []


def text_count(task: AbsTask) -> tuple[int, int]:
    """Return how many texts a task has encoded, and their characters, by mteb's statistics; zeros without any."""
    if task.is_aggregate:  # its parts are tasks of their own
        return 0, 0
    statistics = task.metadata.descriptive_stats or {}
    # Classifiers are trained on vectors of the train split.
    splits = {*task.eval_splits, *(["train"] if "Classification" in str(task.metadata.type) else [])}
    texts = characters = 0
    for of_split in (statistics[split] for split in splits if split in statistics):
        by_subset = of_split.get("hf_subset_descriptive_stats")
        for part in [by_subset.get(name) for name in task.hf_subsets] if by_subset else [of_split]:
            for one in _text_statistics(part):
                texts += round(one["total_text_length"] / (one["average_text_length"] or 1))
                characters += one["total_text_length"]
    return texts, characters


def _text_statistics(part: Any) -> Iterator[dict[str, Any]]:
    if isinstance(part, dict) and "total_text_length" in part:
        yield part
    elif isinstance(part, dict):
        for key in part.keys() - {"hf_subset_descriptive_stats"}:
            yield from _text_statistics(part[key])


def preflight(model: EvaluatedModel, tasks: Sequence[AbsTask]) -> list[PlannedTask]:
    """Check a model before it is evaluated, and say what each task needs. A served model is not sent anything.

    Raises:
        InputError: texts do not end in EOS, or vectors depend on what else is in a batch.
    """
    if isinstance(model, LocalModel):
        if model.model.reads_last_token:
            check_eos(model.model)
        check_padding(model.model)
    planned = []
    for task in tasks:
        prompt, (texts, characters) = model.task_prompt(task.metadata), text_count(task)
        characters += texts * len(prompt.query)
        planned.append(PlannedTask(task.metadata.name, prompt, texts or None, characters))
    return planned


def check_padding(model: SentenceTransformer) -> None:
    """Check that a text has the same vector alone and in a batch with longer texts.

    Raises:
        InputError: it has not, or a vector is not finite or zero.
    """
    texts = [text for text in CHECK_TEXTS if text.strip()]
    options: Any = {"prompt": "", "show_progress_bar": False}
    together = model.encode(texts, **options)
    alone = np.concatenate([model.encode([text], **options) for text in texts])
    worst = float(cosines(alone, together).min())
    # NaN is not above anything.
    if not worst >= SIXTEEN_BIT_COSINE:
        raise InputError(
            f"The vectors of a text alone and in a batch have a cosine of {worst:.4f}, under {SIXTEEN_BIT_COSINE}. "
            f"Padding (side {model.tokenizer.padding_side!r}) is not masked out, or the weights are broken: save the "
            "model with its padding side of training, and try float32."
        )


def unfinished(model: EvaluatedModel, tasks: Sequence[AbsTask], output_dir: Path) -> list[AbsTask]:
    """Return the tasks that have no complete scores of this model in a folder yet."""
    if not output_dir.is_dir():
        # A cache makes its folder.
        return list(tasks)
    cache, meta = ResultCache(output_dir), model.mteb_model_meta
    _set_torn_files_aside(cache, meta, tasks)
    results = ((task, cache.load_task_result(task.metadata.name, meta)) for task in tasks)
    return [task for task, result in results if result is None or result.get_missing_evaluations(task)]


def _set_torn_files_aside(cache: ResultCache, meta: ModelMeta, tasks: Sequence[AbsTask]) -> None:
    """Rename files that a kill truncated; mteb writes them in place and cannot read the halves."""
    folder = cache.get_task_result_path("any", meta).parent
    for path in [*(folder / f"{task.metadata.name}.json" for task in tasks), folder / "run_settings.jsonl"]:
        if not path.is_file():
            continue
        content = path.read_text(encoding="utf-8")
        try:
            for document in content.splitlines() if path.suffix == ".jsonl" else [content]:
                json.loads(document)
        except json.JSONDecodeError:
            logger.warning("%s is truncated; it is now %s.torn, and its task is evaluated again.", path, path.name)
            path.replace(path.with_name(f"{path.name}.torn"))


def evaluate(
    model: EvaluatedModel,
    tasks: Sequence[AbsTask],
    output_dir: Path,
    *,
    batch_size: int = 32,
    after_each: Callable[[Path], object] = lambda _: None,
) -> list[TaskResult]:
    """Evaluate the tasks that have no scores of this model yet, and return the results of all.

    Scores are in mteb's own layout under ``results/``. What mteb does not keep (prompts, tokens, time) is written to
    ``runs/<org__name>/<revision>/`` and, for the model that was evaluated last, to ``run.json``. `after_each` is
    called with `output_dir` after each task.

    Raises:
        InputError: the data of some tasks cannot be loaded; all others are finished then.
    """
    cache, meta = ResultCache(output_dir), model.mteb_model_meta
    todo = {task.metadata.name for task in unfinished(model, tasks, output_dir)}
    results, without_data = [], {}
    for task in tasks:
        name = task.metadata.name
        start = time.perf_counter()
        if name in todo:
            logger.info("%s", name)
            if problem := _load(task, without_data):
                without_data[name] = problem
                logger.warning("%s is skipped: %s", name, problem)
                continue
        outcome = _run(model, task, batch_size, bars=is_on_terminal(), cache=cache, overwrite_strategy="only-missing")
        results += outcome.task_results
        if name in todo:
            if (lengths := model.usage.get(name)) and lengths.cut:
                logger.info("%s: %s", name, lengths)
            if not _parts(task):
                task.unload_data()
            _record(output_dir, model, task, batch_size, round(time.perf_counter() - start, 1))
            after_each(output_dir)
        elif name not in _recorded(output_dir, meta):
            # A kill came between the scores and this record.
            _record(output_dir, model, task, batch_size, None)
    _show_run(output_dir, meta)
    if without_data:
        lines = "; ".join(f"{name}: {problem}" for name, problem in without_data.items())
        raise InputError(
            f"The data of {len(without_data)} of {len(tasks)} tasks cannot be loaded. {lines}. Go online, or set "
            f"HF_TOKEN for private data, and run the command again: the {len(results)} finished tasks are kept."
        )
    return results


def _run(model: EvaluatedModel, tasks: Any, batch_size: int, *, bars: bool = False, **options: Any) -> Any:
    encoding: Any = {"batch_size": batch_size, "show_progress_bar": bars}
    return mteb.evaluate(model, tasks, co2_tracker=False, show_progress_bar=False, encode_kwargs=encoding, **options)


def _load(task: AbsTask, without_data: dict[str, str]) -> str | None:
    """Load the data of a task; return what is wrong if that fails."""
    if parts := _parts(task):
        lacking = [part for part in parts if part.metadata.name in without_data]
        return f"it is made of others, of which {len(lacking)} have no data" if lacking else None
    try:
        task.load_data()
    except Exception as error:  # noqa: BLE001
        # Loaders raise of everything: OSError, ValueError, DatasetsError, requests' and httpx' own.
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"
    return None


def _record(output_dir: Path, model: EvaluatedModel, task: AbsTask, batch_size: int, seconds: float | None) -> None:
    """Write what mteb does not keep of a task; what is not known is null."""
    meta, name = model.mteb_model_meta, task.metadata.name
    usage = model.usage.get(name, Lengths()) if seconds is not None else None
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    record = {
        **model.task_prompt(task.metadata)._asdict(),
        "texts": usage.texts if usage else None,
        "tokens": usage.read if usage else None,
        "truncated": usage.cut if usage else None,
        "truncation_rate": usage.cut / usage.texts if usage and usage.texts else None,
        "seconds": seconds,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    content = {
        "model": meta.name,
        "revision": meta.revision,
        "mode": model.prompt_mode,
        "experiment": meta.experiment_name,
        "parameters": meta.n_parameters,
        **model.settings(),
        "batch_size": batch_size,
        "versions": {package: version(package) for package in PACKAGES},
        "hardware": ", ".join([f"{os.cpu_count()} cores {platform.processor() or platform.machine()}", *gpus]),
        "tasks": _recorded(output_dir, meta) | {name: record},
    }
    path = _run_path(output_dir, meta)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(path)
    _show_run(output_dir, meta)


def _recorded(output_dir: Path, meta: ModelMeta) -> dict[str, Any]:
    path = _run_path(output_dir, meta)
    return json.loads(path.read_text(encoding="utf-8"))["tasks"] if path.is_file() else {}


def _show_run(output_dir: Path, meta: ModelMeta) -> None:
    """Make run.json that of this model."""
    path = _run_path(output_dir, meta)
    if path.is_file():
        part = Path(shutil.copy(path, output_dir / "run.json.part"))
        part.replace(output_dir / "run.json")


def _run_path(output_dir: Path, meta: ModelMeta) -> Path:
    name = f"{meta.experiment_name or 'run'}.json"
    return output_dir / "runs" / meta.model_name_as_path() / str(meta.revision) / name


def task_score(name: str, *, batch_size: int) -> Callable[[LLMSentenceTransformer], float]:
    """Return what scores models on one task while they train, with the paper's instructions; it keeps the task's data.

    Raises:
        InputError: of `scored_task`, or the data of the task cannot be loaded.
    """
    task = scored_task(name)
    advice = "Check the network, or take it out of evaluation.tasks."
    with explained(f"The data of the task {name} cannot be loaded", advice):
        task.load_data()

    def score(model: LLMSentenceTransformer) -> float:
        meta = ModelMeta.create_empty(overwrites={"name": "local/in-training", "revision": "unsaved"})
        # Without a cache: no step may get the scores of another one.
        return _run(LocalModel(model, meta, "paper"), task, batch_size, cache=None).task_results[0].get_score()

    return score


def scored_task(name: str) -> AbsTask:
    """Find a task of `evaluation.tasks`.

    Raises:
        InputError: there is no such task, or it is an aggregate, the mean of others.
    """
    *parts, task = resolve_tasks([name], None)
    if parts:
        raise InputError(
            f"evaluation.tasks has {name}, which is the mean of {len(parts)} tasks. Name a single one, such as "
            f"{parts[0].metadata.name}."
        )
    return task
