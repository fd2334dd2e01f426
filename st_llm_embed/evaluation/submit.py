"""A submission to the MTEB leaderboard: mteb's mock-run and submit-results with an entry that a recipe fills.

One pull request adds the model to embeddings-benchmark/mteb, the other its scores to embeddings-benchmark/results.
Nothing is sent; mteb's `submit-results` does that with the folder that is written here.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mteb
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, RemoteEntryNotFoundError
from mteb.models import ModelMeta
from mteb.models.instruct_wrapper import InstructSentenceTransformerModel
from mteb.results import TaskResult

from st_llm_embed.errors import InputError, explained, shown
from st_llm_embed.evaluation.overlap import TrainedOn, trained_on
from st_llm_embed.evaluation.report import markdown_table
from st_llm_embed.instructions import INSTRUCTION_TEMPLATE
from st_llm_embed.recipe import Recipe

REQUIRED_FIELDS = {
    "languages": "name them in the front matter of the model card",
    "release_date": "mteb reads it from the repository's first commit",
    "n_parameters": "mteb counts them in safetensors files",
    "memory_usage_mb": "mteb reads it from safetensors files",
    "embed_dim": "mteb reads hidden_size of config.json",
    "license": "name it in the front matter of the model card",
    "max_tokens": "save max_seq_length in sentence_bert_config.json",
    "training_datasets": "name the tasks with --trained-on, or --trained-on none",
}
"""Fields that reviewers ask for and that can be empty, each with what fills it."""

IMPORTS = f"""\
from {InstructSentenceTransformerModel.__module__} import InstructSentenceTransformerModel
from mteb.models.model_meta import ModelMeta, ScoringFunction
"""

MOCK_RUN_FILE = "mteb_mock_run_results.md"
"""The name that mteb asks for."""

BY_HAND = f"""
## By hand

