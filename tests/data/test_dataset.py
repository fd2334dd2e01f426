from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import example_rows, write_rows
from datasets import Dataset, load_dataset

from st_llm_embed import InputError, Recipe
from st_llm_embed.data.dataset import check_rows, load_split, to_training, write_dataset
from st_llm_embed.data.rows import Row, fold, read_rows, rows_file
from st_llm_embed.data.split import HOLD_OUTS, Split, Splitter
from st_llm_embed.publishing.dataset_card import dataset_card
from st_llm_embed.recipe import Data, HoldOut

SPLITS: tuple[Split, ...] = ("train", "validation")


def test_embedded_rows_are_split_by_instruction_with_nothing_lost(tmp_path: Path) -> None:
    rows = list(read_rows(rows_file("embedded")))
    counts = write_dataset(rows, tmp_path, 0.2)
    assert counts.total() == len(rows)
    assert json.loads((tmp_path / "split.json").read_text())["hold_out"] == "instruction"
    train, validation = load_split(tmp_path, "train"), load_split(tmp_path, "validation")
    assert set(train) == set(validation) == {row.task_type for row in rows}

    def of(split: dict[str, Dataset], column: str) -> set[str]:
        return {fold(row[column]) for part in split.values() for row in part}

    assert not of(train, "instruction") & of(validation, "instruction")
    assert of(train, "key") | of(validation, "key") == {row.key for row in rows}
    assert 0.15 < len(of(validation, "key")) / len(rows) < 0.25


