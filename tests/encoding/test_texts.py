from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub import Hub

from st_llm_embed import InputError
from st_llm_embed.encoding.texts import Texts, cut_into_shards

ROWS = [
    ("a", "first"),
    ("b", "NA"),
    ("c", "12"),
    ("d", ""),
    ("e", 'with "quotes",\ncommas\tand lines'),
    ("f", "Größe"),
]


def jsonl(rows: list[tuple[str, str]]) -> str:
    return "".join(json.dumps({"key": name, "body": text, "other": 1}) + "\n" for name, text in rows)


def csv(rows: list[tuple[str, str]], separator: str = ",") -> str:
    quoted = [separator.join('"' + part.replace('"', '""') + '"' for part in row) for row in [("key", "body"), *rows]]
    return "\n".join(quoted) + "\n"


def write(path: Path) -> Path:
    name = path.name
    if name.endswith(".parquet"):
        pq.write_table(pa.table({"key": [one for one, _ in ROWS], "body": [text for _, text in ROWS]}), path)
    else:
        content = jsonl(ROWS) if "json" in name else csv(ROWS, "\t" if "tsv" in name else ",")
        path.write_bytes(gzip.compress(content.encode()) if name.endswith(".gz") else content.encode())
    return path


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.gz", "t.parquet", "t.csv", "t.csv.gz", "t.tsv"])
def test_files_of_every_kind_give_the_same_texts(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / name)
    texts = Texts(str(path), column="body", id_column="key")
    assert list(texts.rows()) == ROWS
    assert list(texts.rows()) == ROWS
    assert [key for key, _ in Texts(str(path), column="body").rows()] == ["0", "1", "2", "3", "4", "5"]


def test_a_folder_of_files_of_records_is_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    for part, rows in (("b", ROWS[:2]), ("a/z", ROWS[2:4]), ("c", ROWS[4:])):
        path = tmp_path / f"{part}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text(jsonl(rows))
    assert list(Texts(str(tmp_path), "body", "key").rows()) == [*ROWS[2:4], *ROWS[:2], *ROWS[4:]]


def test_a_folder_of_text_files_gives_one_text_each(tmp_path: Path) -> None:
    for name in ("b.txt", "a/deep.md", ".hidden/c.txt", "picture.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"text of {name}\n")
    assert list(Texts(str(tmp_path)).rows()) == [
        ("a/deep.md", "text of a/deep.md\n"),
        ("b.txt", "text of b.txt\n"),
    ]
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"b\.txt cannot be read.*UTF-8"):
        list(Texts(str(tmp_path)).rows())
    (tmp_path / "rows.jsonl").write_text(jsonl(ROWS))
    with pytest.raises(InputError, match="both text files and files of records"):
        list(Texts(str(tmp_path)).rows())


def test_a_shards_digest_changes_with_any_text_name_or_place(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"

    def digests(rows: list[tuple[str, str]]) -> list[str]:
        path.write_text(jsonl(rows))
        shards = cut_into_shards(Texts(str(path), "body", "key"), 4)
        assert [(shard.number, shard.rows) for shard in shards] == [(0, 4), (1, 2)]
        return [shard.digest for shard in shards]

    before = digests(ROWS)
    assert digests(ROWS) == before
    for changed in (("a", "First"), ("A", "first"), ("af", "irst")):
        first, second = digests([changed, *ROWS[1:]])
        assert first != before[0]
        assert second == before[1]
    assert digests([*ROWS[:4], ROWS[5], ROWS[4]])[1] != before[1]


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"

    def refusal(texts: Texts) -> str:
        with pytest.raises(InputError) as refused:
            cut_into_shards(texts, 10)
        return str(refused.value)

    path.write_text(jsonl(ROWS))
    assert "no column 'text'; it has 'key', 'body', 'other'" in refusal(Texts(str(path)))
    assert "no column 'name'" in refusal(Texts(str(path), "body", "name"))
    path.write_text(jsonl(ROWS) + '{"key": "g", "body": null}\n')
    assert "Record 6" in refusal(Texts(str(path), "body"))
    path.write_text("{torn\n")
    assert "cannot be read" in refusal(Texts(str(path)))
    path.write_text("")
    assert str(path) in refusal(Texts(str(path)))
    assert "There is no folder or file ./absent.jsonl" in refusal(Texts("./absent.jsonl"))
    (tmp_path / "empty").mkdir()
    assert "holds no texts" in refusal(Texts(str(tmp_path / "empty")))


@pytest.mark.integration
def test_a_dataset_of_the_hub_is_read_at_its_revision(hub: Hub) -> None:
    program = """
import json
from huggingface_hub import HfApi
from st_llm_embed.encoding.texts import Texts

api = HfApi()
api.create_repo("lab/texts", repo_type="dataset")
def commit(text):
    data = (json.dumps({"name": "a", "text": text}) + chr(10)).encode()
    return api.upload_file(
        path_or_fileobj=data, path_in_repo="train.jsonl", repo_id="lab/texts", repo_type="dataset"
    ).oid

first = commit("rain")
commit("sun")
print(json.dumps([list(Texts("lab/texts", id_column="name", revision=one).rows()) for one in (first, None)]))
"""
    assert hub.run(program) == [[["a", "rain"]], [["a", "sun"]]]
