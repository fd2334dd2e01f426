"""What a folder must hold before it may leave the machine as a dataset or a model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import RepoCard

from st_llm_embed.errors import InputError

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz", ".h5", ".dill")
"""Suffixes of files that are, or may hold, pickles."""

NEVER_SENT = ("*.lock", "*.partial", "*.partial/*", "manifests/*", ".env*", "*/.env*", ".git/*", "*/.git/*")
"""What a run writes for itself, and what people keep beside their files for themselves."""

PLACEHOLDERS = {"", "unknown", "todo", "tbd", "none", "license", "licence", "unlicensed", "more information needed"}


def check_dataset(folder: Path) -> RepoCard:
    """Check that a dataset has a card with a licence, and that every data file named there exists.

    Returns:
        The card.

    Raises:
        InputError: something is missing.
    """
    card = read_card(folder)
    if card is None:
        raise InputError(
            f"{folder} is no dataset: it has no README.md with front matter (the lines between two '---') that names "
            "its configurations. Give the dataset folder of a run."
        )
    front_matter = card.data.to_dict()
    licence = front_matter.get("license")
    if _is_placeholder(licence):
        raise InputError(
            f"{folder / 'README.md'} names no license ({licence!r}), and nobody may use data without one. Write "
            "`license:` with the Hub's name of it, such as cc-by-4.0, into the front matter; the list is at "
            "https://huggingface.co/docs/hub/repositories-licenses."
        )
    patterns = list(_data_files(front_matter))
    missing = [pattern for pattern in patterns if not _matches(folder, pattern)]
    if missing or not patterns:
        what = f"the data files {', '.join(missing)}, which are not there" if missing else "no data files"
        raise InputError(
            f"{folder / 'README.md'} names {what}. Allowed are paths inside the folder, under `configs` and "
            "`data_files`. Build the dataset again, or correct the card."
        )
    return card


def check_model(folder: Path) -> RepoCard | None:
    """Check that a folder is a saved sentence-transformers model, or an adapter of one, without pickled weights.

    Returns:
        Its card, if it has one.

    Raises:
        InputError: it is something else.
    """
    # A static model has no transformer, and so no config.json.
    configurations = ("config.json", "adapter_config.json", "config_sentence_transformers.json")
    missing = [] if (folder / "modules.json").is_file() else ["modules.json"]
    if not any((folder / name).is_file() for name in configurations):
        missing.append("config.json")
    if missing:
        raise InputError(
            f"{folder} is no saved sentence-transformers model: it lacks {' and '.join(missing)}. Give the release "
            "folder of a run, or one that `model.save_pretrained` wrote."
        )
    # The .bin of OpenVINO, beside its .xml, holds plain numbers.
    pickled = sorted(
        path.name
        for path in folder.rglob("*")
        if path.suffix.lower() in PICKLES and not path.with_suffix(".xml").is_file()
    )
    if pickled:
        raise InputError(
            f"{folder} holds {', '.join(pickled)}: files that can run code when they are loaded. Only safetensors "
            "are published; save the model again and remove them."
        )
    return read_card(folder)


def read_card(folder: Path) -> RepoCard | None:
    """Read README.md; None if there is none or it has no front matter.

    Raises:
        InputError: the front matter is no YAML mapping.
    """
    path = folder / "README.md"
    if not path.is_file():
        return None
    try:
        card = RepoCard.load(path)
    except (yaml.YAMLError, ValueError, TypeError) as error:
        raise InputError(
            f"The front matter of {path} cannot be read: {' '.join(str(error).split())}. It has to be YAML between "
            "two lines of '---' at the top; correct it."
        ) from error
    return card if card.data.to_dict() else None


def _is_placeholder(licence: object) -> bool:
    names = licence if isinstance(licence, list) else [licence]
    words = [str(name or "").strip("[]<>{} ").casefold() for name in names]
    return not words or any(word in PLACEHOLDERS for word in words)


def _data_files(front_matter: dict[str, Any]) -> Iterator[str]:
    """Give every path or pattern that the configurations name, in all spellings that `datasets` reads."""
    for config in front_matter.get("configs") or []:
        entries = config.get("data_files") or []
        for entry in entries if isinstance(entries, list) else [entries]:
            paths = entry.get("path") if isinstance(entry, dict) else entry
            yield from map(str, paths if isinstance(paths, list) else [paths])


def _matches(folder: Path, pattern: str) -> bool:
    path = Path(pattern)
    inside = bool(pattern) and not path.is_absolute() and ".." not in path.parts
    return inside and any(found.is_file() for found in folder.glob(pattern))
