"""Servers of a real model that each make one of the mistakes that servers make."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Served:
    """A model behind `embed` and `tokenize`; right with the defaults, each other value is a mistake.

    Written from transformers alone, so that it shares no code with what has to find the mistake.
    """

    model: SentenceTransformer
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    pooling: Literal["last", "mean", "first"] = "last"
    padding: Literal["right", "left"] = "right"
    read: Literal["last attended", "last position", "length"] = "last attended"
    has_mask: bool = True
    normalised: bool = True
    adds_special: bool = True
    appended: str = ""
    prepended: str = ""
    removed_prompt: str = ""
    documents_prompt: str = ""
    queries_prompt: str = ""
    stripped: bool = False
    dimensions: int | None = None
    loses_end: bool = False
    cuts_end: bool = False
    splits_special: bool = False
    changed: Callable[[str], str] = str
    shuffled: bool = False
    repeated: bool = False
    extra: int = 0

    def but(self, **mistake: Any) -> Served:
        return dataclasses.replace(self, **mistake)

    def ids(self, text: str) -> list[int]:
        text = self.changed(text.removeprefix(self.removed_prompt))
        if self.stripped:
            text = text.strip()
        if self.documents_prompt and not text.startswith("Instruct: "):
            text = self.documents_prompt + text
        if self.queries_prompt and text.startswith("Instruct: "):
            text = self.queries_prompt + text
        ids = self.tokenizer(
            self.prepended + text + self.appended,
            add_special_tokens=self.adds_special,
            split_special_tokens=self.splits_special,
            verbose=False,
        )
        kept = list(ids["input_ids"])
        if self.loses_end:
            kept = kept[:-1]
        if len(kept) > self.max_length:
            has_end = self.adds_special and not (self.loses_end or self.cuts_end)
            kept = [*kept[: self.max_length - 1], kept[-1]] if has_end else kept[: self.max_length]
        return kept

    def tokenize(self, text: str) -> list[int]:
        """As servers' /tokenize: not cut."""
        return dataclasses.replace(self, max_length=10**9).ids(text)

    @torch.inference_mode()
    def embed(self, texts: list[str]) -> NDArray[np.float32]:
        rows = [self.ids(text) for text in texts]
        longest, pad = max(map(len, rows)), self.tokenizer.pad_token_id
        ids = torch.full((len(rows), longest), pad)
        mask = torch.zeros_like(ids)
        for number, row in enumerate(rows):
            place = slice(0, len(row)) if self.padding == "right" else slice(longest - len(row), longest)
            ids[number, place], mask[number, place] = torch.tensor(row), 1
        given = mask if self.has_mask else torch.ones_like(mask)
        hidden = self.model[0].model(input_ids=ids, attention_mask=given).last_hidden_state.float()
        vectors = []
        for states, attended, row in zip(hidden, mask.bool(), rows, strict=True):
            if self.pooling == "mean":
                vectors.append(states[attended].mean(dim=0))
            elif self.pooling == "first":
                vectors.append(states[attended][0])
            else:
                place = {"last attended": int(attended.nonzero().max()), "last position": -1, "length": len(row) - 1}
                vectors.append(states[place[self.read]])
        found = torch.stack(vectors)[:, : self.dimensions]
        if self.normalised:
            found = torch.nn.functional.normalize(found, dim=1)
        if self.shuffled:
            found = found.roll(1, dims=0)
        if self.repeated:
            found = found[:1].expand_as(found)
        return torch.nn.functional.pad(found, (0, self.extra)).numpy()
