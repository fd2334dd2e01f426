"""The contrastive loss."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
)
from torch import distributed, nn

from st_llm_embed.recipe import Loss


def build_losses(model: SentenceTransformer, loss: Loss, configurations: Iterable[str]) -> dict[str, nn.Module]:
    """Build InfoNCE over in-batch and hard negatives (paper, equation 2) for each configuration of a dataset.

    With `mini_batch_size` it is the cached form, which computes the same loss and gradients in the memory of one
    mini-batch (GradCache).
    """
    return {name: _build(model, loss, _strength(loss, name)) for name in configurations}


def _strength(loss: Loss, configuration: str) -> float:
    return next((strength for name, strength in loss.hardness_strength.items() if configuration.startswith(name)), 0)


def _build(model: SentenceTransformer, loss: Loss, hardness_strength: float) -> nn.Module:
    options: dict[str, Any] = {
        "scale": 1 / loss.temperature,
        "hardness_mode": "hard_negatives" if hardness_strength else None,
        "hardness_strength": hardness_strength,
        # Under torchrun the batch whose texts are negatives is that of all processes.
        "gather_across_devices": distributed.is_initialized(),
    }
    if loss.mini_batch_size is None:
        return MultipleNegativesRankingLoss(model, **options)
    return CachedMultipleNegativesRankingLoss(model, mini_batch_size=loss.mini_batch_size, **options)
