"""What tells two models apart: the name and the commit on the Hub, or a hash of a local folder's content."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from st_llm_embed.errors import InputError

CONTENT = ("*.safetensors", "*.bin", "*.json", "*.txt", "*.model", "*.jinja")
"""Files of a model folder that its vectors can depend on."""

NO_CONTENT = ("probe.json",)
"""Files among these that say nothing about the vectors of a text."""


def model_identity(name_or_path: str, *, revision: str | None = None, name: str | None = None) -> tuple[str, str]:
    """Give the name and revision that scores and vectors are kept under; a Hub model has to be in the cache."""
    folder = Path(name_or_path)
    if not folder.is_dir():
        return name_or_path, _commit(name_or_path, revision)
    return name or f"local/{re.sub(r'[^A-Za-z0-9._-]', '_', folder.resolve().name) or 'model'}", model_hash(folder)


def model_hash(folder: Path) -> str:
    """Hash what the vectors of a model folder depend on: weights, adapter, tokenizer, prompts, configurations.

    The base of an adapter is part of it, if it is a local folder.
    """
    digest = hashlib.sha256()
    for path in sorted(path for pattern in CONTENT for path in folder.rglob(pattern)):
        if path.name in NO_CONTENT:
            continue
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.relative_to(folder).as_posix()} {content}\n".encode())
    adapter = folder / "adapter_config.json"
    base = json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"] if adapter.is_file() else ""
    if base and Path(base).is_dir():
        digest.update(model_hash(Path(base)).encode())
    return digest.hexdigest()[:40]


def _commit(repo_id: str, revision: str | None) -> str:
    """Give the commit that a model was just loaded from, which is the name of its folder in the Hub's cache."""
    for file in ("modules.json", "config.json", "adapter_config.json"):
        path = try_to_load_from_cache(repo_id, file, revision=revision)
        if isinstance(path, str):
            return Path(path).parent.name
    raise InputError(
        f"The commit of {repo_id!r} is not known, and its scores or vectors could be taken for those of another "
        "commit. Download the model into a folder (hf download) and give the folder."
    )
