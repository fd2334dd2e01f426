"""Rows: one training example each, and the LLM answers they are made of.

A record of a file is a row (the fields of `Row`), an LLM's answer to a request of the paper's recipe
(``{"task_type", "instruction", "attributes", "response"}``), or FlagEmbedding's ``{"query", "pos", "neg", "prompt"}``,
with lists of texts, of which each positive makes a row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, StringConstraints, ValidationError, model_validator

from st_llm_embed.data.files import RECORD_FILES, file_ending, numbered_values, record_files, text_of
from st_llm_embed.errors import InputError, explained, shown
from st_llm_embed.instructions import ONE_STEP_INSTRUCTIONS
from st_llm_embed.languages import LANGUAGE_CODES
from st_llm_embed.recipe import EMBEDDED, TASK_TYPES, TaskType

RESPONSE_KEYS: dict[TaskType, tuple[str, ...]] = {
    "short-long": ("user_query", "positive_document", "hard_negative_document"),
    "long-short": ("input_text", "label", "misleading_label"),
    "short-short": ("input", "positive_document"),
    "long-long": ("input", "positive_document"),
    "sts": ("S1", "S2", "S3"),
    "bitext": ("S1", "S2", "S3"),
}
"""The keys of an answer that hold anchor, positive and, where the task type has one, negative (paper, appendix C)."""

Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
"""A text with something in it; edge whitespace is cut, since servers disagree on whether they keep it."""

Language = Annotated[
    str,
    BeforeValidator(lambda name: LANGUAGE_CODES.get(name, name) if isinstance(name, str) else name),
    StringConstraints(pattern=r"^[a-z]{2,3}(-[A-Za-z0-9]{2,8})*$"),
]
"""A BCP-47 code; one of the 93 English names becomes its code."""


class Attributes(BaseModel):
    """What the LLM was asked to vary; None where the task type has no such placeholder (paper, appendix C)."""

    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True)

    query_type: str | None = None
    query_length: str | None = None
    clarity: str | None = None
    difficulty: str | None = None
    num_words: str | None = None
    unit: str | None = None
    high_score: str | None = None
    low_score: str | None = None


class Quality(BaseModel):
    """What filters measured of a row; None where they did not."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    judge: float | None = None
    """Grade of an LLM, from 1 to 5."""
    pos_sim: float | None = None
    """Cosine similarity of anchor and positive by the model of the consistency filter."""
    neg_sim: float | None = None
    """The same of anchor and negative."""
    lang_conf: float | None = None
    """Probability that the anchor is in its language or a close one; None where only the script was looked at."""


class Row(BaseModel):
    """One training example."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    anchor: Text
    """The query side, without its instruction."""
    positive: Text
    negative: Text | None = None
    """A hard negative, if there is one."""
    instruction: Text
    task_type: TaskType = "short-long"
    language: Language = "und"
    """BCP-47 code of the anchor's language."""
    target_language: Language = ""
    """BCP-47 code of the other side's language; the anchor's, unless the row is bitext."""
    generator: str = "unknown"
    """The LLM that wrote the row."""
    prompt_version: str = "unknown"
    attributes: Attributes = Attributes()
    quality: Quality = Quality()
    document: str | None = None
    """Names the document that the row is from, for `data.hold_out: document`."""
    key: str = ""
    """Names the row: a hash of its content unless the file has one."""

    @model_validator(mode="before")
    @classmethod
    def _fill_derived_fields(cls, row: dict[str, Any]) -> dict[str, Any]:
        filled = dict(row)
        if not filled.get("target_language"):
            filled["target_language"] = filled.get("language") or "und"
        if not filled.get("key"):
            filled["key"] = content_hash(
                *(str(filled.get(k)) for k in ("instruction", "anchor", "positive", "negative"))
            )
        return filled

    @model_validator(mode="after")
    def _negative_differs(self) -> Self:
        if self.negative is not None and fold(self.negative) == fold(self.positive):
            raise ValueError(
                "its negative equals its positive; a negative has to be a text that does not fit the anchor"
            )
        return self


def sample_file() -> Path:
    """Return the package's own tasks, and the answers to them that its rows are made of."""
    return Path(str(files("st_llm_embed") / "data" / "sample" / "open.jsonl"))


def rows_file(name_or_path: str) -> Path:
    """Return the file or folder of rows that a recipe names.

    Raises:
        InputError: there is nothing of that name, or no file of records in it.
    """
    if name_or_path == EMBEDDED:
        return sample_file()
    path = Path(name_or_path)
    with explained(f"data.rows is {shown(name_or_path)}, which cannot be read", "Give a file that you may read."):
        if path.is_file() or (path.is_dir() and record_files(path)):
            return path
        there = "and there is no such file" if not path.is_dir() else "and there is no such file in that folder"
    raise InputError(
        f"data.rows is {shown(name_or_path)}, {there}. Allowed are the path of a {', '.join(RECORD_FILES)} file, a "
        f"folder of them or of save_to_disk, and {EMBEDDED!r}, the rows inside the package. Set it with --set "
        "data.rows=PATH."
    )


