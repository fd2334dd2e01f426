"""Each trap, put into a good repository, is found in its files alone; a good repository has none."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from break_repository import (
    edit,
    eos_as_text,
    eos_twice,
    no_mask,
    no_normalize,
    no_probe,
    pieces,
    prompts,
    template,
    tokenizer_config,
)

from st_llm_embed import InputError, Recipe, diagnose
from st_llm_embed import doctor as doctor_package
from st_llm_embed.doctor import TRAPS

QUERY = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery: "

MODALITIES = {"text": {"method": "forward"}, "message": {"method": "forward", "format": "flat"}}
"""As sentence-transformers 6 saves a model whose base has a chat template."""


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


def bos_in_a_prompt(folder: Path) -> None:
    prompts(folder, query=f"<s>{QUERY}")


def chat_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}</s>", encoding="utf-8")
    edit(folder / "sentence_bert_config.json", modality_config=MODALITIES)


def cut_on_the_left(folder: Path) -> None:
    tokenizer_config(folder, truncation_side="left")


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


INJECTIONS: list[tuple[str, Callable[[Path], None], str]] = [
    ("missing EOS", flag_only, "transformers 5"),
    ("missing EOS", post_processor_only, "transformers 4"),
    ("missing EOS", neither, "TEI"),
    ("missing EOS", flag_says_no, "llama.cpp"),
    ("doubled EOS", eos_twice, ""),
    ("special token in a prompt", bos_in_a_prompt, ""),
    ("EOS cut off", eos_as_text, ""),
    ("cut on the left", cut_on_the_left, ""),
    ("no attention mask", no_mask, ""),
    ("no pad token", no_pad_token, ""),
    ("two padding sides", two_padding_sides, ""),
    ("pooling", compact_pooling, "TEI"),
    ("pooling", pooling_without_mean, "sentence-transformers 5"),
    ("no modules.json", no_modules, ""),
    ("prompt on documents", query_prompt_on_everything, "sentence-transformers"),
    ("prompt on documents", query_prompt_on_documents, ""),
    ("prompt doubled", prompt_twice, ""),
    ("prompt", two_spellings, ""),
    ("prompt", another_prompt_than_published, ""),
    ("prompt", untrained_spelling, ""),
    ("prompt missing", prompt_missing, ""),
    ("prompt missing by the card", prompt_missing_by_the_card, ""),
    ("not normalised", no_normalize, "vLLM"),
    ("unstated dimensions", cut_dimensions_unsaid, "vLLM"),
    ("matryoshka dimensions", too_many_dimensions, "vLLM"),
    ("lower case", lower_case, "TEI"),
    ("normalizer", strip, "llama.cpp"),
    ("tokenizer", other_merges, ""),
    ("chat template", chat_template, "sentence-transformers 6"),
    ("tokenizer.model", other_pieces, "llama.cpp"),
    ("no tokenizer.json", no_tokenizer_json, ""),
    ("too few embeddings", too_few_embeddings, ""),
    ("max length", no_max_seq_length, "TEI"),
    ("max length", another_length_in_the_tokenizer, "tokenizers"),
    ("unstated length", no_limit_in_the_tokenizer, "transformers 5"),
    ("max length", another_length_than_published, ""),
    ("unreadable files", new_module_paths, "sentence-transformers 5"),
    ("unreadable files", own_code, "sentence-transformers 6"),
    ("unreadable files", tokenizers_backend, "transformers 4"),
    ("unreadable files", list_of_special_tokens, "transformers 4"),
    ("unreadable files", mistral_format, "vLLM"),
    ("rotary base", new_rope_alone, "transformers 4"),
]


@pytest.mark.parametrize("family", ["embedded", "mistral", "llama", "qwen3", "gpt2"])
def test_a_good_repository_has_no_finding(family: str, good: Callable[[str], Path]) -> None:
    assert diagnose(str(good(family)), live=True).findings == []


@pytest.mark.parametrize(
    ("trap", "damage", "reader"), INJECTIONS, ids=[f"{trap}-{damage.__name__}" for trap, damage, _ in INJECTIONS]
)
def test_a_trap_is_found_and_named(trap: str, damage: Callable[[Path], None], reader: str, broken: Path) -> None:
    damage(broken)
    found = [finding for finding in diagnose(str(broken), live=False).findings if finding.trap == trap]
    assert found
    assert found[0].fix
    assert reader in " ".join(found[0].readers)


def test_left_padding_and_counted_positions_do_not_go_together(good: Callable[[str], Path], tmp_path: Path) -> None:
    folder = shutil.copytree(good("gpt2"), tmp_path / "gpt2")
    tokenizer_config(folder, padding_side="left")
    found = diagnose(str(folder), live=False).findings
    assert {finding.trap for finding in found} == {"left padding of absolute positions"}
    assert "counts positions from the first column" in found[0].message


def test_a_byte_fallback_tokenizer_needs_its_model_or_a_probe(good: Callable[[str], Path], tmp_path: Path) -> None:
    folder = shutil.copytree(good("embedded"), tmp_path / "embedded")
    no_probe(folder)
    [finding] = diagnose(str(folder), live=False).findings
    assert (finding.trap, finding.severity, finding.readers) == ("no tokenizer.model", "warning", ("llama.cpp",))
    vocabulary = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    pieces(folder / "tokenizer.model", sorted(vocabulary, key=lambda piece: vocabulary[piece]))
    assert diagnose(str(folder), live=False).findings == []


def test_a_tokenizer_that_strips_gives_the_texts_with_edges_other_tokens(broken: Path) -> None:
    strip(broken)
    assert {"normalizer", "whitespace"} == {finding.trap for finding in diagnose(str(broken), live=False).findings}


def test_what_was_not_checked_is_said_with_the_reason(broken: Path) -> None:
    def reason() -> str | None:
        checks = {check.what: check.not_checked for check in diagnose(str(broken), live=False).checks}
        return checks["prompts are those of the training"]

    assert reason() == "there is no recipe.yaml, which states the prompts of the training"
    recipe(broken)
    assert reason() is None


def test_every_trap_that_is_found_is_in_the_catalogue_and_the_other_way_round() -> None:
    package = Path(doctor_package.__file__).parent
    code = "".join(path.read_text(encoding="utf-8") for path in package.rglob("*.py"))
    assert set(re.findall(r'(?:Finding|_explanation|_seen|explain)\("([^"]+)"', code)) <= TRAPS.keys()
    assert [trap for trap in TRAPS if f'"{trap}"' not in code] == []


def test_the_public_name_is_a_function_whatever_was_imported_before() -> None:
    """`doctor` is a package of the same room, so the function has a name of its own."""
    import st_llm_embed.doctor.probe

    assert callable(st_llm_embed.diagnose)
    assert callable(st_llm_embed.verify)


def test_a_repository_without_a_probe_is_examined(broken: Path) -> None:
    no_probe(broken)
    diagnosis = diagnose(str(broken), live=False)
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
        ("probe.json", '{"version": 1}', r"probe\.json is not a probe that can be read"),
        ("tokenizer_config.json", "[]", r"tokenizer_config\.json holds a list"),
    ],
)
def test_files_that_cannot_be_read_are_named(name: str, content: str, message: str, broken: Path) -> None:
    (broken / name).write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        diagnose(str(broken), live=False)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("no/such/folder", "is not a folder.*is not a name of a repository on the Hub"),
        ("lab/model", "HF_HUB_OFFLINE forbids asking the Hub"),
    ],
)
def test_a_model_that_is_not_there_is_named(model: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        diagnose(model)


def test_an_instruction_may_speak_of_a_query(broken: Path) -> None:
    no_probe(broken)
    prompts(broken, query="Instruct: Given a search query: find passages that answer it\nQuery: ")
    assert not [finding for finding in diagnose(str(broken), live=False).findings if finding.trap == "prompt doubled"]


def test_an_adapter_that_names_itself_as_its_base_is_not_searched_endlessly(tmp_path: Path) -> None:
    config = {"base_model_name_or_path": str(tmp_path), "peft_type": "LORA"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    assert diagnose(str(tmp_path), live=False).findings


def test_weights_that_are_pickles_alone_are_found_and_not_loaded(broken: Path) -> None:
    no_probe(broken)
    (broken / "model.safetensors").rename(broken / "pytorch_model.bin")
    [finding] = [one for one in diagnose(str(broken)).findings if one.file == "pytorch_model.bin"]
    assert "can run code" in finding.message


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="so it is not a model"):
        diagnose(str(tmp_path))
