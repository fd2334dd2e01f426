"""Cards say what is on disk and omit the rest."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import example_rows
from huggingface_hub import ModelCard

from st_llm_embed import InputError, Recipe, run_pipeline
from st_llm_embed.data.dataset import load_split, write_dataset, write_source
from st_llm_embed.data.rows import Row
from st_llm_embed.publishing.card_parts import Link, updated_card
from st_llm_embed.publishing.cards import folder_card, model_card
from st_llm_embed.publishing.counts import query_prompt

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
    invariance = json.loads((run_folder / "release" / "invariance.json").read_text(encoding="utf-8"))
    assert invariance["batch_size"] == 32
    assert 0.9999 < invariance["lowest_cosine"] <= 1.0001
    assert f"| a batch of 32, sentence-transformers | {invariance['lowest_cosine']:.6f} |" in card.text
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


ONE = "Given a question about a machine, retrieve the page of its manual."


def rows_of(path: Path, count: int = 48, **common: Any) -> Path:
    """Write rows like the example's with other values; a value that is a list is taken in turn."""
    rows = [
        row | {key: one[number % len(one)] if isinstance(one, list) else one for key, one in common.items()}
        for number, row in enumerate(example_rows(count))
    ]
    folder = path.with_suffix("")
    write_dataset((Row.model_validate(row) for row in rows), folder, 0.4)
    return folder


@pytest.fixture
def make_card(run_folder: Path, model: Path, tiny_run_recipe: Callable[..., Recipe]) -> Callable[..., ModelCard]:
    """Render the card of the run's model as if it had been trained on other rows by another recipe."""

    def make(data: list[Path], *overrides: str) -> ModelCard:
        recipe = tiny_run_recipe(*overrides)
        prompts = json.loads((model / "config_sentence_transformers.json").read_text(encoding="utf-8"))
        prompts["prompts"]["query"] = query_prompt(recipe, data)
        (model / "config_sentence_transformers.json").write_text(json.dumps(prompts), encoding="utf-8")
        return ModelCard(model_card(recipe, model, data, run_folder / "evaluation"))

    return make


def test_a_users_file_is_not_written_by_an_llm_and_private_rows_are_not_shown(
    make_card: Callable[..., ModelCard], tmp_path: Path
) -> None:
    dataset = rows_of(tmp_path / "dataset", instruction=ONE, task_type="short-long")
    card = make_card([dataset], "publishing.base_model=org/base", "publishing.dataset_license=null", "description=''")
    assert (card.data.base_model, card.data.base_model_relation) == ("org/base", "finetune")
    assert f"The prompt is `Instruct: {ONE}\\nQuery: `." in card.text
    for wrong in ("an LLM", "written by", "about thing", "database", "tram", "For another task"):
        assert wrong not in card.text
    assert card.data.to_dict().get("widget") is None
    assert "- the passages that answer a query (100 % of the rows)" in card.text


def test_rows_that_may_be_published_are_the_examples_and_their_authors_are_named(
    make_card: Callable[..., ModelCard], tmp_path: Path
) -> None:
    instructions = [ONE, ONE, ONE, "Find /home/ada/it.", ONE, ONE, "Find the same.", "Find it."]
    dataset = rows_of(tmp_path / "dataset", instruction=instructions, generator=["gpt", "unknown"])
    card = make_card([dataset], "publishing.dataset_license=cc-by-4.0")
    example = card.data.widget[0]
    held_out = {row["anchor"] for part in load_split(dataset, "validation").values() for row in part}
    assert example["source_sentence"] in held_out
    assert card.text.count(f"encode_query([{json.dumps(example['source_sentence'])}])") == 1
    assert json.dumps(example["sentences"][0]) in card.text
    assert re.search(r"\n\d+ rows written by gpt \(\d+ of them\), ", card.text)
    assert "/home/ada" not in str(card)
    assert 'model.encode(["question' in card.text.partition("For another task, say what is looked for")[2]


def test_many_languages_are_folded_and_have_the_hubs_codes(
    make_card: Callable[..., ModelCard], tmp_path: Path
) -> None:
    codes = ["en", "en", "en", "zh-Hant", "zh", "und", "pt-BR", "fr", "sw", "am", "ha", "xh"]
    dataset = rows_of(tmp_path / "dataset", language=codes, task_type="short-long", target_language="")
    card = make_card([dataset])
    assert card.data.language == ["multilingual", "en", "zh", "am", "fr", "ha"]
    assert "| English 25 %, Chinese 17 %, Amharic 8 %, French 8 %, Hausa 8 % and 3 others |" in card.text


def test_without_prompts_a_card_does_not_speak_of_them(
    make_card: Callable[..., ModelCard], run_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "minilm"
    for name, content in {
        "config.json": {"model_type": "bert", "hidden_size": 32},
        "modules.json": [
            {"type": f"sentence_transformers.models.{name}", "path": path}
            for name, path in (("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize"))
        ],
        "1_Pooling/config.json": {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True},
        "sentence_bert_config.json": {"max_seq_length": 256},
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    encoder = folder_card(folder, "lab/minilm")
    assert "text-embeddings-inference:cpu-" in encoder
    plain = make_card([run_folder / "dataset"], "base.instructions=none")
    assert "Queries and documents are encoded as they are." in plain.text
    for card in (encoder, plain.text):
        usage = card.partition("## Usage")[2].partition("## Training")[0]
        assert "prompt" not in usage.replace("prompt_name", "")
        assert '"" +' not in usage


@pytest.mark.parametrize(
    ("overrides", "prompt"),
    [
        ([], f"Instruct: {ONE}\nQuery: "),
        (["publishing.query_instruction=Find my page."], "Instruct: Find my page.\nQuery: "),
        (["base.instructions=task_type"], "Instruct: short-long\nQuery: "),
        (["base.instructions=none"], ""),
    ],
)
def test_the_default_prompt_is_what_was_trained_with(
    overrides: list[str], prompt: str, tmp_path: Path, tiny_run_recipe: Callable[..., Recipe]
) -> None:
    types = ["short-long", "sts", "short-long", "bitext"]
    dataset = rows_of(tmp_path / "dataset", instruction=[ONE, "Same.", ONE, "Same."], task_type=types)
    assert query_prompt(tiny_run_recipe(*overrides), [dataset]) == prompt


def test_a_general_prompt_stands_for_many_instructions_and_sources_count(
    tmp_path: Path, tiny_run_recipe: Callable[..., Recipe]
) -> None:
    many = rows_of(tmp_path / "dataset", count=200, instruction=[f"Find {number}." for number in range(100)])
    recipe = tiny_run_recipe()
    assert "web search query" in query_prompt(recipe, [many])
    source = [Row(anchor=f"q{number}", positive="p", instruction=ONE) for number in range(30)]
    write_source(source, tmp_path / "sources", "mine", with_negatives=False)
    assert ONE in query_prompt(recipe, [many, tmp_path / "sources"])


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
    card = ModelCard(model_card(recipe, run_folder / "release", [dataset], run_folder / "evaluation"))
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