def crowded_rows(count: int = 400) -> list[Row]:
    """Few texts, which differ in case and spacing, in many roles, and labels."""
    drawn = random.Random(0)  # noqa: S311

    def text() -> str:
        return drawn.choice(("text {}", " TEXT  {}", "Text {} ")).format(int(drawn.expovariate(0.01)))

    rows = []
    while len(rows) < count:
        anchor, positive, negative = text(), text(), drawn.choice((None, text()))
        if negative is None or fold(negative) != fold(positive):
            given = {"instruction": f"find {drawn.randrange(40)}", "document": f"document {drawn.randrange(90)}"}
            rows.append(Row(anchor=anchor, positive=positive, negative=negative, **given))
    labels = {"instruction": "sort", "task_type": "long-short", "document": "labelled"}
    return [*rows, *(Row(anchor=f"long {n}", positive=f"label {n % 3}", **labels) for n in range(count // 4))]


@pytest.mark.parametrize("hold_out", [None, *HOLD_OUTS])
@pytest.mark.parametrize("fraction", [0.05, 0.2, 0.5])
def test_no_text_is_in_both_parts(hold_out: HoldOut | None, fraction: float, tmp_path: Path) -> None:
    rows = crowded_rows()
    write_dataset(rows, tmp_path, fraction, hold_out)
    parts: dict[Split, list[dict[str, Any]]] = {
        split: [row for part in load_split(tmp_path, split).values() for row in part] for split in SPLITS
    }

    def texts(split: Split, *columns: str) -> set[str]:
        unlabelled = [row for row in parts[split] if row["task_type"] != "long-short"]
        return {fold(row[column]) for row in unlabelled for column in columns if row.get(column)}

    columns = ("anchor", "positive", "negative")
    assert texts("validation", *columns)
    assert not texts("train", *columns) & texts("validation", *columns)
    report = json.loads((tmp_path / "split.json").read_text())
    assert report["hold_out"] == hold_out or hold_out is None
    if hold_out is not None:
        assert not texts("train", hold_out) & texts("validation", hold_out)
    written = {row["key"] for split in SPLITS for row in parts[split]}
    assert len({row.key for row in rows}) - len(written) <= report["omitted"]["rows"]
    kept = {row["key"] for row in parts["validation"]}
    assert len(kept) > 0
    assert all(row.get("negative", True) for split in SPLITS for row in parts[split])


def test_a_dataset_with_one_instruction_is_held_out_by_what_loses_few_rows(tmp_path: Path) -> None:
    def held_out(positives: int, anchors: int) -> tuple[str, float]:
        rows = [
            Row(anchor=f"question {n % anchors}", positive=f"answer {n % positives}", instruction="Find it.")
            for n in range(200)
        ]
        shutil.rmtree(tmp_path, ignore_errors=True)
        counts = write_dataset(rows, tmp_path, 0.2)
        share = counts["short-long-pairs", "validation"] / 200
        return json.loads((tmp_path / "split.json").read_text())["hold_out"], share

    for positives, anchors, expected in ((200, 200, "anchor"), (40, 200, "positive"), (200, 40, "anchor")):
        choice, share = held_out(positives, anchors)
        assert (choice, 0.1 < share < 0.4) == (expected, True)


def test_the_part_of_a_row_does_not_depend_on_others() -> None:
    rows = [
        Row(anchor=f"q {n}", positive=f"p {n}", instruction=f"find {n % 30}", document=f"d {n}") for n in range(90)
    ]
    for hold_out in HOLD_OUTS:
        few, many = Splitter(), Splitter()
        for row in rows:
            many.add(row)
        for row in rows[::3]:
            few.add(row)
        assert many.parts(0.3, hold_out).held[::3].tolist() == few.parts(0.3, hold_out).held.tolist()


def test_rows_of_another_shape_than_their_types_get_a_configuration_of_their_own(tmp_path: Path) -> None:
    rows = [
        Row(anchor=f"a{number}", positive="b", negative=negative, instruction=f"i{number}", task_type=task_type)
        for number in range(40)
        for task_type, negative in (("sts", "n"), ("sts", None), ("short-short", None), ("short-short", "n"))
    ]
    write_dataset(rows, tmp_path, 0.3)
    assert sorted(load_split(tmp_path, "train")) == ["short-short", "short-short-triplets", "sts", "sts-pairs"]


def test_training_columns_are_the_texts_and_the_instruction(tmp_path: Path) -> None:
    write_dataset((Row.model_validate(row) for row in example_rows()), tmp_path, 0.4)
    for name, dataset in load_split(tmp_path, "train").items():
        texts = ["anchor", "positive"] if name == "short-short" else ["anchor", "positive", "negative"]
        training = to_training(dataset)
        assert dataset.column_names[: len(texts) + 1] == training.column_names == [*texts, "instruction"]
        assert training[:] == dataset.select_columns(training.column_names)[:]


@pytest.mark.parametrize("column", ["anchor", "positive", "negative_2", "instruction"])
@pytest.mark.parametrize(("text", "told"), [(None, "null"), ("", "empty"), (" \n", "empty")])
def test_a_missing_text_is_refused_with_the_key_of_its_row(column: str, text: str | None, told: str) -> None:
    texts = {name: [f"{name} {row}" for row in range(5000)] for name in ("anchor", "positive", "negative_1")}
    texts |= {"negative_2": texts["negative_1"], "instruction": texts["anchor"]}
    assert to_training(Dataset.from_dict(texts)).column_names == list(texts)
    texts[column] = [*texts[column][:4321], text, *texts[column][4322:]]
    keys = {"key": [f"key-{row}" for row in range(5000)]}
    with pytest.raises(InputError, match=f"The {column} of training row key-4321 is {told}"):
        to_training(Dataset.from_dict(texts | keys))
    with pytest.raises(InputError, match=f"The {column} of training row 4321 is {told}"):
        to_training(Dataset.from_dict(texts))


def test_the_folder_loads_as_a_hub_dataset_by_configuration(tmp_path: Path) -> None:
    counts = write_dataset((Row.model_validate(row) for row in example_rows()), tmp_path / "data", 0.4)
    card = dataset_card(Recipe.load("demo"), tmp_path / "data", counts)
    (tmp_path / "data" / "README.md").write_text(card, encoding="utf-8")
    for config in ("short-long", "sts", "bitext", "short-short"):
        loaded = load_dataset(str(tmp_path / "data"), config, cache_dir=str(tmp_path / "cache"))
        assert {split: len(loaded[split]) for split in loaded} == {
            split: counts[config, split] for split in ("train", "validation")
        }


@pytest.mark.parametrize(
    ("changed", "data", "told"),
    [
        ({"anchor": "a", "positive": "p", "negative": "n"}, {}, "puts all 12 rows"),
        ({"instruction": "always the same"}, {"hold_out": "instruction"}, "another data.hold_out"),
        ({}, {"hold_out": "document"}, "12 of 12 rows have no document"),
    ],
)
def test_a_file_that_cannot_be_split_is_refused(
    changed: dict[str, str], data: dict[str, str], told: str, tmp_path: Path
) -> None:
    rows = [row | changed for row in example_rows() if row["task_type"] == "sts"]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    with pytest.raises(InputError, match=told):
        check_rows(path, Data.model_validate({"rows": str(path), "validation_fraction": 0.2} | data))
