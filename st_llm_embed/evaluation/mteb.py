"""Official mteb tasks, one after the other: found by name, checked before anything long, every finished score kept."""

from __future__ import annotations

import json
import logging
import os
import platform
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import mteb
import numpy as np
import torch
from mteb.abstasks.aggregated_task import AbsTaskAggregate
from mteb.cache import ResultCache
from mteb.mocks import ALL_MOCK_TASK_TEST_GRID
from mteb.mocks.mock_run import is_dependency_error
from mteb.models import ModelMeta
from sentence_transformers import SentenceTransformer
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from st_llm_embed.errors import InputError, did_you_mean, explained
from st_llm_embed.evaluation.mteb_models import LocalModel, Usage
from st_llm_embed.evaluation.served import ServedModel
from st_llm_embed.instructions import TaskPrompt
from st_llm_embed.modules import LLMSentenceTransformer, check_eos

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

LEAST_COSINE = 0.999
"""Between the vectors of a text alone and in a batch; 16-bit weights stay above it."""

TEXTS = (
    "An index on the filtered column spares the server from reading every row.",
    "Short.",
    "Zwei Sätze in einer anderen Sprache. Der zweite ist nur da, damit der Text länger wird als die übrigen, "
    "und endet hier.",
)

TOKENS_PER_CHARACTER = 0.25
"""Of English prose; other scripts have up to several tokens per character."""


class TextCount(NamedTuple):
    """The texts of a task, by mteb's own statistics on its data."""

    texts: int
    characters: int


class PlannedTask(NamedTuple):
    """One task before it is run."""

    name: str
    prompt: TaskPrompt
    size: TextCount | None
    """None where mteb has no statistics."""
    usd: float | None
    """A rough estimate for a served model with a price."""


def resolve_tasks(names: Sequence[str], benchmark: str | None) -> list[AbsTask]:
    """Find tasks by name, the cheapest first; the parts of an aggregate come before it.

    Args:
        names: names of mteb tasks; ``Tatoeba:fra-eng`` for one of its subsets, named again for another.
        benchmark: name of an mteb benchmark, all of whose tasks are added. A task that is also in `names` is taken as
            the benchmark has it.

    Raises:
        InputError: there is no such task, subset or benchmark, a task is not about texts, or none is named.
    """
    subsets: dict[str, list[str]] = {}
    for name in names:
        task_name, _, subset = name.strip().partition(":")
        subsets.setdefault(task_name, []).extend([subset] if subset else [])
    tasks = [_task(name, asked) for name, asked in subsets.items()]
    # Last, and so instead of a named one: a benchmark without some of its subsets is not that benchmark.
    tasks += find_benchmark(benchmark).tasks if benchmark else []
    if not tasks:
        raise InputError(
            "No tasks are given. Name some, --tasks STSBenchmark,Banking77Classification,Tatoeba:fra-eng, or a "
            "benchmark, --benchmark 'MTEB(eng, v1)'."
        )
    not_text = [task.metadata.name for task in tasks if set(task.metadata.modalities) != {"text"}]
    if not_text:
        raise InputError(f"Only tasks about texts can be evaluated; {', '.join(not_text)} need other media.")

    def cost(task: AbsTask) -> float:
        size = text_count(task)
        return size.characters if size else float("inf")

    single = {one.metadata.name: one for task in tasks for one in _parts(task) or [task]}
    aggregates = {task.metadata.name: task for task in tasks if _parts(task)}
    return [*sorted(single.values(), key=cost), *aggregates.values()]


def find_benchmark(name: str) -> mteb.Benchmark:
    """Find a benchmark of mteb.

    Raises:
        InputError: there is none of this name.
    """
    try:
        return mteb.get_benchmark(name)
    except KeyError:
        near = did_you_mean(name, [one.name for one in mteb.get_benchmarks()])
        raise InputError(f"mteb has no benchmark {name!r}{near}. `mteb available-benchmarks` lists all.") from None


def _task(name: str, subsets: list[str]) -> AbsTask:
    try:
        task = mteb.get_task(name)
    except KeyError:
        near = did_you_mean(name, [one.metadata.name for one in mteb.get_tasks(exclude_superseded=False)])
        raise InputError(f"mteb has no task {name!r}{near}. `mteb available-tasks` lists all.") from None
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


def text_count(task: AbsTask) -> TextCount | None:
    """Count the texts that a task will have encoded, by mteb's statistics; None where there are none."""
    if task.is_aggregate:
        return TextCount(0, 0)
    statistics = task.metadata.descriptive_stats or {}
    # Classifiers are trained on vectors of the train split.
    splits = {*task.eval_splits, *(["train"] if "Classification" in str(task.metadata.type) else [])}
    found: list[dict[str, float]] = []
    for of_split in (statistics[split] for split in splits if split in statistics):
        by_subset = of_split.get("hf_subset_descriptive_stats")
        for part in [by_subset.get(name, {}) for name in task.hf_subsets] if by_subset else [of_split]:
            found += _text_statistics(part)
    if not found:
        return None
    texts = [round(one["total_text_length"] / (one["average_text_length"] or 1)) for one in found]
    return TextCount(sum(texts), round(sum(one["total_text_length"] for one in found)))


