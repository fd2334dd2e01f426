"""A training's first step without weights: what only a step of that base shows goes wrong here, in seconds."""

from __future__ import annotations

from typing import Any, cast

import torch
from sentence_transformers import SentenceTransformerTrainingArguments
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional
from transformers import PreTrainedModel

from st_llm_embed.modules import LastTokenPooling
from st_llm_embed.recipe import Recipe
from st_llm_embed.training.cost import without_content

REHEARSED_ROWS = 2
"""Rows of anchor and positive in the rehearsed batch."""


def rehearse_first_step(
    model: PreTrainedModel, recipe: Recipe, arguments: SentenceTransformerTrainingArguments
) -> int:
    """Go through a training's first step on tensors that have shapes and no content.

    That is: texts of full length through the base's own code, with adapter and checkpointing; pooling; InfoNCE; back;
    one step of AdamW.

    Args:
        model: the base as it is trained; its tensors are replaced by ones without content.
        recipe: all choices.
        arguments: the trainer's.

    Returns:
        How many tensors the optimizer has moved.

    Raises:
        RuntimeError: shapes, types or gradients do not fit together.
    """
    bf16 = bool(recipe.training.get("bf16"))
    with FakeTensorMode(allow_non_fake_inputs=True), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        without_content(model)
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=arguments.learning_rate, weight_decay=arguments.weight_decay)
        pooling = LastTokenPooling(model.config.get_text_config().hidden_size, pooling_mode=recipe.base.pooling_mode)
        shape = (2 * REHEARSED_ROWS, recipe.base.max_seq_length)
        mask = torch.ones(shape, dtype=torch.long)
        hidden = model(
            input_ids=torch.empty(shape, dtype=torch.long), attention_mask=mask, use_cache=False
        ).last_hidden_state
        features: dict[str, Any] = pooling({"token_embeddings": hidden, "attention_mask": mask})
        vectors = functional.normalize(cast(Tensor, features["sentence_embedding"]).float(), dim=1)
        anchors, positives = vectors.split(REHEARSED_ROWS)
        scores = anchors @ positives.T / recipe.loss.temperature
        functional.cross_entropy(scores, torch.arange(REHEARSED_ROWS)).backward()
        optimizer.step()
        return len(optimizer.state)
