"""The texts of a submission to the MTEB leaderboard: those of two pull requests, and what is left to do."""

from __future__ import annotations

from typing import NamedTuple

from mteb.models import ModelMeta

from st_llm_embed.evaluation.report import markdown_table


class Facts(NamedTuple):
    """What the texts say."""

    name: str
    revision: str
    description: str
    """What the recipe says of the model; empty without one."""
    entry: ModelMeta
    scores: dict[str, float]
    """Main score of each task that is submitted, over its test splits and languages."""
    mteb_versions: list[str]
    benchmarks: list[tuple[str, int, int, int | None]]
    """Benchmark, tasks scored, tasks, and the share of its tasks, in percent, that were not trained on."""
    dropped: dict[str, str]
    incomplete: dict[str, str]
    missing: list[str]
    """What has to be mended before a pull request makes sense."""
    compared: bool
    """The training set was compared with the test texts."""


def mteb_text(facts: Facts) -> str:
    """Give the body of the pull request that adds the model to embeddings-benchmark/mteb."""
    entry = facts.entry
    trained = "unknown" if entry.training_datasets is None else ", ".join(sorted(entry.training_datasets)) or "none"
    filled = "x" if not facts.missing else " "
    return _joined(
        f"Adds [{facts.name}]({entry.reference}), commit `{facts.revision}`"
        + (f", made of {entry.adapted_from}." if entry.adapted_from else "."),
        facts.description,
        "Each query gets `Instruct: {instruction}\\nQuery: ` with the instruction that mteb has for the task; a "
        f"document gets none. mteb's tasks that it was trained on: {trained}.",
        _scores(facts),
        f"- [{filled}] I have filled out the ModelMeta object to the extent possible\n"
        "- [ ] I have ensured that my model can be loaded using\n"
        "  - [ ] `mteb.get_model(model_name, revision)` and\n"
        "  - [ ] `mteb.get_model_meta(model_name, revision)`\n"
        "- [ ] I have tested the implementation works on a representative set of tasks.\n"
        "- [x] The model is public, i.e., is available either as an API or the weights are publicly available to "
        "download\n"
        "- [ ] I reproduced results from the original paper (if applicable) on at least one benchmark, and I am "
        "including the results in the PR description.\n"
        "- [ ] Scores of this model that are published elsewhere are beside these, or there are none.",
    )


def results_text(facts: Facts) -> str:
    """Give the body of the pull request that adds the scores to embeddings-benchmark/results."""
    return _joined(
        f"{len(facts.scores)} results of [{facts.name}]({facts.entry.reference}), commit `{facts.revision}`, with "
        f"mteb {' and '.join(facts.mteb_versions)}.",
        _benchmarks(facts),
        _list("Not all splits or languages were evaluated:", facts.incomplete),
        "- [ ] My model has a model sheet, report, or similar\n"
        "- [ ] My model has a reference implementation in `mteb/models/model_implementations/`\n"
        "  - [ ] No, but there is an existing PR ___\n"
        "- [ ] The results submitted are obtained using the reference implementation\n"
        "- [x] My model is available, either as a publicly accessible API or publicly on e.g., Huggingface\n"
        "- [ ] I *solemnly swear* that for all results submitted I have not trained on the evaluation dataset "
        "including training splits. If I have, I have disclosed it clearly.",
    )


def checklist_text(facts: Facts, python_file: str) -> str:
    """Give what is done, what is missing, and what is left to do by hand."""
    missing = "\n".join(f"- [ ] {line}" for line in facts.missing)
    by_hand = []
    if not facts.compared:
        by_hand.append("Compare the training set with the test texts (st-llm-embed overlap) and give it to --overlap.")
    if not facts.entry.public_training_data:
        by_hand.append("public_training_data is empty; name the set on the Hub in the recipe, if it is there.")
    if not facts.entry.public_training_code:
        by_hand.append("public_training_code is empty; a released model carries its recipe.yaml.")
    by_hand += [
        f"Open the pull request to mteb: copy {python_file} into mteb/models/model_implementations and "
        "mteb_mock_run_results.md into the root of a fork, run `make lint` and `mteb.get_model` there, then "
        f'`gh pr create --repo embeddings-benchmark/mteb --title "model: Add {facts.name}" --body-file '
        "mteb_pull_request.md`.",
        "Then that to embeddings-benchmark/results, which names the first: `st-llm-embed submit ... --create-pr`, or "
        "copy results/ into a fork and take results_pull_request.md.",
        "Tick the boxes in both texts that are true, and put scores of this model that are published elsewhere "
        "beside these; only you can know.",
        "Private tasks (RTEB) are run by the maintainers: open an evaluation request at embeddings-benchmark/mteb.",
    ]
    return _joined(
        f"# {facts.name} at {facts.revision}",
        "## Missing" if missing else "Nothing is missing.",
        missing,
        "## Submitted",
        _scores(facts),
        _benchmarks(facts),
        _list("Not all splits or languages were evaluated:", facts.incomplete),
        _list("Not submitted:", facts.dropped),
        "## By hand",
        "\n".join(f"- [ ] {line}" for line in by_hand),
    )


def _scores(facts: Facts) -> str:
    return markdown_table(("task", "score"), [(task, f"{score:.4f}") for task, score in facts.scores.items()])


def _benchmarks(facts: Facts) -> str:
    rows: list[tuple[str, ...]] = [
        (name, f"{scored} of {tasks}", "unknown" if percent is None else f"{percent} %")
        for name, scored, tasks, percent in facts.benchmarks
    ]
    return markdown_table(("benchmark", "tasks scored", "zero-shot"), rows) if rows else ""


def _list(title: str, reasons: dict[str, str]) -> str:
    return "\n".join((title, *(f"- {name}: {reason}" for name, reason in reasons.items()))) if reasons else ""


def _joined(*paragraphs: str) -> str:
    return "\n\n".join(filter(None, paragraphs)) + "\n"
