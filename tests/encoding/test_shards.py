from __future__ import annotations

import json
from pathlib import Path

import pytest
from hub import Hub

from st_llm_embed import InputError
from st_llm_embed.encoding.shards import Shard, ShardReader, Texts, cut_into_shards

ROWS = [(f"n{number}", f"text {number}") for number in range(6)]


def jsonl(rows: list[tuple[str, str]]) -> str:
    return "".join(json.dumps({"key": name, "body": text, "other": 1}) + "\n" for name, text in rows)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "t.jsonl"
    path.write_text(jsonl(ROWS))
    return path


def test_texts_are_named_by_a_column_or_their_position(path: Path) -> None:
    assert list(Texts(str(path), "body", "key").rows()) == ROWS
    assert [name for name, _ in Texts(str(path), "body").rows()] == ["0", "1", "2", "3", "4", "5"]


def test_a_folder_of_text_files_has_one_text_each(tmp_path: Path) -> None:
    for name in ("b.txt", "a/deep.md", ".hidden/c.txt", "picture.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"\ufefftext of\n{name}\n")
    assert list(Texts(str(tmp_path)).rows()) == [
        ("a/deep.md", "text of\na/deep.md\n"),
        ("b.txt", "text of\nb.txt\n"),
    ]
    (tmp_path / "b.txt").write_bytes(b"text\n\xff\xfe")
    with pytest.raises(InputError, match=r"b\.txt, line 2 is not UTF-8"):
        list(Texts(str(tmp_path)).rows())
    (tmp_path / "rows.jsonl").write_text(jsonl(ROWS))
    with pytest.raises(InputError, match="both text files and files of records"):
        list(Texts(str(tmp_path)).rows())


def test_a_shards_digest_changes_with_any_text_name_or_place(path: Path) -> None:
    def digests(rows: list[tuple[str, str]]) -> list[str]:
        path.write_text(jsonl(rows))
        shards = cut_into_shards(Texts(str(path), "body", "key"), 4)
        assert [(shard.number, shard.rows) for shard in shards] == [(0, 4), (1, 2)]
        return [shard.digest for shard in shards]

    before = digests(ROWS)
    assert digests(ROWS) == before
    for changed in (("n0", "Text 0"), ("N0", "text 0"), ("n0t", "ext 0")):
        first, second = digests([changed, *ROWS[1:]])
        assert first != before[0]
        assert second == before[1]
    assert digests([*ROWS[:4], ROWS[5], ROWS[4]])[1] != before[1]


def test_shards_are_read_in_any_order_and_refused_when_their_texts_changed(path: Path) -> None:
    texts = Texts(str(path), "body", "key")
    shards = cut_into_shards(texts, 2)
    reader = ShardReader(texts, 2)
    for number in (0, 2, 1, 1):
        assert list(zip(*reader.read(shards[number]), strict=True)) == ROWS[2 * number : 2 * number + 2]
    with pytest.raises(InputError, match="changed while they were encoded"):
        reader.read(Shard(2, 2, "0" * 40))


@pytest.mark.parametrize(
    ("written", "column", "id_column", "message"),
    [
        ("", "body", None, "holds no texts"),
        (jsonl(ROWS), "text", None, "no column 'text' for --column; it has 'key', 'body', 'other'"),
        (jsonl(ROWS), "body", "name", "no column 'name'"),
        (jsonl(ROWS) + '{"key": "g", "body": null}\n', "body", None, "Record 6 .* has the text None"),
        ('{"key": null, "body": "text"}\n', "body", "key", "Record 0 .* the name None"),
        ('{"key": "a", "body": "\\ud800"}\n', "body", "key", "The text a is not Unicode"),
    ],
)
def test_what_cannot_be_encoded_is_named(
    written: str, column: str, id_column: str | None, message: str, path: Path
) -> None:
    path.write_text(written)
    with pytest.raises(InputError, match=message):
        cut_into_shards(Texts(str(path), column, id_column), 10)


@pytest.mark.integration
def test_a_dataset_of_the_hub_is_read_in_its_split(hub: Hub) -> None:
    program = """
import json
from huggingface_hub import HfApi
from st_llm_embed.encoding.shards import Texts

api = HfApi()
api.create_repo("lab/texts", repo_type="dataset")
for split, text in (("train", "rain"), ("test", "sun")):
    data = (json.dumps({"name": "a", "text": text}) + chr(10)).encode()
    api.upload_file(path_or_fileobj=data, path_in_repo=f"{split}.jsonl", repo_id="lab/texts", repo_type="dataset")
print(json.dumps([list(Texts("lab/texts", id_column="name", split=one).rows()) for one in ("train", "test")]))
"""
    assert hub.run(program) == [[["a", "rain"]], [["a", "sun"]]]
