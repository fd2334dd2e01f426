"""Each trap, put into a good repository, is found in its files alone; a good repository has none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from spoil import edit, edit_list, no_probe, pieces, prompts, template, tokenizer_config

from st_llm_embed import InputError, Recipe, doctor
from st_llm_embed.doctor import TRAPS, diagnose

QUERY = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery: "

MODALITIES = {"text": {"method": "forward"}, "message": {"method": "forward", "format": "flat"}}
"""As sentence-transformers 6 saves a model whose base has a chat template."""

TRAINERS_CARD = """---
tags:
- sentence-transformers
- generated_from_trainer
- loss:MultipleNegativesRankingLoss
---
* Loss: `MultipleNegativesRankingLoss` with these parameters:
  ```json
  {
      "scale": 50.0,
      "similarity_fct": "cos_sim"
  }
  ```
#### Non-Default Hyperparameters
- `per_device_train_batch_size`: 64
- `bf16`: True
"""


def flag_only(folder: Path) -> None:
    """As e5-mistral-7b-instruct: transformers 5 ignores the flag."""
    template(folder, "<s>", "A")
    tokenizer_config(folder, tokenizer_class="LlamaTokenizer", add_eos_token=True)


def post_processor_only(folder: Path) -> None:
    tokenizer_config(folder, tokenizer_class="LlamaTokenizerFast", add_eos_token=None)


def neither(folder: Path) -> None:
    template(folder, "<s>", "A")
    tokenizer_config(folder, add_eos_token=None)


def flag_says_no(folder: Path) -> None:
    """llama.cpp's converter believes the flag."""
    tokenizer_config(folder, add_eos_token=False)


def eos_twice(folder: Path) -> None:
    template(folder, "<s>", "A", "</s>", "</s>")


def bos_in_a_prompt(folder: Path) -> None:
    prompts(folder, query=f"<s>{QUERY}")


def chat_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}</s>", encoding="utf-8")
    edit(folder / "sentence_bert_config.json", modality_config=MODALITIES)


def eos_as_text(folder: Path) -> None:
    """Appended by a normalizer, so that the tokenizer takes it for a part of the text."""
    template(folder, "<s>", "A")
    tokens = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    tokens = [token | {"normalized": token["content"] == "</s>"} for token in tokens]
    append = {"type": "Replace", "pattern": {"Regex": "(?<!</s>)$"}, "content": "</s>"}
    edit(folder / "tokenizer.json", normalizer=append, added_tokens=tokens)


def cut_on_the_left(folder: Path) -> None:
    tokenizer_config(folder, truncation_side="left")


def no_mask(folder: Path) -> None:
    tokenizer_config(folder, model_input_names=["input_ids"])


def no_pad_token(folder: Path) -> None:
    tokenizer_config(folder, pad_token=None)


