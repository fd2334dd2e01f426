"""A submission to the MTEB leaderboard as files: what two pull requests need, and what is still missing.

One pull request adds the model to embeddings-benchmark/mteb, the other its scores to embeddings-benchmark/results.
Nothing is sent anywhere unless `open_results_pull_request` is called.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import mteb
from mteb.abstasks import AbsTask
from mteb.models import ModelMeta
from mteb.results import TaskResult

from st_llm_embed.errors import InputError, explained, shown
from st_llm_embed.evaluation.benchmark.run import find_benchmark
from st_llm_embed.evaluation.submission.leaderboard_entry import (
    check_on_hub,
    entry_as_json,
    entry_as_python,
    entry_file_name,
    leaderboard_entry,
    missing_fields,
    recipe_on_hub,
)
from st_llm_embed.evaluation.submission.texts import Facts, checklist_text, mteb_text, results_text
from st_llm_embed.evaluation.submission.training_datasets import trained_on
from st_llm_embed.recipe import Recipe

logger = logging.getLogger(__name__)

MOCK_RUN_FILE = "mteb_mock_run_results.md"
"""The name that mteb asks for."""


class Submission(NamedTuple):
    """What was prepared."""

    folder: Path
    entry: ModelMeta
    facts: Facts


class Choice(NamedTuple):
    """Which of the scores can be submitted."""

    results: dict[str, TaskResult]
    dropped: dict[str, str]
    """Other tasks, and why they stay here."""
    incomplete: dict[str, str]
    """Submitted tasks that lack splits or languages, and which."""


def prepare_submission(
    name: str,
    results_dir: Path,
    *,
    benchmark: str | None = None,
    declared: Sequence[str] | None = None,
    overlap: Path | None = None,
) -> Submission:
    """Write everything that a submission needs to ``<results_dir>/submission/<org__name>/<commit>``.

    A file there that was changed since is kept beside the new one, with `.before` at the end of its name. The mock run
    is made once.

    Args:
        name: of the model on the Hub.
        results_dir: where `evaluate` wrote, prompts as in mteb.
        benchmark: submit the tasks of this benchmark alone.
        declared: mteb's tasks that the model was trained on besides those of the recipe's known sources; all that
            there are. None: the recipe's known sources are all.
        overlap: what `st-llm-embed overlap --json` printed, to be disclosed.

    Raises:
        InputError: the model is not a public commit on the Hub, or nothing of what was scored can be submitted.
    """
    revision = _evaluated_revision(name, results_dir)
    scores = results_dir / "results" / name.replace("/", "__") / revision
    choice = _choose(scores, benchmark)
    disclosed = _declared(declared), _overlapping(overlap)
    check_on_hub(name, revision)
    recipe = recipe_on_hub(name, revision)
    entry = leaderboard_entry(name, revision, recipe, _training_datasets(recipe, *disclosed))
    folder = results_dir / "submission" / name.replace("/", "__") / revision
    mock_run = _mock_run(entry, folder)
    missing = [f"{field} is empty: {advice}." for field, advice in missing_fields(entry).items()]
    if recipe is not None and (unknown := trained_on(recipe).unknown) and declared is None:
        missing.append(f"Nobody can tell from the recipe which of mteb's tasks are in {', '.join(unknown)}.")
    if "| ✗ |" in mock_run:
        missing.append(f"Tasks of the mock run failed: see {MOCK_RUN_FILE}, mend the model and remove the file.")
    facts = Facts(
        name=name,
        revision=revision,
        description=recipe.description if recipe else "",
        entry=entry,
        scores={task: result.get_score() for task, result in choice.results.items()},
        mteb_versions=sorted({str(result.mteb_version) for result in choice.results.values()}),
        benchmarks=_benchmark_rows(entry, choice.results, benchmark),
        dropped=choice.dropped,
        incomplete=choice.incomplete,
        missing=missing,
        compared=overlap is not None,
    )
    _write_files(folder, scores, choice, facts, mock_run)
    return Submission(folder, entry, facts)


def open_results_pull_request(submission: Submission) -> str:
    """Open the pull request with the scores through mteb, and give its address.

    Raises:
        InputError: something is missing, or GitHub cannot be reached, named and authorised as mteb wants it.
    """
    if submission.facts.missing:
        raise InputError(
            f"Nothing was opened, since the submission is not ready: {' '.join(submission.facts.missing)}"
        )
    cache = mteb.ResultCache(submission.folder)
    try:
        # Without tasks mteb would submit custom tasks, too; the folder holds none, and this says so once more.
        response = cache.submit_results(submission.entry, tasks=list(submission.facts.scores), create_pr=True)
    except (ImportError, RuntimeError, ValueError, OSError, subprocess.SubprocessError) as error:
        raise InputError(
            f"mteb could not open the pull request: {error}. It needs `pip install 'mteb[github]'`, git, and a login "
            "by `gh auth login`. Everything is prepared in "
            f"{submission.folder}; {submission.folder / 'checklist.md'} says how to do it by hand."
        ) from error
    if response["status"] == "no_changes":
        raise InputError("Nothing was opened: the results repository has all of these scores already.")
    return str(response["pr_url"])


def _evaluated_revision(name: str, results_dir: Path) -> str:
    """Give the commit of the model that was evaluated."""
    if Path(name).exists() or name.startswith("local/") or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise InputError(
            f"{shown(name)} is no model on the Hub, and the leaderboard takes only what others can load by name and "
            "commit. Push the model (st-llm-embed publish), evaluate it by its Hub name, and submit that."
        )
    folder = results_dir / "results" / name.replace("/", "__")
    found = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    commits = [revision for revision in found if re.fullmatch(r"[0-9a-f]{40}", revision)]
    if len(commits) == 1:
        return commits[0]
    have = sorted(path.name.replace("__", "/") for path in (results_dir / "results").glob("*") if path.is_dir())
    if not found:
        raise InputError(
            f"{results_dir} has no scores of {name}; it has those of {', '.join(have) or 'no model'}. Evaluate it "
            f"first: st-llm-embed evaluate {name} --prompts mteb --output-dir {results_dir}."
        )
    raise InputError(
        f"{results_dir} has scores of {name} at {', '.join(found)}, and a submission is of one commit of the Hub (40 "
        "hexadecimal digits). Evaluate that one into a folder of its own."
    )


def _choose(scores: Path, benchmark: str | None) -> Choice:
    wanted = None if benchmark is None else {task.metadata.name: task for task in find_benchmark(benchmark).tasks}
    choice = Choice({}, {}, {})
    for path in sorted(scores.glob("*.json")):
        if path.name == "model_meta.json":
            continue
        with explained(f"{path} holds no scores of mteb", "Remove it and evaluate the task again."):
            result = TaskResult.from_disk(path)
        task = _official_task(result.task_name) if wanted is None else wanted.get(result.task_name)
        if task is None:
            elsewhere = wanted is not None and _official_task(result.task_name) is not None
            choice.dropped[result.task_name] = f"not in {benchmark}" if elsewhere else "not a task of mteb"
        elif result.dataset_revision != task.metadata.revision:
            choice.dropped[result.task_name] = (
                f"scored on dataset revision {result.dataset_revision}, mteb's is {task.metadata.revision}"
            )
        else:
            choice.results[result.task_name] = result
            if lacking := _lacking(result, task):
                choice.incomplete[result.task_name] = lacking
    if not choice.results:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in choice.dropped.items())
        raise InputError(
            f"{scores} holds no scores that can be submitted ({reasons or 'no task was finished'}). The leaderboard "
            "takes official tasks with mteb's prompts: st-llm-embed evaluate MODEL --prompts mteb --tasks TASKS."
        )
    return choice


def _official_task(name: str) -> AbsTask | None:
    try:
        return mteb.get_task(name)
    except KeyError:
        return None


def _lacking(result: TaskResult, task: AbsTask) -> str:
    parts = result.get_missing_evaluations(task).items()
    return ", ".join(f"{split} of {len(subsets)} of {len(task.hf_subsets)} subsets" for split, subsets in parts)


def _declared(names: Sequence[str] | None) -> frozenset[str] | None:
    """Check names of tasks that the user says the model was trained on."""
    if names is None:
        return None
    try:
        return frozenset(mteb.get_task(name).metadata.name for name in names if name != "none")
    except (KeyError, ValueError) as error:
        raise InputError(f"--trained-on: {error.args[0]} `mteb available-tasks` lists the names.") from error


def _overlapping(overlap: Path | None) -> frozenset[str]:
    if overlap is None:
        return frozenset()
    with explained(f"{overlap} is no contamination analysis", "Write one: st-llm-embed overlap RUN --json > FILE."):
        return frozenset(json.loads(overlap.read_text(encoding="utf-8"))["training_datasets"])


def _training_datasets(
    recipe: Recipe | None, declared: frozenset[str] | None, overlapping: frozenset[str]
) -> frozenset[str] | None:
    """Give the tasks trained on; None where nobody has said all of them."""
    known = trained_on(recipe) if recipe is not None else None
    if declared is None and (known is None or known.unknown):
        return None
    return (known.tasks if known else frozenset()) | (declared or frozenset()) | overlapping


def _mock_run(entry: ModelMeta, folder: Path) -> str:
    """Give mteb's report on mock tasks: the earlier one of this commit, or a new one by the entry's own loader."""
    path = folder / MOCK_RUN_FILE
    if path.is_file():
        return path.read_text(encoding="utf-8")
    logger.info("submit: mteb's mock run, through the model's entry")
    with explained(f"{entry.name} does not load as its entry says", "Mend the model and push it anew."):
        model = entry.load_model()
    return mteb.mock_run(model).to_markdown() + "\n"


def _benchmark_rows(
    entry: ModelMeta, results: dict[str, TaskResult], benchmark: str | None
) -> list[tuple[str, int, int, int | None]]:
    """Give (benchmark, tasks scored, tasks, zero-shot percentage), those with most of their tasks first."""
    rows = []
    for one in [find_benchmark(benchmark)] if benchmark else mteb.get_benchmarks():
        names = [task.metadata.name for task in one.tasks]
        scored = len(results.keys() & set(names))
        if scored:
            rows.append((one.name, scored, len(names), entry.zero_shot_percentage(names)))
    return sorted(rows, key=lambda row: (-row[1] / row[2], row[0]))


def _write_files(folder: Path, scores: Path, choice: Choice, facts: Facts, mock_run: str) -> None:
    shutil.rmtree(folder / "results", ignore_errors=True)  # copies, perhaps of other tasks
    copies = folder / "results" / scores.parent.name / scores.name
    copies.mkdir(parents=True)
    for name in choice.results:
        shutil.copy2(scores / f"{name}.json", copies)
    settings = scores / "run_settings.jsonl"
    if settings.is_file():
        lines = settings.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if line.strip() and json.loads(line)["task"] in choice.results]
        (copies / settings.name).write_text("".join(kept), encoding="utf-8")
    (copies / "model_meta.json").write_text(entry_as_json(facts.entry), encoding="utf-8")
    python_file = entry_file_name(facts.entry)
    for name, text in (
        (MOCK_RUN_FILE, mock_run),
        (python_file, entry_as_python(facts.entry)),
        ("mteb_pull_request.md", mteb_text(facts)),
        ("results_pull_request.md", results_text(facts)),
        ("checklist.md", checklist_text(facts, python_file)),
    ):
        _write(folder / name, text)


def _write(path: Path, text: str) -> None:
    if path.is_file() and path.read_text(encoding="utf-8") != text:
        path.replace(path.with_name(f"{path.name}.before"))
    path.write_text(text, encoding="utf-8")
