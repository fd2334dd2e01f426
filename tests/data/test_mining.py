from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from sentence_transformers.util import mine_hard_negatives as stock_mining

from st_llm_embed import InputError, LLMSentenceTransformer, run_pipeline
from st_llm_embed.data import nearest, vectors
from st_llm_embed.data.dataset import load_split, to_training, write_dataset
from st_llm_embed.data.mining import mine_dataset
from st_llm_embed.data.nearest import nearest_documents
from st_llm_embed.data.rows import Row
from st_llm_embed.data.vectors import VectorFolder, encoder_with_prompts
from st_llm_embed.recipe import Mining, Recipe
from st_llm_embed.training.adapter import starting_model


def directions(texts: list[str], instructions: list[str] | None) -> np.ndarray:
    """The last number of a text is its direction in degrees, so that a score is the cosine of a difference."""
    del instructions
    angles = np.radians([float(re.findall(r"[\d.]+", text)[-1]) for text in texts])
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def pair(anchor: str, positive: str, negative: str | None = None, **fields: Any) -> Row:
    given = {"instruction": "find", "task_type": "short-short"} | fields
    return Row(anchor=anchor, positive=positive, negative=negative, **given)


def mined(
    rows: Sequence[Row],
    folder: Path,
    encode: vectors.Encode = directions,
    dtype: np.dtype[Any] = vectors.DTYPE,
    **settings: Any,
) -> dict[str, Any]:
    """Mine a dataset of training rows; return the report by configuration."""
    shutil.rmtree(folder / "dataset", ignore_errors=True)
    write_dataset(rows, folder / "dataset", 1e-9)
    mining = Mining(model="directions", **settings)
    counts = mine_dataset(folder / "dataset", mining, VectorFolder(folder / "vectors", encode, "directions", dtype))
    assert counts.total() == len(rows)
    return json.loads((folder / "dataset" / "mining.json").read_text(encoding="utf-8"))["configurations"]


def negatives(folder: Path) -> dict[str, list[str]]:
    """The negatives of each anchor that has some."""
    return {
        row["anchor"]: [row[name] for name in columns.column_names if name.startswith("negative")]
        for columns in load_split(folder / "dataset", "train").values()
        for row in columns
    }


def test_the_nearest_document_that_keeps_the_margins_is_taken(tmp_path: Path) -> None:
    # Of the anchor at 0 degrees the positive scores cos 30 = 0.866, so 95 % of it is the cosine of 34.6 degrees.
    rows = [pair("a 0", "p 30"), pair("b 90", "p 34"), pair("c 180", "p 36"), pair("d 270", "p 50")]
    report = mined(rows, tmp_path)["short-short"]["train"]
    assert negatives(tmp_path)["a 0"] == ["p 36"]
    # One for a, two for b, two for c, whose margin is that of a negative score, and three for d.
    assert report["dropped"]["relative margin"] == 8
    mined(rows, tmp_path / "none", relative_margin=None)
    assert negatives(tmp_path / "none")["a 0"] == ["p 34"]


@pytest.mark.parametrize(
    ("texts", "settings", "expected"),
    [
        # The positive scores cos 120 = -0.5; 0.05 of its size below is cos 121.7, above would be cos 118.4.
        (["a 0 -> p 120", "b 120 -> p 119", "c 120 -> p 125"], {}, ["p 125"]),
        # The least similar positive of an anchor sets the limits.
        (["a 0 -> p 10", "a 0 -> p 60", "b 180 -> p 40", "c 180 -> p 70"], {}, ["p 70"]),
        # Ranks begin after the known positives.
        (
            ["a 0 -> p 10", "A  0 -> p 11", *(f"o{n} 180 -> p {n}" for n in (40, 50, 60, 70))],
            {"range_min": 1, "range_max": 3, "num_negatives": 2},
            ["p 50", "p 60"],
        ),
    ],
)
def test_limits_and_ranks(texts: list[str], settings: dict[str, int], expected: list[str], tmp_path: Path) -> None:
    mined([pair(*text.split(" -> ")) for text in texts], tmp_path, **settings)
    assert negatives(tmp_path)["a 0"] == expected


