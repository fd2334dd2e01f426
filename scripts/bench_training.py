"""Time one training step of InfoNCELoss against sentence-transformers' losses on the same model and batch.

    OMP_NUM_THREADS=1 taskset -c 0 python scripts/bench_training.py [--rounds 5] [--plain]
    python scripts/bench_training.py --device cuda --dtype bfloat16 --shape 7b --checkpointing

The batch is 256 rows of anchor, positive and negative whose lengths are log-normal (median 60 tokens, sigma 0.9, from
4 to 512). Each round takes one step, loss and gradients, with each loss in turn; ratios are taken round by round, so
that a machine that drifts moves all. Prints median (lowest to highest) of the ratio to ours, tokens per second without
padding, the share of padding in what goes through the model, the peak of tensor memory beyond the model's own, the
loss and the norm of the gradients. Seconds are the processor's on a CPU, and those of the clock on a GPU.

--plain adds the losses without GradCache, which keep all texts of the batch in memory.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple

import bench_encode
import torch
from bench_encode import CountedTokens, build, peak_memory
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
)
from torch import nn

from st_llm_embed import LLMSentenceTransformer
from st_llm_embed.training import InfoNCELoss

TEMPERATURE = 0.02

PLAIN = ("InfoNCELoss, plain", "MNRL")

bench_encode.SHAPES["0.8m"] = (64, 2, 4, 2, 256)


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
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--num-tokens", type=int, default=4096)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--shape", choices=bench_encode.SHAPES, default="0.8m")
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations in the backward pass")
    parser.add_argument("--plain", action="store_true", help="add the losses without GradCache")
    arguments = parser.parse_args()
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


def columns(model: LLMSentenceTransformer, rows: int, device: str) -> tuple[list[dict[str, Any]], int]:
    """Random token ids of log-normal lengths between BOS and EOS, padded to the widest of their column."""
    generator = torch.Generator().manual_seed(0)
    tokenizer = model.tokenizer
    batch, real_tokens = [], 0
    for _ in range(3):
        lengths = (60 * torch.exp(0.9 * torch.randn(rows, generator=generator))).round().clamp(4, 512).long()
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
    """Give the seconds of a call."""
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
