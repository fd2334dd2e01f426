"""What one step takes: FLOPs and peak memory by the model's own code on fake tensors, and speed on this CPU."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop, sdpa_flop
from transformers import PreTrainedModel

from st_llm_embed.errors import explained

# FlopCounterMode does not know the CPU's fused attention.
CPU_ATTENTION: dict[Any, Any] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop(q, k, v),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda gradient, q, k, v, *_, **__: sdpa_backward_flop(gradient, q, k, v)
    ),
}


def step_peak(model: PreTrainedModel, texts: int, width: int, *, autocast: torch.dtype | None = None) -> int:
    """Return the peak memory in bytes of one pass forward and back, besides weights and their gradients.

    The model is on the meta device; its own code runs on fake tensors, in seconds and without memory at any size.
    Kernels are those of a CPU; a GPU's keep as much except for dropout, whose mask is smaller there.
    """
    with _fake(model, texts, width) as forward, torch.autocast("cpu", autocast, enabled=autocast is not None):
        gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
        return peak_bytes(lambda: forward().backward(), [*model.parameters(), *model.buffers(), *gradients])


def step_flops(model: PreTrainedModel, width: int) -> tuple[int, int]:
    """Count the FLOPs of one text, forward and of both passes; a multiplication and an addition are two.

    What activation checkpointing computes again is counted. The model is on the meta device.
    """
    counter = FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION)
    with _fake(model, 1, width) as forward, counter:
        result = forward()
        flops = counter.get_total_flops()
        result.backward()
        return flops, counter.get_total_flops()


def flops_per_second(model: PreTrainedModel, texts: int, width: int) -> float:
    """Time one pass forward and back on this machine's CPU, after one that warms up.

    The model is on the meta device and leaves it, with random weights.
    """
    counter = FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.normal_(std=0.02)
    ids, mask = torch.ones(texts, width, dtype=torch.long), torch.ones(texts, width, dtype=torch.long)

    def both() -> None:
        model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state[:, -1].float().sum().backward()

    with counter:
        both()
    start = time.perf_counter()
    both()
    return counter.get_total_flops() / (time.perf_counter() - start)


@contextmanager
def _fake(model: PreTrainedModel, texts: int, width: int) -> Generator[Callable[[], Tensor]]:
    """Replace a model's parameters and buffers by fake tensors (shapes only), with gradients.

    Yields:
        A pass forward, which returns a number to go back from.

    Raises:
        InputError: the model's code does not run on fake tensors.
    """
    with (
        explained(
            f"A base of type {model.config.model_type!r} cannot be planned: its code does not run on fake tensors",
            "This is so for mixtures of experts. Train it without a plan, with training.max_steps=2 first.",
        ),
        FakeTensorMode(allow_non_fake_inputs=True),
    ):
        for module in model.modules():
            for name, weight in list(module.named_parameters(recurse=False)):
                fake = nn.Parameter(torch.empty(weight.shape, dtype=weight.dtype), weight.requires_grad)
                fake.grad = torch.empty_like(fake) if weight.requires_grad else None
                setattr(module, name, fake)
            for name, buffer in list(module.named_buffers(recurse=False)):
                setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))
        ids = torch.empty(texts, width, dtype=torch.long)
        mask = torch.ones(texts, width, dtype=torch.long)

        def forward() -> Tensor:
            hidden = model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
            return hidden[:, -1].float().sum()

        yield forward


def peak_bytes(call: Callable[[], object], known: Iterable[Tensor]) -> int:
    """Call, and return the most bytes of tensors that were alive at once and are not among those known before."""
    with _Allocations(known) as allocations:
        call()
    return allocations.peak


class _Allocations(TorchDispatchMode):
    """Follows every piece of memory that an operation returns until it is freed."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known = [tensor.untyped_storage() for tensor in known]
        self._seen = weakref.WeakSet(self._known)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(given):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage()) not in self._seen:
                self._seen.add(storage)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._freed, storage.nbytes())
        return given

    def _freed(self, size: int) -> None:
        self.now -= size
