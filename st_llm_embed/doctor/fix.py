"""A repaired copy: what can be fixed without touching the weights, so that every library reads the same."""

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
from st_llm_embed.doctor.repository import PROMPTS_FILE, SETTINGS_FILE, WRONG_FILES, Repository
from st_llm_embed.errors import InputError, explained
from st_llm_embed.modules.layout import LEGACY_MODULES, TextFacts, read_json, write_json, write_layout

WEIGHTS = (".safetensors", ".bin", ".gguf", ".onnx_data")


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
        shutil.copytree(source, copy, copy_function=_link_weights)
        with explained(f"The files of {model} cannot be understood", WRONG_FILES):
            changed = [line for fix in FIXES for line in fix(Repository(str(copy)))]
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


def _normalize(repository: Repository) -> list[str]:
    if "Pooling" not in repository.places or repository.normalized:
        return []
    number = len(repository.modules)
    folder = f"{number}_Normalize"
    module = {"idx": number, "name": str(number), "path": folder, "type": f"{LEGACY_MODULES}.Normalize"}
    (repository.folder / folder).mkdir(exist_ok=True)
    return _write(repository, "modules.json", [*repository.modules, module], "Normalize at the end")


def _truncation(repository: Repository) -> list[str]:
    """Remove what switches truncation off or makes it take the beginning away."""
    settings = dict(repository.settings)
    processing = {
        kind: {key: value for key, value in options.items() if (kind, key) != ("text", "truncation")}
        for kind, options in (settings.pop("processing_kwargs", None) or {}).items()
    }
    if any(processing.values()):
        settings["processing_kwargs"] = {kind: options for kind, options in processing.items() if options}
    found = _write(repository, SETTINGS_FILE, settings, "texts are cut")
    config = {key: value for key, value in repository.tokenizer_config.items() if key != "truncation_side"}
    return found + _write(repository, "tokenizer_config.json", config, "texts are cut at the end")


def _post_processor(repository: Repository) -> list[str]:
    """Let the post-processor put BOS, if the tokenizer has it in front, and EOS around a text, once each."""
    tokenizer = repository.tokenizer
    if tokenizer is None or repository.pooling != "lasttoken":
        return []
    before, after = repository.around
    end = after[-1] if after else repository.token_id("eos")
    bos = repository.token_id("bos")
    front = list(dict.fromkeys(before))
    if not before and repository.tokenizer_config.get("add_bos_token") and bos is not None:
        front = [bos]
    if end is None or (before, after) == (front, [end]):
        return []
    names, last = [repository.token(number) for number in front], repository.token(end)
    tokenizer.post_processor = TemplateProcessing(
        single=[*names, "$A", last],
        pair=[*names, "$A", last, *(f"{name}:1" for name in names), "$B:1", f"{last}:1"],
        special_tokens=[(repository.token(number), number) for number in {*front, end}],
    )
    content = repository.tokenizer_json | {"post_processor": json.loads(tokenizer.to_str())["post_processor"]}
    return _write(repository, "tokenizer.json", content, f"a post-processor that ends texts in one {last}")


def _mask_and_padding(repository: Repository) -> list[str]:
    config = dict(repository.tokenizer_config)
    names = config.get("model_input_names")
    if isinstance(names, list) and "attention_mask" not in names:
        del config["model_input_names"]
    if repository.tokenizer is not None and repository.token_id("pad") is None and config.get("eos_token"):
        config["pad_token"] = config["eos_token"]
    return _write(repository, "tokenizer_config.json", config, "an attention mask and a pad token")


def _layout(repository: Repository) -> list[str]:
    ids = [] if repository.tokenizer is None else repository.tokenizer.encode("").ids
    is_absolute = repository.model_type in ABSOLUTE
    facts = TextFacts(
        max_seq_length=repository.max_seq_length,
        padding_side="right" if is_absolute else repository.tokenizer_config.get("padding_side", "right"),
        begins_with_bos=bool(ids) and ids[0] == repository.token_id("bos"),
        ends_with_eos=bool(ids) and ids[-1] == repository.token_id("eos"),
    )
    return write_layout(repository.folder, facts)


def _matryoshka(repository: Repository) -> list[str]:
    dimensions = (repository.recipe.get("loss") or {}).get("matryoshka_dims")
    if not dimensions:
        return []
    config = repository.table("config.json") | {"matryoshka_dimensions": list(dimensions)}
    return _write(repository, "config.json", config, "matryoshka_dimensions")


def _prompts(repository: Repository) -> list[str]:
    config, prompts = dict(repository.table(PROMPTS_FILE)), repository.prompts
    if config.get("default_prompt_name") and "query" in prompts:
        config["default_prompt_name"] = None
    if prompts.get("query") and prompts.get("document") == prompts["query"]:
        config["prompts"] = prompts | {"document": ""}
    return _write(repository, PROMPTS_FILE, config, "no prompt on documents")


def _write(repository: Repository, name: str, content: Any, what: str) -> list[str]:
    """Write a file of the copy if there is one and it changes, and say so."""
    if read_json(repository.folder / name) in (None, content):
        return []
    write_json(repository.folder / name, content)
    return [f"{name}: {what}"]


FIXES: tuple[Callable[[Repository], list[str]], ...] = (
    _normalize,
    _truncation,
    _post_processor,
    _mask_and_padding,
    _layout,
    _matryoshka,
    _prompts,
)
