"""Cards say what is on disk and omit the rest."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from st_llm_embed import InputError, Recipe, run_pipeline
from st_llm_embed.publishing.cards import Link, folder_card, model_card, updated_card

EVAL_RESULTS = """
- dataset: {id: mteb/a, task_id: A_default_test}
  value: 10.0
- dataset: {id: mteb/a, task_id: A}
  value: 12.345
  notes: "mteb 2.26, prompts: mteb"
"""


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory, tiny_run_recipe: Callable[..., Recipe]) -> Path:
    folder = tmp_path_factory.mktemp("cards") / "run"
    run_pipeline(tiny_run_recipe("training.max_steps=2", "publishing.limitations=[Reads badly.]"), folder)
    return folder


@pytest.fixture
def model(run_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(run_folder / "release", tmp_path / "model")


def test_the_card_has_the_facts_of_the_run(run_folder: Path) -> None:
    card = ModelCard.load(run_folder / "release" / "README.md")
    report = json.loads((run_folder / "evaluation" / "report.json").read_text(encoding="utf-8"))
    assert card.data.base_model is None
    assert (card.data.library_name, card.data.pipeline_tag) == ("sentence-transformers", "sentence-similarity")
    assert card.data.language == ["de", "en"]
    scores = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert scores["retrieval_ndcg_at_10"] == round(report["after"]["retrieval_ndcg_at_10"], 5)
    spread = report["cosines"]["true pairs"]
    assert spread["p5"] <= spread["median"] <= spread["p95"]
    assert f"| its own document | {spread['p5']:.3f} | {spread['median']:.3f} | {spread['p95']:.3f} |" in card.text
    assert "- Reads badly." in card.text
    assert "2 steps" in card.text
    assert report["hardware"] in card.text
    assert "Rows by an LLM" not in card.text
    assert str(run_folder) not in card.text
    for absent in ("`None`", "| None", "nan", "MTEB", "onnx", "llama-server", "Published together"):
        assert absent not in card.text


def test_the_released_recipe_has_no_place_of_this_machine(run_folder: Path, tiny_base: Path) -> None:
    text = (run_folder / "release" / "recipe.yaml").read_text(encoding="utf-8")
    assert str(tiny_base.parent) not in text
    released = Recipe.load(str(run_folder / "release" / "recipe.yaml"))
    run = Recipe.load(str(run_folder / "recipe.yaml"))
    assert released.base.name_or_path == tiny_base.name
    assert released.data.rows == "rows.jsonl"
    assert released.training == run.training


def test_sources_and_costs_are_on_the_card_with_links_for_those_on_the_hub(
    run_folder: Path, tmp_path: Path, tiny_run_recipe: Callable[..., Recipe]
) -> None:
    columns = "columns: {anchor: q, positive: a}, license: mit"
    recipe = tiny_run_recipe(
        f"data.sources.open={{path: org/open, ratio: 0.5, {columns}}}",
        f"data.sources.mine={{path: /data/secret/mine.csv, {columns}}}",
        "base.name_or_path=org/base",
    )
    dataset = shutil.copytree(run_folder / "dataset", tmp_path / "dataset")
    (dataset / "statistics.json").write_text(json.dumps({"cost": {"usd": 12.345}}), encoding="utf-8")
    card = ModelCard(model_card(recipe, run_folder / "release", dataset, run_folder / "evaluation"))
    assert "| open | [org/open](https://huggingface.co/datasets/org/open) | 0.5 | mit |" in card.text
    assert "| mine | mine.csv | 1 | mit |" in card.text
    assert card.data.datasets == ["org/open"]
    assert (card.data.base_model, card.data.base_model_relation) == ("org/base", "finetune")
    assert "| Rows by an LLM | $12.35 |" in card.text
    assert "/data/secret" not in str(card)


def test_what_publishing_updates_leaves_the_rest_as_the_user_wrote_it(model: Path) -> None:
    card = (model / "README.md").read_text(encoding="utf-8")
    card = card.replace("## Training\n", "My own words on path/to/nowhere.\n\n## Training\n")
    (model / ".eval_results").mkdir()
    (model / ".eval_results" / "A.yaml").write_text(EVAL_RESULTS, encoding="utf-8")
    (model / "m-F16.gguf").write_bytes(b"GGUF")
    links = [Link("dataset", "lab/rows"), Link("adapter", "lab/m-lora")]
    once = updated_card(card, model, "lab/m", links)
    assert updated_card(once, model, "lab/m", links) == once
    assert "My own words on path/to/nowhere." in once
    assert "path/to/this/folder" not in once
    assert "| A | mteb/a | 12.35 | mteb 2.26, prompts: mteb |" in once
    assert "A_default_test" not in once
    assert "llama-server --hf-repo lab/m --hf-file m-F16.gguf --embedding" in once
    assert "https://huggingface.co/datasets/lab/rows" in once
    assert ModelCard(once).data.datasets == ["lab/rows"]
    again = updated_card(once, model, "lab/other")
    assert "lab/m-lora" not in again
    assert "lab/m" not in again.replace("lab/m-", "")


def test_a_card_without_places_for_it_is_left_alone(model: Path) -> None:
    assert updated_card("# Mine\n", model, "lab/m") == "# Mine\n"


def test_broken_results_are_named(model: Path) -> None:
    (model / ".eval_results").mkdir()
    (model / ".eval_results" / "A.yaml").write_text("- value: 1", encoding="utf-8")
    with pytest.raises(InputError, match=r"A\.yaml cannot be read"):
        folder_card(model, "lab/m")


def test_a_card_for_last_tokens_is_not_written_for_a_model_that_takes_the_mean(model: Path) -> None:
    assert "AutoModel" in folder_card(model, "lab/m")
    pooling = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True, "pooling_mode_lasttoken": False}
    (model / "1_Pooling" / "config.json").write_text(json.dumps(pooling), encoding="utf-8")
    assert "AutoModel" not in folder_card(model, "lab/m")