def _text_statistics(part: Any) -> Iterator[dict[str, float]]:
    if isinstance(part, dict) and "total_text_length" in part:
        yield part
    elif isinstance(part, dict):
        for key, value in part.items():
            if key != "hf_subset_descriptive_stats":
                yield from _text_statistics(value)


def preflight(model: EvaluatedModel, tasks: Sequence[AbsTask], *, batch_size: int) -> list[PlannedTask]:
    """Check a model before it is evaluated, and say what each task needs. A served model is not sent anything.

    Args:
        model: what is to be evaluated.
        tasks: those that are still to be done.
        batch_size: texts per forward pass.

    Raises:
        InputError: texts do not begin and end as the model's tokenizer says, its vectors depend on what else is in a
            batch, or mteb's mock tasks of these types fail.
    """
    if isinstance(model, LocalModel):
        check_tokens(model.model)
        check_padding(model.model)
        _check_mock_tasks(model, tasks, batch_size)
    planned = []
    for task in tasks:
        size, prompt, usd = text_count(task), model.task_prompt(task.metadata), None
        if size and isinstance(model, ServedModel):
            usd = (size.characters + size.texts * len(prompt.query)) * TOKENS_PER_CHARACTER * model.usd_per_token
        planned.append(PlannedTask(task.metadata.name, prompt, size, usd))
    return planned


def check_tokens(model: LLMSentenceTransformer) -> None:
    """Check that texts end in EOS, and begin with BOS if the tokenizer's configuration says so.

    Only decoders whose embedding is read at the last token are checked.

    Raises:
        InputError: a text begins or ends otherwise.
    """
    if not model.reads_last_token:
        return
    check_eos(model)
    tokenizer = model.tokenizer
    # The attribute of the same name is false for tokenizers of transformers 5, whatever the file says.
    promised = get_tokenizer_config(tokenizer.name_or_path).get("add_bos_token") if tokenizer.name_or_path else False
    if not promised or tokenizer.bos_token_id is None:
        return
    batch = model.preprocess(list(TEXTS))
    for ids, mask in zip(batch["input_ids"].tolist(), batch["attention_mask"].tolist(), strict=True):
        first = next(token for token, attend in zip(ids, mask, strict=True) if attend)
        if first != tokenizer.bos_token_id:
            raise InputError(
                f"Texts begin with {tokenizer.convert_ids_to_tokens(first)!r}, but the tokenizer's configuration says "
                f"add_bos_token. Let the post-processor in tokenizer.json add {tokenizer.bos_token!r}, or set "
                "add_bos_token to false if the model was trained without."
            )


def check_padding(model: SentenceTransformer) -> None:
    """Check that a text has the same vector alone and in a batch with longer texts.

    Raises:
        InputError: it has not, or a vector is not finite or zero.
    """
    options: dict[str, Any] = {"prompt": "", "convert_to_numpy": True, "show_progress_bar": False}
    together = model.encode(list(TEXTS), **options)
    for text, vector in zip(TEXTS, together, strict=True):
        alone = model.encode([text], **options)[0]
        lengths = np.linalg.norm(alone) * np.linalg.norm(vector)
        cosine = float(alone @ vector / lengths) if lengths else 0.0
        # NaN is not above anything.
        if not cosine > LEAST_COSINE:
            raise InputError(
                f"The vector of {text[:20]!r} alone and that in a batch have a cosine of {cosine:.4f}; at least "
                f"{LEAST_COSINE} is needed, or scores depend on the batch size. Padding (side "
                f"{model.tokenizer.padding_side!r}) is not masked out, or the weights are broken: save the model with "
                "the padding side that it was trained with, and try float32."
            )


def _check_mock_tasks(model: LocalModel, tasks: Sequence[AbsTask], batch_size: int) -> None:
    types = {task.metadata.type for task in tasks}
    mocks = [one for one in ALL_MOCK_TASK_TEST_GRID if one.metadata.type in types and one.modalities == ["text"]]
    if not mocks:
        return
    with warnings.catch_warnings():
        # About scores on two texts.
        warnings.simplefilter("ignore")
        options = {"batch_size": batch_size, "show_progress_bar": False}
        result = _run(model, mocks, cache=None, raise_error=False, encode_kwargs=options)
    for mock in mocks:
        model.usage.pop(mock.metadata.name, None)
    failed = [one for one in result.exceptions or [] if not is_dependency_error(one)]
    if failed:
        raise InputError(
            f"mteb's mock task {failed[0].task_name} fails with this model: {failed[0].exception}. So would the tasks "
            "of its type; nothing was evaluated."
        )


