"""The model that training starts from, and its LoRA adapter: create, resume, save, merge, load."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftConfig, prepare_model_for_kbit_training
from peft.tuners.tuners_utils import BaseTunerLayer
from sentence_transformers.sentence_transformer.modules import Transformer
from transformers import AutoConfig, AutoModel, BitsAndBytesConfig, PreTrainedModel, set_seed

from st_llm_embed.errors import InputError, did_you_mean, explained
from st_llm_embed.instructions import published_prompts
from st_llm_embed.modules.layout import base_path, hub_snapshot
from st_llm_embed.modules.loading import load_trained_adapter, loading
from st_llm_embed.modules.model import LLMSentenceTransformer
from st_llm_embed.recipe import EMBEDDED, Dtype, Recipe
from st_llm_embed.training.arguments import lora_config
from st_llm_embed.training.sections import ADAPTER_ADVICE, BASE_ADVICE


def starting_model(recipe: Recipe) -> LLMSentenceTransformer:
    """Build the embedder that training starts from; the same weights each time, random ones included.

    Raises:
        InputError: the base or its adapter cannot be loaded.
    """
    quantization = quantization_config(recipe)
    set_seed(recipe.seed)
    with explained(f"The base model {recipe.base.name_or_path!r} cannot be loaded", BASE_ADVICE):
        model = LLMSentenceTransformer.from_base(
            recipe.base.name_or_path,
            max_seq_length=recipe.base.max_seq_length,
            revision=recipe.base.revision,
            random_init=recipe.base.random_init,
            dtype=recipe.base.dtype,
            quantization_config=quantization,
            pooling_mode=recipe.base.pooling_mode,
        )
    model.prompts.update(published_prompts(recipe.base.instructions))
    if recipe.base.adapter is not None:
        _add_trained(model, recipe.base.adapter, trainable=True)
    return model


def _add_trained(model: LLMSentenceTransformer, adapter: str, *, trainable: bool) -> None:
    with loading(f"The adapter {adapter!r} cannot be loaded", adapter, ADAPTER_ADVICE):
        load_trained_adapter(_decoder(model), adapter, trainable=trainable)


def quantization_config(recipe: Recipe) -> BitsAndBytesConfig | None:
    """Return the settings of QLoRA (arXiv 2305.14314): 4-bit NormalFloat, the constants quantized, too.

    Raises:
        InputError: bitsandbytes or a CUDA device for it is missing.
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
            f"base.quantization is {recipe.base.quantization!r}, but {' and '.join(lacking)}. Set it to null to train "
            "the same adapter on unquantized weights."
        )
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=recipe.base.quantization,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, recipe.base.dtype),
    )


def continue_from(recipe: Recipe, trained: Path) -> Recipe:
    """Return a recipe whose training starts from the adapter or the weights in a folder that `train` wrote."""
    if recipe.lora is None and recipe.base.adapter is None:
        start: dict[str, Any] = {"name_or_path": str(trained / "model"), "revision": None, "random_init": False}
    else:
        start = {"adapter": str(trained / "adapter")}
    return recipe.model_copy(update={"base": recipe.base.model_copy(update=start), "lora": None})


def prepare_adapter(model: LLMSentenceTransformer, recipe: Recipe) -> bool:
    """Add the recipe's adapter, or make the model's own trainable; return whether there is one."""
    adapter = lora_config(recipe)
    if adapter is None and recipe.base.adapter is None:
        return False
    decoder = _decoder(model)
    if recipe.base.quantization is not None:
        # The trainer turns activation checkpointing on where the recipe asks for it.
        prepare_model_for_kbit_training(decoder, use_gradient_checkpointing=False)
    if adapter is not None:
        model.add_adapter(adapter)
    else:
        model.set_adapter("default")
    # A resumed trainer loads the base that a checkpoint names, which has to be exactly this one.
    for config in decoder.peft_config.values():
        config.base_model_name_or_path = str(
            hub_snapshot(recipe.base.name_or_path, recipe.base.revision) or base_path(recipe.base.name_or_path)
        )
    return True


def decoder_without_weights(recipe: Recipe) -> PreTrainedModel:
    """Build what is trained on the meta device, from configurations alone: the base and its adapter, if it has one.

    Raises:
        InputError: the base, its adapter or the lora section cannot be used.
    """
    name = recipe.base.name_or_path
    with explained(f"The base model {name!r} cannot be loaded", BASE_ADVICE), torch.device("meta"):
        config = AutoConfig.from_pretrained(base_path(name), revision=recipe.base.revision, trust_remote_code=False)
        decoder = AutoModel.from_config(config, dtype=getattr(torch, recipe.base.dtype))
    adapter, section = lora_config(recipe), "lora section"
    if recipe.base.adapter is not None:
        adapter, section = check_adapter(recipe.base.adapter, name), "base.adapter"
        adapter.inference_mode = False
    if adapter is not None:
        # Other ways to draw an adapter's first values compute them from the weights.
        adapter.init_lora_weights = True
        _check_matches(adapter, decoder, f"Recipe {recipe.name}: {section.removesuffix(' section')}")
        with explained(f"Recipe {recipe.name}: the {section} is refused", "Change what the message names."):
            decoder.add_adapter(adapter)
    return decoder


