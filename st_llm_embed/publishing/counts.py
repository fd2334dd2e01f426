"""What the rows of a run are, counted: their authors, languages and instructions, and an example of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, cast

import pyarrow.parquet as pq

from st_llm_embed.data.dataset import SPLIT_REPORT, Split
from st_llm_embed.instructions import RETRIEVAL_INSTRUCTION, instruction_of, instruction_prompt
from st_llm_embed.languages import LANGUAGE_CODES
from st_llm_embed.modules.layout import read_json
from st_llm_embed.publishing.leak_check import looks_private
from st_llm_embed.recipe import EMBEDDED, TASK_TYPES, Recipe, TaskType

SYMMETRIC = ("sts", "bitext")
"""Task types whose rows have no query: either text could be the anchor."""

LEAST_SHARE = 0.05
"""Of the rows: an instruction with less is one of many, and no default for all queries."""

HANDFUL = 5
"""Languages that are named one by one; of more the most frequent are."""

UNKNOWN_LANGUAGE, UNKNOWN_AUTHOR = "und", "unknown"

LONGEST_QUERY, LONGEST_DOCUMENT = 160, 400
"""Characters of a text that is an example on a card."""

FIRST_ROWS = 2_000
"""Of each configuration, among which examples are looked for."""


class Example(NamedTuple):
    """Texts that show how a model is used."""

    instruction: str
    """What the query was trained with; empty where it is not known."""
    query: str
    documents: tuple[str, ...]
    """The first answers the query."""


def counted(folders: Sequence[Path], columns: Sequence[str], *splits: Split) -> Counter[tuple[str, ...]]:
    """Count the rows of written datasets by the values of some columns."""
    counts: Counter[tuple[str, ...]] = Counter()
    for path in (path for folder in folders for split in splits for path in sorted(folder.glob(f"*/{split}.parquet"))):
        table = pq.read_table(path, columns=list(columns))
        for group in table.group_by(list(columns)).aggregate([([], "count_all")]).to_pylist():
            counts[tuple(group[column] for column in columns)] += group["count_all"]
    return counts


def query_prompt(recipe: Recipe, data: Sequence[Path]) -> str:
    """Return what stands before a query unless the caller says otherwise.

    That is the instruction that the recipe names, or the most frequent one of the rows that were trained on, those
    with queries if there are some; where none is frequent, a general one.

    Args:
        recipe: all choices.
        data: the folders that were trained on.
    """
    if recipe.base.instructions == "natural" and recipe.publishing.query_instruction is not None:
        return instruction_prompt(recipe.publishing.query_instruction)
    rows = counted(data, ("task_type", "instruction"), "train")
    rows = Counter({key: count for key, count in rows.items() if key[0] not in SYMMETRIC}) or rows
    used: Counter[str] = Counter()
    for (task_type, instruction), count in rows.items():
        used[instruction_of(recipe.base.instructions, instruction, task_type)] += count
    most = min(used, key=lambda instruction: (-used[instruction], instruction))
    return instruction_prompt(most if used[most] >= LEAST_SHARE * used.total() else RETRIEVAL_INSTRUCTION)


def base_model(recipe: Recipe) -> str | None:
    """Return the Hub id of the base, which a reader can follow; None where there is none, or none of its weights."""
    base = recipe.base.name_or_path
    if recipe.base.random_init:
        return None
    return recipe.publishing.base_model or (None if base == EMBEDDED or Path(base).exists() else base)


def base_name(recipe: Recipe) -> str:
    """Return what to call the base where others read it: a folder's name without its place on this machine."""
    return base_model(recipe) or Path(recipe.base.name_or_path).name


def held_out_by(dataset_dir: Path) -> str:
    """Return what the held-out rows share with no row that was trained on, such as their instruction."""
    report = read_json(dataset_dir / SPLIT_REPORT)
    return "instruction" if report is None else report["hold_out"]


