"""A repaired copy: what can be fixed without touching the weights, so that every library reads the same.

Each change is examined, and undone where a trap is there after it that was not before.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tokenizers.processors import TemplateProcessing

from st_llm_embed.doctor import diagnose
from st_llm_embed.doctor.checks.layout import ABSOLUTE
from st_llm_embed.doctor.files import files_in
from st_llm_embed.doctor.probe import MINIMUM_COSINE
from st_llm_embed.doctor.repository import PROMPTS_FILE, SETTINGS_FILE, WRONG_FILES, Repository
from st_llm_embed.doctor.traps import Diagnosis, Finding
from st_llm_embed.errors import InputError, explained
from st_llm_embed.modules.layout import (
    LEGACY_MODULES,
    POOLING_FLAGS,
    TextFacts,
    read_json,
    write_json,
    write_layout,
)

WEIGHTS = (".safetensors", ".bin", ".gguf", ".onnx_data")

POOLING_TRAPS = {"pooling", "two poolings"}
"""Those after which the probe decides, since vectors alone show which pooling is the model's."""

Change = tuple[str, Any, str]
"""Name of a JSON file, its new content, and what is changed, a phrase."""


class Repair(NamedTuple):
    """What was found before, what was changed, and what is left."""

    before: Diagnosis
    changed: list[str]
    """A phrase each."""
    after: Diagnosis


def repair(
    model: str, out: Path, *, live: bool | None = None, revision: str | None = None, device: str | None = None
) -> Repair:
    """Copy a repository and fix in the copy what can be fixed; weights are hard-linked where the disk allows it.

    Where it has a probe.json, that says what is right: prompts, length, the tokens around a text and, with weights
    that are loaded, the pooling. What makes nothing better is left as it was.

    Args:
        model: a folder, or a Hub id.
        out: a folder that does not exist yet.
        live: also encode texts before and after; None: where the weights are in the folder.
        revision: branch, tag or commit of a Hub repository.
        device: where texts are encoded; None for the best there is.

    Raises:
        InputError: `out` exists, there is no such repository, or it cannot be downloaded.
    """
    if out.exists():
        raise InputError(f"{out} exists already. Give a folder that does not, for the repaired copy.")
    repository = Repository(model, revision=revision)
    if not repository.damaged():
        repository.check_decoder()
    source = repository.whole_folder()
    if out.resolve().is_relative_to(source.resolve()):
        raise InputError(f"{out} is inside {source}, which is to be copied. Give a folder elsewhere.")
    before = diagnose(str(source), live=live, device=device)
    before.model = model
    out.parent.mkdir(parents=True, exist_ok=True)
    # Renamed when it is whole, so that a stop leaves no half copy under the name.
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as temporary:
        copy = Path(temporary) / "copy"
        for name in files_in(source):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            link_weights(str(source / name), str(copy / name))
        original = _small_files(copy)
        changed = [] if "damaged file" in _traps(before.findings) else _improve(copy, before, device)
        copy.rename(out)
    after = diagnose(str(out), live=live, device=device)
    # Where nothing could be encoded before, what is found in vectors now was hidden.
    if changed and "not loaded" not in _traps(before.findings) and not _is_covered(after.findings, before.findings):
        _restore(out, original)
        return Repair(before, [], replace(before, model=str(out)))
    return Repair(before, changed, after)


def _improve(copy: Path, before: Diagnosis, device: str | None) -> list[str]:
    """Make one change after the other, and keep those after which the files have no trap that they had not."""
    changed: list[str] = []
    known = diagnose(str(copy), live=False).findings

    def tried(change: Callable[[], list[str]]) -> None:
        nonlocal known
        original, done = _small_files(copy), []
        with suppress(InputError), explained("It cannot be changed", WRONG_FILES):
            done = change()
        found = diagnose(str(copy), live=False).findings if done else known
        if done and _is_covered(found, known):
            known = found
            changed.extend(done)
        else:
            _restore(copy, original)

    if POOLING_TRAPS & _traps(before.findings):
        tried(lambda: _pool_as_probed(copy, device))
    if "rotary base" in _traps(before.findings):
        tried(lambda: _rotate_as_probed(copy, device))
    with explained(f"The files of {before.model} cannot be understood", WRONG_FILES):
        changes = list(_changes(Repository(str(copy))))
    for one in changes:
        tried(lambda one=one: _written(copy, *one))
    tried(lambda: write_layout(copy, _facts(Repository(str(copy)))))
    for folder in Repository(str(copy)).places.values():
        (copy / folder).mkdir(exist_ok=True)
    return changed


def _written(copy: Path, name: str, content: Any, what: str) -> list[str]:
    if (read_json(copy / name) or {}) == content:
        return []
    write_json(copy / name, content)
    return [f"{name}: {what}"]


