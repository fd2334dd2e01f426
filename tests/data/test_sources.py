from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from hub import Hub

from st_llm_embed import InputError, Recipe
from st_llm_embed.data.dataset import load_split, to_training, write_source
from st_llm_embed.data.sources import check_source, read_source
from st_llm_embed.instructions import TRAINING_SET_INSTRUCTIONS
from st_llm_embed.recipe import Source

PASSAGES = {
    "query_id": "1",
    "query": "what is rain",
    "positive_passages": [{"docid": "1", "title": "Rain", "text": "Rain is water."}],
    "negative_passages": [{"docid": "2", "title": "Snow", "text": "Snow is cold."}],
}
TRIPLET = {"anchor": "what is rain", "positive": "Rain is water.", "negative": "Snow is cold."}
SHAPES: dict[str, dict[str, Any]] = {
    "eli5": {"question": "what is rain", "answer": "Rain is water."},
    "hotpotqa": TRIPLET,
    "fever": {"query": "what is rain", "pos": ["Rain is water."], "neg": ["Snow is cold.", "Ice is hard."]},
    "miracl": TRIPLET,
    "msmarco-passage": PASSAGES,
    "msmarco-document": {
        "query": "what is rain",
        "pos": ["Rain is water."],
        "neg": ["Snow is cold."],
        "category": "retrieval",
        "type": "symmetric_retrieval",
        "prompt": "Given a query, retrieve documents.",
        "pos_scores": [0.9],
        "neg_scores": [0.1],
    },
    "nq": PASSAGES | {"answers": ["water"]},
    "nli": TRIPLET,
    "squad": {
        "id": "1",
        "title": "Rain",
        "context": "Rain is water.",
        "question": "what is rain",
        "answers": {"text": ["water"], "answer_start": [8]},
    },
    "triviaqa": {"query": "what is rain", "answer": "Rain is water."},
    "quora": TRIPLET,
    "mr-tydi": TRIPLET,
    "dureader": TRIPLET,
    "t2ranking": TRIPLET,
}
"""One record of each set of the paper in the shape it has on the Hub."""


def local(file: Path, **fields: Any) -> Source:
    defaults = {"columns": {"anchor": "q", "positive": "p"}, "instruction": "Find it.", "license": "cc0-1.0"}
    return Source.model_validate({"path": str(file)} | defaults | fields)