def _check_matches(adapter: LoraConfig, decoder: PreTrainedModel, where: str) -> None:
    """Refuse names of modules and layers of which one matches nothing; peft refuses only if all of them do."""
    modules = {name for name, _ in decoder.named_modules()}
    ends = sorted({name.rpartition(".")[2] for name in modules if name})
    layers = decoder.config.get_text_config().num_hidden_layers
    for key in ("target_modules", "modules_to_save", "exclude_modules", "rank_pattern", "alpha_pattern"):
        given = getattr(adapter, key)
        names = [given] if isinstance(given, str) else list(given or ())
        # One text is a regular expression for whole names; keys of patterns are expressions for their ends.
        whole, is_expression = isinstance(given, str), isinstance(given, str | dict)
        for name in names:
            if name == "all-linear" or _matches(name, modules, whole=whole, expression=is_expression):
                continue
            raise InputError(
                f"{where}.{key} has {name!r}, which matches no module of the base{did_you_mean(name, ends)}. Its "
                f"modules are {', '.join(end for end in ends if not end.isdecimal())}. Correct the name or omit it."
            )
    chosen = adapter.layers_to_transform
    wrong = [one for one in ([chosen] if isinstance(chosen, int) else chosen or ()) if not 0 <= one < layers]
    if wrong:
        raise InputError(
            f"{where}.layers_to_transform has {', '.join(map(str, wrong))}, and the base has the layers 0 to "
            f"{layers - 1}. Correct the numbers or omit the key."
        )


def _matches(name: str, modules: Collection[str], *, whole: bool, expression: bool) -> bool:
    """Whether peft would find a module by a name."""
    pattern = name if expression else re.escape(name)
    return any(re.fullmatch(pattern if whole else rf"(.*\.)?({pattern})", module) for module in modules)


def save_adapter(model: LLMSentenceTransformer, recipe: Recipe, folder: Path) -> None:
    """Save a trained adapter alone, with tokenizer and prompts; its configuration names the base's Hub id and commit.

    A local base has no name that means anything elsewhere: in its place is what to do, which stock libraries show.
    """
    model.save_pretrained(str(folder), create_model_card=False)
    snapshot = hub_snapshot(recipe.base.name_or_path, recipe.base.revision)
    name = recipe.base.name_or_path
    if snapshot is None:
        name = EMBEDDED if name == EMBEDDED else Path(name).resolve().name
        name = f"{name} (not on the Hub; st_llm_embed.training.load_adapter takes this adapter and its base)"
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config |= {"base_model_name_or_path": name, "revision": snapshot.name if snapshot else None}
    path.write_text(json.dumps(config, indent=2), encoding="utf-8")


def merge_adapter(model: LLMSentenceTransformer) -> None:
    """Add a model's adapter to its weights, in place: layer by layer in float32, then in the weights' own type.

    Adding in bfloat16 would round twice, and the whole model in float32 would take twice the memory.
    """
    decoder = _decoder(model)
    for name, layer in list(decoder.named_modules()):
        if hasattr(layer, "unload_and_optionally_merge_module"):
            merged = layer.unload_and_optionally_merge_module(merge=True, safe_merge=False, adapter_names=None)
        elif isinstance(layer, BaseTunerLayer):
            dtype = layer.get_base_layer().weight.dtype
            layer.float()
            layer.merge()
            merged = layer.get_base_layer().to(dtype)
        else:
            continue
        decoder.set_submodule(name, merged)
    decoder.delete_adapter(list(decoder.peft_config))


def load_adapter(
    adapter: str | os.PathLike[str],
    base: str | os.PathLike[str],
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
        dtype: of the base's weights.
        trainable: whether the adapter can be trained further.

    Raises:
        InputError: base or adapter cannot be loaded, or the adapter is not of this base.
    """
    adapter, base = os.fspath(adapter), os.fspath(base)
    check_adapter(adapter, base)
    with explained(f"The base model {base!r} cannot be loaded", BASE_ADVICE):
        model = LLMSentenceTransformer.from_base(base, max_seq_length=max_seq_length, revision=revision, dtype=dtype)
    _add_trained(model, adapter, trainable=trainable)
    return model


def check_adapter(adapter: str, base: str) -> LoraConfig:
    """Read a trained adapter's configuration and compare the base it names.

    Raises:
        InputError: it is not a LoRA adapter, or both it and the recipe name a Hub repository, and another one.
    """
    with loading(f"The adapter {adapter!r} cannot be loaded", adapter, ADAPTER_ADVICE):
        config = PeftConfig.from_pretrained(adapter)
    if not isinstance(config, LoraConfig):
        raise InputError(f"The adapter {adapter!r} is of type {config.peft_type} and not a LoRA. {ADAPTER_ADVICE}")
    named = config.base_model_name_or_path or ""
    if " " not in named and not Path(named).is_absolute() and not Path(base_path(base)).is_dir() and named != base:
        raise InputError(
            f"The adapter {adapter!r} was trained on {named!r}, and the base is {base!r}: on other weights its "
            "vectors mean nothing. Set base.name_or_path to the adapter's base."
        )
    return config


def _decoder(model: LLMSentenceTransformer) -> PreTrainedModel:
    return cast(Transformer, model[0]).model
