"""Mistakes that a runtime can make with a model, each made with the model's own weights to see whose vectors come."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self, cast

import numpy as np
from numpy.typing import NDArray

from st_llm_embed.doctor.probe import Probe, ProbeText, Role, is_same
from st_llm_embed.doctor.runtimes import load_stock
from st_llm_embed.doctor.traps import TRAPS

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

LENGTHS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, *(2**power for power in range(10, 16)))
"""Limits that servers have, in tokens."""

TEXT_CHANGES: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("whitespace", str.strip),
    ("lower case", str.lower),
    ("Unicode form", lambda text: unicodedata.normalize("NFKC", text)),
    ("Unicode form", lambda text: unicodedata.normalize("NFD", text)),
    ("line ends", lambda text: text.replace("\n", " ")),
    ("line ends", lambda text: text.replace("\n", "\r\n")),
    ("whitespace", lambda text: " ".join(text.split())),
)
"""What clients and servers do to a text before it is tokenized, by the trap."""

ToIds = Callable[[ProbeText], Sequence[int]]


class Explanation(NamedTuple):
    """A trap that explains a difference."""

    trap: str
    """Its name in `TRAPS`."""
    sentence: str


class Pair(NamedTuple):
    """A text that a runtime embedded, and what it returned."""

    text: ProbeText
    ids: tuple[int, ...] | None
    vector: NDArray[np.float32]
    same: bool
    """Whether the vector points where the probe's does."""


def explanation(trap: str, addition: str = "", seen: Sequence[str] = ()) -> Explanation:
    """Return a trap with its sentence: what it is, how it is fixed, the texts it was seen in, and an addition."""
    texts = f"Seen in: {', '.join(seen)}." if seen else ""
    return Explanation(trap, " ".join(filter(None, (TRAPS[trap].message, TRAPS[trap].fix, texts, addition))))


class Reference:
    """The model itself, stock and in float32, to be used wrongly on purpose."""

    def __init__(self, model: SentenceTransformer, probe: Probe, limit: int) -> None:
        self._decoder = cast(Any, model[0]).model.eval()
        self._tokenizer = cast("PreTrainedTokenizerBase", model.tokenizer)
        self._probe = probe
        self._limit = limit
        self._hidden: dict[tuple[int, ...], Tensor] = {}

    @classmethod
    def load(cls, weights: str | Path, probe: Probe) -> Self | None:
        """Load a model; None if it is more than a transformer, last-token pooling and normalisation."""
        from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

        if probe.max_seq_length is None:
            return None
        model = load_stock(weights)
        kinds = [type(module) for module in model]
        if kinds[:2] != [Transformer, Pooling] or not set(kinds[2:]) <= {Normalize}:
            return None
        reads_last_token = cast(Pooling, model[1]).pooling_mode == "lasttoken"
        return cls(model, probe, probe.max_seq_length) if reads_last_token else None

    def mistakes(self, alone: list[Pair], minimum_cosine: float) -> list[Explanation]:
        """Find the mistakes that give the vectors of all texts, each embedded alone; as few as explain them."""
        shortest_first = sorted(alone, key=lambda one: len(one.text.ids))
        poolings: dict[str, Callable[[Tensor], Tensor]] = {
            "": lambda hidden: hidden[-1],
            "mean pooling": lambda hidden: hidden.mean(dim=0),
            "first-token pooling": lambda hidden: hidden[0],
        }
        for pooling, pool in poolings.items():
            for trap, addition, to_ids in self._ways_to_ids():

                def explains(one: Pair, pool: Callable = pool, to_ids: ToIds = to_ids) -> bool:
                    ids = tuple(to_ids(one.text))
                    return bool(ids) and is_same(pool(self._states(ids)).numpy(), one.vector, minimum_cosine)

                if all(map(explains, shortest_first)):
                    found = [explanation(trap, addition)] if trap else []
                    return [*found, explanation(pooling)] if pooling else found
        return []

    def padding_trap(self, batch: list[Pair], minimum_cosine: float) -> str | None:
        """Find the mistake in padding that gives the vectors of all texts of a batch."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        rows = [torch.tensor(one.text.ids) for one in batch]
        ones = [torch.ones_like(row) for row in rows]
        lengths = torch.tensor([len(row) for row in rows])
        pad = self._tokenizer.pad_token_id or 0
        right, left = (pad_sequence(rows, True, pad, side) for side in ("right", "left"))
        right_mask, left_mask = (pad_sequence(ones, True, 0, side) for side in ("right", "left"))
        last, every = right.shape[1] - 1, torch.arange(len(rows))
        tried: list[tuple[str, Tensor, Tensor, Any]] = [
            ("right padding", right, right_mask, last),
            ("left padding", left, torch.ones_like(left), last),
            ("left padding read as right", left, left_mask, lengths - 1),
        ]
        for name, ids, mask, place in tried:
            with torch.inference_mode():
                vectors = self._decoder(input_ids=ids, attention_mask=mask).last_hidden_state[every, place].numpy()
            if all(is_same(made, one.vector, minimum_cosine) for one, made in zip(batch, vectors, strict=True)):
                return name
        return None

    def _states(self, ids: tuple[int, ...]) -> Tensor:
        """Return the hidden states of tokens, shape (number of tokens, hidden size)."""
        import torch

        if ids not in self._hidden:
            with torch.inference_mode():
                self._hidden[ids] = self._decoder(input_ids=torch.tensor([ids])).last_hidden_state[0].float()
        return self._hidden[ids]

    def _ids(self, text: str, limit: int | None = None, **options: Any) -> list[int]:
        cut: dict[str, Any] = {"truncation": False} if limit is None else {"truncation": True, "max_length": limit}
        return self._tokenizer(text, verbose=False, **cut, **options)["input_ids"]

    def _ways_to_ids(self) -> Iterator[tuple[str, str, ToIds]]:
        """Yield ways to make tokens of a text: name of the trap, addition to its sentence, the way."""
        limit, prompt = self._limit, self._probe.prompts.get("query", "")
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
        for trap, change in TEXT_CHANGES:
            yield trap, "", lambda text, change=change: self._ids(change(text.whole), limit)
        yield "special tokens in texts", "", lambda text: self._ids(text.whole, limit, split_special_tokens=True)
        yield "special tokens in texts", "", lambda text: self._ids(text.whole, limit, split_special_tokens=False)
        yield "prompt missing", "", lambda text: self._ids(text.text, limit)
        yield "prompt doubled", "", lambda text: self._ids(text.prompt + text.whole, limit)
        if prompt:
            yield "prompt missing", "", lambda text: self._ids(text.whole.removeprefix(prompt), limit)
            yield "prompt on documents", "", lambda text: self._prompted(text, prompt, "document")
            yield "prompt on documents", "Queries have it twice.", lambda text: self._ids(prompt + text.whole, limit)
            yield "prompt doubled", "", lambda text: self._prompted(text, prompt, "query")
        yield "max length", "They are not cut at all.", lambda text: self._ids(text.whole)
        for length in (one for one in LENGTHS if one != limit):
            addition = f"They are cut at {length} tokens, and have to be at {limit}."
            yield "max length", addition, lambda text, length=length: self._ids(text.whole, length)

    def _prompted(self, text: ProbeText, prompt: str, role: Role) -> list[int]:
        return self._ids(prompt + text.whole if text.role == role else text.whole, self._limit)
