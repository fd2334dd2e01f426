"""The life of a LoRA adapter: begun or gone on with, saved under its base's name, merged, loaded again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import torch
from peft import LoraConfig, PeftConfig, PeftModel, prepare_model_for_kbit_training
from sentence_transformers.sentence_transformer.modules import Transformer
from torch import Tensor
from transformers import PreTrainedModel

from st_llm_embed.errors import InputError, explained
from st_llm_embed.modules import LLMSentenceTransformer, base_path
from st_llm_embed.recipe import EMBEDDED, Dtype, Recipe
from st_llm_embed.training.arguments import lora_config
from st_llm_embed.training.starting_model import ADAPTER_ADVICE, BASE_ADVICE, base_embedder, base_snapshot
from st_llm_embed.training.verify import check_same_vectors, probe

CONFIG_FILE = "adapter_config.json"


def prepare_adapter(model: LLMSentenceTransformer, recipe: Recipe) -> bool:
    """Add the recipe's adapter to a model, or make the one it has ready for training.

    Returns:
        Whether an adapter is trained; False where all weights are.
    """
    adapter = lora_config(recipe)
    if adapter is None and recipe.base.adapter is None:
        return False
    decoder = cast(Transformer, model[0]).model
    if recipe.base.quantization is not None:
        # The trainer turns activation checkpointing on where the recipe asks for it.
        prepare_model_for_kbit_training(decoder, use_gradient_checkpointing=False)
    if adapter is not None:
        model.add_adapter(adapter)
    else:
        model.set_adapter("default")
    # A resumed trainer loads the base that a checkpoint names, which has to be exactly this one.
    for config in decoder.peft_config.values():
        config.base_model_name_or_path = str(base_snapshot(recipe) or base_path(recipe.base.name_or_path))
    return True


def add_without_weights(decoder: PreTrainedModel, recipe: Recipe) -> None:
    """Add the recipe's adapter, new or trained, if it has one, to a base on the meta device, ready for training.

    Raises:
        InputError: the section lora, or the adapter of the base, cannot be used.
    """
    adapter, named = lora_config(recipe), "lora section"
    if recipe.base.adapter is not None:
        adapter, named = check_adapter(recipe.base.adapter, recipe.base.name_or_path), "base.adapter"
        adapter.inference_mode = False
    if adapter is None:
        return
    # Other ways to draw an adapter's first values compute them from the weights.
    adapter.init_lora_weights = True
    with explained(f"Recipe {recipe.name}: the {named} is refused", "Change what the message names."):
        decoder.add_adapter(adapter)


def save_adapter(model: LLMSentenceTransformer, recipe: Recipe, folder: Path) -> None:
    """Save a trained adapter alone, with tokenizer and prompts.

    Its configuration names the base by Hub id and commit. A local base has no name that means anything elsewhere: in
    its place stands what to do, which stock libraries show when they fail to load it.
    """
    model.save_pretrained(str(folder), create_model_card=False)
    snapshot = base_snapshot(recipe)
    name = recipe.base.name_or_path
    if snapshot is None:
        name = EMBEDDED if name == EMBEDDED else Path(name).resolve().name
        name = f"{name} (not on the Hub; st_llm_embed.training.load_adapter takes this adapter and its base)"
    path = folder / CONFIG_FILE
    config = json.loads(path.read_text(encoding="utf-8"))
    config |= {"base_model_name_or_path": name, "revision": snapshot.name if snapshot else None}
    path.write_text(json.dumps(config, indent=2), encoding="utf-8")


def load_adapter(
    adapter: str,
    base: str,
    *,
    max_seq_length: int,
    revision: str | None = None,
    dtype: Dtype = "float32",
    trainable: bool = False,
) -> LLMSentenceTransformer:
    """Put a trained adapter on its base.

    Args:
        adapter: Hub id or folder of the adapter.
        base: Hub id or folder of the base, or ``embedded``.
        max_seq_length: longest text in tokens.
        revision: branch, tag or commit of a base on the Hub.
        dtype: data type of the base's weights.
        trainable: whether the adapter's weights can be trained further.

    Raises:
        InputError: base or adapter cannot be loaded, or the adapter is not of this base.
    """
    check_adapter(adapter, base)
    with explained(f"The base model {base!r} cannot be loaded", BASE_ADVICE):
        model = LLMSentenceTransformer.from_base(base, max_seq_length=max_seq_length, revision=revision, dtype=dtype)
    with explained(f"The adapter {adapter!r} cannot be loaded", ADAPTER_ADVICE):
        model.load_adapter(adapter, is_trainable=trainable)
    return model


def check_adapter(adapter: str, base: str) -> LoraConfig:
    """Read a trained adapter's configuration and compare the base it names.

    Raises:
        InputError: there is no LoRA adapter, or it names another Hub repository than `base`, which is one, too.
    """
    with explained(f"The adapter {adapter!r} cannot be loaded", ADAPTER_ADVICE):
        config = PeftConfig.from_pretrained(adapter)
    if not isinstance(config, LoraConfig):
        raise InputError(f"The adapter {adapter!r} is of type {config.peft_type} and no LoRA. {ADAPTER_ADVICE}")
    named = config.base_model_name_or_path or ""
    if " " not in named and not Path(named).is_absolute() and not Path(base_path(base)).is_dir() and named != base:
        raise InputError(
            f"The adapter {adapter!r} was trained on {named!r}, and the base is {base!r}: on other weights than its "
            "own an adapter gives vectors that mean nothing. Set base.name_or_path to the adapter's base."
        )
    return config


def merge_adapter(recipe: Recipe, adapter_dir: Path, trained: Tensor) -> LLMSentenceTransformer:
    """Add a trained LoRA adapter to the weights of the recipe's base, in float32, then cast to the recipe's dtype.

    Merging in bfloat16 would round twice. Of quantized weights the unquantized originals are taken.

    Args:
        recipe: gives the base.
        adapter_dir: what `save_adapter` wrote.
        trained: vectors of the probe texts by the model as it was trained.

    Raises:
        InputError: the adapter read back, or the merged model, gives other vectors.
    """
    model = base_embedder(recipe, dtype="float32")
    transformer = cast(Transformer, model[0])
    adapted = PeftModel.from_pretrained(transformer.model, str(adapter_dir))
    saved = probe(model)
    if recipe.base.quantization is None:
        check_same_vectors("the adapter as it was saved", saved, "the trained model", trained, recipe.base.dtype)
    transformer.model = adapted.merge_and_unload()
    check_same_vectors("the merged model", probe(model), "the adapter", saved, "float32")
    return model.to(getattr(torch, recipe.base.dtype))
