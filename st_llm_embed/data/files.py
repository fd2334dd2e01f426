"""Public and local sets of pairs, mapped to rows: what the paper adds to its synthetic data (section 4.1)."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

from datasets import Dataset, IterableDataset, load_dataset

from st_llm_embed.data.rows import Row, content_hash
from st_llm_embed.errors import InputError, explained, shown
from st_llm_embed.instructions import TRAINING_SET_INSTRUCTIONS
from st_llm_embed.recipe import TASK_TYPES, Source

logger = logging.getLogger(__name__)

BUILDERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv", ".tsv": "csv"}
"""File name endings, `.gz` left away, and the loader of `datasets` that reads them."""


def read_source(name: str, source: Source) -> Iterator[Row]:
    """Give the rows of one source, mapped to anchor, positive and negative, and sampled.

    Whether a record is in the sample depends on its place in the source alone, so a larger ratio keeps what a smaller
    one had. A record without an anchor or a positive is left out.

    Raises:
        InputError: the source cannot be read, lacks a column that is mapped, or gives no row.
    """
    wordings = (source.instruction,) if source.instruction else TRAINING_SET_INSTRUCTIONS.get(name)
    if wordings is None:
        raise InputError(
            f"data.sources.{name} has no instruction. Give one; only {', '.join(TRAINING_SET_INSTRUCTIONS)} have one "
            "by their names."
        )
    count = left_out = 0
    for place, record in enumerate(_records(name, source)):
        key = content_hash(name, str(place))
        if int(key, 16) >= source.ratio * 2**64:
            continue
        texts = {side: _text(record, column, name, side) for side, column in source.columns.items()}
        if not texts["anchor"] or not texts["positive"] or texts.get("negative") == texts["positive"]:
            left_out += 1
            continue
        count += 1
        yield Row(
            anchor=texts["anchor"],
            positive=texts["positive"],
            negative=texts.get("negative") or None,
            instruction=wordings[int(key[::-1], 16) % len(wordings)],
            task_type=source.task_type,
            language=source.language,
            generator=source.path,
            key=key,
        )
    if count == 0:
        raise InputError(
            f"data.sources.{name} gives no rows: {left_out} records had no anchor or no positive. Check its columns."
        )
    logger.info("%s: %d rows, %d records left out", name, count, left_out)


def check_source(name: str, source: Source) -> None:
    """Check a source of a local file by its first row; one of the Hub is checked when it is downloaded.

    Raises:
        InputError: the name is taken, or the source cannot be used.
    """
    if any(name.startswith(task_type) for task_type in TASK_TYPES) or name in ("tasks", "rejected", "plots"):
        raise InputError(
            f"data.sources.{name}: this name is taken by rows that an LLM wrote. Call the source otherwise."
        )
    if Path(source.path).is_file() or source.path.startswith(("/", ".")):
        next(read_source(name, source))


def _records(name: str, source: Source) -> Iterable[dict[str, Any]]:
    path = Path(source.path)
    advice = (
        f"data.sources.{name}.path takes the path of a {', '.join(BUILDERS)} file (or one of these with .gz), or the "
        "id of a dataset on the Hugging Face Hub, with config, split and revision."
    )
    ending = file_ending(path)
    loaded: Dataset | IterableDataset
    with explained(f"data.sources.{name}: {source.path} cannot be loaded", advice):
        if path.is_file() and ending in BUILDERS:
            options = {"delimiter": "\t"} if ending == ".tsv" else {}
            # Streamed, so that nothing is copied into the cache of `datasets`.
            loaded = cast(
                IterableDataset,
                load_dataset(BUILDERS[ending], data_files=str(path), split="train", streaming=True, **options),  # ty: ignore[no-matching-overload]
            )
        elif path.exists() or source.path.startswith(("/", ".")):
            raise InputError(f"data.sources.{name}: {source.path} is no such file. {advice}")
        elif source.file is not None and file_ending(Path(source.file)) in BUILDERS:
            # Not by the repository's name: many older ones hold a loading script, which `datasets` refuses.
            address = f"hf://datasets/{source.path}@{source.revision or 'main'}/{source.file}"
            loaded = load_dataset(BUILDERS[file_ending(Path(source.file))], data_files=address, split="train")
        elif source.file is not None:
            raise InputError(
                f"data.sources.{name}.file is {shown(source.file)}; it takes the path of a {', '.join(BUILDERS)} file "
                "(or one of these with .gz) in the repository, or a pattern such as data/train-*.parquet."
            )
        else:
            loaded = load_dataset(source.path, source.config, split=source.split, revision=source.revision)
        yield from loaded


def file_ending(path: Path) -> str:
    """Give the ending of a file's name, `.gz` left away."""
    return next((suffix for suffix in reversed(path.suffixes) if suffix != ".gz"), "")


def _text(record: dict[str, Any], column: str, name: str, side: str) -> str:
    """Give one text of a record: a column, or a template of columns such as ``{title} {text}`` or ``{pos[0]}``."""
    try:
        value = column.format_map(record) if "{" in column else record[column]
    except IndexError:  # an empty list of passages
        return ""
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"data.sources.{name}.columns.{side} is {column!r}, which a record does not have ({error}); it has "
            f"{shown(list(record))}. Give the name of a column, or a template such as '{{title}} {{text}}' or "
            "'{passages[0][text]}'."
        ) from error
    return "" if value is None else str(value).strip()