def two_padding_sides(folder: Path) -> None:
    tokenizer_config(folder, padding_side="left")
    padding = {"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None}
    edit(folder / "tokenizer.json", padding=padding | {"pad_id": 2, "pad_type_id": 0, "pad_token": "</s>"})


def compact_pooling(folder: Path) -> None:
    config = {"embedding_dimension": 32, "pooling_mode": "lasttoken", "include_prompt": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(config), encoding="utf-8")


def pooling_without_mean(folder: Path) -> None:
    """sentence-transformers 5 pools by mean where nothing says that it should not."""
    edit(folder / "1_Pooling" / "config.json", pooling_mode_mean_tokens=None)


def no_modules(folder: Path) -> None:
    (folder / "modules.json").unlink()


def query_prompt_on_everything(folder: Path) -> None:
    edit(folder / "config_sentence_transformers.json", default_prompt_name="query")


def query_prompt_on_documents(folder: Path) -> None:
    prompts(folder, document=QUERY)


def prompt_twice(folder: Path) -> None:
    prompts(folder, query=QUERY + QUERY)


def two_spellings(folder: Path) -> None:
    no_probe(folder)
    prompts(folder, query=QUERY.rstrip())


def another_prompt_than_published(folder: Path) -> None:
    prompts(folder, query=QUERY.replace("web ", ""))


def recipe(folder: Path, **overrides: str) -> None:
    Recipe.load("demo", [f"{key}={value}" for key, value in overrides.items()]).save(folder / "recipe.yaml")


def untrained_spelling(folder: Path) -> None:
    no_probe(folder)
    recipe(folder)
    prompts(folder, query=QUERY.rstrip(), STS=None, BitextMining=None)


def prompt_missing(folder: Path) -> None:
    no_probe(folder)
    recipe(folder)
    prompts(folder, query="", STS=None, BitextMining=None, **{"SciFact-query": None})


def prompt_missing_by_the_card(folder: Path) -> None:
    no_probe(folder)
    (folder / "README.md").write_text("Queries are `Instruct: {task}\\nQuery: {query}`.", encoding="utf-8")
    prompts(folder, query="", STS=None, BitextMining=None, **{"SciFact-query": None})


def prompts_not_of_the_training(folder: Path) -> None:
    (folder / "README.md").write_text(TRAINERS_CARD + "- `prompts`: None\n", encoding="utf-8")


def stock_trainer(folder: Path) -> None:
    (folder / "README.md").write_text(TRAINERS_CARD, encoding="utf-8")


def nothing_against_duplicates(folder: Path) -> None:
    recipe(folder, **{"loss.mask_duplicates": "false", "training.batch_sampler": "batch_sampler"})


def no_normalize(folder: Path) -> None:
    edit_list(folder / "modules.json", lambda modules: modules[:2])


def cut_dimensions_unsaid(folder: Path) -> None:
    recipe(folder, **{"loss.matryoshka_dims": "[32,16]"})


def too_many_dimensions(folder: Path) -> None:
    edit(folder / "config.json", matryoshka_dimensions=[4096, 16])


def lower_case(folder: Path) -> None:
    edit(folder / "sentence_bert_config.json", do_lower_case=True)


def strip(folder: Path) -> None:
    edit(folder / "tokenizer.json", normalizer={"type": "Strip", "strip_left": True, "strip_right": True})


def other_merges(folder: Path) -> None:
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    edit(folder / "tokenizer.json", model=model | {"merges": model["merges"][5:]})


def other_pieces(folder: Path) -> None:
    pieces(folder / "tokenizer.model", ["<unk>", "<s>", "</s>", "▁other"])


def no_tokenizer_json(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def too_few_embeddings(folder: Path) -> None:
    edit(folder / "config.json", vocab_size=100)


def no_max_seq_length(folder: Path) -> None:
    edit(folder / "sentence_bert_config.json", max_seq_length=None)


def another_length_in_the_tokenizer(folder: Path) -> None:
    truncation = {"direction": "Right", "max_length": 12, "strategy": "LongestFirst", "stride": 0}
    edit(folder / "tokenizer.json", truncation=truncation)


def no_limit_in_the_tokenizer(folder: Path) -> None:
    tokenizer_config(folder, model_max_length=int(1e30))


def another_length_than_published(folder: Path) -> None:
    edit(folder / "sentence_bert_config.json", max_seq_length=32)
    tokenizer_config(folder, model_max_length=32)


def new_module_paths(folder: Path) -> None:
    old, new = "sentence_transformers.models.Transformer", "sentence_transformers.base.modules.transformer.Transformer"
    path = folder / "modules.json"
    path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")


def own_code(folder: Path) -> None:
    path = folder / "modules.json"
    text = path.read_text(encoding="utf-8").replace("sentence_transformers.models.Pooling", "my_code.Pooling")
    path.write_text(text, encoding="utf-8")


def tokenizers_backend(folder: Path) -> None:
    tokenizer_config(folder, tokenizer_class="TokenizersBackend")


def list_of_special_tokens(folder: Path) -> None:
    tokenizer_config(folder, extra_special_tokens=["<x>"])


def mistral_format(folder: Path) -> None:
    (folder / "params.json").write_text("{}", encoding="utf-8")


def new_rope_alone(folder: Path) -> None:
    parameters = {"rope_theta": 1e6, "rope_type": "default"}
    edit(folder / "config.json", rope_theta=None, rope_parameters=parameters)


INJECTIONS: list[tuple[int | str, Callable[[Path], None], str]] = [
    (1, flag_only, "transformers 5"),
    (1, post_processor_only, "transformers 4"),
    (1, neither, "TEI"),
    (1, flag_says_no, "llama.cpp"),
    (2, eos_twice, ""),
    (2, bos_in_a_prompt, ""),
    (3, eos_as_text, ""),
    (3, cut_on_the_left, ""),
    (4, no_mask, ""),
    (4, no_pad_token, ""),
    (4, two_padding_sides, ""),
    (5, compact_pooling, "TEI"),
    (5, pooling_without_mean, "sentence-transformers 5"),
    (5, no_modules, ""),
    (6, query_prompt_on_everything, "sentence-transformers"),
    (6, query_prompt_on_documents, ""),
    (6, prompt_twice, ""),
    (6, two_spellings, ""),
    (6, another_prompt_than_published, ""),
    (6, untrained_spelling, ""),
    (6, prompt_missing, ""),
    (6, prompt_missing_by_the_card, ""),
    (6, prompts_not_of_the_training, ""),
    (10, stock_trainer, ""),
    (11, stock_trainer, ""),
    (11, nothing_against_duplicates, ""),
    (12, no_normalize, "vLLM"),
    (12, cut_dimensions_unsaid, "vLLM"),
    (12, too_many_dimensions, "vLLM"),
    (13, lower_case, "TEI"),
    (13, strip, "llama.cpp"),
    (14, other_merges, ""),
    (14, chat_template, "sentence-transformers 6"),
    (14, other_pieces, "llama.cpp"),
    (14, no_tokenizer_json, ""),
    (14, too_few_embeddings, ""),
    (15, no_max_seq_length, "TEI"),
    (15, another_length_in_the_tokenizer, "tokenizers"),
    (15, no_limit_in_the_tokenizer, "transformers 5"),
    (15, another_length_than_published, ""),
    ("layout", new_module_paths, "sentence-transformers 5"),
    ("layout", own_code, "sentence-transformers 6"),
    ("layout", tokenizers_backend, "transformers 4"),
    ("layout", list_of_special_tokens, "transformers 4"),
    ("layout", mistral_format, "vLLM"),
    ("rope", new_rope_alone, "transformers 4"),
]


@pytest.mark.parametrize("family", ["embedded", "mistral", "llama", "qwen3", "gpt2"])
def test_a_good_repository_has_no_finding(family: str, good: Callable[[str], Path]) -> None:
    assert doctor(str(good(family)), live=True) == []


@pytest.mark.parametrize(
    ("trap", "spoil", "reader"), INJECTIONS, ids=[f"{trap}-{spoil.__name__}" for trap, spoil, _ in INJECTIONS]
)
def test_a_trap_is_found_and_named(trap: int | str, spoil: Callable[[Path], None], reader: str, spoilt: Path) -> None:
    spoil(spoilt)
    found = [finding for finding in doctor(str(spoilt), live=False) if finding.trap == trap]
    assert found
    assert found[0].name == TRAPS[trap]
    assert found[0].fix
    assert reader in " ".join(found[0].readers)


def test_left_padding_and_counted_positions_do_not_go_together(good: Callable[[str], Path], tmp_path: Path) -> None:
    folder = shutil.copytree(good("gpt2"), tmp_path / "gpt2")
    tokenizer_config(folder, padding_side="left")
    found = doctor(str(folder), live=False)
    assert {finding.trap for finding in found} == {4}
    assert "counts positions from the first column" in found[0].message


def test_a_byte_fallback_tokenizer_needs_its_model_or_a_probe(good: Callable[[str], Path], tmp_path: Path) -> None:
    folder = shutil.copytree(good("embedded"), tmp_path / "embedded")
    no_probe(folder)
    [finding] = doctor(str(folder), live=False)
    assert (finding.trap, finding.severity, finding.readers) == (14, "warning", ("llama.cpp",))
    vocabulary = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    pieces(folder / "tokenizer.model", sorted(vocabulary, key=lambda piece: vocabulary[piece]))
    assert doctor(str(folder), live=False) == []


def test_a_tokenizer_that_strips_gives_the_texts_with_edges_other_tokens(spoilt: Path) -> None:
    strip(spoilt)
    messages = [finding.message for finding in doctor(str(spoilt), live=False) if finding.trap == 13]
    assert any("all of them have whitespace at an edge" in message for message in messages)


def test_what_was_not_checked_is_said_with_the_reason(spoilt: Path) -> None:
    checks = {(check.trap, check.what): check.not_checked for check in diagnose(str(spoilt), live=False).checks}
    assert {trap for trap, _ in checks} >= set(range(1, 16)) - {9}
    reasons = [reason for (trap, _), reason in checks.items() if trap in (10, 11)]
    assert reasons == ["neither recipe.yaml nor a trainer's README.md tells how the model was trained"] * 2
    recipe(spoilt)
    checks = {check.what: check.not_checked for check in diagnose(str(spoilt), live=False).checks}
    assert checks["equal texts were kept out of a batch"] is None


def test_a_repository_without_a_probe_is_examined(spoilt: Path) -> None:
    no_probe(spoilt)
    diagnosis = diagnose(str(spoilt), live=False)
    assert diagnosis.findings == []
    assert [check.not_checked for check in diagnosis.checks].count("there is no probe.json") == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", '{"model_type": "bert"}', r"of type 'bert', an encoder"),
        ("config.json", "{", r"config\.json cannot be read as JSON"),
        ("config.json", '{"model_type": "mistral", "architectures": 5}', r"cannot be understood"),
        ("config.json", '{"model_type": "mistral", "rope_parameters": "x"}', r"cannot be understood"),
        ("modules.json", "{}", r"modules\.json has to be a list of modules"),
        ("modules.json", "[1]", r"modules\.json has to be a list of modules"),
        ("modules.json", '[{"type": "a.Pooling", "path": "../other"}]', r"a path inside the repository"),
        ("modules.json", '[{"type": "a.Pooling", "path": "/other"}]', r"a path inside the repository"),
        ("tokenizer.json", '{"version": "1.0"}', r"tokenizer\.json cannot be read"),
        ("probe.json", '{"version": 1}', r"probe\.json is no probe that can be read"),
        ("tokenizer_config.json", "[]", r"tokenizer_config\.json holds a list"),
    ],
)
def test_files_that_cannot_be_read_are_named(name: str, content: str, message: str, spoilt: Path) -> None:
    (spoilt / name).write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        doctor(str(spoilt), live=False)


@pytest.mark.parametrize(
    ("model", "message"),
    [("no/such/folder", "is no folder, and no repository"), ("lab/model", "HF_HUB_OFFLINE forbids asking the Hub")],
)
def test_a_model_that_is_not_there_is_named(model: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        doctor(model)


def test_an_instruction_may_speak_of_a_query(spoilt: Path) -> None:
    no_probe(spoilt)
    prompts(spoilt, query="Instruct: Given a search query: find passages that answer it\nQuery: ")
    assert not [finding for finding in doctor(str(spoilt), live=False) if "twice" in finding.message]


def test_an_adapter_that_names_itself_as_its_base_is_no_endless_search(tmp_path: Path) -> None:
    config = {"base_model_name_or_path": str(tmp_path), "peft_type": "LORA"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    assert doctor(str(tmp_path), live=False)


def test_weights_that_are_pickles_alone_are_told_and_not_loaded(spoilt: Path) -> None:
    no_probe(spoilt)
    (spoilt / "model.safetensors").rename(spoilt / "pytorch_model.bin")
    [finding] = [one for one in doctor(str(spoilt)) if one.file == "pytorch_model.bin"]
    assert "can run code" in finding.message


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="so it is no model"):
        doctor(str(tmp_path))
