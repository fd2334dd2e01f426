"""Each trap, put into a good repository, is found in its files alone; a good repository has none."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from break_repository import (
    chat_template,
    edit,
    edit_list,
    eos_as_text,
    eos_by_flag,
    eos_twice,
    no_mask,
    no_normalize,
    no_probe,
    pieces,
    prompts,
    template,
    tokenizer_config,
)
from safetensors.torch import load_file, save_file

from st_llm_embed import InputError, Recipe, diagnose
from st_llm_embed import doctor as doctor_package
from st_llm_embed.doctor import TRAPS
from st_llm_embed.doctor.readers import POOLING_FILE

QUERY = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery: "


TRUNCATION = {"direction": "Right", "max_length": 12, "strategy": "LongestFirst", "stride": 0}


def sets(name: str, **changes: Any) -> Callable[[Path], None]:
    """Set keys of a JSON file; None removes one."""
    return lambda folder: edit(folder / name, **changes)


def module_path(old: str, new: str) -> Callable[[Path], Any]:
    """Replace a part of a type in modules.json."""

    def damage(folder: Path) -> None:
        path = folder / "modules.json"
        path.write_text(path.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")

    return damage


def reorder(folder: Path, *places: int) -> None:
    edit_list(folder / "modules.json", lambda modules: [modules[place] for place in places])


def add_dense(folder: Path, *, weights: bool = True) -> None:
    module = {"idx": 2, "name": "dense", "path": "2_Dense", "type": "sentence_transformers.models.Dense"}
    edit_list(folder / "modules.json", lambda modules: [*modules[:2], module, *modules[2:]])
    (folder / "2_Dense").mkdir()
    edit(folder / "2_Dense" / "config.json", in_features=32, out_features=32, bias=False)
    edit(folder / "config.json", architectures=["LlamaForCausalLM"])
    if weights:
        save_file({"linear.weight": torch.eye(32)}, folder / "2_Dense" / "model.safetensors")


def probe_of_size(folder: Path, size: int) -> None:
    unit = [1.0] + [0.0] * (size - 1)
    texts = json.loads((folder / "probe.json").read_text(encoding="utf-8"))["texts"]
    edit(folder / "probe.json", dimension=size, texts=[text | {"vector": unit} for text in texts])


def weights(kept: Callable[[str, torch.Tensor], bool], prefix: str = "") -> Callable[[Path], None]:
    """Keep some of the weights, under other names."""

    def damage(folder: Path) -> None:
        path = folder / "model.safetensors"
        tensors = {prefix + key: value for key, value in load_file(path).items() if kept(key, value)}
        save_file(tensors, path, metadata={"format": "pt"})

    return damage


def neither(folder: Path) -> None:
    template(folder, "<s>", "A")
    tokenizer_config(folder, add_eos_token=None)


def two_padding_sides(folder: Path) -> None:
    tokenizer_config(folder, padding_side="left")
    padding = {"strategy": "BatchLongest", "direction": "Right", "pad_to_multiple_of": None}
    edit(folder / "tokenizer.json", padding=padding | {"pad_id": 2, "pad_type_id": 0, "pad_token": "</s>"})


def compact_pooling(folder: Path) -> None:
    config = {"embedding_dimension": 32, "pooling_mode": "lasttoken", "include_prompt": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(config), encoding="utf-8")


def two_spellings(folder: Path) -> None:
    no_probe(folder)
    prompts(folder, query=QUERY.rstrip())


def recipe(folder: Path, **overrides: str) -> None:
    Recipe.load("demo", [f"{key}={value}" for key, value in overrides.items()]).save(folder / "recipe.yaml")


def untrained_spelling(folder: Path) -> None:
    no_probe(folder)
    recipe(folder)
    prompts(folder, query=QUERY.rstrip(), STS=None, BitextMining=None)


def prompt_missing(folder: Path) -> None:
    no_probe(folder)
    recipe(folder)
    edit(folder / "config_sentence_transformers.json", prompts={"query": "", "document": ""})


def prompt_missing_by_the_card(folder: Path) -> None:
    prompt_missing(folder)
    (folder / "recipe.yaml").unlink()
    (folder / "README.md").write_text("Queries are `Instruct: {task}\\nQuery: {query}`.", encoding="utf-8")


def strip(folder: Path) -> None:
    edit(folder / "tokenizer.json", normalizer={"type": "Strip", "strip_left": True, "strip_right": True})


def other_merges(folder: Path) -> None:
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    edit(folder / "tokenizer.json", model=model | {"merges": model["merges"][5:]})


def another_length_than_published(folder: Path) -> None:
    edit(folder / "sentence_bert_config.json", max_seq_length=32)
    tokenizer_config(folder, model_max_length=32)


INJECTIONS: dict[str, tuple[str, str, Callable[[Path], Any]]] = {
    "flag only, as e5-mistral-7b-instruct": ("missing EOS", "transformers 5", eos_by_flag),
    "post-processor only": (
        "missing EOS",
        "transformers 4",
        sets("tokenizer_config.json", tokenizer_class="LlamaTokenizerFast", add_eos_token=None),
    ),
    "neither": ("missing EOS", "TEI", neither),
    "llama.cpp's converter believes the flag": (
        "missing EOS",
        "llama.cpp",
        sets("tokenizer_config.json", add_eos_token=False),
    ),
    "twice": ("doubled EOS", "", eos_twice),
    "in a prompt": ("special token in a prompt", "", lambda folder: prompts(folder, query=f"<s>{QUERY}")),
    "as text": ("EOS cut off", "", eos_as_text),
    "left": ("cut on the left", "", sets("tokenizer_config.json", truncation_side="left")),
    "no mask": ("no attention mask", "", no_mask),
    "no pad token": ("no pad token", "", sets("tokenizer_config.json", pad_token=None)),
    "two padding sides": ("two padding sides", "", two_padding_sides),
    "compact": ("pooling", "TEI", compact_pooling),
    # sentence-transformers 5 pools by mean where nothing says that it should not.
    "not a word of mean": ("pooling", "sentence-transformers 5", sets(POOLING_FILE, pooling_mode_mean_tokens=None)),
    "no modules.json": ("no modules.json", "", lambda folder: (folder / "modules.json").unlink()),
    "default prompt": (
        "prompt on documents",
        "sentence-transformers",
        sets("config_sentence_transformers.json", default_prompt_name="query"),
    ),
    "that of queries": ("prompt on documents", "", lambda folder: prompts(folder, document=QUERY)),
    "prompt twice": ("prompt doubled", "", lambda folder: prompts(folder, query=QUERY + QUERY)),
    "two spellings": ("prompt", "", two_spellings),
    "another than published": ("prompt", "", lambda folder: prompts(folder, query=QUERY.replace("web ", ""))),
    "untrained spelling": ("prompt", "", untrained_spelling),
    "missing": ("prompt missing", "", prompt_missing),
    "on the card alone": ("prompt missing by the card", "", prompt_missing_by_the_card),
    "no Normalize": ("not normalised", "vLLM", no_normalize),
    "cut unsaid": (
        "unstated dimensions",
        "vLLM",
        lambda folder: recipe(folder, **{"loss.matryoshka_dims": "[32,16]"}),
    ),
    "too many": ("matryoshka dimensions", "vLLM", sets("config.json", matryoshka_dimensions=[4096, 16])),
    "lower case": ("lower case", "TEI", sets("sentence_bert_config.json", do_lower_case=True)),
    "strip": ("normalizer", "llama.cpp", strip),
    "other merges": ("tokenizer", "", other_merges),
    "chat template": ("chat template", "sentence-transformers 6", chat_template),
    "other pieces": (
        "tokenizer.model",
        "llama.cpp",
        lambda folder: pieces(folder / "tokenizer.model", ["<unk>", "<s>", "</s>", "▁other"]),
    ),
    "no tokenizer.json": ("no tokenizer.json", "", lambda folder: (folder / "tokenizer.json").unlink()),
    "vocabulary": ("too few embeddings", "", sets("config.json", vocab_size=100)),
    "no length": ("max length", "TEI", sets("sentence_bert_config.json", max_seq_length=None)),
    "in tokenizer.json": ("max length", "tokenizers", sets("tokenizer.json", truncation=TRUNCATION)),
    "unlimited": ("unstated length", "transformers 5", sets("tokenizer_config.json", model_max_length=int(1e30))),
    "length of the probe": ("max length", "", another_length_than_published),
    "module paths": (
        "unreadable files",
        "sentence-transformers 5",
        module_path("models.Transformer", "base.modules.transformer.Transformer"),
    ),
    "own code": (
        "unreadable files",
        "sentence-transformers 6",
        module_path("sentence_transformers.models.Pooling", "my_code.Pooling"),
    ),
    "backend": (
        "unreadable files",
        "transformers 4",
        sets("tokenizer_config.json", tokenizer_class="TokenizersBackend"),
    ),
    "list of tokens": (
        "unreadable files",
        "transformers 4",
        sets("tokenizer_config.json", extra_special_tokens=["<x>"]),
    ),
    "Mistral's format": ("unreadable files", "vLLM", sets("params.json")),
    "two poolings": ("two poolings", "", sets(POOLING_FILE, pooling_mode_mean_tokens=True)),
    "a list of poolings": ("two poolings", "", sets(POOLING_FILE, pooling_mode=["lasttoken", "mean"])),
    "1 for true": ("pooling", "TEI", sets(POOLING_FILE, pooling_mode_lasttoken=1)),
    "unknown pooling": ("pooling", "", sets(POOLING_FILE, pooling_mode="last")),
    "no pooling dimension": ("pooling", "", sets(POOLING_FILE, word_embedding_dimension=None)),
    "another pooling dimension": ("pooling", "", sets(POOLING_FILE, word_embedding_dimension=64)),
    "no pooling file": ("pooling", "", lambda folder: (folder / POOLING_FILE).unlink()),
    "Normalize first": ("module order", "", lambda folder: reorder(folder, 0, 2, 1)),
    "Pooling first": ("module order", "", lambda folder: reorder(folder, 1, 0, 2)),
    "two of a name": ("module order", "", lambda folder: reorder(folder, 0, 1, 1, 2)),
    "own architecture": ("custom code", "", sets("config.json", auto_map={"AutoModel": "my.Model"})),
    "own tokenizer": ("custom code", "", sets("tokenizer_config.json", auto_map={"AutoTokenizer": ["my.T", None]})),
    "sees both sides": ("attention", "TEI", sets("config.json", is_causal=False)),
    "marked as bidirectional": ("attention", "vLLM", sets("config.json", use_bidirectional_attention=True)),
    "no query prompt": ("no query prompt", "sentence-transformers", lambda folder: prompts(folder, query=None)),
    "Dense": ("dense layers", "llama.cpp", add_dense),
    "Dense without weights": ("weights missing", "", lambda folder: add_dense(folder, weights=False)),
    "another probe": ("probe", "", lambda folder: probe_of_size(folder, 8)),
    "layers missing": ("weights missing", "", weights(lambda key, _: "layers.1" not in key)),
    "keys renamed": ("weights missing", "", weights(lambda _key, _value: True, prefix="language_model.")),
    "more layers in config.json": ("weights missing", "", sets("config.json", num_hidden_layers=4)),
    "fewer layers in config.json": ("weights left over", "", sets("config.json", num_hidden_layers=1)),
    "other heads": ("weights of another shape", "", sets("config.json", num_key_value_heads=4)),
    "other vocabulary": ("weights of another shape", "", sets("config.json", vocab_size=4000)),
    "another family": ("weights missing", "", sets("config.json", model_type="qwen3")),
    "begins by flags": (
        "missing BOS",
        "transformers 4",
        sets("tokenizer_config.json", tokenizer_class="LlamaTokenizer", add_bos_token=False),
    ),
    "llama.cpp goes by that flag": ("missing BOS", "llama.cpp", sets("tokenizer_config.json", add_bos_token=False)),
    "two architectures": ("two architectures", "vLLM", sets("config.json", architectures=["Qwen2ForCausalLM"])),
    "no Pooling": ("pooling", "", lambda folder: reorder(folder, 0, 2)),
    "prompts left out of the mean": (
        "pooling",
        "TEI",
        sets(POOLING_FILE, pooling_mode_lasttoken=False, pooling_mode_mean_tokens=True, include_prompt=False),
    ),
    "too long for its positions": ("max length", "", sets("sentence_bert_config.json", max_seq_length=4096)),
    "an unknown setting": ("unreadable files", "sentence-transformers 5", sets("sentence_bert_config.json", other=1)),
    "an option of sentence-transformers 6": (
        "newer settings",
        "sentence-transformers 5",
        sets("sentence_bert_config.json", processing_kwargs={"text": {"split_special_tokens": True}}),
    ),
    "special tokens split": (
        "special tokens in texts",
        "TEI",
        sets("tokenizer_config.json", split_special_tokens=True),
    ),
    "no Transformer": ("module order", "", lambda folder: reorder(folder, 1, 2)),
    "no such default": (
        "unreadable files",
        "sentence-transformers",
        sets("config_sentence_transformers.json", default_prompt_name="other"),
    ),
    "new rope alone": (
        "rotary base",
        "transformers 4",
        sets("config.json", rope_theta=None, rope_parameters={"rope_theta": 1e6, "rope_type": "default"}),
    ),
}
"""By what was done: the trap, a reader that is affected (empty: everybody), and how it is done."""


@pytest.mark.parametrize("family", ["embedded", "mistral", "llama", "qwen3", "gpt2"])
def test_a_good_repository_has_no_finding(family: str, good: Callable[[str], Path]) -> None:
    assert diagnose(str(good(family)), live=True).findings == []


@pytest.mark.parametrize("done", INJECTIONS)
def test_a_trap_is_found_and_named(done: str, broken: Path) -> None:
    trap, reader, damage = INJECTIONS[done]
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
    no_probe(broken)
    diagnosis = diagnose(str(broken), live=False)
    assert diagnosis.findings == []
    reasons = [check.not_checked for check in diagnosis.checks]
    assert reasons.count("there is no probe.json") == 1
    assert "there is no recipe.yaml, which states the prompts of the training" in reasons
    recipe(broken)
    reasons = [check.not_checked for check in diagnose(str(broken), live=False).checks]
    assert not any("recipe.yaml" in (reason or "") for reason in reasons)


def test_every_trap_that_is_found_is_in_the_catalogue_and_the_other_way_round() -> None:
    package = Path(doctor_package.__file__).parent
    code = "".join(path.read_text(encoding="utf-8") for path in package.rglob("*.py"))
    assert set(re.findall(r'(?:Finding|_explanation|_seen|explain)\("([^"]+)"', code)) <= TRAPS.keys()
    assert [trap for trap in TRAPS if f'"{trap}"' not in code] == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "{", "cannot be used: Expecting property name"),
        ("config.json", '{"model_type": "mistral", "architectures": 5}', "is not of the kind it should be"),
        ("config.json", '{"model_type": "mistral", "rope_parameters": "x"}', "is not of the kind it should be"),
        ("modules.json", "{}", "modules.json has to be a list of modules"),
        ("modules.json", "[]", "modules.json has to be a list of modules"),
        ("modules.json", '[{"type": "a.Pooling", "path": "../other"}]', "a path inside the repository"),
        ("modules.json", '[{"type": "a.Pooling", "path": "/other"}]', "a path inside the repository"),
        ("tokenizer.json", '{"version": "1.0"}', "tokenizer.json cannot be read"),
        ("probe.json", '{"version": 1}', "probe.json is not a probe that can be read"),
        ("tokenizer_config.json", "[]", "tokenizer_config.json holds a list"),
    ],
)
def test_files_that_cannot_be_read_are_named(name: str, content: str, message: str, broken: Path) -> None:
    (broken / name).write_text(content, encoding="utf-8")
    diagnosis = diagnose(str(broken), live=False)
    damaged = [finding for finding in diagnosis.findings if finding.trap == "damaged file"]
    assert any(message in finding.message for finding in damaged)
    assert any(check.not_checked == "files are damaged" for check in diagnosis.checks)


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
