"""A repaired copy: what can be fixed without touching the weights, so that every library reads the same."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from tokenizers.processors import TemplateProcessing

from st_llm_embed.doctor.checks.layout import ABSOLUTE
from st_llm_embed.doctor.repository import PROMPTS_FILE, SETTINGS_FILE, WRONG_FILES, Repository
from st_llm_embed.errors import InputError, explained
from st_llm_embed.modules.layout import LEGACY_MODULES, TextFacts, read_json, write_json, write_layout

WEIGHTS = (".safetensors", ".bin", ".gguf", ".onnx_data")

Change = tuple[str, Any, str]
"""Name of a JSON file, its new content, and what is changed, a phrase."""


def repair(model: str, out: Path, *, revision: str | None = None) -> list[str]:
    """Copy a repository and fix in the copy what can be fixed; weights are hard-linked where the disk allows it.

    Args:
        model: a folder, or a Hub id.
        out: a folder that does not exist yet.
        revision: branch, tag or commit of a Hub repository.

    Returns:
        What was changed, a phrase each.

    Raises:
        InputError: `out` exists, there is no such repository, or it cannot be downloaded.
    """
    if out.exists():
        raise InputError(f"{out} exists already. Give a folder that does not, for the repaired copy.")
    repository = Repository(model, revision=revision)
    repository.check_decoder()
    source = repository.whole_folder()
    if out.resolve().is_relative_to(source.resolve()):
        raise InputError(f"{out} is inside {source}, which is to be copied. Give a folder elsewhere.")
    out.parent.mkdir(parents=True, exist_ok=True)
    # Renamed when it is whole, so that a stop leaves no half copy under the name.
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as temporary:
        copy = Path(temporary) / "copy"
        shutil.copytree(source, copy, copy_function=link_weights)
        with explained(f"The files of {model} cannot be understood", WRONG_FILES):
            changed = []
            for name, content, what in _changes(Repository(str(copy))):
                if read_json(copy / name) not in (None, content):
                    write_json(copy / name, content)
                    changed.append(f"{name}: {what}")
            changed += write_layout(copy, _facts(Repository(str(copy))))
        copy.rename(out)
    return changed


def link_weights(source: str, target: str) -> None:
    """Copy a file, as a hard link where it holds weights."""
    path = Path(source).resolve()
    # Small files are changed in the copy, and other disks take no hard links.
    if path.suffix in WEIGHTS:
        with suppress(OSError):
            os.link(path, target)
            return
    shutil.copyfile(path, target)


def _changes(repository: Repository) -> Iterator[Change]:
    if "Pooling" in repository.places and not repository.normalized:
        number = len(repository.modules)
        folder = f"{number}_Normalize"
        (repository.folder / folder).mkdir(exist_ok=True)
        module = {"idx": number, "name": str(number), "path": folder, "type": f"{LEGACY_MODULES}.Normalize"}
        yield "modules.json", [*repository.modules, module], "Normalize at the end"
    yield SETTINGS_FILE, _settings(repository), "texts are cut"
    yield (
        "tokenizer_config.json",
        _tokenizer_config(repository),
        "an attention mask, a pad token, texts cut at the end",
    )
    yield "tokenizer.json", _tokenizer(repository), "a post-processor that ends texts in one EOS token"
    if dimensions := (repository.recipe.get("loss") or {}).get("matryoshka_dims"):
        config = repository.table("config.json") | {"matryoshka_dimensions": list(dimensions)}
        yield "config.json", config, "matryoshka_dimensions"
    config, prompts = dict(repository.table(PROMPTS_FILE)), repository.prompts
    if config.get("default_prompt_name") and "query" in prompts:
        config["default_prompt_name"] = None
    if prompts.get("query") and prompts.get("document") == prompts["query"]:
        config["prompts"] = prompts | {"document": ""}
    yield PROMPTS_FILE, config, "no prompt on documents"


def _settings(repository: Repository) -> dict[str, Any]:
    """Return sentence_bert_config.json without what switches truncation off."""
    settings = dict(repository.settings)
    processing = settings.pop("processing_kwargs", None) or {}
    text = {key: value for key, value in processing.get("text", {}).items() if key != "truncation"}
    kept = {kind: options for kind, options in (processing | {"text": text}).items() if options}
    return settings | ({"processing_kwargs": kept} if kept else {})


def _tokenizer_config(repository: Repository) -> dict[str, Any]:
    config = {key: value for key, value in repository.tokenizer_config.items() if key != "truncation_side"}
    if isinstance(names := config.get("model_input_names"), list) and "attention_mask" not in names:
        del config["model_input_names"]
    if repository.tokenizer is not None and repository.token_id("pad") is None and config.get("eos_token"):
        config["pad_token"] = config["eos_token"]
    return config


def _tokenizer(repository: Repository) -> dict[str, Any]:
    """Return tokenizer.json with BOS, if the tokenizer puts it in front, and EOS around a text, once each."""
    tokenizer, content = repository.tokenizer, repository.tokenizer_json
    if tokenizer is None or repository.pooling != "lasttoken":
        return content
    before, after = repository.around
    end = after[-1] if after else repository.token_id("eos")
    bos = repository.token_id("bos")
    front = list(dict.fromkeys(before))
    if not before and repository.tokenizer_config.get("add_bos_token") and bos is not None:
        front = [bos]
    if end is None or (before, after) == (front, [end]):
        return content
    names, last = [repository.token(number) for number in front], repository.token(end)
    tokenizer.post_processor = TemplateProcessing(
        single=[*names, "$A", last],
        pair=[*names, "$A", last, *(f"{name}:1" for name in names), "$B:1", f"{last}:1"],
        special_tokens=[(repository.token(number), number) for number in {*front, end}],
    )
    return content | {"post_processor": json.loads(tokenizer.to_str())["post_processor"]}


def _facts(repository: Repository) -> TextFacts:
    ids = [] if repository.tokenizer is None else repository.tokenizer.encode("").ids
    _, after = repository.around
    is_absolute = repository.model_type in ABSOLUTE
    return TextFacts(
        max_seq_length=repository.max_seq_length,
        padding_side="right" if is_absolute else repository.tokenizer_config.get("padding_side", "right"),
        begins_with_bos=bool(ids) and ids[0] == repository.token_id("bos"),
        end_token=repository.token(after[-1]) if after else None,
    )
