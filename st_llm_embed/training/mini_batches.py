"""Length-sorted mini-batches: the texts of all columns in one pool, cut by a budget of padded tokens.

sentence-transformers cuts each column in the order of its rows, so that one long text pads all the others of its
mini-batch; its own `mini_batch_num_tokens` counts tokens without padding, which bounds neither time nor memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor, distributed

Features = dict[str, Any]
"""What a tokenizer gives the model: input_ids and attention_mask of shape (texts, tokens), and more of some models."""


def length_sorted(pool: Features, num_tokens: int) -> tuple[list[Features], Tensor]:
    """Cut a pool of texts into mini-batches of texts of like length, the longest first, each as wide as its longest.

    Under torchrun every process makes as many as the one that needs most: with weights spread over processes (ZeRO-3,
    FSDP), a process that calls the model more often than the others would wait for ever.

    Args:
        pool: features of all texts, padded to one width on any side.
        num_tokens: most tokens of a mini-batch, padding included; a longer text is a mini-batch of its own.

    Returns:
        The mini-batches, padded on the right, and a tensor of shape (texts,): where each text of the pool is in them.
    """
    mask: Tensor = pool["attention_mask"]
    lengths = mask.sum(dim=1)
    order = lengths.argsort(descending=True, stable=True)
    # In each row the places of real tokens, in their order, then those of padding.
    real_first = mask.argsort(dim=1, descending=True, stable=True)
    descending = lengths[order].tolist()
    ranges = cut(descending, num_tokens)
    if distributed.is_initialized():
        most = torch.tensor(len(ranges), device=mask.device)
        distributed.all_reduce(most, distributed.ReduceOp.MAX)
        ranges = cut_to(ranges, descending, int(most))
    mini_batches = []
    for begin, end in ranges:
        texts = order[begin:end]
        tokens = real_first[texts, : descending[begin]]
        mini_batches.append({key: _taken(value, texts, tokens, mask) for key, value in pool.items()})
    return mini_batches, order.argsort()


def cut(lengths: Sequence[int], num_tokens: int) -> list[tuple[int, int]]:
    """Give the ranges of mini-batches over lengths in descending order; the first text of each is its longest."""
    ranges, begin = [], 0
    while begin < len(lengths):
        end = min(begin + max(num_tokens // lengths[begin], 1), len(lengths))
        ranges.append((begin, end))
        begin = end
    return ranges


def cut_to(ranges: Sequence[tuple[int, int]], lengths: Sequence[int], count: int) -> list[tuple[int, int]]:
    """Halve the largest mini-batches until there are `count`, or one for each text."""
    ranges = list(ranges)
    while len(ranges) < min(count, len(lengths)):
        begin, end = max(ranges, key=lambda one: (one[1] - one[0] > 1, (one[1] - one[0]) * lengths[one[0]]))
        middle = (begin + end) // 2
        place = ranges.index((begin, end))
        ranges[place : place + 1] = [(begin, middle), (middle, end)]
    return ranges


def text_hashes(columns: Sequence[Features]) -> Tensor:
    """Hash the token ids of each text, so that equal texts have equal numbers in every process.

    Two texts that are cut off at the same token are the same text to the model, and here.

    Returns:
        64-bit integers of shape (rows, columns).
    """
    hashes = [[_hash(ids) for ids in _token_ids(features)] for features in columns]
    return torch.tensor(hashes, device=columns[0]["input_ids"].device).T


def _token_ids(features: Features) -> list[Tensor]:
    ids: Tensor = features["input_ids"].cpu()
    if "cu_seq_lens_q" in features:  # flash attention: one row of all texts, without padding
        return list(ids.flatten().tensor_split(features["cu_seq_lens_q"][1:-1].cpu().long()))
    return [row[real] for row, real in zip(ids, features["attention_mask"].cpu().bool(), strict=True)]


def _hash(ids: Tensor) -> int:
    return int.from_bytes(blake2b(ids.numpy().tobytes(), digest_size=8).digest(), "little", signed=True)


def _taken(value: Any, texts: Tensor, tokens: Tensor, mask: Tensor) -> Any:
    """Take the chosen texts of a feature, and of one value per token the chosen tokens."""
    if not isinstance(value, Tensor) or value.shape[:1] != mask.shape[:1]:
        return value
    return value[texts].gather(1, tokens) if value.shape == mask.shape else value[texts]
