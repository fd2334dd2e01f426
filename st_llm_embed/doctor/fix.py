"""A repaired copy: what files alone can mend, so that every library reads the same."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tokenizers.processors import TemplateProcessing

from st_llm_embed.doctor.checks.layout import ABSOLUTE
from st_llm_embed.doctor.readers import (
    POOLING_MODES,
    around,
    rope_of_transformers_5,
    sentence_transformers_6,
)
from st_llm_embed.doctor.repository import WRONG_FILES, Repository
from st_llm_embed.errors import InputError, explained

SETTINGS = "sentence_bert_config.json"
WEIGHTS = (".safetensors", ".bin", ".gguf", ".onnx_data")
PROMPTS = "config_sentence_transformers.json"
NEW_SETTINGS = ("transformer_task", "modality_config", "module_output_name")


def repair(model: str, out: Path, *, revision: str | None = None) -> list[str]:
    """Copy a repository and mend in the copy what can be mended; weights are hard-linked where the disk allows it.

    Args:
        model: a folder, or a Hub id.
        out: a folder that does not exist yet.
        revision: branch, tag or commit of a Hub repository.

    Returns:
        What was changed, a sentence each.

    Raises:
        InputError: `out` exists, there is no such repository, or it cannot be downloaded.
    """
    if out.exists():
        raise InputError(f"{out} exists already. Give a folder that does not, for the repaired copy.")
    repository = Repository(model, revision=revision)
    source = repository.whole_folder()
    if out.resolve().is_relative_to(source.resolve()):
        raise InputError(f"{out} lies inside {source}, which is to be copied. Give a folder elsewhere.")
    out.parent.mkdir(parents=True, exist_ok=True)
    # Renamed when it is whole, so that a stop leaves no half copy under the name.
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as temporary:
        copy = Path(temporary) / "copy"
        shutil.copytree(source, copy, copy_function=_link_weights)
        with explained(f"The files of {model} cannot be understood", WRONG_FILES):
            changed = [line for mend in MENDS if (line := mend(Repository(str(copy)))) is not None]
        copy.rename(out)
    return changed


def _link_weights(source: str, target: str) -> None:
    path = Path(source).resolve()
    # Small files are changed in the copy, and other disks take no hard links.
    if path.suffix in WEIGHTS:
        with suppress(OSError):
            os.link(path, target)
            return
    shutil.copyfile(path, target)


def _module_paths(repository: Repository) -> str | None:
    modules = [dict(one) for one in repository.modules]
    for module in modules:
        parts = module["type"].split(".")
        if parts[0] == "sentence_transformers" and parts[1] != "models":
            module["type"] = f"sentence_transformers.models.{parts[-1]}"
    if modules and repository.module("Normalize") is None and repository.module("Pooling") is not None:
        number = len(modules)
        normalize = {"idx": number, "name": str(number), "path": f"{number}_Normalize"}
        modules.append(normalize | {"type": "sentence_transformers.models.Normalize"})
        (repository.folder / normalize["path"]).mkdir(exist_ok=True)
    return _written(repository, "modules.json", modules, "legacy module paths, with Normalize at the end")


def _pooling(repository: Repository) -> str | None:
    module = repository.module("Pooling")
    mode = sentence_transformers_6(repository).pooling
    if module is None or mode not in POOLING_MODES.values() or repository.file_of(module) not in repository.files:
        return None
    old = repository.table(repository.file_of(module))
    size = old.get("word_embedding_dimension", old.get("embedding_dimension"))
    new = {
        "word_embedding_dimension": size,
        **{key: name == mode for key, name in POOLING_MODES.items()},
        "include_prompt": old.get("include_prompt", True),
    }
    return _written(repository, repository.file_of(module), new, f"all booleans of the pooling, {mode}")


def _settings(repository: Repository) -> str | None:
    if not repository.modules:
        return None
    old = repository.table(SETTINGS)
    limit = sentence_transformers_6(repository).max_length
    processing = dict(old.get("processing_kwargs") or {})
    text = {key: value for key, value in (processing.pop("text", None) or {}).items() if key != "truncation"}
    if text:
        processing["text"] = text
    new = {key: value for key, value in old.items() if key not in (*NEW_SETTINGS, "processing_kwargs")}
    new |= {"max_seq_length": limit, "do_lower_case": bool(old.get("do_lower_case"))}
    if processing:
        new["processing_kwargs"] = processing
    if limit is None:
        del new["max_seq_length"]
    return _written(repository, SETTINGS, new, "the length under max_seq_length, no new keys")


def _post_processor(repository: Repository) -> str | None:
    """Let the post-processor put BOS, if the tokenizer has it in front, and EOS around a text, once each."""
    if repository.tokenizer is None or sentence_transformers_6(repository).pooling != "lasttoken":
        return None
    before, after = around(repository)
    eos = repository.token_id("eos")
    end = after[-1] if after else eos
    if end is None:
        return None
    bos = repository.token_id("bos")
    front = list(dict.fromkeys(before))
    if not before and repository.tokenizer_config.get("add_bos_token") and bos is not None:
        front = [bos]
    if (before, after) == (front, [end]):
        return None
    names = [repository.token(number) for number in front]
    last = repository.token(end)
    fast = repository.tokenizer
    fast.post_processor = TemplateProcessing(
        single=[*names, "$A", last],
        pair=[*names, "$A", last, *(f"{name}:1" for name in names), "$B:1", f"{last}:1"],
        special_tokens=[(repository.token(number), number) for number in {*front, end}],
    )
    content = repository.tokenizer_json | {"post_processor": json.loads(fast.to_str())["post_processor"]}
    return _written(repository, "tokenizer.json", content, f"a post-processor that ends texts in one {last}")


def _tokenizer_json(repository: Repository) -> str | None:
    content = dict(repository.tokenizer_json)
    truncation, padding = content.get("truncation"), content.get("padding")
    if truncation is not None:
        length = sentence_transformers_6(repository).max_length or truncation["max_length"]
        content["truncation"] = truncation | {"direction": "Right", "max_length": length}
    if padding is not None:
        side = _side(repository)
        content["padding"] = padding | {"direction": side.capitalize()}
    return _written(repository, "tokenizer.json", content, "truncation and padding as in the other files")


def _tokenizer_config(repository: Repository) -> str | None:
    old = repository.tokenizer_config
    if repository.tokenizer is None or not old:
        return None
    before = repository.tokenizer.encode("").ids
    bos, eos = repository.token_id("bos"), repository.token_id("eos")
    new = {key: value for key, value in old.items() if key not in ("backend", "is_local", "truncation_side")}
    if isinstance(old.get("extra_special_tokens"), list):
        new.pop("extra_special_tokens")
    names = old.get("model_input_names")
    if isinstance(names, list) and "attention_mask" not in names:
        new.pop("model_input_names")
    limit = sentence_transformers_6(repository).max_length
    if repository.modules and limit is not None:
        new["model_max_length"] = limit
    if repository.token_id("pad") is None and old.get("eos_token"):
        new["pad_token"] = old["eos_token"]
    new |= {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "padding_side": _side(repository),
        "add_bos_token": bool(before) and before[0] == bos,
        "add_eos_token": bool(before) and before[-1] == eos,
    }
    return _written(repository, "tokenizer_config.json", new, "a class and flags that transformers 4 and 5 read alike")


def _rope(repository: Repository) -> str | None:
    config = repository.table("config.json")
    parameters = config.get("rope_parameters")
    if not isinstance(parameters, dict) or "rope_theta" not in parameters:
        return None
    theta, kind = rope_of_transformers_5(config)
    new = config | {"rope_theta": theta}
    if kind != "default":
        new["rope_scaling"] = {key: value for key, value in parameters.items() if key != "rope_theta"}
    return _written(repository, "config.json", new, "the rotary base also as rope_theta")


def _matryoshka(repository: Repository) -> str | None:
    dimensions = (repository.recipe.get("loss") or {}).get("matryoshka_dims")
    config = repository.table("config.json")
    if not dimensions or not config:
        return None
    return _written(
        repository, "config.json", config | {"matryoshka_dimensions": list(dimensions)}, "matryoshka_dimensions"
    )


def _default_prompt(repository: Repository) -> str | None:
    config = repository.table(PROMPTS)
    if not config.get("default_prompt_name") or "query" not in repository.prompts:
        return None
    return _written(repository, PROMPTS, config | {"default_prompt_name": None}, "no default prompt")


def _document_prompt(repository: Repository) -> str | None:
    config = repository.table(PROMPTS)
    prompts = repository.prompts
    if not prompts.get("query") or prompts.get("document") != prompts["query"]:
        return None
    return _written(repository, PROMPTS, config | {"prompts": prompts | {"document": ""}}, "no prompt on documents")


def _side(repository: Repository) -> str:
    if repository.config.get("model_type") in ABSOLUTE:
        return "right"
    return repository.tokenizer_config.get("padding_side", "right")


def _written(repository: Repository, name: str, content: Any, what: str) -> str | None:
    """Write a file of the copy if it changes, and say so."""
    old = repository.json(name)
    if content == old:
        return None
    path = repository.folder / name
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return f"{name}: {what}"


MENDS: tuple[Callable[[Repository], str | None], ...] = (
    _module_paths,
    _pooling,
    _settings,
    _post_processor,
    _tokenizer_config,
    _tokenizer_json,
    _rope,
    _matryoshka,
    _default_prompt,
    _document_prompt,
)