def test_what_is_known_to_fit_is_never_taken(tmp_path: Path) -> None:
    rows = [
        pair("query 0", "answer 60"),
        pair("Query  0", "another answer 58"),
        pair("other 180", "ANSWER   60"),
        pair("third 180", "QUERY 0"),
        pair("fourth 180", "answer 70"),
        pair("query 0", "under another instruction 65", instruction="find something else"),
    ]
    report = mined(rows, tmp_path, relative_margin=None)["short-short"]["train"]
    found = {
        (row["anchor"], row["instruction"]): row["negative"]
        for row in load_split(tmp_path / "dataset", "train")["short-short"]
    }
    assert found["query 0", "find"] == found["Query  0", "find"] == "under another instruction 65"
    assert found["query 0", "find something else"] == "another answer 58"
    assert report["documents"] == 5


def test_rows_keep_their_own_negative_first_and_their_metadata(tmp_path: Path) -> None:
    rows = [
        pair(f"a{n} 0", f"p {n}", f"n {n + 100}", task_type="short-long", language="de", key=f"key {n}")
        for n in range(10, 20)
    ]
    report = mined(rows, tmp_path, num_negatives=3, relative_margin=None)
    [(name, written)] = load_split(tmp_path / "dataset", "train").items()
    assert name == "short-long"
    assert written.column_names[:6] == ["anchor", "positive", "negative_1", "negative_2", "negative_3", "instruction"]
    for row, given in zip(written, rows, strict=True):
        assert (row["anchor"], row["positive"], row["key"]) == (given.anchor, given.positive, given.key)
        assert row["language"] == "de"
        assert row["negative_1"] == given.negative
        assert len({given.positive, row["negative_1"], row["negative_2"], row["negative_3"]}) == 4
    training = to_training(written)
    assert training.column_names == ["anchor", "positive", "negative_1", "negative_2", "negative_3", "instruction"]
    assert report["short-long"]["train"]["filled"] == 10


def test_every_row_ends_in_a_configuration_without_gaps(tmp_path: Path) -> None:
    # All others are nearer to the anchor at 0 than its positive; one is not for the anchor at 5.
    rows = [pair("a 0", "p 80"), pair("b 5", "p 40"), *(pair(f"o{n} {n}", f"p {n}") for n in (10, 20, 30))]
    report = mined(rows, tmp_path, num_negatives=2)["short-short"]["train"]
    parts = load_split(tmp_path / "dataset", "train")
    assert {name: part["anchor"][:] for name, part in parts.items()} == {
        "short-short": ["o10 10", "o20 20", "o30 30"],
        "short-short-pairs": ["a 0"],
        "short-short-triplets": ["b 5"],
    }
    assert [report[name] for name in ("rows", "had_enough", "filled", "partly", "without")] == [5, 0, 3, 1, 1]
    for part in parts.values():
        assert all(text for row in to_training(part) for text in row.values())


def test_rows_with_and_without_a_negative_come_together(tmp_path: Path) -> None:
    rows = [pair(f"a{n} 0", f"p {n}", "n 150" if n % 2 else None, task_type="sts") for n in range(10, 80, 5)]
    report = mined(rows, tmp_path)["sts"]["train"]
    assert (report["had_enough"], report["rows"]) == (7, 14)
    parts = load_split(tmp_path / "dataset", "train")
    assert set(parts) == {"sts", "sts-pairs"} - ({"sts-pairs"} if report["without"] == 0 else set())
    own = {row["anchor"]: row["negative"] for row in parts["sts"]}
    assert all(own[row.anchor] == "n 150" for row in rows if row.negative)


def test_a_dataset_whose_rows_have_enough_stays_as_it_is(tmp_path: Path) -> None:
    rows = [pair(f"a{n} 0", f"p {n}", f"n {n + 90}", task_type="sts") for n in range(10)]

    def encode(*_: Any) -> np.ndarray:
        raise AssertionError("nothing is to be encoded")

    assert mined(rows, tmp_path, encode) == {}
    assert load_split(tmp_path / "dataset", "train")["sts"]["negative"][:] == [row.negative for row in rows]


