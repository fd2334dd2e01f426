from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from st_llm_embed import InputError
from st_llm_embed.data.files import numbered_values, read_records, read_texts

RECORDS = [
    {"key": "001", "body": "first"},
    {"key": "2026-01-02", "body": "NA"},
    {"key": "null", "body": "007"},
    {"key": "d", "body": ""},
    {"key": "e", "body": 'with "quotes",\ncommas\tand lines'},
    {"key": "f", "body": " Größe \u2028 "},
    {"key": "g", "body": "long " * 40_000},
]
"""Texts that readers which guess types, strip or split turn into something else."""


def values(path: Path) -> list[Any]:
    return [value for _, value in numbered_values(path)]


def content(kind: str) -> str:
    if kind == "json":
        return json.dumps(RECORDS, indent=1)
    if kind == "jsonl":
        return "\n\n".join(json.dumps(record) for record in RECORDS)
    separator = "\t" if kind == "tsv" else ","
    lines = [("key", "body"), *(record.values() for record in RECORDS)]
    quoted = [separator.join('"' + cell.replace('"', '""') + '"' for cell in line) for line in lines]
    return "\r\n".join(quoted) + "\r\n"


def write(path: Path) -> Path:
    kind = path.name.split(".")[1]
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(RECORDS), path)
    else:
        encoded = content(kind).encode("utf-8-sig" if "bom" in path.name else "utf-8")
        path.write_bytes(gzip.compress(encoded) if path.suffix == ".gz" else encoded)
    return path


@pytest.mark.parametrize(
    "name", ["t.jsonl", "t.jsonl.gz", "bom.jsonl", "t.json", "t.parquet", "t.csv", "bom.csv", "t.csv.gz", "t.tsv"]
)
def test_texts_come_back_as_they_are_from_files_of_every_kind(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / name)
    assert list(read_records(str(path))) == RECORDS
    assert values(path) == RECORDS


def test_a_folder_is_read_in_the_order_of_its_files_names(tmp_path: Path) -> None:
    for part in ("b", "a/z", ".hidden/x"):
        path = tmp_path / f"{part}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"of": part}))
    assert [record["of"] for record in read_records(str(tmp_path))] == ["a/z", "b"]
    write(tmp_path / "t.csv")
    with pytest.raises(InputError, match="files of several kinds"):
        next(read_records(str(tmp_path)))


def test_texts_are_lines_or_the_key_text(tmp_path: Path) -> None:
    lines, records = tmp_path / "t.txt", tmp_path / "t.jsonl"
    lines.write_bytes("\ufeffone \r\n\r\n  two".encode())
    records.write_text('{"text": "one "}\n{"text": " two"}\n')
    assert list(read_texts(lines)) == list(read_texts(records)) == ["one", "two"]
    assert values(lines) == ["one ", "", "  two"]


def test_a_json_file_may_hold_one_value_a_line(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text('{"a": 1}\n{"a": 2}\n')
    assert values(path) == [{"a": 1}, {"a": 2}]
    path.write_text('{\n"a": 1\n}\n')
    assert values(path) == [{"a": 1}]


@pytest.mark.parametrize(
    ("name", "written", "message"),
    [
        ("t.jsonl", b'{"a": 1}\n{torn\n', "line 2 is not JSON"),
        ("t.jsonl", b'{"a": 1}\n3\n', "line 2 is 3. Write one JSON object"),
        ("t.jsonl", b"[" * 100_000, "line 1 is not JSON"),
        ("t.jsonl", '{"a": 1}\n'.encode("utf-16"), r"line 1 is not UTF-8\. .* unpack a compressed file"),
        ("t.json", b"{torn\n", "cannot be read"),
        ("t.csv", b"a,b\n1,2\n1,2,3\n", "line 3 has more cells"),
        ("t.csv", b"a\n1\n\xff\n", "line 3 is not UTF-8"),
        ("t.parquet", b"PAR1", "cannot be read"),
        ("t.jsonl.gz", b'{"a": 1}\n', "cannot be read"),
        ("cut.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 9_999, mtime=0)[:-20], "cannot be read"),
        ("bad.jsonl.gz", gzip.compress(b'{"a": 1}\n', mtime=0)[:10] + b"\xff" * 20, "cannot be read"),
        ("t.zip", b"PK", "no files of records"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_line(name: str, written: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(written)
    with pytest.raises(InputError, match=message) as error:
        list(read_records(str(path)))
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    "written", ['{"text": "a"}\n{"text": 3}\n', '{"text": "a"}\n{"text": " "}\n', '{"text": "a"}\n"b"\n']
)
def test_a_record_without_a_text_is_named(written: str, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(written)
    with pytest.raises(InputError, match="line 2 holds no text"):
        list(read_texts(path))


@pytest.mark.parametrize("name", ["./absent", "/absent", "a/b/c", "lab/rows.jsonl"])
def test_a_path_that_does_not_exist_is_not_looked_for_on_the_hub(name: str) -> None:
    with pytest.raises(InputError, match="There is no folder or file"):
        next(read_records(name))


def test_records_are_not_held_in_memory(tmp_path: Path) -> None:
    """The rest of a file is not looked at before it is asked for."""
    path = tmp_path / "t.jsonl"
    path.write_text('{"a": 1}\n{torn\n')
    records: Any = read_records(str(path))
    assert next(records) == {"a": 1}