- [ ] Compare the training set with the test texts: st-llm-embed contamination.
- [ ] Open the pull request to embeddings-benchmark/mteb: copy {{python}} into mteb/models/model_implementations and \
{MOCK_RUN_FILE} into the root of a fork, and run `make lint` there.
- [ ] Then that to embeddings-benchmark/results: `mteb submit-results --output-folder {{folder}} --create-pr`.
- [ ] Disclose in both what the model was trained on, and scores of it that are published elsewhere.
- [ ] Private tasks (RTEB) are run by the maintainers: open an evaluation request at embeddings-benchmark/mteb.
"""


def prepare_submission(
    name: str,
    results_dir: Path,
    *,
    declared: Sequence[str] | None = None,
    contamination: Path | None = None,
) -> Path:
    """Write what a submission needs, and a checklist.md; the mock run is made once.

    Args:
        name: of the model on the Hub.
        results_dir: where `evaluate` wrote, with mteb's prompts.
        declared: all of mteb's tasks that it was trained on besides those of the recipe's known sources; None: no
            others, unless the recipe has sources that are not known.
        contamination: output of `st-llm-embed contamination --json`, to be disclosed.

    Returns:
        The folder, ``<results_dir>/submission/<org__name>/<commit>``.

    Raises:
        InputError: the model is not a public commit on the Hub, or no score can be submitted.
    """
    revision = _evaluated_revision(name, results_dir)
    scores = results_dir / "results" / name.replace("/", "__") / revision
    results, dropped = _choose(scores)
    tasks = _named_tasks(declared, contamination)
    _check_on_hub(name, revision)
    path = _file(name, revision, "recipe.yaml")
    recipe = Recipe.load(str(path)) if path else None
    known = trained_on(recipe) if recipe else TrainedOn(frozenset(), ("the training data, since there is no recipe",))
    certain = declared is not None or not known.unknown
    entry = _leaderboard_entry(name, revision, recipe, tasks | known.tasks if certain else None)
    folder = results_dir / "submission" / name.replace("/", "__") / revision
    empty = [key for key in REQUIRED_FIELDS if getattr(entry, key) in (None, [])]
    missing = [f"{key} is empty: {REQUIRED_FIELDS[key]}." for key in empty]
    if not certain:
        missing.append(f"It is not known which of mteb's tasks are in {', '.join(known.unknown)}.")
    if "| ✗ |" in _mock_run(entry, folder / MOCK_RUN_FILE):
        missing.append(f"Tasks of the mock run failed: see {MOCK_RUN_FILE}, fix the model and remove the file.")
    _copy_results(entry, list(results), scores, folder / "results" / scores.parent.name / scores.name)
    python = folder / f"{re.sub(r'[^a-z0-9]+', '_', name.casefold())}_models.py"
    python.write_text(f"{IMPORTS}\nmodel = {entry.to_python()}\n", encoding="utf-8")
    checklist = _checklist(entry, results, dropped, missing) + BY_HAND.format(python=python.name, folder=folder)
    (folder / "checklist.md").write_text(checklist, encoding="utf-8")
    return folder


def _leaderboard_entry(
    name: str, revision: str, recipe: Recipe | None, training_datasets: set[str] | None
) -> ModelMeta:
    """Return the ModelMeta of a model on the Hub, as far as Hub and recipe say.

    Instructions precede queries only, by the template of mteb's e5-mistral entry; mteb gives each task its own.
    """
    with explained(f"mteb cannot read {name} from the Hub", "Fix what it names in the repository."):
        found = ModelMeta.from_hub(name, revision)
        path = _file(name, revision, "sentence_bert_config.json")
        length = json.loads(path.read_text(encoding="utf-8")).get("max_seq_length") if path else None
        dataset = recipe.publishing.dataset_repo_id if recipe else None
        fields: dict[str, Any] = {field: getattr(found, field) for field in ModelMeta.model_fields} | {
            "loader": InstructSentenceTransformerModel,
            "loader_kwargs": {
                "instruction_template": INSTRUCTION_TEMPLATE,
                "apply_instruction_to_passages": False,
            },
            "framework": found.framework or ["Sentence Transformers", "PyTorch"],
            "languages": sorted(found.languages) if found.languages else None,  # mteb's order changes
            "use_instructions": True,
            "open_weights": True,
            "max_tokens": length or found.max_tokens,
            "training_datasets": training_datasets,
            # The recipe holds every choice of the run.
            "public_training_code": f"https://huggingface.co/{name}/blob/{revision}/recipe.yaml" if recipe else None,
            "public_training_data": f"https://huggingface.co/datasets/{dataset}" if dataset else None,
        }
        # from_hub copies fields unchecked, and what mteb refuses must not first appear in the pull request.
        return ModelMeta(**fields)


def _check_on_hub(name: str, revision: str) -> None:
    """Check that a commit of a model is public on the Hub."""
    with explained(f"The Hub cannot be asked for {name}", "Check the network and that HF_HUB_OFFLINE is not set."):
        try:
            gated = HfApi().model_info(name, revision=revision, token=False).gated
        except HfHubHTTPError as error:
            if error.response.status_code not in (401, 403, 404):
                raise
            gated = True
    if gated:
        raise InputError(
            f"{name} has no public commit {revision} on the Hub, and the leaderboard takes no others: make the "
            "repository public, not gated, or evaluate the commit that is there."
        )


def _file(name: str, revision: str, file: str) -> Path | None:
    """Download a file of a commit; None where the commit has none of this name."""
    with explained(f"The Hub cannot be asked for {file} in {name}", "Try again later."):
        try:
            return Path(hf_hub_download(name, file, revision=revision))
        except RemoteEntryNotFoundError:
            return None


def _named_tasks(declared: Sequence[str] | None, contamination: Path | None) -> set[str]:
    """Return the tasks of mteb that the user says were trained on."""
    with explained("--trained-on", "`mteb available-tasks` lists the names."):
        tasks = {mteb.get_task(one).metadata.name for one in declared or () if one != "none"}
    if contamination is not None:
        advice = "Write one: st-llm-embed contamination RUN --json > FILE."
        with explained(f"{contamination} is not a contamination analysis", advice):
            tasks |= set(json.loads(contamination.read_text(encoding="utf-8"))["training_datasets"])
    return tasks


def _evaluated_revision(name: str, results_dir: Path) -> str:
    """Return the commit of the model that was evaluated."""
    if Path(name).exists() or name.startswith("local/") or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise InputError(
            f"{shown(name)} is not a model on the Hub; the leaderboard takes only what others can load by name and "
            "commit. Push the model (st-llm-embed publish), and evaluate it by its Hub name."
        )
    folder = results_dir / "results" / name.replace("/", "__")
    found = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    commits = [revision for revision in found if re.fullmatch(r"[0-9a-f]{40}", revision)]
    if len(commits) == 1:
        return commits[0]
    raise InputError(
        f"{results_dir} has scores of {name} at {', '.join(found) or 'no commit'}, and a submission is of one commit "
        f"(40 hexadecimal digits). Evaluate it into a folder of its own: st-llm-embed evaluate {name} --prompts mteb."
    )


def _choose(scores: Path) -> tuple[dict[str, TaskResult], dict[str, str]]:
    """Return the results that can be submitted, and why others cannot, by task."""
    chosen, dropped = {}, {}
    for path in sorted(one for one in scores.glob("*.json") if one.name != "model_meta.json"):
        with explained(f"{path} holds no scores of mteb", "Remove it and evaluate the task again."):
            result = TaskResult.from_disk(path)
        try:
            expected = mteb.get_task(result.task_name).metadata.revision
        except KeyError:
            dropped[result.task_name] = "not a task of mteb"
            continue
        if result.dataset_revision == expected:
            chosen[result.task_name] = result
        else:
            dropped[result.task_name] = f"scored on dataset revision {result.dataset_revision}, mteb's is {expected}"
    if not chosen:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in dropped.items())
        raise InputError(
            f"{scores} holds no scores that can be submitted ({reasons or 'no task was finished'}). Evaluate official "
            "tasks with mteb's prompts: st-llm-embed evaluate MODEL --prompts mteb --tasks TASKS."
        )
    return chosen, dropped


def _mock_run(entry: ModelMeta, path: Path) -> str:
    """Return mteb's report on mock tasks: the earlier one of this commit, or a new one by the entry's own loader."""
    if not path.is_file():
        with explained(f"{entry.name} does not load as its entry says", "Fix the model and push it again."):
            model = entry.load_model()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(mteb.mock_run(model).to_markdown() + "\n", encoding="utf-8")
    return path.read_text(encoding="utf-8")


def _copy_results(entry: ModelMeta, tasks: list[str], scores: Path, folder: Path) -> None:
    """Copy the scores to submit, in mteb's layout, with the filled entry."""
    shutil.rmtree(folder.parents[1], ignore_errors=True)  # copies, perhaps of other tasks
    folder.mkdir(parents=True)
    for name in tasks:
        shutil.copy2(scores / f"{name}.json", folder)
    settings = scores / "run_settings.jsonl"
    if settings.is_file():
        lines = settings.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if json.loads(line)["task"] in tasks]
        (folder / settings.name).write_text("".join(kept), encoding="utf-8")
    content = entry.to_dict()
    if content["training_datasets"] is not None:
        content["training_datasets"].sort()
    (folder / "model_meta.json").write_text(json.dumps(content, default=str, indent=4), encoding="utf-8")


