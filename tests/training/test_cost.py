"""The plan's arithmetic against torch's own counts of a real step, for every family of decoders."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from families import MODELS
from peft import LoraConfig
from st_llm_embed.training.cost import (
    SCORE_COPIES,
    Decoder,
    Tokens,
    embedding_bytes,
    flops,
    peak_bytes,
    state_bytes,
    step_peak,
)
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop, sdpa_flop
from transformers import AutoModel, MistralConfig, MistralForCausalLM, MixtralConfig, PreTrainedConfig, PreTrainedModel

from st_llm_embed import InputError, LLMSentenceTransformer
from st_llm_embed.training import InfoNCELoss
from st_llm_embed.training.loss import _Batch

VOCABULARY = 2_000

WAYS = [(lora, checkpointing) for lora in (False, True) for checkpointing in (False, True)]

TOO_MANY = {(False, False): 0.02, (True, False): 0.08, (False, True): 0.10, (True, True): 0.02}
"""How many operations the formula may count too many, by (LoRA, checkpointing)."""

# FlopCounterMode does not know the CPU's fused attention.
CPU_ATTENTION: dict[Any, Any] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop(q, k, v),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda gradient, q, k, v, *_, **__: sdpa_backward_flop(gradient, q, k, v)
    ),
}


def realistic(family: str) -> PreTrainedConfig:
    """A configuration of the family whose widths relate as those of large models do."""
    small = MODELS[family](VOCABULARY)
    sizes: dict[str, Any] = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 8, "head_dim": 32}
    if getattr(small, "num_key_value_heads", None) is not None:
        sizes["num_key_value_heads"] = 8 if family == "phi" else 2
    if getattr(small, "intermediate_size", None) is not None:
        sizes["intermediate_size"] = 896
    if family == "gpt-neo":
        sizes["attention_types"] = [[["global", "local"], 2]]
    known = {small.attribute_map.get(name, name): value for name, value in sizes.items() if hasattr(small, name)}
    return type(small)(vocab_size=VOCABULARY, pad_token_id=0, bos_token_id=1, eos_token_id=2, **known)


def trained(config: PreTrainedConfig, *, lora: bool, checkpointing: bool) -> PreTrainedModel:
    model = AutoModel.from_config(config)
    if lora:
        # GPT-2 has its matrices the other way round.
        turned = config.model_type == "gpt2"
        model.add_adapter(LoraConfig(r=16, target_modules="all-linear", lora_dropout=0.1, fan_in_fan_out=turned))
    if checkpointing:
        model.activation_checkpointing_enable()
    return model.train()


def on_meta(config: PreTrainedConfig, *, lora: bool, checkpointing: bool) -> PreTrainedModel:
    with torch.device("meta"):
        return trained(config, lora=lora, checkpointing=checkpointing)


def step(model: PreTrainedModel, texts: int, width: int) -> None:
    ids, mask = torch.ones(texts, width, dtype=torch.long), torch.ones(texts, width, dtype=torch.long)
    model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state[:, -1].sum().backward()


def profiled_peak(call: Callable[[], object], folder: Path) -> int:
    """The peak of what torch's CPU allocator has given out during a call, by torch's profiler."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    profile.export_chrome_trace(str(folder / "trace.json"))
    events = json.loads((folder / "trace.json").read_text(encoding="utf-8"))["traceEvents"]
    changes = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]")
    return max(accumulate(change for _, change in changes))


@pytest.mark.parametrize("family", MODELS)
def test_sizes_are_those_of_the_real_model(family: str) -> None:
    config = realistic(family)
    for lora in (False, True):
        real = trained(config, lora=lora, checkpointing=False)
        counted = Decoder.of(on_meta(config, lora=lora, checkpointing=False))
        assert counted.parameters == sum(weight.numel() for weight in real.parameters())
        assert counted.trainable == sum(weight.numel() for weight in real.parameters() if weight.requires_grad)
        assert counted.weight_bytes == sum(weight.nbytes for weight in real.parameters())


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize(("lora", "checkpointing"), WAYS)
def test_operations_are_those_that_torch_counts(family: str, lora: bool, checkpointing: bool) -> None:
    model = trained(realistic(family), lora=lora, checkpointing=checkpointing)
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        step(model, 4, 96)
    counted = flops(Decoder.of(model), Tokens(4 * 96, 4 * 96**2), checkpointing=checkpointing).total
    assert 0.999 < counted / counter.get_total_flops() < 1 + TOO_MANY[lora, checkpointing]


def test_grad_cache_adds_a_forward_pass() -> None:
    model = trained(realistic("mistral"), lora=False, checkpointing=False)
    tokens = Tokens(4 * 96, 4 * 96**2)
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        with torch.no_grad():
            model(input_ids=torch.ones(4, 96, dtype=torch.long))
        step(model, 4, 96)
    counted = flops(Decoder.of(model), tokens, grad_cache=True)
    assert counted.again == counted.forward
    assert counted.model == flops(Decoder.of(model), tokens).total
    assert counted.total == pytest.approx(counter.get_total_flops(), rel=0.01)


