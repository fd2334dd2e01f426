from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import datasets
import mteb
import pytest
from conftest import Outcome, example_rows, write_rows
from mteb_data import CORPUS, QUERIES, SENTENCES, write_scifact, write_stsbenchmark

from st_llm_embed import Recipe
from st_llm_embed.evaluation.overlap import TASKS_OF_SOURCES, trained_on


@pytest.fixture(autouse=True)
def tasks_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Official tasks load made-up data from the working folder."""
    write_stsbenchmark(tmp_path)
    write_scifact(tmp_path)
    monkeypatch.chdir(tmp_path)
    # Its key of a local folder is the path alone.
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def planted() -> list[dict[str, str]]:
    rows = example_rows()
    rows[0] |= {"anchor": "  TWO dogs are running across a  wide green Meadow"}
    rows[1] |= {"positive": SENTENCES[2][0].replace("next", "coming")}
    rows[4] |= {"positive": "yes please", "anchor": "Nobody is scored on this validation sentence."}
    rows[5] |= {"negative": QUERIES["q1"].replace("common ", "")}
    rows[8] |= {"positive": CORPUS["d2"][1]}
    rows[9] |= {"positive": " ".join(CORPUS["d1"])}
    return rows


def counts(found: dict[str, object]) -> dict[tuple[str, str], tuple[int, ...]]:
    rows: list[dict[str, object]] = found["tasks"]  # type: ignore[assignment]
    return {
        (row["task"], row["part"]): tuple(row[key] for key in ("texts", "exact", "one_word_edit", "low_entropy"))  # type: ignore[misc]
        for row in rows
    }


def test_planted_texts_are_found_and_nothing_else(run_cli: Callable[..., Outcome], tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", planted())
    done = run_cli("contamination", path, "--tasks", "STSBenchmark,SciFact", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert counts(found) == {
        ("STSBenchmark", "texts"): (8, 1, 1, 1),
        ("SciFact", "queries"): (2, 0, 1, 0),
        ("SciFact", "documents"): (6, 2, 0, 0),
    }
    examples = {example for row in found["tasks"] for example in row["examples"]}
    assert examples == {SENTENCES[1][0], SENTENCES[2][0], QUERIES["q1"], CORPUS["d2"][1], " ".join(CORPUS["d1"])}
    assert found["training_datasets"] == ["STSBenchmark", "SciFact"]
    assert all(set(row["training_sets"]) == {"rows.jsonl"} for row in found["tasks"])


def test_a_run_is_compared_by_what_it_trained_on(run_cli: Callable[..., Outcome], tmp_path: Path) -> None:
    for name, text in (
        ("dataset/sts/train", QUERIES["q1"]),
        ("dataset/sts/validation", QUERIES["q2"]),
        ("sources/nq/train", CORPUS["d1"][1]),
        ("dataset/tasks/tasks", CORPUS["d2"][1]),
    ):
        path = tmp_path / f"run/{name}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        row = {"anchor": text, "positive": "a positive", "instruction": QUERIES["q2"]}
        datasets.Dataset.from_list([row]).to_parquet(path)
    source = "{path: Tevatron/wikipedia-nq, columns: {anchor: query, positive: text}, license: cc-by-sa-3.0}"
    Recipe.load("demo", [f"data.sources.wiki={source}"]).save(tmp_path / "run/recipe.yaml")
    done = run_cli("contamination", tmp_path / "run", "--tasks", "SciFact", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert counts(found) == {("SciFact", "queries"): (2, 1, 0, 0), ("SciFact", "documents"): (6, 1, 0, 0)}
    assert [row["training_sets"] for row in found["tasks"]] == [{"sts": 1}, {"nq": 1}]
    assert found["training_datasets"] == ["NQ", "SciFact"]


def test_a_clean_set_gives_an_empty_table(run_cli: Callable[..., Outcome], tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", example_rows())
    done = run_cli("contamination", path, "--tasks", "STSBenchmark")
    assert done.code == 0
    assert "| STSBenchmark | texts | 8 | 0 | 0 | 0 |  |" in done.out
    assert "`training_datasets`: none." in done.out


def test_what_cannot_be_loaded_is_named_and_the_rest_is_kept(run_cli: Callable[..., Outcome], tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", planted())
    done = run_cli("contamination", path, "--tasks", "NFCorpus,STSBenchmark")
    assert done.code == 2
    assert "| STSBenchmark | texts | 8 | 1 | 1 | 1 | rows.jsonl 2 |" in done.out
    assert "Not compared: NFCorpus." in done.out
    assert "not compared: NFCorpus" in done.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nowhere", "--tasks", "STSBenchmark"), "'nowhere' is not a training set"),
        ((".", "--tasks", "STSBenchmark"), "'.' is not a training set"),
        (("embedded",), "No tasks are given"),
        (("embedded", "--tasks", "STSBenchmrk"), "STSBenchmark"),
        (("embedded", "--benchmark", "MTEB(none)"), "mteb has no benchmark 'MTEB(none)'"),
    ],
)
def test_what_is_not_there_is_one_message(
    arguments: tuple[str, ...], said: str, run_cli: Callable[..., Outcome]
) -> None:
    done = run_cli("contamination", *arguments)
    assert done.code == 2
    assert said in done.err
    assert "Traceback" not in done.err
    assert not done.out


def test_sources_are_named_as_mteb_names_them() -> None:
    for tasks in TASKS_OF_SOURCES.values():
        for task in tasks:
            assert mteb.get_task(task).metadata.name == task
    paper = trained_on(Recipe.load("e5-mistral-7b"))
    assert {"HotpotQA", "FEVER", "MSMARCO", "NQ", "T2Reranking"} <= paper.tasks
    assert not paper.unknown
    assert trained_on(Recipe.load("demo")) == (frozenset(), ())


def test_what_nobody_can_know_is_named(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "mine.jsonl", example_rows())
    source = '{path: org/our-clicks, columns: {anchor: a, positive: b}, license: mit, instruction: "Find."}'
    recipe = Recipe.load("demo", [f"data.rows={rows}", f"data.sources.clicks={source}"])
    assert trained_on(recipe).unknown == ("data.sources.clicks (org/our-clicks)", f"data.rows ({rows})")
