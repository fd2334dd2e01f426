"""The contrastive loss."""

from __future__ import annotations

from typing import Any

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
)
from torch import nn

from st_llm_embed.recipe import Loss


def build_loss(model: SentenceTransformer, loss: Loss) -> nn.Module:
    """Build InfoNCE over in-batch and hard negatives (paper, equation 2), with GradCache if the recipe says so.

    The cached form computes the same loss and gradients in the memory of one mini-batch.
    """
    options: dict[str, Any] = {
        "scale": 1 / loss.temperature,
        "hardness_mode": "hard_negatives" if loss.hardness_strength else None,
        "hardness_strength": loss.hardness_strength,
    }
    if loss.mini_batch_size is None:
        return MultipleNegativesRankingLoss(model, **options)
    return CachedMultipleNegativesRankingLoss(model, mini_batch_size=loss.mini_batch_size, **options)
