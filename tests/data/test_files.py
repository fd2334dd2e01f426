from __future__ import annotations

import gzip
import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

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
        ("t.csv", b'a,b\n1,"open\n2,3\n', "cannot be read: unexpected end of data"),
        ("t.csv", b"a,b,a\n1,2,3\n", "two columns of one name"),
        ("t.arrow", b"ARROW1", "cannot be read"),
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


def test_only_the_columns_that_are_needed_are_read(tmp_path: Path) -> None:
    """The reader of one column does not see what is wrong with another: here, one of a type without a text."""
    table = pa.table({"q": ["007", None], "other": pa.array([b"\xff", b""], pa.large_binary())})
    pq.write_table(table, tmp_path / "t.parquet")
    with pa.OSFile(str(tmp_path / "t.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    for name in ("t.parquet", "t.arrow"):
        read = partial(read_records, str(tmp_path / name))
        assert list(read(columns=["q"])) == [{"q": "007"}, {"q": None}]
        assert [list(record) for record in read(columns=["absent"])] == [["q", "other"]] * 2


@pytest.mark.parametrize("form", ["dataset", "dict"])
def test_a_saved_dataset_is_read(form: str, tmp_path: Path) -> None:
    dataset = Dataset.from_list(RECORDS)
    saved: Any = dataset if form == "dataset" else DatasetDict({"train": dataset, "test": dataset.select([0])})
    saved.save_to_disk(str(tmp_path / "saved"), **({"num_shards": 2} if form == "dataset" else {}))
    assert list(read_records(str(tmp_path / "saved"))) == RECORDS
    if form == "dict":
        assert list(read_records(str(tmp_path / "saved"), split="test")) == RECORDS[:1]
        with pytest.raises(InputError, match="has no split 'dev'; it has train, test"):
            next(read_records(str(tmp_path / "saved"), split="dev"))


def test_a_beir_folder_is_named_with_what_to_do(tmp_path: Path) -> None:
    for name in ("corpus.jsonl", "queries.jsonl.gz", "qrels/test.tsv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    with pytest.raises(InputError, match=r"is a BEIR folder.* evaluate MODEL --data .*write a \.jsonl file of rows"):
        next(read_records(str(tmp_path)))


def test_a_name_that_is_not_utf8_is_one_message(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    path = write(folder / "t.jsonl")
    for read in (lambda: next(read_records(str(path))), lambda: next(read_records(str(folder)))):
        with pytest.raises(InputError, match=r"caf\\udce9.* is not UTF-8\. Rename it") as error:
            read()
        assert str(error.value).encode()


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ('{"text": " "}', "line 2 holds no text"),
        ('"b"', "line 2 holds no text"),
        ('{"other": "a"}', "line 2 holds no text"),
        ('{"text": null}', "line 2 holds no text"),
        ('{"text": 3.5}', r"line 2: text is 3\.5, and a text is expected"),
        ('{"text": true}', "line 2: text is True, and a text is expected"),
        ('{"text": ["a"]}', r"line 2: text is the list \['a'\].* the first by \{text\[0\]\}"),
        ('{"text": "half \\ud83d"}', r"line 2: text is 'half \\ud83d', which holds half of a surrogate pair"),
    ],
)
def test_a_record_without_a_text_is_named(record: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text(f'{{"text": "a"}}\n{record}\n')
    with pytest.raises(InputError, match=message):
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