@pytest.mark.parametrize("family", ["mistral", "qwen3", "gemma2", "gpt2", "gpt-neox"])
@pytest.mark.parametrize(("lora", "checkpointing"), WAYS)
def test_activations_are_those_of_a_real_step(family: str, lora: bool, checkpointing: bool, tmp_path: Path) -> None:
    config = realistic(family)
    planned = step_peak(on_meta(config, lora=lora, checkpointing=checkpointing), 8, 96)
    model = trained(config, lora=lora, checkpointing=checkpointing)
    for weight in model.parameters():
        weight.grad = torch.zeros_like(weight) if weight.requires_grad else None
    real = profiled_peak(lambda: step(model, 8, 96), tmp_path)
    assert planned == pytest.approx(real, rel=0.12)


def test_checkpointing_keeps_the_published_amount() -> None:
    """Korthikanti et al. (arXiv 2205.05198, section 5): the input of each layer, 2 bytes for each dimension."""
    config = MistralConfig(hidden_size=1024, intermediate_size=3584, num_hidden_layers=64, vocab_size=VOCABULARY)
    with torch.device("meta"):
        model = AutoModel.from_config(config, dtype=torch.bfloat16)
    model.activation_checkpointing_enable()
    shallow = MistralConfig(hidden_size=1024, intermediate_size=3584, num_hidden_layers=32, vocab_size=VOCABULARY)
    with torch.device("meta"):
        half = AutoModel.from_config(shallow, dtype=torch.bfloat16)
    half.activation_checkpointing_enable()
    deeper = step_peak(model.train(), 8, 512) - step_peak(half.train(), 8, 512)
    assert deeper == pytest.approx(32 * 8 * 512 * 1024 * 2, rel=0.01)


@pytest.mark.parametrize(("rows", "dimensions"), [(2_048, 64), (2_048, 1_024), (512, 256)])
def test_the_loss_takes_no_more_than_planned(rows: int, dimensions: int, tiny_base: Path) -> None:
    model = LLMSentenceTransformer.from_base(str(tiny_base), max_seq_length=48, device="cpu")
    loss = InfoNCELoss(model, temperature=0.02, mini_batch_num_tokens=4_096)
    for dtype in (torch.float32, torch.bfloat16):
        vectors = torch.randn(rows * 3, dimensions, dtype=dtype).requires_grad_()
        place, hashes = torch.randperm(rows * 3), torch.randint(0, 10**12, (rows, 3))

        compute = partial(loss.calculate_loss, [[vectors]], _Batch(3, place, hashes), with_backward=True)
        real = vectors.nbytes + peak_bytes(compute, [vectors, place, hashes])
        planned = embedding_bytes(dimensions, 3 * rows, 3 * rows, dtype.itemsize)
        planned += 4 * SCORE_COPIES * 128 * 2 * rows
        assert real <= planned * 1.01
        assert planned < real * 1.35


def test_a_7b_model_is_counted_as_published() -> None:
    config = MistralConfig(
        vocab_size=32_000,
        hidden_size=4_096,
        intermediate_size=14_336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        decoder = Decoder.of(AutoModel.from_config(config, dtype=torch.bfloat16))
        with_head = MistralForCausalLM(config)
    assert sum(weight.numel() for weight in with_head.parameters()) == 7_241_732_096
    assert decoder.parameters == 7_241_732_096 - 32_000 * 4_096
    assert decoder.matmul_weights == decoder.parameters - 32_000 * 4_096 - (2 * 32 + 1) * 4_096
    assert decoder.weight_bytes == 2 * decoder.parameters


def test_weights_in_4_bits_and_optimizers() -> None:
    model = on_meta(realistic("mistral"), lora=True, checkpointing=False)
    decoder, quantized = Decoder.of(model), Decoder.of(model, quantized=True)
    frozen = decoder.matmul_weights - decoder.trainable_matmul_weights
    assert quantized.weight_bytes == pytest.approx(decoder.weight_bytes - frozen * (4 - 4.127 / 8), abs=1)
    assert state_bytes(decoder, "adamw_torch_fused") == 2 * 4 * decoder.trainable
    assert state_bytes(decoder, "paged_adamw_8bit") == 2 * decoder.trainable
    assert state_bytes(decoder, "sgd") == 0


def test_a_mixture_of_experts_is_refused() -> None:
    config = MixtralConfig(hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    with torch.device("meta"), pytest.raises(InputError, match=r"'mixtral' has weights that are no matrices"):
        Decoder.of(AutoModel.from_config(config))
