"""Time one training step of InfoNCELoss against sentence-transformers' losses on the same model and batch.

    OMP_NUM_THREADS=1 taskset -c 0 python scripts/bench_training.py [--rounds 5] [--plain]
    python scripts/bench_training.py --device cuda --dtype bfloat16 --shape 7b --checkpointing
    python scripts/bench_training.py --utilisation --device cuda --dtype bfloat16 --shape 7b
    python scripts/bench_training.py --utilisation --device cpu --shape tiny --rows 64 --stock-rows 32

The batch is 256 rows of anchor, positive and negative whose lengths are log-normal (median 60 tokens, sigma 0.9, from
4 to 512). Each round takes one step, loss and gradients, with each loss in turn; ratios are taken round by round, so
that a machine that drifts moves all. Prints median (lowest to highest) of the ratio to ours, tokens per second without
padding, the share of padding in what goes through the model, the peak of tensor memory beyond the model's own, the
loss and the norm of the gradients. Seconds are the processor's on a CPU, and those of the clock on a GPU.

--plain adds the losses without GradCache, which keep all texts of the batch in memory.

--utilisation takes one step of each loss as the paper trains: LoRA of rank 16, activation checkpointing, 2,048 rows
with lengths like those of MS MARCO (queries under an instruction, median 30 tokens; passages, median 80). It prints
tokens per second without padding and two shares of the rate that matrices of this type multiply at on this device:
model FLOPs (one pass forward and back over real tokens) and those that were carried out (padding and second passes,
too). With GradCache time grows with the rows, so stock takes the first of them only (--stock-rows), which is printed:
it has fewer negatives. Where a mini-batch does not fit the GPU, it is halved, which is printed, too.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import bench_encode
import torch
from bench_encode import CountedTokens, build, peak_memory
from peft import LoraConfig
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
)
from torch import nn
from transformers import AutoModel, PreTrainedConfig

from st_llm_embed import LLMSentenceTransformer
from st_llm_embed.training.loss import InfoNCELoss
from st_llm_embed.training.step import step_flops

TEMPERATURE = 0.02

LORA = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.1, target_modules="all-linear")

WIDTH = 64
"""FLOPs are counted for texts of this many tokens and of twice as many: a part of them grows with the square."""

PLAIN = ("InfoNCELoss, plain", "MNRL")

bench_encode.SHAPES["0.8m"] = bench_encode.SHAPES["tiny"] = (64, 2, 4, 2, 256)

LOG_NORMAL = ((60, 0.9),) * 3
"""Median of the lengths of each column, and sigma."""

LIKE_MS_MARCO = ((30, 0.2), (80, 0.4), (80, 0.4))


class Flops(NamedTuple):
    """FLOPs of texts: `linear` for each token, `square` for each pair of tokens of a text."""

    linear: float
    square: float

    @classmethod
    def through(cls, one: int, two: int) -> Flops:
        """Take those of a text of `WIDTH` tokens and of one of twice as many."""
        square = (two - 2 * one) / (2 * WIDTH**2)
        return cls(one / WIDTH - square * WIDTH, square)

    def of(self, tokens: float, pairs: float) -> float:
        """Return the FLOPs of texts with that sum of lengths, and of their squares."""
        return self.linear * tokens + self.square * pairs


class Measured(NamedTuple):
    """One loss: what it came to, what went through the model, and the seconds of each round."""

    loss: float
    norm: float
    tokens: int
    memory: int
    seconds: list[float]


def main() -> None:
    """Build one model and one batch, and take steps in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, help="256, or 2048 with --utilisation")
    parser.add_argument("--utilisation", action="store_true", help="one step as the paper trains, and its FLOPs")
    parser.add_argument("--stock-rows", type=int, default=512, help="with --utilisation: rows of the stock losses")
    parser.add_argument("--num-tokens", type=int, default=4096)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--shape", choices=bench_encode.SHAPES, default="0.8m")
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations in the backward pass")
    parser.add_argument("--plain", action="store_true", help="add the losses without GradCache")
    arguments = parser.parse_args()
    arguments.rows = arguments.rows or (2_048 if arguments.utilisation else 256)
    if arguments.utilisation:
        measure_utilisation(arguments)
        return
    model, _ = build(arguments.shape, arguments.dtype, arguments.device)
    model.train()
    if arguments.checkpointing:
        model[0].model.gradient_checkpointing_enable({"use_reentrant": False})
    batch, real_tokens = columns(model, arguments.rows, arguments.device)
    losses = build_losses(model, arguments)
    parameters = sum(weight.numel() for weight in model.parameters())
    print(f"{parameters / 1e6:.1f} M parameters, {arguments.dtype}, {arguments.device}, ", end="")
    print(f"{torch.get_num_threads()} threads, {arguments.rows} rows of {real_tokens:,} tokens, ", end="")
    print(f"{arguments.rounds} rounds\n")
    measured = {name: measure(loss, model, batch, arguments.device) for name, loss in losses.items()}
    for _ in range(arguments.rounds):
        for name, loss in losses.items():
            measured[name].seconds.append(timed(lambda loss=loss: step(loss, model, batch), arguments.device))
    print_table(measured, real_tokens)