def authors(dataset_dir: Path, *splits: Split) -> str:
    """Return which LLMs wrote the rows of some splits, in words; empty where none is known to have."""
    rows = counted([dataset_dir], ("generator",), *splits)
    unknown = rows.pop((UNKNOWN_AUTHOR,), 0)
    names = ", ".join(sorted(name for (name,) in rows))
    return f"{names} ({rows.total():,} of them)" if names and unknown else names


def percent(share: float) -> str:
    """Return a share as text, not rounded to nothing."""
    return f"{100 * share:.0f} %" if share >= 0.005 else "under 1 %"


def languages(dataset_dir: Path) -> dict[str, float]:
    """Return the share of the rows that each known language has a part in, by its code, the most frequent first."""
    rows = counted([dataset_dir], ("language", "target_language"), "train", "validation")
    found: Counter[str] = Counter()
    for pair, count in rows.items():
        # The Hub takes the code of a language alone, without script and region.
        found.update(dict.fromkeys({code.partition("-")[0] for code in pair}, count))
    known = {code: count for code, count in found.items() if code != UNKNOWN_LANGUAGE}
    return {code: known[code] / rows.total() for code in sorted(known, key=lambda code: (-known[code], code))}


def language_codes(shares: dict[str, float]) -> list[str] | None:
    """Return the languages for a card's front matter; None where none is known."""
    codes = list(shares)
    return (sorted(codes) if len(codes) <= HANDFUL else ["multilingual", *codes[:HANDFUL]]) or None


def language_names(shares: dict[str, float]) -> str:
    """Return the languages with their shares, in words."""
    names = {code: name for name, code in LANGUAGE_CODES.items()}
    shown = ", ".join(f"{names.get(code, code)} {percent(share)}" for code, share in list(shares.items())[:HANDFUL])
    return f"{shown} and {len(shares) - HANDFUL} others" if len(shares) > HANDFUL else shown


def examples(recipe: Recipe, dataset_dir: Path, prompt: str) -> list[Example]:
    """Choose held-out rows that show the use of the model: one under the default prompt, and one under another.

    None is chosen of rows without a licence to publish them, nor one that the check for private things would refuse.
    """
    rows = [] if recipe.publishing.dataset_license is None else _short_rows(dataset_dir)
    usual = [row for row in rows if instruction_prompt(_instruction(recipe, row)) == prompt]
    shown = [min(usual or rows, key=_oddness, default=None)]
    shown.append(min((row for row in rows if row not in usual and row not in shown), key=_oddness, default=None))
    found = []
    for row in filter(None, shown):
        others = [one["positive"] for one in rows if one["positive"] != row["positive"]]
        found.append(Example(_instruction(recipe, row), row["anchor"], (row["positive"], *others[:1])))
    return found


def _short_rows(dataset_dir: Path) -> list[dict[str, str]]:
    columns = ["anchor", "positive", "instruction", "task_type", "language", "key"]
    files = [pq.ParquetFile(path) for path in sorted(dataset_dir.glob("*/validation.parquet"))]
    rows = (row for file in files for row in next(file.iter_batches(FIRST_ROWS, columns=columns)).to_pylist())
    return [
        row
        for row in rows
        if len(row["anchor"]) <= LONGEST_QUERY
        and len(row["positive"]) <= LONGEST_DOCUMENT
        and not looks_private(f"{row['anchor']} {row['positive']} {row['instruction']}")
    ]


def _instruction(recipe: Recipe, row: dict[str, str]) -> str:
    return instruction_of(recipe.base.instructions, row["instruction"], row["task_type"])


def _oddness(row: dict[str, str]) -> tuple[bool, int, str]:
    """Order rows by how little they look like a question and its answer, then in a fixed order."""
    foreign = row["language"] not in ("en", UNKNOWN_LANGUAGE)
    return foreign, TASK_TYPES.index(cast(TaskType, row["task_type"])), row["key"]