def test_documents_of_another_configuration_or_split_are_no_candidates(tmp_path: Path) -> None:
    rows = [
        pair(
            f"{task_type} {n}", f"{task_type} of {instruction} {n + 20}", instruction=instruction, task_type=task_type
        )
        for task_type in ("short-short", "long-long")
        for instruction in ("find", "seek", "look", "search", "match", "get")
        for n in range(0, 90, 9)
    ]
    write_dataset(rows, tmp_path / "dataset", 0.5)
    mining = Mining(model="directions", relative_margin=None)
    mine_dataset(tmp_path / "dataset", mining, VectorFolder(tmp_path / "vectors", directions, "directions"))
    for split in ("train", "validation"):
        parts = load_split(tmp_path / "dataset", split)
        assert set(parts) == {"short-short", "long-long"}
        for part in parts.values():
            assert set(part["negative"][:]) <= set(part["positive"][:])


def test_random_negatives_keep_the_limits_and_do_not_depend_on_the_order(tmp_path: Path) -> None:
    # No two documents are equally near to an anchor.
    rows = [pair(f"a{n} {n}", f"p {n}.3") for n in range(0, 170, 2)]
    settings = {"sampling_strategy": "random", "range_max": 12, "num_negatives": 2, "relative_margin": None}
    mined(rows, tmp_path / "one", **settings)
    mined(rows[::-1], tmp_path / "other", **settings)
    mined(rows, tmp_path / "top", **(settings | {"sampling_strategy": "top"}))
    mined(rows, tmp_path / "all", **(settings | {"sampling_strategy": "top", "num_negatives": 12}))
    one, top, allowed = (negatives(tmp_path / name) for name in ("one", "top", "all"))
    assert one == negatives(tmp_path / "other")
    assert sum(one[anchor] != top[anchor] for anchor in one) > len(rows) / 2
    assert all(set(one[anchor]) <= set(allowed[anchor]) for anchor in one)


def test_the_choice_is_that_of_stock_where_stock_can(tmp_path: Path, tiny_base: Path) -> None:
    model = LLMSentenceTransformer.from_base(str(tiny_base), max_seq_length=48)
    rows = [pair(f"question {n} of {n % 5}", f"reply {n * 7} about {n % 6}") for n in range(40)]

    def encode(texts: list[str], instructions: list[str] | None) -> np.ndarray:
        return model.encode_query(texts, instruction=instructions) if instructions else model.encode_document(texts)

    settings: dict[str, Any] = {"num_negatives": 3, "range_max": 40, "relative_margin": 0.01}
    # The scores of a random model lie so close together that float16 changes their order.
    mined(rows, tmp_path, encode, np.dtype(np.float32), **settings)
    pairs = Dataset.from_dict({"anchor": [row.anchor for row in rows], "positive": [row.positive for row in rows]})
    prompt = "Instruct: find\nQuery: "
    stock = stock_mining(pairs, model, query_prompt=prompt, output_format="n-tuple", verbose=False, **settings)
    ours = load_split(tmp_path / "dataset", "train")["short-short"]
    names = ["anchor", "positive", "negative_1", "negative_2", "negative_3"]
    assert [[row[name] for name in names] for row in ours] == [[row[name] for name in names] for row in stock]
    assert 10 < len(ours) < 40


def test_search_in_tiles_equals_all_scores_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nearest, "QUERIES_AT_ONCE", 7)
    monkeypatch.setattr(nearest, "DOCUMENTS_AT_ONCE", 11)
    drawn = np.random.default_rng(0)
    queries, documents = (drawn.standard_normal((count, 8)).astype(np.float16) for count in (30, 50))
    chosen = np.sort(drawn.choice(30 * 50, 200, replace=False))
    excluded = chosen // 50, chosen % 50
    scores = queries.astype(np.float32) @ documents.astype(np.float32).T
    scores[excluded] = -np.inf
    expected = np.argsort(-scores, axis=1)[:, :13]
    found = np.concatenate([places for _, _, places in nearest_documents(queries, documents, excluded, 13)])
    np.testing.assert_array_equal(found, expected)
    more = np.concatenate([part for _, part, _ in nearest_documents(queries, documents, excluded, 60)])
    assert (np.isfinite(more).sum(axis=1) == np.isfinite(scores).sum(axis=1)).all()