def measure_utilisation(arguments: argparse.Namespace) -> None:
    """Train LoRA for one timed step with each loss."""
    model, _ = build(arguments.shape, arguments.dtype, arguments.device)
    decoder = model[0].model
    decoder.add_adapter(LORA)
    decoder.activation_checkpointing_enable()
    model.train()
    parameters = sum(weight.numel() for weight in decoder.parameters())
    trained = sum(weight.numel() for weight in decoder.parameters() if weight.requires_grad)
    _, needed = flops(decoder.config, checkpointing=False)
    forward, both = flops(decoder.config, checkpointing=True)
    rate = matmul_rate(arguments.device, getattr(torch, arguments.dtype))
    print(
        f"{parameters:,} parameters, {trained:,} trained, {arguments.dtype}, {arguments.device}, ",
        end="",
    )
    print(f"matrices multiply at {rate / 1e12:,.2f} TFLOP/s\n")
    header = ("loss", "rows", "seconds", "tokens/s", "padding", "model FLOPs", "all FLOPs", "peak MB")
    print(f"| {' | '.join(header)} |\n{'|---' * len(header)}|")
    for number in range(len(build_losses(model, arguments))):
        rows = arguments.stock_rows if number else arguments.rows
        # GradCache takes each text forward once more.
        done = Flops(forward.linear + both.linear, forward.square + both.square)
        print(utilisation_of(number, min(rows, arguments.rows), model, (needed, done), rate, arguments), flush=True)


def flops(config: PreTrainedConfig, *, checkpointing: bool) -> tuple[Flops, Flops]:
    """Count the FLOPs of a decoder with an adapter, forward and of both passes."""
    with torch.device("meta"):
        decoder = AutoModel.from_config(config)
        decoder.add_adapter(LORA)
    if checkpointing:
        decoder.activation_checkpointing_enable()
    one, two = (step_flops(decoder.train(), width) for width in (WIDTH, 2 * WIDTH))
    return Flops.through(one[0], two[0]), Flops.through(one[1], two[1])


def utilisation_of(  # noqa: PLR0917
    number: int,
    rows: int,
    model: LLMSentenceTransformer,
    flops: tuple[Flops, Flops],
    rate: float,
    arguments: argparse.Namespace,
) -> str:
    """Take a step on a few rows to warm up and one on all, and give the row of the table."""
    batch, real_tokens = columns(model, arguments.rows, arguments.device, LIKE_MS_MARCO)
    batch = [{key: value[:rows] for key, value in column.items()} for column in batch]
    lengths = torch.cat([column["attention_mask"].sum(dim=1) for column in batch]).double()
    real_tokens = int(lengths.sum())
    budget = arguments.num_tokens
    while True:
        name, loss = list(build_losses(model, argparse.Namespace(**vars(arguments) | {"num_tokens": budget})).items())[
            number
        ]
        try:
            step(loss, model, [{key: value[:32] for key, value in column.items()} for column in batch])
            with Widths(model) as widths:
                if arguments.device.startswith("cuda"):
                    torch.cuda.reset_peak_memory_stats()
                seconds = timed(partial(step, loss, model, batch), arguments.device)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            if budget < 1_024 or "texts" in name:
                return f"| {name} | {rows} | does not fit | | | | | |"
            budget //= 2
            continue
        break
    memory = f"{torch.cuda.max_memory_allocated() / 2**20:,.0f}" if arguments.device.startswith("cuda") else ""
    # GradCache takes each text through the model twice.
    tokens = widths.tokens / 2
    needed = flops[0].of(real_tokens, float(lengths.square().sum()))
    done = flops[1].of(tokens, widths.pairs / 2)
    return (
        f"| {name} | {rows:,} | {seconds:,.1f} | {real_tokens / seconds:,.0f} | {1 - real_tokens / tokens:.1%} "
        f"| {needed / seconds / rate:.1%} | {done / seconds / rate:.1%} | {memory} |"
    )


