"""Whether an adapter applies to its base, and whether everybody gets the same base."""

from __future__ import annotations

import re
from pathlib import Path

from st_llm_embed.doctor.loading import load_adapter, shapes_of
from st_llm_embed.doctor.repository import ADAPTER_CONFIG, ADAPTER_WEIGHTS, Repository
from st_llm_embed.doctor.traps import Finding, NotCheckedError, Reading
from st_llm_embed.errors import InputError

HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")
COMMIT = re.compile(r"[0-9a-f]{40}")


def applies(repository: Repository, _: list[Reading]) -> list[Finding]:
    """Match the adapter's keys with what peft adds to its base; no weights are read."""
    _need_adapter(repository)
    if ADAPTER_WEIGHTS not in repository.files:
        return [Finding("no weights", ADAPTER_WEIGHTS)]
    if strange := [key for key in shapes_of(repository, ADAPTER_WEIGHTS) if ".default" in key]:
        return _not_applied(f"{len(strange)} keys have a name that peft does not read, such as {strange[0]}.")
    try:
        loading = load_adapter(repository)
    except NotCheckedError:
        raise
    except InputError as error:
        return [Finding("not loaded", ADAPTER_CONFIG, str(error), ("sentence-transformers",))]
    said = ("of its weights are in no file", "keys in the file fit no module of the base", "have another shape")
    found = [f"{len(names)} {what}, such as {names[0]}." for what, names in zip(said, loading, strict=True) if names]
    return _not_applied(" ".join(found)) if found else []


def trained(repository: Repository, _: list[Reading]) -> list[Finding]:
    """Look for adapter weights that are not numbers, or zero."""
    _need_adapter(repository)
    if ADAPTER_WEIGHTS not in repository.files:
        raise NotCheckedError(f"there is no {ADAPTER_WEIGHTS}")
    if not repository.local:
        raise NotCheckedError("the adapter's weights are not fetched from the Hub; give a folder")
    norms = {key: float(weight.double().abs().sum()) for key, weight in repository.weights(ADAPTER_WEIGHTS)}
    broken = sorted(key for key, norm in norms.items() if not norm < float("inf"))
    if broken:
        return _not_applied(f"{len(broken)} of {len(norms)} tensors hold NaN or infinity, such as {broken[0]}.")
    second = [norm for key, norm in norms.items() if "lora_B" in key or "lora_embedding_B" in key]
    if second and not any(second):
        return _not_applied("Every lora_B is zero, so the model is its base.")
    return []


def pinned(repository: Repository, _: list[Reading]) -> list[Finding]:
    """Look at the name and the revision of the adapter's base."""
    _need_adapter(repository)
    name = str(repository.adapter.get("base_model_name_or_path") or "")
    revision = repository.adapter.get("revision")
    if not HUB_ID.fullmatch(name) or Path(name).is_dir():
        return [Finding("base not on the Hub", ADAPTER_CONFIG, f"base_model_name_or_path is {name!r}.")]
    if not COMMIT.fullmatch(str(revision)):
        return [Finding("base not pinned", ADAPTER_CONFIG, f"revision of {name} is {revision!r}.")]
    return []


def _not_applied(reason: str) -> list[Finding]:
    return [Finding("adapter not applied", ADAPTER_WEIGHTS, reason)]


def _need_adapter(repository: Repository) -> None:
    if not repository.adapter:
        raise NotCheckedError("the repository is a whole model, not an adapter")