def _is_covered(found: Iterable[Finding], known: Iterable[Finding]) -> bool:
    """Return whether each trap that was found was known, of each reader that it concerns."""
    before: dict[str, set[str]] = {}
    for one in known:
        before.setdefault(one.trap, set()).update(one.readers or ("",))
    return all(
        one.trap in before and ("" in before[one.trap] or before[one.trap].issuperset(one.readers or ("",)))
        for one in found
    )


def _traps(findings: Iterable[Finding]) -> set[str]:
    return {one.trap for one in findings}


def _small_files(copy: Path) -> dict[str, bytes]:
    return {name: (copy / name).read_bytes() for name in files_in(copy) if name.endswith(".json")}


def _restore(copy: Path, files: dict[str, bytes]) -> None:
    for name in set(_small_files(copy)) - set(files):
        (copy / name).unlink()
    for name, content in files.items():
        (copy / name).write_bytes(content)


def _pool_as_probed(copy: Path, device: str | None) -> list[str]:
    """Write the pooling that reproduces the vectors of probe.json, if one does."""
    from st_llm_embed.doctor.live import LiveModel, fitting_pooling

    repository = Repository(str(copy))
    probe, size = repository.probe, repository.text_config.get("hidden_size")
    if probe is None or probe.dimension != size or not repository.shards:
        return []
    file, config = repository.file_of("Pooling"), repository.pooling_config or {}

    def write(mode: str) -> None:
        flags = {flag: name == mode for name, flag in POOLING_FLAGS.items()}
        include = config.get("include_prompt", True)
        write_json(copy / file, {"word_embedding_dimension": size, **flags, "include_prompt": include})

    (copy / file).parent.mkdir(exist_ok=True)
    write("lasttoken")
    mode = fitting_pooling(LiveModel(Repository(str(copy)), copy, device), probe)
    if mode is None:
        return []
    write(mode)
    return [f"{file}: {mode}, which reproduces the vectors of probe.json"]


def _rotate_as_probed(copy: Path, device: str | None) -> list[str]:
    """Write the rotary base of transformers 4 for transformers 5, too, if it reproduces the vectors of probe.json."""
    from st_llm_embed.doctor.live import LiveModel

    repository = Repository(str(copy))
    file, probe = repository.file_of("Transformer"), repository.probe
    config = repository.table(file)
    if probe is None or not repository.shards or "rope_theta" not in config:
        return []
    scaling = config.get("rope_scaling") or {}
    old = scaling | {"rope_theta": config["rope_theta"], "rope_type": scaling.get("rope_type", "default")}
    write_json(copy / file, config | {"rope_parameters": old})
    if not np.min(LiveModel(Repository(str(copy)), copy, device).probed(probe)) >= MINIMUM_COSINE:
        return []
    return [f"{file}: the rotary base that reproduces the vectors of probe.json"]


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
    yield PROMPTS_FILE, _prompts(repository), "prompts on queries alone, as in probe.json where there is one"


def _prompts(repository: Repository) -> dict[str, Any]:
    config, prompts = dict(repository.table(PROMPTS_FILE)), repository.prompts
    probed = {} if repository.probe is None else repository.probe.prompts
    if any((prompts.get(name) or "") != prompt for name, prompt in probed.items()):
        config["prompts"] = prompts | probed
    elif not probed and prompts.get("query") and prompts.get("document") == prompts["query"]:
        config["prompts"] = prompts | {"document": ""}
    if config.get("default_prompt_name") and "query" in prompts:
        config["default_prompt_name"] = None
    return config


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
    front, end = _special(repository)
    if end is None or (before, after) == (front, [end]):
        return content
    names, last = [repository.token(number) for number in front], repository.token(end)
    tokenizer.post_processor = TemplateProcessing(
        single=[*names, "$A", last],
        pair=[*names, "$A", last, *(f"{name}:1" for name in names), "$B:1", f"{last}:1"],
        special_tokens=[(repository.token(number), number) for number in {*front, end}],
    )
    return content | {"post_processor": json.loads(tokenizer.to_str())["post_processor"]}


def _special(repository: Repository) -> tuple[list[int], int | None]:
    """Return the special tokens that belong before a text, and the one after it; None if there is none.

    The one that is there is right, whatever it is called: Qwen3-Embedding ends texts in its pad token.
    """
    empty = next((one.ids for one in repository.probe.texts if not one.whole), ()) if repository.probe else ()
    if empty:
        return list(empty[:-1]), empty[-1]
    before, after = repository.around
    bos = repository.token_id("bos")
    front = list(dict.fromkeys(before))
    if not before and repository.tokenizer_config.get("add_bos_token") and bos is not None:
        front = [bos]
    return front, after[-1] if after else repository.token_id("eos")


def _facts(repository: Repository) -> TextFacts:
    before, after = repository.around
    is_absolute = repository.model_type in ABSOLUTE
    probe = repository.probe
    return TextFacts(
        max_seq_length=repository.max_seq_length if probe is None else probe.max_seq_length,
        padding_side="right" if is_absolute else repository.tokenizer_config.get("padding_side", "right"),
        begins_with_bos=bool(before),
        end_token=repository.token(after[-1]) if after else None,
    )
