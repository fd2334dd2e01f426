"""How much of its texts a model reads: those longer than `max_seq_length` are cut, and nothing else would say so."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

from sentence_transformers import SentenceTransformer
from transformers import PreTrainedTokenizerBase

TOKENIZED_AT_ONCE = 4_096


@dataclass(frozen=True)
class Lengths:
    """The lengths of some texts in tokens, prompts and special tokens included."""

    texts: int = 0
    cut: int = 0
    """Texts that are longer than the model reads."""
    tokens: int = 0
    """Of the whole texts."""
    read: int = 0
    """Of what the model reads."""

    def __add__(self, other: Lengths) -> Lengths:
        """Return the lengths of both lots of texts."""
        return Lengths(*map(sum, zip(astuple(self), astuple(other), strict=True)))

    def __str__(self) -> str:
        """Say what share of texts is cut, and of tokens read."""
        if not self.cut:
            return f"none of {self.texts:,} texts is cut"
        share, read = self.cut / self.texts, self.read / self.tokens
        return f"{self.cut:,} of {self.texts:,} texts ({share:.1%}) are cut; {read:.1%} of all tokens are read"


def text_lengths(model: SentenceTransformer, texts: Sequence[str], prompt: str = "") -> Lengths:
    """Count the tokens of texts under a prompt, and what `model.encode` reads of them.

    Tokens are counted where a tokenizer of transformers makes them; others, such as those of static embeddings, do
    not cut.
    """
    tokenizer, longest = model.tokenizer, longest_text(model) or math.inf
    counted = Lengths(texts=len(texts))
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        return counted
    options: dict[str, Any] = {"return_attention_mask": False, "return_token_type_ids": False, "verbose": False}
    for start in range(0, len(texts), TOKENIZED_AT_ONCE):
        some = [prompt + text for text in texts[start : start + TOKENIZED_AT_ONCE]]
        lengths = [len(ids) for ids in tokenizer(some, padding=False, truncation=False, **options)["input_ids"]]
        read = int(sum(min(length, longest) for length in lengths))
        counted += Lengths(0, sum(length > longest for length in lengths), sum(lengths), read)
    return counted


def longest_text(model: SentenceTransformer) -> int | None:
    """Return the most tokens that a model reads; None where it has no limit, which static embeddings call infinity."""
    longest = model.max_seq_length
    return None if longest is None or math.isinf(longest) else int(longest)
