"""What a training step costs: operations by formula, and memory by letting torch go through a step without numbers.

The operations are those of Kaplan et al. (arXiv 2001.08361, section 2.1) with the attention term of PaLM (arXiv
2204.02311, appendix B). Activations have a formula, too (Korthikanti et al., arXiv 2205.05198, equation 2), but it is
that of one architecture and of fused kernels. What this base's own code keeps is found out in seconds instead: a step
on tensors that have shapes and no content.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from st_llm_embed.errors import InputError

NF4_BYTES = 4.127 / 8
"""Bytes of a weight in 4 bits with its share of the constants, quantized as well (arXiv 2305.14314, section 3)."""

SCORE_COPIES = 5
"""Copies of a piece of the score matrix, in float32, that the loss and its backward pass hold at once; measured."""


@dataclass(frozen=True)
class Decoder:
    """The sizes of a decoder that costs depend on."""

    parameters: int
    """All of them, without the head that predicts tokens, which an embedder does not have."""
    trainable: int
    matmul_weights: int
    """Weights that each token is multiplied with, an adapter's included."""
    trainable_matmul_weights: int
    layers: int
    attention_width: int
    """Query heads times dimensions of a head."""
    hidden_size: int
    weight_bytes: int
    trainable_bytes: int
    largest_bytes: int
    """The larger of the largest weight and the weights of two layers."""

    @classmethod
    def of(cls, model: PreTrainedModel, *, quantized: bool = False) -> Decoder:
        """Read the sizes off a model, which may be on the meta device.

        Args:
            model: a decoder, with its adapter if it has one.
            quantized: whether the frozen linear layers are to be in 4 bits, and so all else in float32.

        Raises:
            InputError: tokens do not all meet the same matrices.
        """
        config = model.config.get_text_config()
        decoder = model.get_decoder()
        linear = [module.weight for module in decoder.modules() if isinstance(module, nn.Linear | Conv1D)]
        inner = [weight for weight in decoder.parameters() if weight.dim() > 2]
        if inner or not linear:
            raise InputError(
                f"A base of type {config.model_type!r} has weights that are no matrices: experts, convolutions or "
                "states. The plan counts decoders in which every token meets every matrix, such as Mistral, Llama, "
                "Qwen, Gemma, Phi, GPT-2 and NeoX. Train it without a plan, on a few steps first."
            )
        in_4_bits = {id(weight) for weight in linear if quantized and not weight.requires_grad}

        def size(weight: Tensor) -> float:
            if id(weight) in in_4_bits:
                return weight.numel() * NF4_BYTES
            return weight.numel() * (4 if quantized else weight.element_size())

        weights = list(model.parameters())
        trainable = [weight for weight in weights if weight.requires_grad]
        sizes = [size(weight) for weight in weights]
        embedding = cast(Tensor, model.get_input_embeddings().weight)
        heads = config.num_attention_heads
        return cls(
            parameters=sum(weight.numel() for weight in weights),
            trainable=sum(weight.numel() for weight in trainable),
            matmul_weights=sum(weight.numel() for weight in linear),
            trainable_matmul_weights=sum(weight.numel() for weight in linear if weight.requires_grad),
            layers=config.num_hidden_layers,
            attention_width=heads * (getattr(config, "head_dim", None) or config.hidden_size // heads),
            hidden_size=config.hidden_size,
            weight_bytes=round(sum(sizes)),
            trainable_bytes=sum(weight.numel() * weight.element_size() for weight in trainable),
            largest_bytes=round(max(*sizes, 2 * (sum(sizes) - size(embedding)) / config.num_hidden_layers)),
        )


@dataclass(frozen=True)
class Tokens:
    """Tokens that go through the model."""

    count: float
    pairs: float
    """Sum over the texts of the square of their width: every token of a text meets every one in attention, and the
    kernels compute those to its right, too, where a batch has padding."""


@dataclass(frozen=True)
class Flops:
    """Floating-point operations, a multiplication and an addition counted as two."""

    forward: float
    backward: float
    again: float
    """What GradCache and activation checkpointing compute a second time."""

    @property
    def model(self) -> float:
        """Operations that any way to the same gradients needs; the numerator of the model-FLOPs utilisation."""
        return self.forward + self.backward

    @property
    def total(self) -> float:
        """Operations that are carried out."""
        return self.forward + self.backward + self.again


def flops(decoder: Decoder, tokens: Tokens, *, grad_cache: bool = False, checkpointing: bool = False) -> Flops:
    """Count the operations of one pass forward and back.

    Forward, a token takes 2 N for N matrix weights (arXiv 2001.08361, section 2.1), and attention 4 L A S for L layers
    of width A and S tokens. Backward, the gradients of the inputs take as much as forward, those of the weights 2 for
    each trainable matrix weight, which with an adapter are few; attention takes 10 L A S, since fused kernels compute
    the scores again (arXiv 2205.14135, appendix B). GradCache goes forward twice (arXiv 2101.06983), and so does
    checkpointing. Norms, activation functions, pooling and loss are not counted. Of an adapter's first layer, whose
    inputs may need no gradient, and of checkpointing's second pass, which torch stops before a layer's end, a little
    too much is counted (docs/training.md).
    """
    attention = 2 * decoder.layers * decoder.attention_width * tokens.pairs
    forward = 2 * decoder.matmul_weights * tokens.count + 2 * attention
    weights = decoder.matmul_weights + decoder.trainable_matmul_weights
    return Flops(
        forward=forward,
        backward=2 * weights * tokens.count + 5 * attention,
        again=(grad_cache + checkpointing) * forward,
    )


@dataclass(frozen=True)
class Memory:
    """Bytes on one device at the height of a step."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    """Of one mini-batch, with the gradients that are on the way."""
    embeddings: float
    """Of all texts, with their gradients, until the loss is done."""
    scores: float
    """The piece of the score matrix that is worked on."""

    @property
    def resident(self) -> float:
        """What is there all the time."""
        return self.weights + self.gradients + self.optimizer

    @property
    def total(self) -> float:
        """The larger of the two heights, of the model's backward pass and of the loss."""
        return self.resident + self.embeddings + max(self.activations, self.scores)


def state_bytes(decoder: Decoder, optimizer: str) -> float:
    """Give the bytes of an optimizer's states by its name in transformers: AdamW's two for each weight, unless known.

    They have the type of the weights: of 16-bit weights 16 bits.
    """
    if "sgd" in optimizer or "adafactor" in optimizer:
        return 0  # no momentum by default, or one number for each row and column
    if "8bit" in optimizer:
        return 2 * decoder.trainable
    return 2 * decoder.trainable_bytes


def embedding_bytes(hidden_size: int, texts: int, texts_of_all: int, element_size: int) -> float:
    """Give the bytes of the texts' vectors in the loss.

    Of this device's texts there are GradCache's vectors, the same in one piece, and in order; of all devices' texts,
    in float32, four more: the vectors, those of unit length, their gradients, and the documents in one piece.
    """
    return hidden_size * (3 * element_size * texts + 4 * 4 * texts_of_all)


def disk_bytes(decoder: Decoder, optimizer: str, *, model_bytes: int, checkpoints: int) -> float:
    """Give the bytes that a run leaves on disk, rows and logs not counted.

    Args:
        decoder: what is trained.
        optimizer: its name in transformers.
        model_bytes: of all weights in the type they are saved in; the trained model and the release have them.
        checkpoints: how many are kept, each with the trained weights and the optimizer's states.
    """
    trained = decoder.trainable_bytes
    adapter = trained if decoder.trainable < decoder.parameters else 0
    return 2 * model_bytes + adapter + checkpoints * (trained + state_bytes(decoder, optimizer))


def step_peak(model: PreTrainedModel, texts: int, width: int, *, autocast: torch.dtype | None = None) -> int:
    """Give the bytes that one pass forward and back holds at its height, beside weights and their gradients.

    The pass is made by the model's own code on tensors without content, so it takes seconds and no memory at any size.
    Kernels are those of a CPU; a GPU's keep as much but for dropout, whose mask is smaller there.

    Args:
        model: on the meta device, in training mode; afterwards it holds tensors without content.
        texts: of the mini-batch.
        width: tokens of each text, padding included.
        autocast: the type that matrices are multiplied in, if it is not the weights'.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), torch.autocast("cpu", autocast, enabled=autocast is not None):
        without_content(model)
        weights = [*model.parameters(), *model.buffers()]
        for weight in model.parameters():
            weight.grad = torch.empty_like(weight) if weight.requires_grad else None
        gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
        ids = torch.empty(texts, width, dtype=torch.long)
        mask = torch.ones(texts, width, dtype=torch.long)

        def step() -> None:
            hidden = model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
            hidden[:, -1].float().sum().backward()

        return peak_bytes(step, [*weights, *gradients])


def peak_bytes(call: Callable[[], object], known: Iterable[Tensor]) -> int:
    """Call, and give the bytes of the tensors that were alive at once and are not known before."""
    with _Allocations(known) as allocations:
        call()
    return allocations.peak


class _Allocations(TorchDispatchMode):
    """Follows every piece of memory that an operation gives back from its birth to its end."""

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


def without_content(model: PreTrainedModel) -> None:
    """Put tensors without content, which pass for a CPU's, into the place of a model's own."""
    for module in model.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            empty = torch.empty(weight.shape, dtype=weight.dtype)
            setattr(module, name, nn.Parameter(empty, requires_grad=weight.requires_grad))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))
