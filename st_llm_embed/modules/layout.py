"""Model folders: where a model is, which model it is, and the layout on disk that every library reads.

What sentence-transformers 6 and transformers 5 write by themselves, sentence-transformers 5, vLLM, TEI and llama.cpp's
converter refuse or misread: new module paths, a compact pooling configuration, no max_seq_length, the tokenizer class
TokenizersBackend. All of them read the legacy spelling of the same facts.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from huggingface_hub import hf_hub_download, is_offline_mode, try_to_load_from_cache
from huggingface_hub.errors import (
    HFValidationError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
)

from st_llm_embed.errors import InputError
from st_llm_embed.recipe import EMBEDDED

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

SENTENCEPIECE_FILE = "tokenizer.model"

LEGACY_MODULES = "sentence_transformers.models"

POOLING_FLAGS = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
"""Modes of pooling, and the boolean of each in the legacy configuration."""

NEW_SETTINGS = ("transformer_task", "modality_config", "module_output_name", "method", "method_output_name")
"""Keys of sentence_bert_config.json that older readers refuse; without them it means: text in, hidden states out."""

OF_THIS_SESSION = ("backend", "is_local", "local_files_only", "name_or_path")
"""What transformers 5 writes into tokenizer_config.json of how the tokenizer was loaded."""

CONTENT = ("*.safetensors", "*.bin", "*.json", "*.txt", "*.model", "*.jinja")
"""Files of a model folder that its vectors can depend on; probe.json is not one of them."""


class TextFacts(NamedTuple):
    """What the files of a repository have to agree on, besides the pooling."""

    max_seq_length: int | None
    """Tokens, special ones included; None where no file states it."""
    padding_side: str
    begins_with_bos: bool
    ends_with_eos: bool


def make_portable(folder: Path, tokenizer: PreTrainedTokenizerBase, sentencepiece: Path | None) -> None:
    """Rewrite the JSON files of a text model that was just saved; its vectors stay bit for bit the same.

    Args:
        folder: what `SentenceTransformer.save` wrote.
        tokenizer: the model's tokenizer.
        sentencepiece: tokenizer.model of the base, if it has one, from which llama.cpp's converter takes scores.
    """
    ids = tokenizer("a")["input_ids"]
    facts = TextFacts(
        max_seq_length=tokenizer.model_max_length,
        padding_side=tokenizer.padding_side,
        begins_with_bos=tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id,
        ends_with_eos=tokenizer.eos_token_id is not None and ids[-1] == tokenizer.eos_token_id,
    )
    write_layout(folder, facts)
    if sentencepiece is not None and not (folder / SENTENCEPIECE_FILE).exists():
        shutil.copyfile(sentencepiece, folder / SENTENCEPIECE_FILE)


def write_layout(folder: Path, facts: TextFacts) -> list[str]:
    """Rewrite the JSON files of a sentence-transformers folder that do not have the portable layout.

    Of the files that it lacks, sentence_bert_config.json alone is added.

    Returns:
        What was changed, a phrase for each file.
    """
    changed = []

    def write(name: str, content: Any, what: str) -> None:
        if content != read_json(folder / name):
            write_json(folder / name, content)
            changed.append(f"{name}: {what}")

    modules = [dict(module) for module in read_json(folder / "modules.json") or []]
    for module in modules:
        name = module["type"].rpartition(".")[2]
        if module["type"].startswith("sentence_transformers."):
            module["type"] = f"{LEGACY_MODULES}.{name}"
        pooling = f"{module.get('path', '')}/config.json".lstrip("/")
        if name == "Pooling" and (config := read_json(folder / pooling)):
            modes = pooling_modes(config)
            write(pooling, _legacy_pooling(config, modes), f"all booleans of the pooling, {'+'.join(modes)}")
    if modules:
        write("modules.json", modules, "legacy module paths")
        settings = read_json(folder / "sentence_bert_config.json") or {}
        what = "the length under max_seq_length, no new keys"
        write("sentence_bert_config.json", _legacy_settings(settings, facts), what)
    if content := read_json(folder / "tokenizer.json"):
        if config := read_json(folder / "tokenizer_config.json"):
            what = "a class and flags that transformers 4 and 5 read alike"
            write("tokenizer_config.json", _common_tokenizer(config, facts), what)
        content["padding"] = None
        if facts.max_seq_length is not None:
            # For programs that read this file alone, in place of the options of the last call.
            options = {"direction": "Right", "max_length": facts.max_seq_length}
            content["truncation"] = options | {"strategy": "LongestFirst", "stride": 0}
        write("tokenizer.json", content, "truncation and padding as in the other files")
    if config := read_json(folder / "config.json"):
        write("config.json", _common_config(config), "architecture and rotary base as all versions read them")
    return changed


def pooling_modes(config: dict[str, Any]) -> tuple[str, ...]:
    """Return the modes in a pooling configuration of either spelling; mean where none is named, as in upstream."""
    mode = config.get("pooling_mode")
    if mode:
        return (mode,) if isinstance(mode, str) else tuple(mode)
    return tuple(mode for mode, flag in POOLING_FLAGS.items() if config.get(flag) is True) or ("mean",)


def pooling_dimension(config: dict[str, Any]) -> int | None:
    """Return the size of the token vectors that a pooling configuration of either spelling states."""
    return config.get("word_embedding_dimension", config.get("embedding_dimension"))


def _legacy_pooling(config: dict[str, Any], modes: tuple[str, ...]) -> dict[str, Any]:
    return {
        "word_embedding_dimension": pooling_dimension(config),
        **{flag: mode in modes for mode, flag in POOLING_FLAGS.items()},
        "include_prompt": config.get("include_prompt", True),
    }


def _legacy_settings(config: dict[str, Any], facts: TextFacts) -> dict[str, Any]:
    kept = {key: value for key, value in config.items() if key not in (*NEW_SETTINGS, "max_seq_length")}
    length = {} if facts.max_seq_length is None else {"max_seq_length": facts.max_seq_length}
    return length | {"do_lower_case": False} | kept


def _common_tokenizer(config: dict[str, Any], facts: TextFacts) -> dict[str, Any]:
    common = {key: value for key, value in config.items() if key not in OF_THIS_SESSION}
    # transformers 4 cannot read a list.
    if isinstance(common.get("extra_special_tokens"), list):
        del common["extra_special_tokens"]
    if facts.max_seq_length is not None:
        common["model_max_length"] = facts.max_seq_length
    return common | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "padding_side": facts.padding_side,
        # transformers 4 goes by these flags, transformers 5 by the post-processor in tokenizer.json.
        "add_bos_token": facts.begins_with_bos,
        "add_eos_token": facts.ends_with_eos,
    }


def _common_config(config: dict[str, Any]) -> dict[str, Any]:
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        MODEL_MAPPING_NAMES,
    )

    changed = dict(config)
    rope = config.get("rope_parameters") or {}
    if rope.get("rope_theta") is not None:
        changed["rope_theta"] = rope["rope_theta"]
        if rope.get("rope_type", "default") != "default":
            changed["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_theta"}
    kind = config["model_type"]
    # llama.cpp's converter does not know MistralModel; vLLM goes by the pooling in modules.json in both cases.
    causal = None if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES else MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(kind)
    if causal is not None and config.get("architectures") == [MODEL_MAPPING_NAMES.get(kind)]:
        changed["architectures"] = [causal]
    return changed


def base_path(name_or_path: str) -> str:
    """Return what transformers can load: the packaged base for ``embedded``, else the name or path itself."""
    if name_or_path == EMBEDDED:
        return str(files("st_llm_embed") / "modules" / "tiny-mistral-multilingual")
    return name_or_path


def sentencepiece_file(name_or_path: str, revision: str | None = None) -> Path | None:
    """Find the file tokenizer.model of a model, which transformers 5 neither needs nor saves; None if it has none."""
    folder = Path(base_path(name_or_path))
    if folder.is_dir():
        path = folder / SENTENCEPIECE_FILE
        return path if path.is_file() else None
    try:
        return Path(hf_hub_download(name_or_path, SENTENCEPIECE_FILE, revision=revision))
    except LocalEntryNotFoundError as error:
        # Offline nobody knows whether the model has one that is not in the cache.
        if not is_offline_mode():
            problem = f"{name_or_path} has a {SENTENCEPIECE_FILE}, which is skipped: {error.__cause__ or error}"
            logger.warning("The Hub does not say whether %s", problem)
        return None
    except (RemoteEntryNotFoundError, RepositoryNotFoundError, HFValidationError):
        return None


def has_file(name_or_path: str, files: Sequence[str], *, revision: str | None = None) -> bool:
    """Whether a model, in a folder or on the Hub, has one of some files, the first of which is downloaded."""
    folder = Path(base_path(name_or_path))
    if folder.exists():
        return any((folder / file).is_file() for file in files)
    for file in files:
        try:
            return bool(hf_hub_download(name_or_path, file, revision=revision))
        except (LocalEntryNotFoundError, RemoteEntryNotFoundError):
            continue
        except (RepositoryNotFoundError, HFValidationError):
            return False
    return False


def hub_snapshot(name_or_path: str, revision: str | None = None) -> Path | None:
    """Return the cached folder of a Hub model, which is named after its commit; None where there is none."""
    if Path(base_path(name_or_path)).is_dir():
        return None
    for file in ("modules.json", "config.json", "adapter_config.json"):
        path = try_to_load_from_cache(name_or_path, file, revision=revision)
        if isinstance(path, str):
            return Path(path).parent
    return None


def model_identity(name_or_path: str, *, revision: str | None = None) -> tuple[str, str]:
    """Return the name and revision that scores and vectors of a loaded model are kept under.

    Returns:
        For a Hub model its id and commit; for a folder or ``embedded`` ``local/``, its name and `model_hash`.

    Raises:
        InputError: the commit of a Hub model is not known.
    """
    folder = Path(base_path(name_or_path))
    if folder.is_dir():
        return f"local/{re.sub(r'[^A-Za-z0-9._-]', '_', folder.resolve().name) or 'model'}", model_hash(folder)
    snapshot = hub_snapshot(name_or_path, revision)
    if snapshot is None:
        raise InputError(
            f"The commit of {name_or_path!r}, which scores and vectors are kept under, is not known. Download the "
            "model into a folder (hf download) and give the folder."
        )
    return name_or_path, snapshot.name


def model_fingerprint(name_or_path: str, revision: str | None = None) -> str:
    """Return what changes when another model is meant, of a model that need not be downloaded yet.

    That is `model_hash` for a folder or ``embedded``, and the name with the revision as given for a Hub model.
    """
    folder = Path(base_path(name_or_path))
    return model_hash(folder) if folder.is_dir() else f"{name_or_path}@{revision or 'main'}"


def model_hash(folder: Path) -> str:
    """Hash what the vectors of a model folder depend on: weights, adapter, tokenizer, prompts, configurations.

    The base of an adapter is part of it, if it is a local folder.
    """
    digest = hashlib.sha256()
    paths = sorted(path for pattern in CONTENT for path in folder.rglob(pattern))
    for path in (path for path in paths if path.name != "probe.json"):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.relative_to(folder).as_posix()} {content}\n".encode())
    base = (read_json(folder / "adapter_config.json") or {}).get("base_model_name_or_path")
    if base and Path(base).is_dir():
        digest.update(model_hash(Path(base)).encode())
    return digest.hexdigest()[:40]


def read_json(path: Path) -> Any:
    """Read a JSON file; None if there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file that people can read."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
