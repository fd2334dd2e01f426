from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset

from st_llm_embed import InputError
from st_llm_embed.data.rows import Row, read_rows, rows_file
from st_llm_embed.instructions import ONE_STEP_INSTRUCTIONS
from st_llm_embed.recipe import TASK_TYPES

GOOD = {"anchor": "q", "positive": "p", "negative": "n", "instruction": "i", "task_type": "short-long"}
ANSWER = {"task_type": "short-short", "instruction": "i", "response": {"input": "q", "positive_document": "p"}}


def rows_of(tmp_path: Path, *lines: object) -> list[Row]:
    path = tmp_path / "rows.jsonl"
    text = "".join((line if isinstance(line, str) else json.dumps(line, ensure_ascii=False)) + "\n" for line in lines)
    path.write_text(text, encoding="utf-8")
    return list(read_rows(path))


def test_embedded_rows_are_all_readable_and_of_every_type() -> None:
    rows = list(read_rows(rows_file("embedded")))
    assert len(rows) == 1920
    assert {row.task_type for row in rows} == set(TASK_TYPES)
    assert len({row.key for row in rows}) == len(rows)
    assert all(len(row.language) == 2 and len(row.target_language) == 2 for row in rows)
    for row in rows:
        assert (row.negative is None) == (row.task_type in ("short-short", "long-long"))


@pytest.mark.parametrize(
    ("task_type", "response", "texts"),
    [
        ("short-long", {"user_query": "q", "positive_document": "p", "hard_negative_document": "n"}, ("q", "p", "n")),
        ("long-short", {"input_text": "q", "label": "p", "misleading_label": "n"}, ("q", "p", "n")),
        ("short-short", {"input": "q", "positive_document": "p"}, ("q", "p", None)),
        ("long-long", {"input": "q", "positive_document": "p"}, ("q", "p", None)),
        ("sts", {"S1": "q", "S2": "p", "S3": "n"}, ("q", "p", "n")),
        ("bitext", {"S1": "q", "S2": "p", "S3": "n"}, ("q", "p", "n")),
    ],
)
def test_an_answer_becomes_a_row(
    task_type: str, response: dict[str, str], texts: tuple[str | None, ...], tmp_path: Path
) -> None:
    languages = {"src_lang": "English", "tgt_lang": "Thai"} if task_type == "bitext" else {"language": "English"}
    answer = {
        "task_type": task_type,
        "instruction": "i",
        "attributes": {**languages, "num_words": 50},
        "response": response,
    }
    [row] = rows_of(tmp_path, answer)
    assert (row.anchor, row.positive, row.negative) == texts
    assert (row.language, row.target_language) == ("en", "th" if task_type == "bitext" else "en")
    assert row.attributes.num_words == "50"
    assert row.instruction in ONE_STEP_INSTRUCTIONS.get(row.task_type, ("i",))


