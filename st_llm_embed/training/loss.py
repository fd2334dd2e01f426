"""The contrastive loss."""

from __future__ import annotations

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
    scale = 1 / loss.temperature
    if loss.mini_batch_size is None:
        return MultipleNegativesRankingLoss(model, scale=scale)
    return CachedMultipleNegativesRankingLoss(model, scale=scale, mini_batch_size=loss.mini_batch_size)
