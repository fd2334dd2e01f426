from __future__ import annotations

from pathlib import Path

import pytest
from conftest import example_rows, write_rows
from datasets import Dataset, load_dataset

from st_llm_embed import InputError, Recipe
from st_llm_embed.data.dataset import check_rows, load_split, split_of, to_training, write_dataset
from st_llm_embed.data.rows import Row, read_rows, rows_file
from st_llm_embed.publishing.dataset_card import dataset_card


def test_embedded_rows_are_split_by_instruction_with_nothing_lost(tmp_path: Path) -> None:
    rows = list(read_rows(rows_file("embedded")))
    counts = write_dataset(rows, tmp_path, 0.2)
    assert counts.total() == len(rows)
    train, validation = load_split(tmp_path, "train"), load_split(tmp_path, "validation")
    assert set(train) == set(validation) == {row.task_type for row in rows}

    def instructions(split: dict) -> set[str]:
        return {" ".join(row["instruction"].casefold().split()) for part in split.values() for row in part}

    def keys(split: dict) -> set[str]:
        return {row["key"] for part in split.values() for row in part}

    assert not instructions(train) & instructions(validation)
    assert not keys(train) & keys(validation)
    assert keys(train) | keys(validation) == {row.key for row in rows}
    assert 0.15 < len(keys(validation)) / len(rows) < 0.25


def test_the_split_of_a_row_depends_on_its_instruction_alone() -> None:
    one = Row(anchor="a", positive="b", instruction="Find  IT")
    other = Row(anchor="c", positive="d", negative="e", instruction="find it", language="de")
    assert [split_of(one, step / 10) for step in range(1, 10)] == [split_of(other, step / 10) for step in range(1, 10)]


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


def test_a_file_whose_rows_all_fall_into_one_part_is_refused(tmp_path: Path) -> None:
    rows = [row | {"instruction": "always the same"} for row in example_rows()]
    with pytest.raises(InputError, match="more distinct instructions"):
        check_rows(write_rows(tmp_path / "rows.jsonl", [row for row in rows if row["task_type"] == "sts"]), 0.2)
