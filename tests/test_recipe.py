from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from peft import LoraConfig
from sentence_transformers import SentenceTransformerTrainingArguments

from st_llm_embed import InputError, Recipe
from st_llm_embed.recipe import RecipeError, shipped_recipes
from st_llm_embed.recipe.upstream import LORA_CONFIG, TRAINING_ARGUMENTS, Upstream, arguments_of
from st_llm_embed.training.arguments import lora_config, training_arguments


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_shipped_recipe_builds_the_real_upstream_arguments(name: str, tmp_path: Path) -> None:
    # The test machine has no GPU, and the trainer refuses bf16 without one unless this is set.
    recipe = Recipe.load(name, ["training.use_cpu=true"])
    arguments = training_arguments(recipe, tmp_path)
    assert isinstance(arguments, SentenceTransformerTrainingArguments)
    for key, value in recipe.training.items():
        got = getattr(arguments, key)
        assert getattr(got, "value", got) == value, key
    lora = lora_config(recipe)
    if recipe.lora is None:
        assert lora is None
    else:
        assert isinstance(lora, LoraConfig)
        assert {key: getattr(lora, key) for key in recipe.lora} == recipe.lora


def test_e5_mistral_has_the_papers_hyper_parameters(tmp_path: Path) -> None:
    recipe = Recipe.load("e5-mistral-7b", ["training.use_cpu=true"])
    arguments = training_arguments(recipe, tmp_path)
    lora = lora_config(recipe)
    assert lora is not None
    assert (lora.r, lora.lora_alpha, lora.lora_dropout, lora.target_modules) == (16, 32, 0.1, "all-linear")
    assert (arguments.learning_rate, arguments.warmup_steps, arguments.weight_decay) == (1e-4, 100, 0.1)
    assert (arguments.num_train_epochs, arguments.per_device_train_batch_size) == (1, 2048)
    assert (recipe.loss.temperature, recipe.base.max_seq_length) == (0.02, 512)


def test_a_saved_recipe_is_read_back_equal(tmp_path: Path) -> None:
    recipe = Recipe.load("demo", ["base.random_init=true", "training.learning_rate=1e-3"])
    assert recipe.training["learning_rate"] == "1e-3", "YAML reads it as text"
    assert training_arguments(recipe, tmp_path).learning_rate == 1e-3
    recipe.save(tmp_path / "recipe.yaml")
    assert Recipe.load(str(tmp_path / "recipe.yaml")) == recipe


def test_overrides_are_yaml_values_at_dotted_keys() -> None:
    recipe = Recipe.load("demo", ["loss.temperature=0.05", "lora={r: 8}", "lora.lora_alpha=16", "base.revision=null"])
    assert recipe.loss.temperature == 0.05
    assert recipe.lora == {"r": 8, "lora_alpha": 16}
    assert recipe.base.revision is None


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("loss.temprature=0.05", ["loss: unknown key temprature (did you mean temperature?)", "mini_batch_num"]),
        ("bse.revision=main", ["bse", "did you mean base"]),
        ("loss.temperature=warm", ["loss.temperature", "'warm'", "valid number"]),
        ("loss.directions=[doc_to_query]", ["loss.directions", "query_to_doc has to be there"]),
        ("loss.directions=[query_to_doc, query_to_doc]", ["loss.directions", "each direction once"]),
        ("loss.mini_batch_size=32", ["loss: unknown key mini_batch_size (did you mean mini_batch_num_tokens?)"]),
        ("loss.temperature=0", ["loss.temperature", "greater than 0"]),
        ("base.dtype=float8", ["base.dtype", "'float32', 'bfloat16' or 'float16'"]),
        ("loss", ["--set 'loss'", "section.key=value"]),
        ("name.first=x", ["--set 'name.first=x'", "not a section"]),
        ("loss.temperature=[", ["not a YAML value"]),
        ("data=null", ["data is null. Write it, such as data: {rows: embedded, validation_fraction: 0.2};"]),
        ("loss.temperature=.inf", ["loss.temperature is inf", "finite"]),
        ("loss.temperature=true", ["loss.temperature is True", "switches only"]),
        (
            "synthesis.plan.attributes={sts: {formal: {yes: 1}}}",
            ["synthesis.plan.attributes.sts.formal", "as switches; put quotes"],
        ),
        ("base.name_or_path=''", ["base.name_or_path is ''", "at least 1 character"]),
        ("training.run_name=2024-01-01", ["training.run_name is datetime.date(2024, 1, 1)", "JSON"]),
        ("training.learning_rate=.nan", ["training.learning_rate", "finite"]),
        ("lora={1: 2}", ["lora.1", "valid string"]),
        ("seed=2024-13-45", ["not a YAML value: month must be in 1..12"]),
        ("seed=" + "9" * 5000, ["not a YAML value", "5000 digits"]),
        ("seed=" + "[" * 5000, ["not a YAML value", "recursion"]),
        (
            "data.mining={model: base, range: 1}",
            ["data.mining: unknown key range (did you mean range_min?) (allowed"],
        ),
        ("data.mining={model: base, range_min: 99, num_negatives: 2}", ["at least range_min plus num_negatives"]),
        ("synthesis.budget.prices={gpt: {input: 1, output: 2, in: 1}}", ["budget.prices.gpt: unknown key in"]),
        ("base.adapter=x", ["Recipe demo: base.adapter continues"]),
    ],
)
def test_a_wrong_override_names_what_was_got_and_what_is_allowed(override: str, said: list[str]) -> None:
    with pytest.raises(InputError) as error:
        Recipe.load("demo", ["lora={}", override])
    for words in said:
        assert words in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 1000