class Widths(CountedTokens):
    """Counts the squares of the texts' widths, too."""

    def __init__(self, model: LLMSentenceTransformer) -> None:
        super().__init__(model)
        self.pairs = 0

    def _count(self, _: object, ids: tuple[torch.Tensor]) -> None:
        self.tokens += ids[0].numel()
        self.pairs += ids[0].numel() * ids[0].shape[-1]


def matmul_rate(device: str, dtype: torch.dtype) -> float:
    """Return the operations per second of multiplying large square matrices, the best of five runs."""
    size = 8_192 if device.startswith("cuda") else 1_024
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    repeats = 20 if device.startswith("cuda") else 2

    def multiply() -> None:
        for _ in range(repeats):
            torch.mm(left, right)

    return 2 * size**3 * repeats / min(timed(multiply, device) for _ in range(5))


def columns(
    model: LLMSentenceTransformer, rows: int, device: str, shape: Sequence[tuple[int, float]] = LOG_NORMAL
) -> tuple[list[dict[str, Any]], int]:
    """Random token ids of log-normal lengths between BOS and EOS, padded to the widest of their column."""
    generator = torch.Generator().manual_seed(0)
    tokenizer = model.tokenizer
    batch, real_tokens = [], 0
    for middle, sigma in shape:
        lengths = (middle * torch.exp(sigma * torch.randn(rows, generator=generator))).round().clamp(4, 512).long()
        ids = torch.randint(10, len(tokenizer), (rows, int(lengths.max())), generator=generator)
        places = torch.arange(ids.shape[1])
        ids[:, 0] = tokenizer.bos_token_id
        ids[places == lengths[:, None] - 1] = tokenizer.eos_token_id
        mask = (places < lengths[:, None]).long()
        batch.append({"input_ids": ids.to(device), "attention_mask": mask.to(device)})
        real_tokens += int(lengths.sum())
    return batch, real_tokens


def build_losses(model: LLMSentenceTransformer, arguments: argparse.Namespace) -> dict[str, nn.Module]:
    """Ours first."""
    budget, scale = arguments.num_tokens, 1 / TEMPERATURE
    losses: dict[str, nn.Module] = {
        f"InfoNCELoss, {budget} tokens": InfoNCELoss(model, temperature=TEMPERATURE, mini_batch_num_tokens=budget),
        "CachedMNRL, 32 texts": CachedMultipleNegativesRankingLoss(model, scale=scale, mini_batch_size=32),
        f"CachedMNRL, {budget} tokens": CachedMultipleNegativesRankingLoss(
            model, scale=scale, mini_batch_num_tokens=budget
        ),
    }
    if arguments.plain:
        losses |= dict(
            zip(
                PLAIN,
                (InfoNCELoss(model, temperature=TEMPERATURE), MultipleNegativesRankingLoss(model, scale=scale)),
                strict=True,
            )
        )
    return losses


def step(loss: nn.Module, model: LLMSentenceTransformer, batch: list[dict[str, Any]]) -> torch.Tensor:
    """Compute the loss and the gradients."""
    model.zero_grad()
    value = loss([dict(column) for column in batch], None)
    value.backward()
    return value.detach()


def measure(loss: nn.Module, model: LLMSentenceTransformer, batch: list[dict[str, Any]], device: str) -> Measured:
    """Take one step to warm up and count, and one to watch the memory."""
    with CountedTokens(model) as counted:
        value = step(loss, model, batch).item()
    norms = [weight.grad.float().norm() for weight in model.parameters() if weight.grad is not None]
    memory = peak_memory(lambda: step(loss, model, batch), device)
    return Measured(value, torch.stack(norms).norm().item(), counted.tokens, memory, [])


def timed(call: Callable[[], object], device: str) -> float:
    """Return the seconds of a call."""
    clock = time.perf_counter if device.startswith("cuda") else time.process_time
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    start = clock()
    call()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return clock() - start


def print_table(measured: dict[str, Measured], real_tokens: int) -> None:
    """One row for each loss; the first one is what the others are compared with."""
    ours = next(iter(measured.values()))
    header = ("loss", "time / ours, median (range)", "tokens/s", "padding", "peak MB", "loss", "gradient norm")
    print(f"| {' | '.join(header)} |\n{'|---' * len(header)}|")
    for name, one in measured.items():
        ratios = [seconds / own for seconds, own in zip(one.seconds, ours.seconds, strict=True)]
        # GradCache takes each text through the model twice.
        passes = 1 if name in PLAIN else 2
        print(
            f"| {name} | {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) "
            f"| {real_tokens / median(one.seconds):,.0f} | {1 - passes * real_tokens / one.tokens:.1%} "
            f"| {one.memory / 2**20:,.1f} | {one.loss:.6f} | {one.norm:.6f} |"
        )


if __name__ == "__main__":
    main()