def test_edge_whitespace_is_cut_and_missing_fields_are_derived(tmp_path: Path) -> None:
    named = GOOD | {"language": "German"}
    row, other = rows_of(tmp_path, {"anchor": " q\n", "positive": "\tp", "instruction": "i"}, named)
    assert (row.anchor, row.positive, row.negative) == ("q", "p", None)
    assert (row.task_type, row.language, row.target_language) == ("short-long", "und", "und")
    assert len(row.key) == 16
    assert (other.language, other.target_language) == ("de", "de")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ({key: value for key, value in GOOD.items() if key != "positive"}, "it has no positive"),
        (GOOD | {"positive": None}, "it has no positive"),
        (GOOD | {"positive": "  "}, "its positive is empty"),
        (GOOD | {"negative": "p"}, "its negative equals its positive"),
        (GOOD | {"negative": " P "}, "its negative equals its positive"),
        (GOOD | {"task_type": "retrieval"}, "task_type is 'retrieval'"),
        (GOOD | {"label": 1}, "unknown field 'label'"),
        (GOOD | {"label": None}, "unknown field 'label'"),
        (GOOD | {"anchor": 3}, "anchor is 3"),
        ({"task_type": "sts", "response": {"S1": "a", "S2": "b"}}, "lacks S3"),
        ({"task_type": "poem", "response": {}}, "task_type 'poem'"),
        ({"task_type": "sts", "response": "Sorry"}, "have to be JSON objects"),
        ({"task_type": "sts", "response": None}, "have to be JSON objects"),
        ({"task_type": "sts", "response": {}, "attributes": ["x"]}, "have to be JSON objects"),
        ([1, 2], "list"),
        ("{not json", "not JSON"),
        ('{"anchor": ' + "9" * 5000 + "}", "not JSON"),
        ("[" * 100_000, "not JSON"),
        (GOOD | {"language": None}, "its language is null"),
        (GOOD | {"language": "Klingon"}, "its language is 'Klingon'; allowed are"),
        (GOOD | {"attributes": {"colour": "red"}}, "'attributes.colour' (allowed: query_type, "),
        (GOOD | {"anchor": ["x" * 9] * 999}, "anchor is the list ['xxxxxxxxx', "),
        (json.dumps(GOOD | {"anchor": "half \ud83d"}), "anchor is 'half \\ud83d', which holds half of a surrogate"),
        (ANSWER | {"attributes": {"language": ["English"]}}, "language is ['English']"),
        (ANSWER | {"attributes": {"language": None}}, "its language is null"),
        (ANSWER | {"attributes": {"language": "Elvish"}}, "its language is 'Elvish'"),
    ],
)
def test_a_bad_line_is_named_with_its_number(line: object, told: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        rows_of(tmp_path, GOOD, line)
    assert "line 2" in str(error.value)
    assert told in str(error.value)
    assert len(str(error.value)) < 1000


TRIPLETS = [
    {"anchor": "q", "positive": "p", "negative": "n"},
    {"anchor": "NA", "positive": "007", "negative": None},
    {"anchor": "null", "positive": "2024-01-01", "negative": None},
]


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv.gz", "parquet", "folder", "saved"])
def test_rows_are_read_from_every_kind_of_file(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows.{kind}"
    cells = [TRIPLETS[0].keys(), *([value or "" for value in row.values()] for row in TRIPLETS)]
    match kind:
        case "jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in TRIPLETS))
        case "json":
            path.write_text(json.dumps(TRIPLETS))
        case "csv":
            path.write_text("".join(",".join(line) + "\n" for line in cells), encoding="utf-8-sig")
        case "tsv.gz":
            path.write_bytes(gzip.compress("".join("\t".join(line) + "\n" for line in cells).encode()))
        case "saved":
            Dataset.from_list(TRIPLETS).save_to_disk(str(path))
        case _:
            if kind == "folder":
                path.mkdir()
            pq.write_table(pa.Table.from_pylist(TRIPLETS), path / "a.parquet" if kind == "folder" else path)
    rows = list(read_rows(rows_file(str(path)), "Find it."))
    assert [{name: getattr(row, name) for name in TRIPLETS[0]} for row in rows] == TRIPLETS
    assert {row.instruction for row in rows} == {"Find it."}


def test_lists_of_flag_embedding_become_rows(tmp_path: Path) -> None:
    lines = [
        {"query": "q", "pos": ["one", "two", "three"], "neg": ["four", "five"], "pos_scores": [1.0], "prompt": "Own."},
        {"query": "r", "pos": ["six"], "neg": []},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [(row.anchor, row.positive, row.negative, row.instruction) for row in read_rows(path, "Find it.")] == [
        ("q", "one", "four", "Own."),
        ("q", "two", "five", "Own."),
        ("q", "three", None, "Own."),
        ("r", "six", None, "Find it."),
    ]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ({"query": "q", "pos": []}, "no text in the list pos"),
        ({"query": "q", "pos": [["a"]]}, "pos is the list"),
        ({"query": ["q"], "pos": ["p"]}, "query is the list"),
        ({"query": "q", "pos": ["Paris"], "neg": [" paris"], "prompt": "i"}, "its negative equals its positive"),
        ({"anchor": "q", "positive": "p"}, "or set data.instruction for all rows"),
        (GOOD | {"positive": ["p"]}, "its positive is the list ['p'], and one text is expected"),
    ],
)
def test_what_makes_no_row_is_named(line: dict[str, object], told: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="line 1") as error:
        rows_of(tmp_path, line)
    assert told in str(error.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file in that folder"):
        rows_file(str(tmp_path))
    with pytest.raises(InputError, match=r"nowhere\.jsonl"):
        rows_file("nowhere.jsonl")
