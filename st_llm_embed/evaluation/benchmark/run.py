"""Official mteb tasks, one after the other, with every finished score kept."""

from __future__ import annotations

import difflib
import json
import logging
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mteb
import torch
from mteb.abstasks.aggregated_task import AbsTaskAggregate
from mteb.cache import ResultCache

from st_llm_embed.errors import InputError
from st_llm_embed.evaluation.benchmark.models import EvaluatedModel, Usage
from st_llm_embed.evaluation.benchmark.preflight import check_named, text_count

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask
    from mteb.models import ModelMeta
    from mteb.results import TaskResult

logger = logging.getLogger(__name__)

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


def resolve_tasks(names: Sequence[str], benchmark: str | None) -> list[AbsTask]:
    """Find tasks by name, the cheapest first; the parts of an aggregate come before it.

    Args:
        names: names of mteb tasks; ``Tatoeba:fra-eng`` for one of its subsets, given again for another.
        benchmark: name of an mteb benchmark, all of whose tasks are added. A task that is also in `names` is taken as
            the benchmark has it.

    Raises:
        InputError: there is no such task, subset or benchmark, a task is not about texts, or nothing is asked for.
    """
    subsets: dict[str, list[str]] = {}
    for name in names:
        task_name, _, subset = name.strip().partition(":")
        subsets.setdefault(task_name, []).extend([subset] if subset else [])
    tasks = [_task(name, asked) for name, asked in subsets.items()]
    # Last, and so instead of a named one: a benchmark without some of its subsets is none.
    tasks += find_benchmark(benchmark).tasks if benchmark else []
    if not tasks:
        raise InputError(
            "No tasks are given. Name some, --tasks STSBenchmark,Banking77Classification,Tatoeba:fra-eng, or a "
            "benchmark, --benchmark 'MTEB(eng, v1)'."
        )
    not_text = [task.metadata.name for task in tasks if set(task.metadata.modalities) != {"text"}]
    if not_text:
        raise InputError(f"Only tasks about texts can be evaluated; {', '.join(not_text)} need other media.")
    single = {one.metadata.name: one for task in tasks for one in _parts(task) or [task]}
    aggregates = {task.metadata.name: task for task in tasks if _parts(task)}
    return [*sorted(single.values(), key=_cost), *aggregates.values()]


def unfinished(model: EvaluatedModel, tasks: Sequence[AbsTask], output_dir: Path) -> list[AbsTask]:
    """Give the tasks that have no complete scores of this model in a folder yet."""
    if not output_dir.is_dir():
        # A cache makes its folder.
        return list(tasks)
    cache, meta = ResultCache(output_dir), model.mteb_model_meta
    set_torn_files_aside(cache, meta, tasks)
    return [task for task in tasks if _missing(cache, meta, task)]


def evaluate(
    model: EvaluatedModel,
    tasks: Sequence[AbsTask],
    output_dir: Path,
    *,
    batch_size: int = 32,
    after_each: Callable[[Path], object] = lambda _: None,
) -> list[TaskResult]:
    """Evaluate the tasks that have no scores of this model yet.

    Scores lie in mteb's own layout under ``results/``. What mteb does not keep (prompts, tokens, time) is written to
    ``runs/<org__name>/<revision>/`` and, for the model that was evaluated last, to ``run.json``.

    Args:
        model: what `load_model` gives.
        tasks: what `resolve_tasks` gives, or any mteb tasks.
        output_dir: may hold the scores of other models.
        batch_size: texts per forward pass.
        after_each: is called with `output_dir` after each task.

    Returns:
        The results of all tasks, also of those that were there.

    Raises:
        InputError: the model has no name, or the data of some tasks cannot be loaded; all others are finished then.
    """
    check_named(model)
    cache = ResultCache(output_dir)
    todo = {task.metadata.name for task in unfinished(model, tasks, output_dir)}
    results, without_data = [], {}
    for task in tasks:
        name = task.metadata.name
        start = time.perf_counter()
        if name in todo:
            logger.info("%s", name)
            problem = _load(task, without_data)
            if problem:
                without_data[name] = problem
                logger.warning("%s is left out: %s", name, problem)
                continue
        outcome = mteb.evaluate(
            model,
            task,
            cache=cache,
            overwrite_strategy="only-missing",
            co2_tracker=False,
            encode_kwargs={"batch_size": batch_size, "show_progress_bar": True},
            show_progress_bar=False,
        )
        results += outcome.task_results
        if name in todo:
            if not _parts(task):
                task.unload_data()
            _record(output_dir, model, task, batch_size, round(time.perf_counter() - start, 1))
            after_each(output_dir)
        elif name not in _recorded(output_dir, model):
            # A kill came between the scores and this record.
            _record(output_dir, model, task, batch_size, None)
    _show_run(output_dir, model)
    if without_data:
        lines = "; ".join(f"{name}: {problem}" for name, problem in without_data.items())
        raise InputError(
            f"The data of {len(without_data)} of {len(tasks)} tasks cannot be loaded. {lines}. Go online, or set "
            f"HF_TOKEN for private data, and give the command again: the {len(results)} finished tasks are kept in "
            f"{output_dir}."
        )
    return results


