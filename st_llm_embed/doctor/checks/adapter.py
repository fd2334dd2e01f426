"""Traps 7 and 8: whether an adapter applies to its base, and whether everybody gets the same base."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from st_llm_embed.doctor.finding import Finding, NotCheckedError, Reading
from st_llm_embed.doctor.repository import Repository

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")
COMMIT = re.compile(r"[0-9a-f]{40}")
KEY = re.compile(
    r"base_model\.model\.(?P<module>.+)\.lora_(?:A|B|embedding_A|embedding_B|magnitude_vector)(?:\.weight)?"
)
LAYER = re.compile(r"\b(?:layers|h|blocks)\.(\d+)\.")


def applies(repository: Repository, readings: list[Reading]) -> list[Finding]:
    """Compare the adapter's keys with the modules of its base (trap 7)."""
    del readings
    _need_adapter(repository)
    keys = sorted(repository.tensors(WEIGHTS))
    strange = [key for key in keys if not KEY.fullmatch(key) and "modules_to_save" not in key]
    if strange:
        return [_not_applied(f"{len(strange)} of {len(keys)} keys have a name that peft does not read: {strange[0]}")]
    modules = sorted({plain_name(match["module"]) for key in keys if (match := KEY.fullmatch(key))})
    if not modules:
        return [_not_applied("it holds no LoRA weights")]
    layers = {int(match[1]) for name in modules if (match := LAYER.search(name))}
    chosen = repository.adapter.get("layers_to_transform") is not None
    if layers and not chosen and layers != set(range(len(layers))):
        missing = sorted(set(range(max(layers) + 1)) - layers)
        return [_not_applied(f"its keys are of layers {min(layers)} to {max(layers)}, without {missing}")]
    return _against_base(repository, modules, layers)


def trained(repository: Repository, readings: list[Reading]) -> list[Finding]:
    """Look for adapter weights that are no numbers, or zero (trap 7)."""
    del readings
    _need_adapter(repository)
    if not repository.local:
        raise NotCheckedError("the adapter's weights are not fetched from the Hub; give a folder")
    norms = {}
    for key, array in repository.arrays(WEIGHTS):
        norms[key] = float(np.abs(array).sum()) if array.size else 0.0
    broken = sorted(key for key, norm in norms.items() if not np.isfinite(norm))
    if broken:
        return [_not_applied(f"{len(broken)} of {len(norms)} tensors hold NaN or infinity, such as {broken[0]}")]
    second = [norm for key, norm in norms.items() if "lora_B" in key or "lora_embedding_B" in key]
    if second and not any(second):
        return [_not_applied("every lora_B is zero, so that the model is its base")]
    return []


def pinned(repository: Repository, readings: list[Reading]) -> list[Finding]:
    """Look at the name and the revision of the adapter's base (trap 8)."""
    del readings
    _need_adapter(repository)
    name = str(repository.adapter.get("base_model_name_or_path") or "")
    revision = repository.adapter.get("revision")
    if not HUB_ID.fullmatch(name) or Path(name).is_dir():
        return [
            Finding(
                8,
                "error",
                CONFIG,
                f"base_model_name_or_path is {name!r}, which is no Hub id: elsewhere the base is not found, or is "
                "another model of that name.",
                "Write the Hub id of the base, and its commit as revision.",
            )
        ]
    if not COMMIT.fullmatch(str(revision)):
        return [
            Finding(
                8,
                "warning",
                CONFIG,
                f"revision is {revision!r}, so that the adapter is put on whatever {name} holds at that time.",
                "Write the commit of the base, 40 hexadecimal digits, as revision.",
            )
        ]
    return []


def _against_base(repository: Repository, modules: list[str], layers: set[int]) -> list[Finding]:
    if repository.base is None:
        raise NotCheckedError("the base cannot be reached, so that only the form of the adapter's keys was looked at")
    there = {plain_name(name) for name in repository.base.weight_names}
    if there:
        unmatched = [name for name in modules if name not in there]
        if unmatched:
            return [_not_applied(f"{len(unmatched)} of {len(modules)} modules are not in the base: {unmatched[0]}")]
    depth = repository.text_config.get("num_hidden_layers", repository.text_config.get("n_layer"))
    if layers and depth is not None and max(layers) >= depth:
        return [_not_applied(f"it has a layer {max(layers)}, and the base {depth} layers, counted from 0")]
    if not there and depth is None:
        raise NotCheckedError("the base has neither a configuration nor weights here")
    return []


def plain_name(name: str) -> str:
    """Give the name of a module or its weight without the prefixes of a causal language model.

    peft finds its modules with and without them.
    """
    return name.removesuffix(".weight").removeprefix("model.").removeprefix("transformer.")


def _not_applied(reason: str) -> Finding:
    return Finding(
        7,
        "error",
        WEIGHTS,
        f"The adapter has no effect, or a wrong one, and loading it raises no error: {reason}.",
        "Save the adapter anew from the trained model with save_pretrained, or publish the merged model.",
    )


def _need_adapter(repository: Repository) -> None:
    if not repository.adapter:
        raise NotCheckedError("the repository is a whole model, no adapter")
    if WEIGHTS not in repository.files:
        raise NotCheckedError(f"there is no {WEIGHTS}")
