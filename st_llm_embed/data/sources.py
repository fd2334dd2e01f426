"""Public and local sets of pairs, mapped to rows: what the paper adds to its synthetic data (section 4.1)."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from string import Formatter
from typing import Any

from st_llm_embed.data.files import read_records, text_of
from st_llm_embed.data.rows import Row, checked_row, content_hash, fold
from st_llm_embed.errors import InputError, shown
from st_llm_embed.instructions import TRAINING_SET_INSTRUCTIONS
from st_llm_embed.recipe import TASK_TYPES, Source

logger = logging.getLogger(__name__)


def read_source(name: str, source: Source) -> Iterator[Row]:
    """Yield the rows of one source.

    A record without an anchor or a positive, or whose negative equals its positive up to case and spacing, is omitted.
    Whether a record is sampled depends on its place in the source alone, so a larger ratio keeps what a smaller had.

    Raises:
        InputError: the source cannot be read, lacks a column that is mapped, or has no row.
    """
    wordings = (source.instruction,) if source.instruction else TRAINING_SET_INSTRUCTIONS.get(name)
    if wordings is None:
        known = ", ".join(TRAINING_SET_INSTRUCTIONS)
        raise InputError(f"data.sources.{name} has no instruction. Give one; only {known} have one by their names.")
    count = omitted = 0
    records = read_records(
        source.path,
        config=source.config,
        file=source.file,
        split=source.split,
        revision=source.revision,
        columns={part for column in source.columns.values() for part in _columns_in(column)},
    )
    for place, record in enumerate(records):
        key = content_hash(name, str(place))
        if int(key, 16) >= source.ratio * 2**64:
            continue
        where = f"data.sources.{name}, record {place + 1}"
        texts = {side: _text(record, column, where, side) for side, column in source.columns.items()}
        if not texts["anchor"] or not texts["positive"] or fold(texts.get("negative", "")) == fold(texts["positive"]):
            omitted += 1
            continue
        count += 1
        fields = {
            "anchor": texts["anchor"],
            "positive": texts["positive"],
            "negative": texts.get("negative") or None,
            "instruction": wordings[int(key[::-1], 16) % len(wordings)],
            "task_type": source.task_type,
            "language": source.language,
            "generator": source.path,
            "key": key,
        }
        yield checked_row(fields, where)
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


def _columns_in(column: str) -> set[str]:
    """Return the columns that the name of one, or a template, names."""
    if "{" not in column:
        return {column}
    try:
        return {re.split(r"[.\[]", field)[0] for _, field, _, _ in Formatter().parse(column) if field}
    except ValueError:  # not a template, as the first record will show
        return {column}


class _Template(Formatter):
    """Fills in texts as they are, and nothing that is not a text."""

    def __init__(self, where: str) -> None:
        self._where, self._field = where, ""

    def get_field(self, field_name: str, args: Any, kwargs: Any) -> Any:
        self._field = field_name
        return super().get_field(field_name, args, kwargs)

    def format_field(self, value: Any, format_spec: str) -> str:
        return format(_value(value, self._where, self._field), format_spec)


def _value(value: object, where: str, column: str) -> str:
    """Return a text, or the digits of a whole number, which are those of the file."""
    return str(value) if type(value) is int else text_of(value, where, column)


def _text(record: dict[str, Any], column: str, where: str, side: str) -> str:
    """Return one text of a record: a column, or a template of columns such as ``{title} {text}`` or ``{pos[0]}``."""
    try:
        if "{" not in column:
            return _value(record[column], where, column).strip()
        return _Template(where).vformat(column, (), record).strip()
    except IndexError:  # an empty list of passages
        return ""
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{where}: columns.{side} is {column!r}, which the record does not have ({error}); it has "
            f"{shown(list(record))}. Give the name of a column, or a template such as '{{title}} {{text}}' or "
            "'{passages[0][text]}'."
        ) from error