def find_benchmark(name: str) -> mteb.Benchmark:
    """Find a benchmark of mteb.

    Raises:
        InputError: there is none of this name.
    """
    try:
        return mteb.get_benchmark(name)
    except KeyError:
        known = [one.name for one in mteb.get_benchmarks()]
        raise InputError(
            f"mteb has no benchmark {name!r}.{_nearest(name, known)} `mteb available-benchmarks` lists all."
        ) from None


def _task(name: str, subsets: list[str]) -> AbsTask:
    try:
        task = mteb.get_task(name)
    except KeyError:
        known = [one.metadata.name for one in mteb.get_tasks(exclude_superseded=False)]
        raise InputError(
            f"mteb has no task {name!r}.{_nearest(name, known)} `mteb available-tasks` lists all."
        ) from None
    unknown = [subset for subset in subsets if subset not in task.hf_subsets]
    if unknown:
        raise InputError(
            f"{name} has no subset {unknown[0]!r}.{_nearest(unknown[0], task.hf_subsets)} It has "
            f"{len(task.hf_subsets)}, among them {', '.join(task.hf_subsets[:5])}."
        )
    return mteb.get_task(name, hf_subsets=subsets) if subsets else task


def _nearest(name: str, known: Sequence[str]) -> str:
    folded = {one.lower(): one for one in known}
    near = [folded[one] for one in difflib.get_close_matches(name.lower(), folded, n=3, cutoff=0.5)]
    return f" Did you mean {' or '.join(near)}?" if near else ""


def _parts(task: AbsTask) -> list[AbsTask]:
    """Give the tasks that an aggregate such as CQADupstackRetrieval is the mean of; nothing for other tasks."""
    return task.metadata.tasks if isinstance(task, AbsTaskAggregate) else []


def _cost(task: AbsTask) -> float:
    size = text_count(task)
    return size.characters if size else float("inf")


def _missing(cache: ResultCache, meta: ModelMeta, task: AbsTask) -> bool:
    existing = cache.load_task_result(task.metadata.name, meta)
    return existing is None or bool(existing.get_missing_evaluations(task))


def _load(task: AbsTask, without_data: dict[str, str]) -> str | None:
    """Load the data of a task; gives what is wrong if that fails."""
    if parts := _parts(task):
        lacking = [part for part in parts if part.metadata.name in without_data]
        return f"it is made of others, of which {len(lacking)} have no data" if lacking else None
    try:
        task.load_data()
    except Exception as error:  # noqa: BLE001
        # Loaders raise of everything: OSError, ValueError, DatasetsError, requests' and httpx' own.
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"
    return None


def set_torn_files_aside(cache: ResultCache, meta: ModelMeta, tasks: Sequence[AbsTask]) -> None:
    """Rename files that a kill cut off in the middle; mteb writes them in place and cannot read the halves."""
    folder = cache.get_task_result_path("any", meta).parent
    for path in [*(folder / f"{task.metadata.name}.json" for task in tasks), folder / "run_settings.jsonl"]:
        if not path.is_file():
            continue
        content = path.read_text(encoding="utf-8")
        try:
            for document in content.splitlines() if path.suffix == ".jsonl" else [content]:
                json.loads(document)
        except json.JSONDecodeError:
            logger.warning("%s was cut off and is now called %s.torn; its task is evaluated again.", path, path.name)
            path.replace(path.with_name(f"{path.name}.torn"))


def _record(output_dir: Path, model: EvaluatedModel, task: AbsTask, batch_size: int, seconds: float | None) -> None:
    """Write what mteb does not keep of a task; what is not known any more is null."""
    meta, name = model.mteb_model_meta, task.metadata.name
    usage = asdict(model.usage.get(name, Usage())) if seconds is not None else dict.fromkeys(Usage.__annotations__)
    content = {
        "model": meta.name,
        "revision": meta.revision,
        "mode": model.prompt_mode,
        "experiment": meta.experiment_name,
        "parameters": meta.n_parameters,
        **model.settings(),
        "batch_size": batch_size,
        "versions": {package: version(package) for package in PACKAGES},
        "hardware": _hardware(),
        "tasks": _recorded(output_dir, model)
        | {
            name: {
                **model.task_prompt(task.metadata)._asdict(),
                **usage,
                "truncation_rate": usage["truncated"] / usage["texts"] if usage["texts"] else None,
                "seconds": seconds,
                "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            }
        },
    }
    _write(_run_path(output_dir, meta), content)
    _show_run(output_dir, model)


def _recorded(output_dir: Path, model: EvaluatedModel) -> dict[str, Any]:
    path = _run_path(output_dir, model.mteb_model_meta)
    return json.loads(path.read_text(encoding="utf-8"))["tasks"] if path.is_file() else {}


def _show_run(output_dir: Path, model: EvaluatedModel) -> None:
    """Make run.json that of this model."""
    path = _run_path(output_dir, model.mteb_model_meta)
    if path.is_file():
        _write(output_dir / "run.json", json.loads(path.read_text(encoding="utf-8")))


def _hardware() -> str:
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return ", ".join([f"{os.cpu_count()} cores {platform.processor() or platform.machine()}", *gpus])


def _run_path(output_dir: Path, meta: ModelMeta) -> Path:
    name = f"{meta.experiment_name or 'run'}.json"
    return output_dir / "runs" / meta.model_name_as_path() / str(meta.revision) / name


def _write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(path)