def written(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_the_recipe_of_the_paper_has_its_thirteen_sets_and_ms_marcos_documents() -> None:
    assert Recipe.load("e5-mistral-7b").data.sources.keys() == SHAPES.keys()


@pytest.mark.parametrize("name", SHAPES)
def test_a_set_of_the_paper_is_mapped(name: str, tmp_path: Path) -> None:
    source = Recipe.load("e5-mistral-7b").data.sources[name]
    path = written(tmp_path / "train.jsonl", [SHAPES[name]] * 40)
    rows = list(read_source(name, source.model_copy(update={"path": str(path)})))
    assert 0 < len(rows) <= 40
    assert {(row.anchor, row.positive) for row in rows} == {("what is rain", "Rain is water.")}
    assert {row.negative for row in rows} == {"Snow is cold." if "negative" in source.columns else None}
    assert {row.instruction for row in rows} == set(TRAINING_SET_INSTRUCTIONS[name])


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.parquet"])
def test_texts_are_the_characters_of_the_file(name: str, tmp_path: Path) -> None:
    texts = ["0012345", "1e5", "NA", "null", "None", "2024-01-01", "TRUE"]
    match Path(name).suffix:
        case ".csv":
            lines = ["q,a,unused", *(f"{text},{text},{'' if text == 'NA' else 1}" for text in texts), "blank,,2"]
            (tmp_path / name).write_text("\n".join(lines))
        case ".jsonl":
            written(tmp_path / name, [{"q": text, "a": text, "unused": None} for text in texts])
        case _:
            pq.write_table(pa.table({"q": texts, "a": texts, "unused": pa.nulls(len(texts))}), tmp_path / name)
    rows = read_source("mine", local(tmp_path / name, columns={"anchor": "q", "positive": "{a}!"}))
    assert [(row.anchor, row.positive) for row in rows if row.anchor != "blank"] == [(one, one + "!") for one in texts]


def test_a_null_in_a_template_is_no_text_and_whole_numbers_are_digits(tmp_path: Path) -> None:
    path = written(tmp_path / "t.jsonl", [{"q": 7, "title": None, "text": "rain"}])
    [row] = read_source("mine", local(path, columns={"anchor": "q", "positive": "{title} {text}"}))
    assert (row.anchor, row.positive) == ("7", "rain")


def test_a_larger_ratio_keeps_what_a_smaller_one_had(tmp_path: Path) -> None:
    path = written(tmp_path / "pairs.jsonl", [{"q": f"q {n}", "p": f"p {n}"} for n in range(2_000)])
    some, more = ({row.anchor for row in read_source("pairs", local(path, ratio=r))} for r in (0.1, 0.5))
    assert some < more
    assert 150 < len(some) < 250
    assert 900 < len(more) < 1_100


def test_records_without_texts_are_omitted_and_negatives_may_be_missing(tmp_path: Path) -> None:
    records = [
        {"q": "a", "p": "b", "n": "c"},
        {"q": "a", "p": "  ", "n": "c"},
        {"q": None, "p": "b", "n": "c"},
        {"q": "a", "p": "b", "n": None},
        {"q": "a", "p": "b", "n": "b"},
        {"q": "a", "p": "New York", "n": " new  york"},
    ]
    path = written(tmp_path / "pairs.jsonl", records)
    columns = {"anchor": "q", "positive": "p", "negative": "n"}
    rows = list(read_source("pairs", local(path, columns=columns)))
    assert [(row.anchor, row.positive, row.negative) for row in rows] == [("a", "b", "c"), ("a", "b", None)]
    counts = write_source(rows, tmp_path / "data", "pairs", with_negatives=True)
    assert counts == {("pairs", "train"): 1, ("pairs-pairs", "train"): 1}
    splits = load_split(tmp_path / "data", "train")
    assert to_training(splits["pairs"]).to_dict() == {
        "anchor": ["a"],
        "positive": ["b"],
        "negative": ["c"],
        "instruction": ["Find it."],
    }
    assert splits["pairs-pairs"].column_names[:2] == ["anchor", "positive"]
    assert isinstance(splits["pairs-pairs"], Dataset)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"columns": {"anchor": "query", "positive": "p"}}, "which the record does not have"),
        ({"columns": {"anchor": "q", "positive": "{p[text]}"}}, "which the record does not have"),
        ({"path": "./missing.jsonl"}, "There is no folder or file"),
        ({"columns": {"anchor": "q", "positive": "{p"}}, "which the record does not have"),
        ({"columns": {"anchor": "q", "positive": "l"}}, r"record 1: l is the list \['one'\].* \{l\[0\]\}"),
        ({"columns": {"anchor": "{q} {l}", "positive": "p"}}, r"record 1: l is the list \['one'\].* \{l\[0\]\}"),
        ({"columns": {"anchor": "q", "positive": "f"}}, r"record 1: f is 100000\.0, and a text is expected"),
        ({"columns": {"anchor": "h", "positive": "p"}}, "half of a surrogate pair"),
        ({"language": "Elvish"}, "its language is 'Elvish'; allowed are a BCP-47 code"),
        ({"language": "en_US"}, "its language is 'en_US'"),
        ({"instruction": None}, "has no instruction"),
    ],
)
def test_what_cannot_be_used_is_named(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    record = {"q": "a", "p": "b", "l": ["one"], "f": 1e5, "h": "half \ud83d"}
    path = written(tmp_path / "pairs.jsonl", [record])
    with pytest.raises(InputError, match=message):
        check_source("pairs", local(path, **fields))


def test_a_source_needs_pairs_and_a_name_of_its_own(tmp_path: Path) -> None:
    path = written(tmp_path / "pairs.jsonl", [{"q": "", "p": "b"}])
    with pytest.raises(InputError, match="has no rows"):
        check_source("pairs", local(path))
    with pytest.raises(InputError, match="name is taken"):
        check_source("sts", local(path))
    with pytest.raises(InputError, match="cannot be loaded"):
        list(read_source("pairs", local(Path("lab/pairs")).model_copy(update={"file": "train.zip"})))
    with pytest.raises(ValueError, match="anchor and positive are needed"):
        local(path, columns={"anchor": "q"})


@pytest.mark.integration
def test_files_of_a_repository_with_a_loading_script_are_read_at_their_commit(hub: Hub) -> None:
    program = """
import gzip, json
from huggingface_hub import CommitOperationAdd, HfApi
from st_llm_embed.data.sources import read_source
from st_llm_embed.recipe import Source

def lines(text):
    return gzip.compress(json.dumps({"q": "what is rain", "p": [{"text": text}]}).encode())

api = HfApi()
api.create_repo("lab/scripted", repo_type="dataset")
def commit(**files):
    operations = [CommitOperationAdd(name.replace("__", "/").replace("_", "."), data) for name, data in files.items()]
    return api.create_commit("lab/scripted", operations, commit_message="Add", repo_type="dataset").oid

first = commit(scripted_py=b"raise SystemExit", parts__a1_jsonl_gz=lines("Rain is water."), parts__b_txt=b"no")
commit(parts__a2_jsonl_gz=lines("Rain is wet."))
found = []
for revision in (first, None):
    source = Source(
        path="lab/scripted", file="parts/a*.jsonl.gz", revision=revision, instruction="Find it.", license="cc0-1.0",
        columns={"anchor": "q", "positive": "{p[0][text]}"},
    )
    found.append(sorted(row.positive for row in read_source("rain", source)))
print(json.dumps(found))
"""
    assert hub.run(program) == [["Rain is water."], ["Rain is water.", "Rain is wet."]]
