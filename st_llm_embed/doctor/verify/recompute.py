"""What explains a difference, found by making each mistake with the model's own weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from st_llm_embed.doctor.probe import Probe, ProbeText
from st_llm_embed.doctor.verify.runtimes import load_stock
from st_llm_embed.doctor.verify.traps import Embedding, is_same

LENGTHS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, *(2**power for power in range(10, 16)))
"""Limits that servers have, in tokens."""

Pairs = Sequence[tuple[ProbeText, Embedding]]
ToIds = Callable[[ProbeText], Sequence[int]]

POOLINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "": lambda hidden: hidden[-1],
    "mean pooling": lambda hidden: hidden.mean(dim=0),
    "first-token pooling": lambda hidden: hidden[0],
}


class Reference:
    """The model itself, stock and in float32, to be used wrongly on purpose."""

    def __init__(self, model: SentenceTransformer, probe: Probe, limit: int) -> None:
        self._decoder = cast(Transformer, model[0]).model.eval()
        self._tokenizer = cast(PreTrainedTokenizerBase, model.tokenizer)
        self._probe = probe
        self._limit = limit
        self._hidden: dict[tuple[int, ...], Tensor] = {}

    @classmethod
    def load(cls, weights: str | Path, probe: Probe) -> Self | None:
        """Load a model; None if it is more than a transformer, last-token pooling and normalisation."""
        if probe.max_seq_length is None:
            return None
        model = load_stock(weights)
        kinds = [type(module) for module in model]
        if kinds[:2] != [Transformer, Pooling] or not set(kinds[2:]) <= {Normalize}:
            return None
        reads_last_token = cast(Pooling, model[1]).pooling_mode == "lasttoken"
        return cls(model, probe, probe.max_seq_length) if reads_last_token else None

    def traps(self, alone: Pairs, minimum_cosine: float) -> list[tuple[str, str]]:
        """Find the mistakes that give the vectors of all texts, each embedded alone.

        Returns:
            Names of traps with what is to be added to their sentence; the fewest that do, none if there are none.
        """
        shortest_first = sorted(alone, key=lambda pair: len(pair[0].ids))
        mistakes = list(self._mistakes())
        for pooling, pool in POOLINGS.items():
            for name, addition, to_ids in mistakes:
                if self._gives(shortest_first, to_ids, pool, minimum_cosine):
                    found = [(name, addition)] if name else []
                    return [*found, (pooling, "")] if pooling else found
        return []

    @torch.inference_mode()
    def padding_trap(self, batch: Pairs, minimum_cosine: float) -> str | None:
        """Find the mistake in padding that gives the vectors of all texts of a batch."""
        rows = [torch.tensor(text.ids) for text, _ in batch]
        pad = self._tokenizer.pad_token_id or 0
        lengths = torch.tensor([len(row) for row in rows])
        right, left = (pad_sequence(rows, True, pad, side) for side in ("right", "left"))
        right_mask, left_mask = (
            pad_sequence([torch.ones_like(row) for row in rows], True, 0, side) for side in ("right", "left")
        )
        last, every = right.shape[1] - 1, torch.arange(len(rows))
        tried: list[tuple[str, Tensor, Tensor, Any]] = [
            ("right padding", right, right_mask, last),
            ("left padding", left, torch.ones_like(left), last),
            ("left padding read as right", left, left_mask, lengths - 1),
        ]
        for name, ids, mask, place in tried:
            vectors = self._decoder(input_ids=ids, attention_mask=mask).last_hidden_state[every, place].numpy()
            if all(
                _alike(one.vector, vector, minimum_cosine) for (_, one), vector in zip(batch, vectors, strict=True)
            ):
                return name
        return None

    def _gives(self, pairs: Pairs, to_ids: ToIds, pool: Callable[[Tensor], Tensor], minimum_cosine: float) -> bool:
        for text, one in pairs:
            ids = tuple(to_ids(text))
            if not ids or not _alike(one.vector, pool(self._states(ids)).numpy(), minimum_cosine):
                return False
        return True

    @torch.inference_mode()
    def _states(self, ids: tuple[int, ...]) -> Tensor:
        """Give the hidden states of tokens, shape (number of tokens, hidden size)."""
        if ids not in self._hidden:
            self._hidden[ids] = self._decoder(input_ids=torch.tensor([ids])).last_hidden_state[0].float()
        return self._hidden[ids]

    def _ids(self, text: str, limit: int | None = None, **options: Any) -> list[int]:
        cut: dict[str, Any] = {"truncation": False} if limit is None else {"truncation": True, "max_length": limit}
        return self._tokenizer(text, verbose=False, **cut, **options)["input_ids"]

    def _mistakes(self) -> Iterator[tuple[str, str, ToIds]]:
        """Give ways to make tokens of a text: name of the trap, addition to its sentence, the way."""
        limit, query_prompt = self._limit, self._probe.prompts.get("query", "")
        begins, ends = ({text.ids[place] for text in self._probe.texts} for place in (0, -1))
        yield "", "", lambda text: text.ids
        if len(ends) == 1:
            yield "missing EOS", "", lambda text: self._ids(text.whole)[:-1][:limit]
            yield "EOS cut off", "", lambda text: self._ids(text.whole)[:limit]
            yield "doubled EOS", "", lambda text: [*text.ids[: limit - 1], *ends]
        if len(begins) == 1:
            yield "missing BOS", "", lambda text: text.ids[1:]
            yield "doubled BOS", "", lambda text: [*begins, *text.ids]
            yield "doubled BOS", "", lambda text: [*begins, *self._ids(text.whole, limit - 1)]
        yield "no special tokens", "", lambda text: self._ids(text.whole, limit, add_special_tokens=False)
        yield "whitespace", "", lambda text: self._ids(text.whole.strip(), limit)
        yield "special tokens in texts", "", lambda text: self._ids(text.whole, limit, split_special_tokens=True)
        yield "special tokens in texts", "", lambda text: self._ids(text.whole, limit, split_special_tokens=False)
        yield "prompt missing", "", lambda text: self._ids(text.text, limit)
        yield "prompt doubled", "", lambda text: self._ids(text.prompt + text.whole, limit)
        if query_prompt:
            yield "prompt missing", "", lambda text: self._ids(text.whole.removeprefix(query_prompt), limit)
            yield "prompt on documents", "", lambda text: self._ids(_on_documents(text, query_prompt), limit)
            yield (
                "prompt on documents",
                "Queries have it twice.",
                lambda text: self._ids(query_prompt + text.whole, limit),
            )
            yield "prompt doubled", "", lambda text: self._ids(_on_queries(text, query_prompt), limit)
        yield "max length", "They are not cut at all.", lambda text: self._ids(text.whole)
        for length in (one for one in LENGTHS if one != limit):
            yield (
                "max length",
                f"They are cut at {length} tokens, and have to be at {limit}.",
                lambda text, length=length: self._ids(text.whole, length),
            )


def _on_documents(text: ProbeText, prompt: str) -> str:
    return text.whole if text.role == "query" else prompt + text.whole


def _on_queries(text: ProbeText, prompt: str) -> str:
    return prompt + text.whole if text.role == "query" else text.whole


def _alike(got: NDArray[np.float32] | None, made: NDArray[np.float32], minimum_cosine: float) -> bool:
    return got is not None and is_same(made, got, minimum_cosine)
