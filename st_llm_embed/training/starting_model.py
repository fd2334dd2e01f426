"""What training starts from: the recipe's base as an embedder, with an adapter to go on with if one is given."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import BitsAndBytesConfig, set_seed

from st_llm_embed.errors import InputError, explained
from st_llm_embed.instructions import published_prompts
from st_llm_embed.modules import LLMSentenceTransformer
from st_llm_embed.modules.layout import hub_snapshot
from st_llm_embed.recipe import EMBEDDED, Dtype, Recipe

BASE_ADVICE = (
    f"Allowed are {EMBEDDED!r} and the Hub id or local folder of a decoder-only transformers model, complete with its "
    "weights and tokenizer. Set it with --set base.name_or_path=..."
)

ADAPTER_ADVICE = (
    "Give the Hub id or folder of a LoRA adapter that was trained on this base, or set base.adapter to null."
)


def untrained_embedder(recipe: Recipe) -> LLMSentenceTransformer:
    """Build the embedder that training starts from; the same weights each time, fresh ones included.

    Raises:
        InputError: the base or its adapter cannot be loaded.
    """
    model = base_embedder(recipe, quantization_config=quantization_config(recipe))
    if recipe.base.adapter is not None:
        with explained(f"The adapter {recipe.base.adapter!r} cannot be loaded", ADAPTER_ADVICE):
            model.load_adapter(recipe.base.adapter, is_trainable=True)
    return model


def base_embedder(
    recipe: Recipe, *, dtype: Dtype | None = None, quantization_config: BitsAndBytesConfig | None = None
) -> LLMSentenceTransformer:
    """Build an embedder of the base alone.

    Args:
        recipe: gives the base, the text length and the seed.
        dtype: data type of the weights where it is not the recipe's.
        quantization_config: None loads the weights as they are.

    Raises:
        InputError: the base cannot be loaded.
    """
    set_seed(recipe.seed)
    with explained(f"The base model {recipe.base.name_or_path!r} cannot be loaded", BASE_ADVICE):
        model = LLMSentenceTransformer.from_base(
            recipe.base.name_or_path,
            max_seq_length=recipe.base.max_seq_length,
            revision=recipe.base.revision,
            random_init=recipe.base.random_init,
            dtype=dtype or recipe.base.dtype,
            quantization_config=quantization_config,
            pooling_mode=recipe.base.pooling_mode,
        )
    model.prompts.update(published_prompts(recipe.base.instructions))
    return model


def quantization_config(recipe: Recipe) -> BitsAndBytesConfig | None:
    """Give the settings of QLoRA (arXiv 2305.14314): 4-bit NormalFloat, the constants quantized, too.

    Raises:
        InputError: there is no bitsandbytes or no CUDA device for it.
    """
    if recipe.base.quantization is None:
        return None
    lacking = []
    if find_spec("bitsandbytes") is None:
        lacking.append("bitsandbytes is not installed (pip install 'st_llm_embed[qlora]')")
    if not torch.cuda.is_available():
        lacking.append("there is no CUDA device")
    if lacking:
        raise InputError(
            f"base.quantization is {recipe.base.quantization!r}, which needs bitsandbytes and a CUDA device; here "
            f"{' and '.join(lacking)}. Otherwise set base.quantization to null, which trains the same adapter on "
            "unquantized weights."
        )
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=recipe.base.quantization,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, recipe.base.dtype),
    )


def base_snapshot(recipe: Recipe) -> Path | None:
    """Return the cached folder of a base on the Hub, which is named after its commit; None for a local one."""
    return hub_snapshot(recipe.base.name_or_path, recipe.base.revision)
