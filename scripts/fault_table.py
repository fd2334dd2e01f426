"""Faults of embedding repositories, each put into a healthy release by a function that damages its folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file
from tokenizers import processors

from st_llm_embed.modules.layout import POOLING_FLAGS

GONE = object()
"""In place of a value: the key is removed."""

Damage = Callable[[Path], None]


class Fault(NamedTuple):
    """One way to damage a release."""

    name: str
    release: str
    """last, mean, dense or adapter."""
    damage: Damage
    tells: bool = True
    """Whether files and headers show it; False for what only weights show, or nothing, since it changes nothing."""


def table(file: str, *place: Any, **changes: Any) -> Damage:
    """Set keys of a JSON object, or of the one at a place inside it."""

    def damage(folder: Path) -> None:
        content = json.loads((folder / file).read_text(encoding="utf-8")) if (folder / file).is_file() else {}
        inner = content
        for key in place:
            inner = inner[key]
        for key, value in changes.items():
            if value is GONE:
                inner.pop(key, None)
            else:
                inner[key] = value(inner.get(key)) if callable(value) else value
        (folder / file).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")

    return damage


def content(file: str, change: Callable[[bytes], bytes]) -> Damage:
    """Change the bytes of a file."""

    def damage(folder: Path) -> None:
        changed = change((folder / file).read_bytes())
        (folder / file).unlink()
        (folder / file).write_bytes(changed)

    return damage


def listed(change: Callable[[list[dict[str, Any]]], Any]) -> Damage:
    """Change the list in modules.json."""
    return content("modules.json", lambda old: json.dumps(change(json.loads(old))).encode())


def module(number: int, **changes: Any) -> Damage:
    """Change one entry of modules.json."""
    return listed(lambda old: [one | changes if place == number else one for place, one in enumerate(old)])


def tensors(change: Callable[[dict[str, torch.Tensor]], Any], file: str = "model.safetensors") -> Damage:
    """Change the tensors of a safetensors file; a function returns others, or changes them in place."""

    def damage(folder: Path) -> None:
        weights = load_file(folder / file)
        weights = change(weights) or weights
        (folder / file).unlink()
        save_file({key: value.contiguous() for key, value in weights.items()}, folder / file, {"format": "pt"})

    return damage


def each(change: Callable[[torch.Tensor], torch.Tensor], part: str = "") -> Callable[[dict[str, torch.Tensor]], Any]:
    """Return a function that changes the tensors whose names have a part."""
    return lambda old: {key: change(value) if part in key else value for key, value in old.items()}


def renamed(old: str, new: str) -> Callable[[dict[str, torch.Tensor]], Any]:
    """Return a function that renames tensors."""
    return lambda weights: {key.replace(old, new): value for key, value in weights.items()}


def without(part: str) -> Callable[[dict[str, torch.Tensor]], Any]:
    """Return a function that removes tensors."""
    return lambda weights: {key: value for key, value in weights.items() if part not in key}


def removed(file: str) -> Damage:
    """Remove a file."""
    return lambda folder: (folder / file).unlink()


def folder_for(file: str) -> Damage:
    """Put a folder in the place of a file."""

    def damage(folder: Path) -> None:
        (folder / file).unlink()
        (folder / file).mkdir()

    return damage


def loop_for(file: str) -> Damage:
    """Put a link to itself in the place of a file."""

    def damage(folder: Path) -> None:
        (folder / file).unlink()
        (folder / file).symlink_to(folder / file)

    return damage


def sharded(change: Callable[[dict[str, str]], dict[str, str]], *, last: bool = True) -> Damage:
    """Write the weights as two shards with an index, whose map is changed."""

    def damage(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
        place = {key: names[number % 2] for number, key in enumerate(sorted(weights))}
        for name in names[: 1 + last]:
            shard = {key: value for key, value in weights.items() if place[key] == name}
            save_file(shard, folder / name, {"format": "pt"})
        index = {"metadata": {}, "weight_map": change(place)}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")

    return damage


def around(*names: str) -> Damage:
    """Put these tokens around a text, which is A."""
    tokens = {"<unk>": 0, "<s>": 1, "</s>": 2}
    single = ["$A" if name == "A" else name for name in names]
    used = [(name, tokens[name]) for name in tokens if name in names]
    made = processors.TemplateProcessing(single, [*single, "$B:1"], used)
    return table("tokenizer.json", post_processor=lambda _: json.loads(made.__getstate__()))


def swapped(first: str, second: str) -> Callable[[Any], Any]:
    """Return a function that swaps the values of two keys."""

    def change(old: dict[str, Any]) -> dict[str, Any]:
        old[first], old[second] = old[second], old[first]
        return old

    return change


def pooled(mode: str | None, file: str = "1_Pooling/config.json", **others: Any) -> Damage:
    """Set one pooling, or none."""
    return table(file, **{flag: name == mode for name, flag in POOLING_FLAGS.items()}, **others)


MODULES = {
    "normalise before pooling": listed(lambda old: [old[0], old[2], old[1]]),
    "pooling first": listed(lambda old: [old[1], old[0], old[2]]),
    "no pooling": listed(lambda old: [old[0], old[2]]),
    "no transformer": listed(lambda old: old[1:]),
    "no normalise": listed(lambda old: old[:2]),
    "normalise twice under one name": listed(lambda old: [*old, old[2]]),
    "pooling twice": listed(lambda old: [*old[:2], old[1] | {"name": "9"}, old[2]]),
    "transformer twice": listed(lambda old: [old[0], old[0] | {"name": "9"}, *old[1:]]),
    "an empty list": listed(lambda _: []),
    "an object": listed(lambda old: {"modules": old}),
    "one name for two": module(1, name="0"),
    "pooling is a Normalize": module(1, type="sentence_transformers.models.Normalize"),
    "a type in lower case": module(1, type="sentence_transformers.models.pooling"),
    "a type of nobody's": module(1, type="lab.pooling.Pooling"),
    "a folder that is not there": module(1, path="7_Pooling"),
    "a folder above": module(1, path="../1_Pooling"),
    "an absolute folder": module(1, path="/1_Pooling"),
    "pooling at the root": module(1, path=""),
    "the transformer's folder is not there": module(0, path="0_Transformer"),
    "LayerNorm without a file": listed(
        lambda old: [*old[:2], {"idx": 2, "name": "9", "path": "9", "type": "sentence_transformers.models.LayerNorm"}]
    ),
    "no type": module(1, type=None),
    "numbers are not in order": module(2, idx=0),
}
CONFIG = {
    "eight heads": {"num_attention_heads": 8},
    "one head of keys": {"num_key_value_heads": 1},
    "one layer": {"num_hidden_layers": 1},
    "three layers": {"num_hidden_layers": 3},
    "a smaller vocabulary": {"vocab_size": 300},
    "a larger vocabulary": {"vocab_size": 5000},
    "a wider model": {"hidden_size": 64},
    "a narrower MLP": {"intermediate_size": 24},
    "wider heads": {"head_dim": 16},
    "sixteen positions": {"max_position_embeddings": 16},
    "a llama": {"model_type": "llama"},
    "architectures of another family": {"architectures": ["Qwen2Model"]},
    "no architectures": {"architectures": GONE},
    "no model_type": {"model_type": GONE},
    "a BERT": {"model_type": "bert"},
    "a type of nobody's": {"model_type": "mistral5"},
    "code of its own": {"auto_map": {"AutoModel": "modeling.Own"}},
    "another data type": {"dtype": "bfloat16"},
    "a data type that there is not": {"dtype": "float31"},
    "attention to both sides": {"is_causal": False},
    "bidirectional by Gemma's key": {"use_bidirectional_attention": True},
    "an encoder and decoder": {"is_encoder_decoder": True},
    "a pad token beyond the embeddings": {"pad_token_id": 10**6},
    "dimensions above its own": {"matryoshka_dimensions": [16, 9999]},
    "rotary base for transformers 5 alone": {
        "rope_parameters": lambda old: (old or {}) | {"rope_theta": 2.0},
    },
    "rotary base for transformers 4 alone": {"rope_theta": 2.0},
    "rotary scaling in the old key alone": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "a rotary type of nobody's": {"rope_parameters": {"rope_type": "spiral", "rope_theta": 1e4}},
    "a name for the activation that there is not": {"hidden_act": "sulu"},
    "a quantisation of nobody's": {"quantization_config": {"quant_method": "magic"}},
    "a huge number": {"max_position_embeddings": 10**400},
    "infinite positions": {"max_position_embeddings": float("inf")},
    "layers as text": {"num_hidden_layers": "2"},
    "layers below zero": {"num_hidden_layers": -1},
}
UNTOLD_CONFIG = {
    "rotary base in both keys": {
        "rope_theta": 2.0,
        "rope_parameters": lambda old: (old or {}) | {"rope_theta": 2.0},
    },
    "another activation": {"hidden_act": "relu"},
    "another epsilon": {"rms_norm_eps": 0.5},
    "fewer and wider heads": {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16},
    "a window of four": {"sliding_window": 4},
    "dropout, which is for training": {"attention_dropout": 0.5},
    "untied embeddings": {"tie_word_embeddings": lambda old: not old},
}
WEIGHTS = {
    "a weight missing": tensors(without("layers.1.mlp.up_proj")),
    "the last norm missing": tensors(without("norm.weight")),
    "a weight renamed": tensors(renamed("layers.0.self_attn.q_proj", "layers.0.self_attn.query")),
    "a layer more": tensors(lambda old: old | {k.replace("rs.1.", "rs.2."): v.clone() for k, v in old.items()}),
    "a prefix": tensors(renamed("layers.", "language_model.layers.")),
    "bfloat16": tensors(each(torch.Tensor.bfloat16)),
    "float16": tensors(each(torch.Tensor.half)),
    "int8": tensors(each(lambda one: (one * 40).to(torch.int8), "proj")),
    "a weight transposed": tensors(each(lambda one: one.T, "up_proj")),
    "no tensors": tensors(lambda _: {"x": torch.zeros(1)}),
    "truncated": content("model.safetensors", lambda old: old[:-100]),
    "more bytes": content("model.safetensors", lambda old: old + b"\0" * 64),
    "zeros": content("model.safetensors", lambda old: b"\0" * len(old)),
    "a pointer of Git LFS": content("model.safetensors", lambda _: LFS),
    "a page of HTML": content("model.safetensors", lambda _: b"<!doctype html><title>404</title>"),
    "not there": removed("model.safetensors"),
    "a folder": folder_for("model.safetensors"),
    "a shard is missing": sharded(lambda old: old, last=False),
    "an index without a key": sharded(lambda old: {key: name for key, name in old.items() if "q_proj" not in key}),
    "an index that names the other shard": sharded(lambda old: old | {sorted(old)[0]: sorted(old.values())[-1]}),
    "an index without a map": sharded(lambda _: {}),
}
UNTOLD_WEIGHTS = {
    "rows permuted": each(lambda one: one.flip(0), "layers.0.self_attn.q_proj"),
    "layers swapped": lambda old: {
        key.translate(str.maketrans("01", "10")) if "layers" in key else key: value for key, value in old.items()
    },
    "scaled by 5 %": each(lambda one: one * 1.05, "layers.1.mlp.down_proj"),
    "transposed square": each(lambda one: one.T, "o_proj"),
    "embeddings a row on": each(lambda one: one.roll(1, 0), "embed_tokens"),
    "a NaN": each(lambda one: one.clone().index_fill_(0, torch.tensor([3]), torch.nan), "layers.1.mlp.up_proj"),
    "an infinity": each(lambda one: one.clone().index_fill_(0, torch.tensor([3]), torch.inf), "norm"),
    "a layer of zeros": each(torch.zeros_like, "layers.0."),
    "norms of one": each(lambda one: one * 3, "post_attention_layernorm"),
    "a sign": each(torch.neg, "layers.0.self_attn.v_proj"),
    "another seed": each(lambda one: one.roll(7, 0), "proj"),
    "end token of zeros": each(lambda one: one.index_fill(0, torch.tensor([2]), 0.0), "embed_tokens"),
    "float64": each(torch.Tensor.double),
}
TOKENIZER = {
    "no post-processor": table("tokenizer.json", post_processor=None),
    "BOS twice": around("<s>", "<s>", "A", "</s>"),
    "EOS twice": around("<s>", "A", "</s>", "</s>"),
    "no EOS": around("<s>", "A"),
    "no BOS": around("A", "</s>"),
    "another end": around("<s>", "A", "<unk>"),
    "EOS in front": around("<s>", "</s>", "A"),
    "lower case": table("tokenizer.json", normalizer={"type": "Lowercase"}),
    "no accents": table(
        "tokenizer.json", normalizer={"type": "Sequence", "normalizers": [{"type": "NFD"}, {"type": "StripAccents"}]}
    ),
    "NFKC": table("tokenizer.json", normalizer={"type": "NFKC"}),
    "stripped": table("tokenizer.json", normalizer={"type": "Strip", "strip_left": True, "strip_right": True}),
    "a mark in front": table("tokenizer.json", normalizer={"type": "Prepend", "prepend": "_"}),
    "a normalizer of nobody's": table("tokenizer.json", normalizer={"type": "Magic"}),
    "a space in front": table("tokenizer.json", "pre_tokenizer", add_prefix_space=True),
    "words at blanks": table("tokenizer.json", pre_tokenizer={"type": "Whitespace"}),
    "no pre-tokenizer": table("tokenizer.json", pre_tokenizer=None),
    "half the merges": table("tokenizer.json", "model", merges=lambda old: old[: len(old) // 2]),
    "merges reversed": table("tokenizer.json", "model", merges=lambda old: old[::-1]),
    "merges dropped at random": table("tokenizer.json", "model", dropout=0.5),
    "no merges": table("tokenizer.json", "model", ignore_merges=True),
    "letters swapped": table("tokenizer.json", "model", vocab=swapped("a", "e")),
    "a letter missing": table("tokenizer.json", "model", vocab=lambda old: {k: v for k, v in old.items() if k != "q"}),
    "special tokens swapped": table("tokenizer.json", "added_tokens", 1, id=2),
    "a token beyond the embeddings": table("tokenizer.json", added_tokens=lambda old: [*old, old[2] | NEW_TOKEN]),
    "blanks before EOS are eaten": table("tokenizer.json", "added_tokens", 2, lstrip=True),
    "cut on the left": table("tokenizer.json", "truncation", direction="Left"),
    "cut at eight": table("tokenizer.json", "truncation", max_length=8),
    "cut at zero": table("tokenizer.json", "truncation", max_length=0),
    "padding on the left": table("tokenizer.json", padding=lambda _: PADDING | {"direction": "Left"}),
    "another model": table("tokenizer.json", model={"type": "WordLevel", "vocab": {"<unk>": 0}, "unk_token": "<unk>"}),
    "a type that there is not": table("tokenizer.json", "model", type="WordPeace"),
    "not there": removed("tokenizer.json"),
    "a pointer of Git LFS": content("tokenizer.json", lambda _: LFS),
    "a key twice": content("tokenizer.json", lambda old: old.replace(b'"a": ', b'"b": 5, "a": ', 1)),
    "a folder": folder_for("tokenizer.json"),
}
TOKENIZER_CONFIG = {
    "padded on the left": {"padding_side": "left"},
    "padded in the middle": {"padding_side": "center"},
    "cut on the left": {"truncation_side": "left"},
    "cut at eight": {"model_max_length": 8},
    "never cut": {"model_max_length": 10**30},
    "a length as text": {"model_max_length": "48"},
    "a flag of another class": {"tokenizer_class": "LlamaTokenizer", "add_eos_token": False},
    "a class of transformers 5": {"tokenizer_class": "TokenizersBackend"},
    "a class of nobody's": {"tokenizer_class": "MagicTokenizer"},
    "BERT's class": {"tokenizer_class": "BertTokenizer"},
    "another EOS": {"eos_token": "<unk>"},
    "another BOS": {"bos_token": "<unk>"},
    "no EOS": {"eos_token": GONE},
    "no pad token": {"pad_token": GONE},
    "a pad token that there is not": {"pad_token": "<pad>"},
    "no mask": {"model_input_names": ["input_ids"]},
    "special tokens are letters": {"split_special_tokens": True},
    "special tokens as a list": {"extra_special_tokens": ["<s>"]},
    "code of its own": {"auto_map": {"AutoTokenizer": ["own.Tokenizer", None]}},
    "tokens renumbered": {"added_tokens_decoder": {"7": {"content": "</s>", "special": True}}},
    "tokens that are new": {"additional_special_tokens": ["<new>"]},
}
SETTINGS = {
    **{
        f"length {value!r}": {"max_seq_length": value}
        for value in (1, 2, 0, -5, 16, 49, 10**9, None, "48", 48.5, True)
    },
    "no length": {"max_seq_length": GONE},
    "lower case": {"do_lower_case": True},
    "a key of nobody's": {"pool": 1},
    "layers by config_args": {"config_args": {"num_hidden_layers": 1}},
    "a data type by model_args": {"model_args": {"dtype": "bfloat16"}},
    "a side by tokenizer_args": {"tokenizer_args": {"truncation_side": "left"}},
    "never cut": {"processing_kwargs": {"text": {"truncation": False}}},
    "special tokens left out": {"processing_kwargs": {"text": {"add_special_tokens": False}}},
    "another task": {"transformer_task": "text-generation"},
}
POOLING: dict[str, tuple[str, Damage]] = {
    "mean": ("last", pooled("mean")),
    "the first token": ("last", pooled("cls")),
    "largest": ("last", pooled("max")),
    "none": ("last", pooled(None)),
    "two": ("last", table("1_Pooling/config.json", pooling_mode_mean_tokens=True)),
    "two in the new key": ("last", table("1_Pooling/config.json", pooling_mode="mean")),
    "a mode of nobody's": ("last", table("1_Pooling/config.json", pooling_mode="median")),
    "false as text": ("last", table("1_Pooling/config.json", pooling_mode_mean_tokens="false")),
    "one for true": ("last", table("1_Pooling/config.json", pooling_mode_lasttoken=1)),
    "another size": ("last", table("1_Pooling/config.json", word_embedding_dimension=16)),
    "no size": ("last", table("1_Pooling/config.json", word_embedding_dimension=GONE)),
    "a key of nobody's": ("last", table("1_Pooling/config.json", pooling_weight=0.5)),
    "not there": ("last", removed("1_Pooling/config.json")),
    "the last token for mean": ("mean", pooled("lasttoken")),
    "weighted mean for mean": ("mean", pooled("weightedmean")),
    "root of the length for mean": ("mean", pooled("mean_sqrt_len_tokens")),
    "the prompt left out of a mean": ("mean", table("1_Pooling/config.json", include_prompt=False)),
}
ST = "config_sentence_transformers.json"
PROMPTS = {
    "no query": table(ST, "prompts", query=GONE),
    "swapped": table(ST, prompts=swapped("query", "document")),
    "a blank fewer": table(ST, "prompts", query=lambda old: old.rstrip()),
    "a blank more": table(ST, "prompts", query=lambda old: f"{old} "),
    "a hard blank": table(ST, "prompts", query=lambda old: old.replace(" ", "\u00a0")),
    "a line end of Windows": table(ST, "prompts", query=lambda old: old.replace("\n", "\r\n")),
    "an escaped line end": table(ST, "prompts", query=lambda old: old.replace("\n", "\\n")),
    "twice": table(ST, "prompts", query=lambda old: old + old),
    "on documents": table(ST, "prompts", document="Document: "),
    "by default": table(ST, default_prompt_name="query"),
    "a default that there is not": table(ST, default_prompt_name="passage"),
    "null": table(ST, prompts=None),
    "a list": table(ST, prompts=["query"]),
    "a number": table(ST, "prompts", query=5),
    "with EOS": table(ST, "prompts", query=lambda old: f"{old}</s>"),
    "the file is not there": removed(ST),
    "another similarity": table(ST, similarity_fn_name="cosinus"),
}
ADAPTER = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTERS = {
    "another rank": table(ADAPTER, r=8),
    "fewer targets": table(ADAPTER, target_modules=["q_proj"]),
    "targets that there are not": table(ADAPTER, target_modules=["query"]),
    "DoRA": table(ADAPTER, use_dora=True),
    "another kind": table(ADAPTER, peft_type="IA3"),
    "a kind of nobody's": table(ADAPTER, peft_type="MAGIC"),
    "no kind": table(ADAPTER, peft_type=GONE),
    "one layer of two": table(ADAPTER, layers_to_transform=[0]),
    "ranks by pattern": table(ADAPTER, rank_pattern={"v_proj": 2}),
    "biases": table(ADAPTER, lora_bias=True),
    "a base that is not there": table(ADAPTER, base_model_name_or_path="/nowhere/base"),
    "no base": table(ADAPTER, base_model_name_or_path=GONE),
    "B of zeros": tensors(each(torch.zeros_like, "lora_B"), ADAPTER_WEIGHTS),
    "a NaN": tensors(each(lambda one: one * torch.nan, "layers.0"), ADAPTER_WEIGHTS),
    "a prefix too much": tensors(renamed("base_model.model.", "base_model.model.model."), ADAPTER_WEIGHTS),
    "named default": tensors(renamed("lora_A.", "lora_A.default."), ADAPTER_WEIGHTS),
    "a layer missing": tensors(without("layers.1"), ADAPTER_WEIGHTS),
    "truncated": content(ADAPTER_WEIGHTS, lambda old: old[: len(old) // 2]),
    "no weights": removed(ADAPTER_WEIGHTS),
    "no configuration": removed(ADAPTER),
}
UNTOLD_ADAPTERS = {
    "another alpha": table(ADAPTER, lora_alpha=1),
    "RsLoRA": table(ADAPTER, use_rslora=True),
    "alpha by pattern": table(ADAPTER, alpha_pattern={"q_proj": 1}),
    "A and B scaled": tensors(each(lambda one: one * 1.5), ADAPTER_WEIGHTS),
    "q for v": tensors(
        lambda old: {key: old[key.replace("v_proj.lora_A", "q_proj.lora_A")].clone() for key in old}, ADAPTER_WEIGHTS
    ),
    "turned": table(ADAPTER, fan_in_fan_out=True),
}
DENSE = "2_Dense/config.json"
DENSES = {
    "bias missing": tensors(without("bias"), "2_Dense/model.safetensors"),
    "no bias by its configuration": table(DENSE, bias=False),
    "another size in": table(DENSE, in_features=16),
    "another size out": table(DENSE, out_features=32),
    "an activation of nobody's": table(DENSE, activation_function="torch.nn.Magic"),
    "an activation that is no module": table(DENSE, activation_function="os.system"),
    "no weights": removed("2_Dense/model.safetensors"),
    "no configuration": removed(DENSE),
    "weight transposed": tensors(each(lambda one: one.T, "weight"), "2_Dense/model.safetensors"),
    "left out": listed(lambda old: [*old[:2], old[3]]),
    "after Normalize": listed(lambda old: [*old[:2], old[3], old[2]]),
}
UNTOLD_DENSES = {
    "another activation": table(DENSE, activation_function="torch.nn.modules.linear.Identity"),
    "a row of zeros": tensors(each(lambda one: one.index_fill(0, torch.tensor(0), 0.0)), "2_Dense/model.safetensors"),
}
PROBE = "probe.json"
PROBES = {
    "truncated": content(PROBE, lambda old: old[:-500]),
    "of another size": table(PROBE, dimension=16),
    "other tokens": table(PROBE, "texts", 3, ids=[1, 5, 2]),
    "a vector of zeros": table(PROBE, "texts", 3, vector=[0.0] * 32),
    "another length": table(PROBE, max_seq_length=24),
    "another prompt": table(PROBE, "prompts", query="Query: "),
    "another version": table(PROBE, version=2),
    "no texts": table(PROBE, texts=[]),
    "a vector that is not a number": table(PROBE, "texts", 3, vector=[float("nan")] * 32),
    "a text without a name": table(PROBE, "texts", 3, name=GONE),
}
UNTOLD_PROBES = {
    "a vector of another text": table(PROBE, "texts", 3, vector=[32**-0.5] * 32),
    "not there": removed(PROBE),
}
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
NEW_TOKEN = {"id": 9999, "content": "the"}
PADDING = {"strategy": {"Fixed": 32}, "pad_id": 2, "pad_token": "</s>", "pad_type_id": 0, "pad_to_multiple_of": None}
FILES: dict[str, Callable[[str], Damage]] = {
    "empty": lambda file: content(file, lambda _: b""),
    "a BOM": lambda file: content(file, lambda old: b"\xef\xbb\xbf" + old),
    "UTF-16": lambda file: content(file, lambda old: old.decode().encode("utf-16")),
    "a comma too much": lambda file: content(file, lambda old: old.rstrip()[:-1] + b",}"),
    "two objects": lambda file: content(file, lambda old: old + old),
    "a key twice": lambda file: content(file, lambda old: old.replace(b"{", b'{"vocab_size": 1, "vocab_size": 2,', 1)),
    "a loop of links": loop_for,
    "a folder": folder_for,
}
NOT_TOLD = {
    # Other pooling in an agreeing spelling, which only vectors show.
    "pooling: mean",
    "pooling: the last token for mean",
    # No vector differs, and no library stops.
    "pooling: root of the length for mean",
    "tokenizer.json: no merges",
    "tokenizer_config.json: another EOS",
    "tokenizer_config.json: no EOS",
    "tokenizer_config.json: padded on the left",
}
"""Faults of the tables of files that files do not show."""

TABLE = [
    fault._replace(tells=fault.tells and fault.name not in NOT_TOLD)
    for fault in (
        *(Fault(f"modules.json: {name}", "last", damage) for name, damage in MODULES.items()),
        *(Fault(f"config.json: {name}", "last", table("config.json", **keys)) for name, keys in CONFIG.items()),
        *(
            Fault(f"config.json: {name}", "last", table("config.json", **key), False)
            for name, key in UNTOLD_CONFIG.items()
        ),
        *(Fault(f"weights: {name}", "last", damage) for name, damage in WEIGHTS.items()),
        *(Fault(f"weights: {name}", "last", tensors(change), False) for name, change in UNTOLD_WEIGHTS.items()),
        *(Fault(f"tokenizer.json: {name}", "last", damage) for name, damage in TOKENIZER.items()),
        *(
            Fault(f"tokenizer_config.json: {name}", "last", table("tokenizer_config.json", **keys))
            for name, keys in TOKENIZER_CONFIG.items()
        ),
        *(
            Fault(f"settings: {name}", "last", table("sentence_bert_config.json", **keys))
            for name, keys in SETTINGS.items()
        ),
        *(Fault(f"pooling: {name}", release, damage) for name, (release, damage) in POOLING.items()),
        *(Fault(f"prompts: {name}", "last", damage) for name, damage in PROMPTS.items()),
        *(Fault(f"adapter: {name}", "adapter", damage) for name, damage in ADAPTERS.items()),
        *(Fault(f"adapter: {name}", "adapter", damage, False) for name, damage in UNTOLD_ADAPTERS.items()),
        *(Fault(f"dense: {name}", "dense", damage) for name, damage in DENSES.items()),
        *(Fault(f"dense: {name}", "dense", damage, False) for name, damage in UNTOLD_DENSES.items()),
        *(Fault(f"probe.json: {name}", "last", damage) for name, damage in PROBES.items()),
        *(Fault(f"probe.json: {name}", "last", damage, False) for name, damage in UNTOLD_PROBES.items()),
        *(
            Fault(f"{file}: {name}", "last", damage(file))
            for name, damage in FILES.items()
            for file in ("config.json", "tokenizer_config.json", "1_Pooling/config.json")
        ),
        Fault(
            "config.json: line ends of Windows",
            "last",
            content("config.json", lambda b: b.replace(b"\n", b"\r\n")),
            False,
        ),
    )
]