def unfinished(model: EvaluatedModel, tasks: Sequence[AbsTask], output_dir: Path) -> list[AbsTask]:
    """Return the tasks that have no complete scores of this model in a folder yet."""
    if not output_dir.is_dir():
        # A cache makes its folder.
        return list(tasks)
    cache, meta = ResultCache(output_dir), model.mteb_model_meta
    _set_torn_files_aside(cache, meta, tasks)
    results = {task.metadata.name: cache.load_task_result(task.metadata.name, meta) for task in tasks}
    return [
        task
        for task in tasks
        if (result := results[task.metadata.name]) is None or result.get_missing_evaluations(task)
    ]


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
    """Evaluate the tasks that have no scores of this model yet.

    Scores are in mteb's own layout under ``results/``. What mteb does not keep (prompts, tokens, time) is written to
    ``runs/<org__name>/<revision>/`` and, for the model that was evaluated last, to ``run.json``.

    Args:
        model: from `load_model`, or a `ServedModel`.
        tasks: from `resolve_tasks`, or any mteb tasks.
        output_dir: may hold the scores of other models.
        batch_size: texts per forward pass or request.
        after_each: is called with `output_dir` after each task.

    Returns:
        The results of all tasks, including those that were finished before.

    Raises:
        InputError: the data of some tasks cannot be loaded; all others are finished then.
    """
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
                logger.warning("%s is skipped: %s", name, problem)
                continue
        options = {"batch_size": batch_size, "show_progress_bar": True}
        results += _run(
            model, task, cache=cache, overwrite_strategy="only-missing", encode_kwargs=options
        ).task_results
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
            f"HF_TOKEN for private data, and run the command again: the {len(results)} finished tasks are kept in "
            f"{output_dir}."
        )
    return results


def _run(model: EvaluatedModel, tasks: Any, **options: Any) -> Any:
    return mteb.evaluate(model, tasks, co2_tracker=False, show_progress_bar=False, **options)


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
    usage = asdict(model.usage.get(name, Usage())) if seconds is not None else dict.fromkeys(Usage.__annotations__)
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
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
    _write(_run_path(output_dir, meta), json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    _show_run(output_dir, model)


def _recorded(output_dir: Path, model: EvaluatedModel) -> dict[str, Any]:
    path = _run_path(output_dir, model.mteb_model_meta)
    return json.loads(path.read_text(encoding="utf-8"))["tasks"] if path.is_file() else {}


def _show_run(output_dir: Path, model: EvaluatedModel) -> None:
    """Make run.json that of this model."""
    path = _run_path(output_dir, model.mteb_model_meta)
    if path.is_file():
        _write(output_dir / "run.json", path.read_text(encoding="utf-8"))


def _run_path(output_dir: Path, meta: ModelMeta) -> Path:
    name = f"{meta.experiment_name or 'run'}.json"
    return output_dir / "runs" / meta.model_name_as_path() / str(meta.revision) / name


def _write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    part.write_text(content, encoding="utf-8")
    part.replace(path)


class TaskScore:
    """Scores models on one task while they train, with the paper's instructions; keeps the task's data.

    Args:
        name: of the task; ``Tatoeba:fra-eng`` for one subset.
        batch_size: texts per forward pass.

    Raises:
        InputError: of `scored_task`, or the data of the task cannot be loaded.
    """

    def __init__(self, name: str, *, batch_size: int) -> None:
        self._task = scored_task(name)
        self._batch_size = batch_size
        with explained(
            f"The data of the task {name} cannot be loaded", "Check the network, or take it out of evaluation.tasks."
        ):
            self._task.load_data()

    def __call__(self, model: LLMSentenceTransformer) -> float:
        """Return the task's main score."""
        meta = ModelMeta.create_empty(overwrites={"name": "local/in-training", "revision": "unsaved"})
        options = {"batch_size": self._batch_size, "show_progress_bar": False}
        # Without a cache: no step may get the scores of another one.
        result = _run(LocalModel(model, meta, "paper"), self._task, cache=None, encode_kwargs=options)
        return result.task_results[0].get_score()


def scored_task(name: str) -> AbsTask:
    """Find a task of `evaluation.tasks`.

    Raises:
        InputError: there is no such task, or it is an aggregate, the mean of others.
    """
    *parts, task = resolve_tasks([name], None)
    if parts:
        raise InputError(
            f"evaluation.tasks has {name}, which is the mean of {len(parts)} tasks, and a model that trains is scored "
            f"on single ones. Name one of them, such as {parts[0].metadata.name}."
        )
    return task
