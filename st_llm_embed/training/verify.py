"""What is checked of a trained model before it is saved as the result: each has gone wrong unnoticed elsewhere."""

from __future__ import annotations

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor
from torch.nn.functional import cosine_similarity

from st_llm_embed.errors import InputError
from st_llm_embed.recipe import Dtype

PROBES = (
    "a",
    "How are the leaves of a plant coloured?",
    "Instruct: Given a question, retrieve passages that answer it.\nQuery: 为什么天空是蓝色的",
    "Air scatters blue light more than red, and so the sky is blue; at sunset the way through the air is longer.",
)
"""Short and long, with and without an instruction, in two scripts."""

LEAST_COSINE: dict[Dtype, float] = {"float32": 0.9999, "bfloat16": 0.999, "float16": 0.999}
"""Cosine similarity of two vectors that differ by rounding alone; in bfloat16 two batch sizes give down to 0.9998."""


def probe(model: SentenceTransformer) -> Tensor:
    """Encode the probe texts; float32 of shape (number of probes, hidden size)."""
    return model.encode(list(PROBES), convert_to_tensor=True, show_progress_bar=False).float().cpu()


def check_trained(model: SentenceTransformer, before: Tensor) -> Tensor:
    """Check that training changed a model, and left it in order.

    Args:
        model: after training, its adapter not merged.
        before: what `probe` gave before training.

    Returns:
        What `probe` gives now.

    Raises:
        InputError: a weight is no number, no weight of the adapter moved, or the vectors are still those of the start.
    """
    weights = dict(model.named_parameters())
    broken = sorted(name for name, weight in weights.items() if not torch.isfinite(weight).all())
    if broken:
        raise InputError(
            f"Training ended with weights that are no numbers (NaN or infinite) in {len(broken)} of {len(weights)} "
            f"tensors, such as {broken[0]}, and the model is not saved. log.json has the loss at each step. Lower "
            "training.learning_rate, or take bf16 in place of fp16, and run again."
        )
    adapter = [weight for name, weight in weights.items() if ".lora_B." in name]
    if adapter and not any(weight.any() for weight in adapter):
        raise InputError(
            "Training left the adapter as it was drawn: every lora_B weight is zero, so the model is the base. "
            "Set training.learning_rate above zero and let training take more steps than it warms up."
        )
    after = probe(model)
    if not torch.isfinite(after).all() or torch.equal(before, after):
        kind = "are those of the untrained model" if torch.equal(before, after) else "are no numbers"
        raise InputError(
            f"After training the vectors of the texts it was tried on {kind}, and the model is not saved. Set "
            "training.learning_rate above zero, not too high, and let training take more steps than it warms up."
        )
    return after


def check_same_vectors(name: str, vectors: Tensor, other_name: str, others: Tensor, dtype: Dtype) -> None:
    """Compare the vectors of two models that ought to be the same but for rounding in `dtype`.

    Raises:
        InputError: they differ, or are no numbers.
    """
    least = cosine_similarity(vectors, others, dim=1).min().item()
    # Not the other way round: NaN is not above either.
    if not least > LEAST_COSINE[dtype]:
        raise InputError(
            f"The vectors of {name} differ from those of {other_name}: cosine similarity {least:.6f}, where rounding "
            f"in {dtype} leaves at least {LEAST_COSINE[dtype]}. The model is not saved. Run again; if it stays, train "
            "with base.dtype float32, and report it with the recipe."
        )
