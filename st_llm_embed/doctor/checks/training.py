"""Traps 10 and 11, about training, where recipe.yaml or the trainer's own README.md tells how it was done."""

from __future__ import annotations

import re
from typing import Any

from st_llm_embed.doctor.finding import Finding, NotCheckedError, Reading
from st_llm_embed.doctor.repository import Repository

NOTHING_TOLD = "neither recipe.yaml nor a trainer's README.md tells how the model was trained"
CONTRASTIVE = re.compile(r"loss:(\w*MultipleNegatives\w*Loss)")
SMALLEST_SCALE = 20
"""Similarities times this are steps of 0.08 and more in bfloat16, around a cosine of 0.8."""


def similarity_in_16_bits(repository: Repository, readings: list[Reading]) -> list[Finding]:
    """Find a contrastive loss whose similarities were computed in 16 bits at a low temperature (trap 10)."""
    del readings
    if repository.recipe:
        # InfoNCELoss of this project computes them in float32 whatever the dtype of the weights.
        return []
    card = _trainers_card(repository)
    loss = CONTRASTIVE.search(card)
    dtype = next((name for name in ("bf16", "fp16") if re.search(rf"`{name}`: True", card)), None)
    scale = re.search(r'"scale":\s*([0-9.]+)', card)
    if loss is None:
        raise NotCheckedError("README.md names no contrastive loss")
    if dtype is None or scale is None or float(scale[1]) < SMALLEST_SCALE:
        return []
    step = float(scale[1]) * 2**-8
    return [
        Finding(
            10,
            "warning",
            "README.md",
            f"It was trained with {loss[1]} at scale {scale[1]} and {dtype}: similarities in 16 bits come in steps of "
            f"{step:.2f} of a logit around a cosine of 0.8, so that close negatives look the same.",
            "Train with a loss that computes similarities in float32, such as st_llm_embed.training.InfoNCELoss.",
        )
    ]


def duplicates_in_batch(repository: Repository, readings: list[Reading]) -> list[Finding]:
    """Find a training that nothing kept equal texts out of (trap 11)."""
    del readings
    if repository.recipe:
        loss: dict[str, Any] = repository.recipe["loss"] or {}
        training: dict[str, Any] = repository.recipe["training"] or {}
        kept_out = repository.recipe.get("batches") is not None or training.get("batch_sampler") == "no_duplicates"
        if kept_out or loss.get("mask_duplicates", True):
            return []
        told, file = (
            "the recipe has neither a section batches, nor batch_sampler no_duplicates, nor masks",
            "recipe.yaml",
        )
    else:
        card = _trainers_card(repository)
        loss_name = CONTRASTIVE.search(card)
        if loss_name is None:
            raise NotCheckedError("README.md names no contrastive loss")
        if re.search(r"`batch_sampler`: no_duplicates", card):
            return []
        told, file = f"README.md names {loss_name[1]} and no batch_sampler no_duplicates", "README.md"
    return [
        Finding(
            11,
            "warning",
            file,
            f"Nothing kept equal texts out of a batch ({told}): where rows share an anchor or a positive, the model "
            "was taught that a right answer is wrong.",
            "Train with batch_sampler no_duplicates, or loss.mask_duplicates true.",
        )
    ]


def _trainers_card(repository: Repository) -> str:
    card = repository.text("README.md")
    if "generated_from_trainer" not in card:
        raise NotCheckedError(NOTHING_TOLD)
    return card