def test_all_mistakes_are_named_at_once_with_what_to_write(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "name: mine\ndescription: ''\nseed: 1\nbse: {}\nbase: {name_or_path: embedded}\nlora: null\nlos: {}\n"
        "data: {rows: embedded, validation_fraction: 2, sources: {nq: {licence: x, path: y}}}\n"
        "loss: {temperature: -1, temprature: 1}\ntraining: {}\npublishing: {license: mit}\n"
    )
    with pytest.raises(RecipeError) as error:
        Recipe.load(str(path))
    assert len(error.value.problems) == len(str(error.value).splitlines()) == 10
    for said in (
        "unknown key bse (did you mean base?)",
        "unknown key los (did you mean loss?)",
        "base.max_seq_length is missing. Write it, such as max_seq_length: 96;",
        "data.validation_fraction is 2",
        "data.sources.nq: unknown key licence (did you mean license?) (allowed here: path",
        "data.sources.nq.columns is missing. It is needed: Where the texts are",
        "data.sources.nq.license is missing. It is needed: What the set's licence is",
        "loss.temperature is -1",
        "loss: unknown key temprature",
        "evaluation is missing. Write it, such as evaluation: {batch_size: 64};",
    ):
        assert sum(said in problem for problem in error.value.problems) == 1, said
    assert sorted(error.value.sections) == ["description", "lora", "name", "publishing", "seed", "training"]


@pytest.mark.parametrize(
    ("upstream", "real"),
    [(TRAINING_ARGUMENTS, SentenceTransformerTrainingArguments), (LORA_CONFIG, LoraConfig)],
)
def test_the_arguments_read_from_source_are_those_of_the_libraries(upstream: Upstream, real: Any) -> None:
    """A canary: fields and types of the classes that are imported only when a training starts."""
    own = arguments_of(upstream)
    assert own.keys() == {field.name for field in dataclasses.fields(real) if field.init}
    hints = get_type_hints(real)
    known = {name: kind for name, kind in own.items() if not _is_foreign(kind)}
    assert len(known) > len(own) / 2
    assert known == {name: hints[name] for name in known}


def _is_foreign(kind: Any) -> bool:
    return kind is Any or any(map(_is_foreign, get_args(kind)))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("training.learning_rat=1", ["learning_rat", "did you mean learning_rate"]),
        ("training.learning_rate=fast", ["learning_rate", "'fast'"]),
        ("training.bf16=perhaps", ["bf16", "'perhaps'"]),
        ("training.bf16=true", ["training.bf16 is true, and there is no GPU", "--set training.bf16=false"]),
        ("training.fp16=true", ["training.fp16 is true, and there is no GPU"]),
        ("training.tf32=true", ["training.tf32 is true, and there is no GPU"]),
        ("training.gradient_accumulation_steps=0", ["gradient_accumulation_steps is 0; the least is 1"]),
        ("training.output_dir=x", ["output_dir", "set by the run"]),
        ("training.prompts={anchor: x}", ["prompts", "set by the run"]),
        ("training.optim=sgdd", ["training", "sgdd"]),
        ("training.accelerator_config=nowhere.json", ["training", "nowhere.json"]),
        ("training.load_best_model_at_end=true", ["training", "load_best_model_at_end requires"]),
        ("lora={rank: 8}", ["rank"]),
        ("lora={r: many}", ["'many'"]),
        ("lora={layers_pattern: h}", ["layers_pattern"]),
    ],
)
def test_a_wrong_upstream_argument_is_refused_before_training(override: str, said: list[str], tmp_path: Path) -> None:
    recipe = Recipe.load("demo", [override])
    with pytest.raises(InputError) as error:
        lora_config(recipe) if override.startswith("lora") else training_arguments(recipe, tmp_path)
    for words in said:
        assert words in str(error.value)


def test_an_unknown_name_lists_the_shipped_recipes() -> None:
    with pytest.raises(InputError) as error:
        Recipe.load("dmeo")
    assert "did you mean demo" in str(error.value)
    assert all(name in str(error.value) for name in shipped_recipes())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- a\n- b\n", "list"),
        ("a: [", "not a YAML file"),
        ("", "NoneType"),
        ("é", "cannot be read"),
        ("[" * 5000, "recursion"),
    ],
)
def test_a_file_that_is_not_a_recipe_is_refused(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=said) as error:
        Recipe.load(str(path))
    assert len(str(error.value).splitlines()) == 1