@pytest.mark.parametrize("torn_bytes", [0, 3])
def test_a_killed_run_encodes_only_what_is_left(
    torn_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vectors, "TEXTS_AT_ONCE", 8)
    rows = [pair(f"a{n} {n}", f"p {n + 20}") for n in range(30)]
    mined(rows, tmp_path / "whole")
    calls: list[list[str]] = []

    def dies(texts: list[str], instructions: list[str] | None) -> np.ndarray:
        calls.append(texts)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return directions(texts, instructions)

    with pytest.raises(KeyboardInterrupt):
        mined(rows, tmp_path / "killed", dies)
    assert len(load_split(tmp_path / "killed" / "dataset", "train")["short-short"]) == 30
    [file] = (tmp_path / "killed" / "vectors").iterdir()
    with file.open("ab") as torn:
        torn.write(b"x" * torn_bytes)
    mined(rows, tmp_path / "killed", dies)
    # 4 calls for the documents, one of them repeated, and 4 for the queries
    assert [len(texts) for texts in calls] == [8, 8, 8, 8, 6, 8, 8, 8, 6]
    mined(rows, tmp_path / "killed", dies)
    assert len(calls) == 9, "vectors that are on disk are not computed again"
    assert negatives(tmp_path / "killed") == negatives(tmp_path / "whole")


def test_vectors_that_are_not_finite_are_refused_and_the_rows_stay(tmp_path: Path) -> None:
    def broken(texts: list[str], instructions: list[str] | None) -> np.ndarray:
        return directions(texts, instructions) * np.nan

    with pytest.raises(InputError, match=r"are not finite for 3 of 3 texts.*'p 10'") as error:
        mined([pair("a 0", "p 10"), pair("b 0", "p 11"), pair("c 0", "p 12")], tmp_path, broken)
    assert len(str(error.value).splitlines()) == 1
    assert load_split(tmp_path / "dataset", "train")["short-short"]["positive"][:] == ["p 10", "p 11", "p 12"]


def test_each_anchor_is_encoded_under_its_own_instruction_or_the_given_prompt(
    tiny_recipe: Path, tmp_path: Path
) -> None:
    rows = [pair(f"question {n}", f"answer {n}", instruction=f"find number {n % 3}") for n in range(12)]
    for name, prompts, query, document in (
        ("own", "", "Instruct: find number 1\nQuery: question 1", "answer 1"),
        ("given", ", query_prompt: 'query: ', document_prompt: 'passage: '", "query: question 1", "passage: answer 1"),
    ):
        recipe = Recipe.load(str(tiny_recipe), [f"data.mining={{model: base, relative_margin: null{prompts}}}"])
        assert recipe.data.mining is not None
        write_dataset(rows, tmp_path / name, 1e-9)
        model = starting_model(recipe)
        vectors = VectorFolder(tmp_path / f"{name} vectors", encoder_with_prompts(model, recipe.data.mining), "tiny")
        mine_dataset(tmp_path / name, recipe.data.mining, vectors)
        expected = model.encode([query, document]).astype(np.float32)
        files = (tmp_path / f"{name} vectors").iterdir()
        kept = [np.fromfile(file, dtype=np.float16).reshape(12, 32)[1].astype(np.float32) for file in files]
        for vector in expected:
            assert min(np.abs(vector - one).max() for one in kept) < 1e-3


def test_a_run_trains_on_mined_negatives_and_keeps_the_vectors(tiny_recipe: Path, tmp_path: Path) -> None:
    settings = ["training.max_steps=2", "data.mining={model: base, num_negatives: 2, relative_margin: null}"]
    run_pipeline(Recipe.load(str(tiny_recipe), settings), tmp_path / "out")
    parts = load_split(tmp_path / "out" / "dataset", "train")
    assert {name: to_training(part).column_names[2:-1] for name, part in parts.items()} == {
        name: ["negative_1", "negative_2"] for name in ("bitext", "short-long", "short-short", "sts")
    }
    card = (tmp_path / "out" / "dataset" / "README.md").read_text(encoding="utf-8")
    assert "## Mined hard negatives" in card
    assert f"| short-short | train | {len(parts['short-short'])} | {len(parts['short-short'])} | 0 | 0 | 0 |" in card
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "vectors").iterdir()}
    run_pipeline(Recipe.load(str(tiny_recipe), [*settings, "data.mining.relative_margin=0.05"]), tmp_path / "out")
    assert kept == {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "vectors").iterdir()}
    report = json.loads((tmp_path / "out" / "dataset" / "mining.json").read_text(encoding="utf-8"))
    assert report["settings"]["relative_margin"] == 0.05