def _checklist(entry: ModelMeta, results: dict[str, TaskResult], dropped: dict[str, str], missing: list[str]) -> str:
    shares = []
    for benchmark in mteb.get_benchmarks():
        names = [task.metadata.name for task in benchmark.tasks]
        scored, percent = len(results.keys() & set(names)), entry.zero_shot_percentage(names)
        cells = (str(benchmark.name), f"{scored} of {len(names)}", "unknown" if percent is None else f"{percent} %")
        shares += [(-scored / len(names), cells)] if scored else []
    trained = "unknown" if entry.training_datasets is None else ", ".join(sorted(entry.training_datasets)) or "none"
    sections = [
        f"# {entry.name} at {entry.revision}",
        "## Missing" if missing else "Nothing is missing.",
        "\n".join(f"- [ ] {line}" for line in missing),
        f"Trained on mteb's tasks: {trained}.",
        "## Submitted",
        markdown_table(("task", "score"), [(task, f"{one.get_score():.4f}") for task, one in results.items()]),
        markdown_table(("benchmark", "tasks scored", "zero-shot"), [cells for _, cells in sorted(shares)]),
        "## Not submitted" if dropped else "",
        "\n".join(f"- {name}: {reason}" for name, reason in dropped.items()),
    ]
    return "\n\n".join(filter(None, sections)) + "\n"
