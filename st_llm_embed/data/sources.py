"""Public and local sets of pairs, mapped to rows: what the paper adds to its synthetic data (section 4.1)."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from st_llm_embed.data.files import read_records
from st_llm_embed.data.rows import Row, content_hash
from st_llm_embed.errors import InputError, shown
from st_llm_embed.instructions import TRAINING_SET_INSTRUCTIONS
from st_llm_embed.recipe import TASK_TYPES, Source

logger = logging.getLogger(__name__)


def read_source(name: str, source: Source) -> Iterator[Row]:
    """Yield the rows of one source; a record without an anchor or a positive is omitted.

    Whether a record is sampled depends on its place in the source alone, so a larger ratio keeps what a smaller had.

    Raises:
        InputError: the source cannot be read, lacks a column that is mapped, or has no row.
    """
    wordings = (source.instruction,) if source.instruction else TRAINING_SET_INSTRUCTIONS.get(name)
    if wordings is None:
        known = ", ".join(TRAINING_SET_INSTRUCTIONS)
        raise InputError(f"data.sources.{name} has no instruction. Give one; only {known} have one by their names.")
    if Path(source.path).is_dir():
        raise InputError(f"data.sources.{name}.path is the folder {source.path}. Give a file, or a Hub dataset.")
    count = omitted = 0
    records = read_records(
        source.path, config=source.config, file=source.file, split=source.split, revision=source.revision
    )
    for place, record in enumerate(records):
        key = content_hash(name, str(place))
        if int(key, 16) >= source.ratio * 2**64:
            continue
        texts = {side: _text(record, column, name, side) for side, column in source.columns.items()}
        if not texts["anchor"] or not texts["positive"] or texts.get("negative") == texts["positive"]:
            omitted += 1
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
            f"data.sources.{name} has no rows: {omitted} records lack anchor or positive. Check its columns."
        )
    logger.info("%s: %d rows, %d records omitted", name, count, omitted)


def check_source(name: str, source: Source) -> None:
    """Check a source of a local file by its first row; one of the Hub is checked when it is downloaded.

    Raises:
        InputError: the name is taken, or the source cannot be used.
    """
    if any(name.startswith(task_type) for task_type in TASK_TYPES) or name in ("tasks", "rejected"):
        raise InputError(f"data.sources.{name}: this name is taken by rows that an LLM wrote. Choose another one.")
    if Path(source.path).exists() or source.path.startswith(("/", ".")):
        next(read_source(name, source))


def _text(record: dict[str, Any], column: str, name: str, side: str) -> str:
    """Return one text of a record: a column, or a template of columns such as ``{title} {text}`` or ``{pos[0]}``."""
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
