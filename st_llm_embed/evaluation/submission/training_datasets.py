"""What a recipe trains on, in the names of mteb's tasks: the field `training_datasets` of a leaderboard entry.

mteb asks for the task whose dataset was trained on, its training split included, and adds variants of it
(translations, hard negatives, Nano sets) by itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from st_llm_embed.recipe import EMBEDDED, SYNTHESIS, Recipe, Source

TASKS_OF_SOURCES: dict[str, frozenset[str]] = {
    "eli5": frozenset(),
    "hotpotqa": frozenset({"HotpotQA"}),
    "fever": frozenset({"FEVER"}),
    "miracl": frozenset({"MIRACLRetrieval"}),
    "msmarco-passage": frozenset({"MSMARCO"}),
    "msmarco-document": frozenset({"MSMARCO"}),
    "nq": frozenset({"NQ"}),
    "nli": frozenset({"XNLI"}),  # its English rows are MultiNLI's
    "squad": frozenset({"XQuADRetrieval"}),  # SQuAD's questions, translated
    "triviaqa": frozenset(),
    "quora": frozenset({"QuoraRetrieval"}),
    "mr-tydi": frozenset({"MrTidyRetrieval"}),
    "dureader": frozenset({"DuRetrieval"}),
    "t2ranking": frozenset({"T2Retrieval", "T2Reranking"}),
}
"""For the public sets of the paper's mix (section 4.1), by the names that the recipes have for them."""

OTHER_NAMES = {
    "all-nli": "nli",
    "natural-questions": "nq",
    "quora-duplicates": "quora",
    "trivia-qa": "triviaqa",
    "wikipedia-nq": "nq",
}
"""What the same sets are called on the Hub."""


class TrainedOn(NamedTuple):
    """What a recipe trains on."""

    tasks: frozenset[str]
    """mteb's tasks of the sources that are known."""
    unknown: tuple[str, ...]
    """Keys of the recipe, with their values, that name data whose tasks nobody can tell from the recipe."""


def trained_on(recipe: Recipe) -> TrainedOn:
    """Give mteb's tasks that a recipe trains on, and what it trains on besides.

    Rows that an LLM wrote for the recipe, or those inside the package, are of no task.
    """
    tasks: set[str] = set()
    unknown = []
    for name, source in recipe.data.sources.items():
        found = _tasks_of(name, source)
        if found is None:
            unknown.append(f"data.sources.{name} ({source.path})")
        else:
            tasks |= found
    if recipe.data.rows not in (EMBEDDED, SYNTHESIS):
        unknown.append(f"data.rows ({recipe.data.rows})")
    if recipe.base.adapter is not None:
        unknown.append(f"base.adapter ({recipe.base.adapter})")
    return TrainedOn(frozenset(tasks), tuple(unknown))


def _tasks_of(name: str, source: Source) -> frozenset[str] | None:
    """Find the tasks of a set by its name in the recipe or on the Hub; a local file is known by neither."""
    if Path(source.path).exists() or source.path.startswith(("/", ".")):
        return None
    for known in (name.casefold(), source.path.rpartition("/")[2].casefold()):
        tasks = TASKS_OF_SOURCES.get(OTHER_NAMES.get(known, known))
        if tasks is not None:
            return tasks
    return None