def read_rows(path: Path, instruction: str | None = None) -> Iterator[Row]:
    """Read a file or a folder of rows or answers, one at a time.

    Args:
        path: what `rows_file` returned.
        instruction: of rows that have none.

    Raises:
        InputError: a line is neither a row nor an answer, or there are no rows; names the line.
    """
    empty = True
    for file in record_files(path):
        for number, record in numbered_values(file):
            where, empty = f"{file}, line {number}", False
            if not isinstance(record, dict):
                raise InputError(f"{where} is {type(record).__name__}, a row is a JSON object. Write one a line.")
            # Tables have a cell for every column; a blank one of .csv is read as an empty text.
            blank = () if file_ending(file) in (".json", ".jsonl") else (None, "")
            fields = {name: value for name, value in record.items() if value not in blank}
            if "response" in fields:
                yield row_of_answer(fields, where)
            else:
                own = {} if instruction is None else {"instruction": instruction}
                yield from (checked_row(own | example, where) for example in _examples(fields, where))
    if empty:
        raise InputError(f"{path} holds no rows. Give a file with one row a line.")


def _examples(record: dict[str, Any], where: str) -> list[dict[str, Any]]:
    """Return the fields of a record's rows: the record as it is, or those of FlagEmbedding's lists."""
    if "query" not in record or "pos" not in record:
        return [record]
    lists = []
    for name in ("pos", "neg"):
        texts = record.get(name) or []
        lists.append([text_of(text, where, name) for text in (texts if isinstance(texts, list) else [texts])])
    positives, negatives = lists
    if not positives:
        raise InputError(f"{where} has no text in the list pos. Give one, or remove the line.")
    shared = {"anchor": text_of(record["query"], where, "query")}
    if record.get("prompt"):
        shared["instruction"] = text_of(record["prompt"], where, "prompt")
    return [
        shared | {"positive": positive} | ({"negative": negatives[place]} if place < len(negatives) else {})
        for place, positive in enumerate(positives)
    ]


def row_of_answer(answer: dict[str, Any], where: str) -> Row:
    """Make a row of an LLM's answer; `where` names it in errors.

    Raises:
        InputError: it cannot be one.
    """
    task_type, response, attributes = answer.get("task_type"), answer["response"], answer.get("attributes") or {}
    if not isinstance(response, dict) or not isinstance(attributes, dict):
        raise InputError(f"{where}: response and attributes have to be JSON objects. Fix or remove the line.")
    if not isinstance(task_type, str) or task_type not in RESPONSE_KEYS:
        allowed = ", ".join(TASK_TYPES)
        raise InputError(f"{where} has the task_type {shown(task_type)}; allowed are {allowed}. Fix the line.")
    keys = RESPONSE_KEYS[task_type]
    if missing := [key for key in keys if key not in response]:
        raise InputError(
            f"{where}: the response to a {task_type} request lacks {', '.join(missing)}. Fix or remove the line."
        )
    texts = dict(zip(("anchor", "positive", "negative"), (response[key] for key in keys), strict=False))
    attributes = dict(attributes)
    language = attributes.pop("src_lang" if task_type == "bitext" else "language", "und")
    instruction = answer.get("instruction")
    if wordings := ONE_STEP_INSTRUCTIONS.get(task_type):
        instruction = wordings[int(content_hash(str(texts["anchor"])), 16) % len(wordings)]
    fields = {
        "instruction": instruction,
        "task_type": task_type,
        "language": language,
        "target_language": attributes.pop("tgt_lang", language),
        "generator": answer.get("generator", "unknown"),
        "prompt_version": answer.get("prompt_version", "unknown"),
        "attributes": attributes,
    }
    return checked_row(texts | fields, where)


def content_hash(*texts: str) -> str:
    """Hash texts to 16 hexadecimal digits, the same on every machine."""
    # Half a surrogate pair has no UTF-8; a row that holds one is refused by the fields' own check.
    return hashlib.blake2b("\x1f".join(texts).encode(errors="surrogatepass"), digest_size=8).hexdigest()


def checked_row(fields: dict[str, Any], where: str) -> Row:
    """Make a row of its fields; `where` names it in the InputError that says what is wrong."""
    try:
        return Row.model_validate(fields)
    except ValidationError as error:
        raise InputError(f"{where} is not a row: {_explain(error)}. Fix or remove the line.") from error


def fold(text: str) -> str:
    """Return a text without differences of case and spacing."""
    return " ".join(text.casefold().split())


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    field, value, kind = ".".join(str(part) for part in first["loc"]), first["input"], first["type"]
    if kind == "extra_forbidden":
        allowed = Attributes if first["loc"][0] == "attributes" else Row
        return f"unknown field {shown(field)} (allowed: {', '.join(allowed.model_fields)})"
    if kind == "missing" or (value is None and Row.model_fields[field].is_required()):
        hint = ", or set data.instruction for all rows" if field == "instruction" else ""
        return f"it has no {field}; anchor, positive and instruction are needed{hint}"
    if value is None:
        return f"its {field} is null; give a value or omit the field"
    if isinstance(value, list) and field in ("anchor", "positive", "negative"):
        return f"its {field} is the list {shown(value)}, and one text is expected; write a row for each"
    problem = first["msg"].removeprefix("Value error, ")
    by_kind = {
        "string_too_short": f"its {field} is empty",
        "string_unicode": f"its {field} is {shown(value)}, which holds half of a surrogate pair and is not Unicode",
        "string_pattern_mismatch": f"its {field} is {shown(value)}; allowed are a BCP-47 code such as zh-Hant, und, "
        "and English names",
    }
    return by_kind.get(kind) or (f"{field} is {shown(value)}: {problem}" if field else problem)
