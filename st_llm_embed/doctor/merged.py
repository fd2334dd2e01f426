"""Trap 9: merged weights against what base and adapter give in float32, rounded once."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from st_llm_embed.doctor.checks.adapter import KEY, WEIGHTS, plain_name
from st_llm_embed.doctor.finding import Finding, NotCheckedError
from st_llm_embed.doctor.repository import Repository
from st_llm_embed.errors import explained
from st_llm_embed.modules import base_path
from st_llm_embed.recipe import EMBEDDED

EQUAL = 0.999
"""Least share of equal elements: sums in another order round a few elements to the other side."""
ROUNDING = 1e-5
"""Two float32 sums of the same numbers in another order differ by less than this part of the largest element."""


def check_merge(repository: Repository) -> list[Finding]:
    """Add the adapter beside a merged model to its base once more, and compare the weights.

    Raises:
        NotCheckedError: no adapter lies beside the model, its base cannot be reached, or it is no plain LoRA.
    """
    if repository.adapter:
        raise NotCheckedError("the repository is an adapter, nothing is merged")
    folder = _adapter_beside(repository)
    adapter = Repository(str(folder))
    base = _base_of(adapter)
    config = adapter.adapter
    if (
        config.get("use_dora")
        or config.get("rank_pattern")
        or config.get("alpha_pattern")
        or config.get("bias") != "none"
    ):
        raise NotCheckedError("the adapter is no plain LoRA of one rank")
    rank, alpha = config["r"], config["lora_alpha"]
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    lora = _weights(adapter, WEIGHTS)
    merged, original = _all_weights(repository), _all_weights(base)
    off, unmerged, names = 0, 0, [key for key in lora if ".lora_A." in key]
    for key in names:
        match = KEY.fullmatch(key)
        if match is None or plain_name(match["module"]) not in merged.keys() & original.keys():
            raise NotCheckedError(f"{key} of the adapter belongs to no weight of both models")
        second, first = lora[key.replace("lora_A", "lora_B")].float(), lora[key].float()
        found, start = merged[plain_name(match["module"])], original[plain_name(match["module"])].float()
        wanted = (start + scale * (second @ first)).to(found.dtype)
        if found.dtype == torch.float32:
            same = float((found - wanted).abs().max()) <= ROUNDING * float(wanted.abs().max())
        else:
            same = float((found == wanted).float().mean()) >= EQUAL
        off += not same
        unmerged += torch.equal(found, start.to(found.dtype)) and bool(second.any())
    if unmerged:
        return [
            Finding(
                7,
                "error",
                "model.safetensors",
                f"{unmerged} of {len(names)} weights that the adapter {folder} changes are those of the base: it is "
                "not merged.",
                "Merge the adapter (merge_and_unload of peft, in float32) and save the model again.",
            )
        ]
    if not off:
        return []
    return [
        Finding(
            9,
            "warning",
            "model.safetensors",
            f"{off} of {len(names)} merged weights are not the sum of base and adapter {folder}, rounded once: it was "
            "merged in 16 bits, or is another adapter's.",
            "Merge in float32, and cast the result to the published dtype at the end.",
        )
    ]


def _adapter_beside(repository: Repository) -> Path:
    """Find the adapter where a run leaves it: in the model's folder, beside it, or under training/ of the run."""
    here = repository.folder.resolve()
    places = (here / "adapter", here.parent / "adapter", here.parent / "training" / "adapter")
    for place in places:
        if (place / WEIGHTS).is_file() and (place / "adapter_config.json").is_file():
            return place
    raise NotCheckedError("no adapter lies in adapter/, beside the folder, or under training/ of its run")


def _base_of(adapter: Repository) -> Repository:
    named = str(adapter.adapter.get("base_model_name_or_path"))
    base = Repository(base_path(EMBEDDED)) if named.startswith(f"{EMBEDDED} (") else adapter.base
    if base is None or not base.local:
        raise NotCheckedError("the adapter's base does not lie here")
    return base


def _all_weights(repository: Repository) -> dict[str, Tensor]:
    index = repository.table("model.safetensors.index.json").get("weight_map")
    files = sorted(set(index.values())) if index else ["model.safetensors"]
    if not repository.files.issuperset(files):
        raise NotCheckedError(f"{repository.name} has no safetensors")
    return {plain_name(key): weight for file in files for key, weight in _weights(repository, file).items()}


def _weights(repository: Repository, name: str) -> dict[str, Tensor]:
    with (
        explained(f"{repository.name}: {name} cannot be read", "Save or download it again."),
        safe_open(repository.folder / name, framework="pt") as file,
    ):
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
