"""Whether an adapter applies to its base, and whether everybody gets the same base."""

from __future__ import annotations

import re
from pathlib import Path

from st_llm_embed.doctor.repository import ADAPTER_CONFIG, ADAPTER_WEIGHTS, Repository
from st_llm_embed.doctor.traps import Finding, NotCheckedError, Reading

HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")
COMMIT = re.compile(r"[0-9a-f]{40}")
KEY = re.compile(
    r"base_model\.model\.(?P<module>.+)\.lora_(?:A|B|embedding_A|embedding_B|magnitude_vector)(?:\.weight)?"
)
LAYER = re.compile(r"\b(?:layers|h|blocks)\.(\d+)\.")


def applies(repository: Repository, _: list[Reading]) -> list[Finding]:
    """Compare the adapter's keys with the modules of its base."""
    _need_adapter(repository)
    keys = sorted(repository.tensors(ADAPTER_WEIGHTS))
    strange = [key for key in keys if not KEY.fullmatch(key) and "modules_to_save" not in key]
    if strange:
        return _not_applied(f"{len(strange)} of {len(keys)} keys have a name that peft does not read: {strange[0]}.")
    modules = sorted({_plain_name(match["module"]) for key in keys if (match := KEY.fullmatch(key))})
    if not modules:
        return _not_applied("It holds no LoRA weights.")
    layers = {int(match[1]) for name in modules if (match := LAYER.search(name))}
    chosen = repository.adapter.get("layers_to_transform") is not None
    if layers and not chosen and layers != set(range(len(layers))):
        missing = sorted(set(range(max(layers) + 1)) - layers)
        return _not_applied(f"Its keys are of layers {min(layers)} to {max(layers)}, without {missing}.")
    if repository.base is None:
        raise NotCheckedError("the base cannot be reached, so only the form of the adapter's keys was looked at")
    there = {_plain_name(name) for name in repository.base.weight_names}
    unmatched = [name for name in modules if name not in there] if there else []
    if unmatched:
        return _not_applied(f"{len(unmatched)} of {len(modules)} modules are not in the base: {unmatched[0]}.")
    depth = repository.text_config.get("num_hidden_layers", repository.text_config.get("n_layer"))
    if layers and depth is not None and max(layers) >= depth:
        return _not_applied(f"It has a layer {max(layers)}, and the base {depth} layers, counted from 0.")
    if not there and depth is None:
        raise NotCheckedError("the base has neither a configuration nor weights here")
    return []


def trained(repository: Repository, _: list[Reading]) -> list[Finding]:
    """Look for adapter weights that are not numbers, or zero."""
    _need_adapter(repository)
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


def _plain_name(name: str) -> str:
    """Return the name of a module or its weight without the prefixes of a causal language model.

    peft finds its modules with and without them.
    """
    return name.removesuffix(".weight").removeprefix("model.").removeprefix("transformer.")


def _not_applied(reason: str) -> list[Finding]:
    return [Finding("adapter not applied", ADAPTER_WEIGHTS, reason)]


def _need_adapter(repository: Repository) -> None:
    if not repository.adapter:
        raise NotCheckedError("the repository is a whole model, not an adapter")
    if ADAPTER_WEIGHTS not in repository.files:
        raise NotCheckedError(f"there is no {ADAPTER_WEIGHTS}")
