"""scripts/training_pairs.py reads the sets as they are published, and the recipe demo-real reads what it writes."""

from __future__ import annotations

import csv
import json
import runpy
from pathlib import Path

import pytest

from st_llm_embed import Recipe
from st_llm_embed.data.sources import read_source

SCRIPTS = Path(__file__).parents[2] / "scripts"
SETS = runpy.run_path(str(SCRIPTS / "training_pairs.py"))["SETS"]
PRODUCT = {"qid": "1", "question": "does it fit?", "ASIN": "B1", "title": "Drawer"}


def squad(question: str, context: str, **article: str) -> str:
    return json.dumps({"data": [article | {"paragraphs": [{"context": context, "qas": [{"question": question}]}]}]})


def passages(*rows: tuple[str, str]) -> str:
    return "".join(json.dumps({"question_lang": one, "context": two, "title": "T"}) + "\n" for one, two in rows)


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """Small files in the places and formats of the four repositories."""
    gold = "data/gold_passages/zul/gold_span_passages.afriqa.zul.en."
    files = {
        "data/train/jaquad_train_0000.json": squad("ja?", "a context", title="T"),
        "squad-style-data/cmrc2018_trial.json": squad("zh?", "a context", title=""),
        f"{gold}train.json": passages(("zul?", "a context"), ("tested?", "b"), ("c?", "tested context")),
        f"{gold}dev.json": passages(("dev?", "of dev")),
        f"{gold}test.json": passages(("tested?", "tested context")),
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "ePQA").mkdir()
    with (tmp_path / "ePQA" / "dev.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*PRODUCT, "label", "answer"])
        writer.writeheader()
        for label, answer in (("2", "Yes, it fits."), ("1", "Perhaps."), ("0", ""), ("2", "")):
            writer.writerow(PRODUCT | {"label": label, "answer": answer})
    return tmp_path


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("jaquad", [("ja?", "a context")]),
        ("cmrc_trial", [("zh?", "a context")]),
        ("afriqa", [("dev?", "of dev"), ("zul?", "a context")]),
        ("epqa", [("Drawer: does it fit?", "Yes, it fits.")]),
    ],
)
def test_a_set_goes_from_its_repository_into_rows(
    name: str, expected: list[tuple[str, str]], published: Path, tmp_path: Path
) -> None:
    path = tmp_path / f"train_{name}.jsonl"
    path.write_text("".join(json.dumps(pair) + "\n" for pair in SETS[name].read(published)), encoding="utf-8")
    source = Recipe.load("demo-real").data.sources[name]
    rows = read_source(name, source.model_copy(update={"path": str(path), "ratio": 1.0}))
    assert [(row.anchor, row.positive) for row in rows] == expected


def test_the_recipe_has_the_sets_of_the_script() -> None:
    sources = Recipe.load("demo-real").data.sources
    assert {name: Path(source.path) for name, source in sources.items()} == {
        name: Path(f"data/train_{name}.jsonl") for name in SETS
    }


def test_the_measurement_of_training_takes_the_files_that_the_script_writes(tmp_path: Path) -> None:
    with_sources = runpy.run_path(str(SCRIPTS / "measure_training.py"))["with_sources"]
    sources = with_sources(Recipe.load("demo-real"), tmp_path).data.sources
    assert {name: Path(source.path) for name, source in sources.items()} == {
        name: tmp_path / f"train_{name}.jsonl" for name in SETS
    }
