"""What requests can cost, what they did cost, and the limit that is never exceeded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import yaml

from st_llm_embed.recipe import Price

TOKENS_AROUND_A_PROMPT = 64
"""More than any chat template puts around one message."""
TOKENS_AROUND_AN_ANSWER = 16
"""Marks of its end, which some servers bill beside the most that they were asked for."""
MOST_BYTES_PER_TOKEN = 64
"""More than a token of any text has: a server that counts fewer tokens does not count."""
MOST_TOKENS = 10**9
"""A count above it is not one."""
BATCH_SHARE = 0.5
"""Of the shipped prices, for what goes through the Batch API."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Tokens and USD of one request."""

    tokens: int
    usd: float

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.tokens + other.tokens, self.usd + other.usd)

    def __mul__(self, factor: float) -> Cost:
        """Return this cost times a factor, in whole tokens."""
        return Cost(math.ceil(self.tokens * factor), self.usd * factor)

    def or_more(self, other: Cost) -> Cost:
        """Return the larger number of tokens and the larger number of USD."""
        return Cost(max(self.tokens, other.tokens), max(self.usd, other.usd))

    def per(self, other: Cost) -> float:
        """Return how many times another cost this is, in tokens or USD, whichever is more."""
        return max(self.tokens / max(other.tokens, 1), self.usd / other.usd if other.usd else 0.0)


NOTHING = Cost(0, 0.0)


class SpendingLimit:
    """Keeps spent + in flight below limits: the worst case of a request is set aside before it is sent."""

    def __init__(self, usd: float | None, tokens: int | None, spent_usd: float, spent_tokens: int) -> None:
        """Continue from what was spent before; None means no limit."""
        self._usd, self._tokens = usd, tokens
        self.spent_usd = spent_usd
        self.spent_tokens = spent_tokens
        self._reserved = Cost(0, 0.0)
        self.in_flight = 0
        """Requests for which a worst case is set aside."""

    def fits(self, worst: Cost) -> bool:
        """Return whether a worst case fits beside what is spent and in flight."""
        tokens = self.spent_tokens + self._reserved.tokens + worst.tokens
        usd = self.spent_usd + self._reserved.usd + worst.usd
        return (self._tokens is None or tokens <= self._tokens) and (self._usd is None or usd <= self._usd)

    def set_aside(self, worst: Cost) -> None:
        """Set a worst case aside, whether it fits or not: an earlier process may have sent the request."""
        self._reserved += worst
        self.in_flight += 1

    def settle(self, reserved: Cost, actual: Cost | None) -> None:
        """Replace what was set aside by the actual cost; None if nothing was billed."""
        self._reserved = Cost(self._reserved.tokens - reserved.tokens, self._reserved.usd - reserved.usd)
        self.in_flight -= 1
        if not self.in_flight:
            self._reserved = Cost(0, 0.0)  # rounding errors do not add up
        if actual:
            self.spent_tokens += actual.tokens
            self.spent_usd += actual.usd

    def describe(self) -> str:
        """Return what is spent and the limits, in words."""
        usd = "" if self._usd is None else f" of {self._usd:.2f}"
        tokens = "" if self._tokens is None else f" of {self._tokens:,}"
        return f"${self.spent_usd:.2f}{usd}, {self.spent_tokens:,}{tokens} tokens"


def shipped_prices(share: float = 1.0) -> dict[str, Price]:
    """Return the prices of chat and embedding models in prices.yaml, by the name of the model, times a share."""
    content = yaml.safe_load((files("st_llm_embed") / "api" / "prices.yaml").read_text(encoding="utf-8"))
    return {name: Price(**{kind: usd * share for kind, usd in price.items()}) for name, price in content.items()}


def worst_case(price: Price | None, sent: str, answer_tokens: int) -> Cost:
    """Return the most that a request can cost: a tokenizer makes at most one token of each byte, whatever the model.

    Args:
        price: None counts tokens alone.
        sent: all text of the request.
        answer_tokens: most tokens of the answer.
    """
    prompt_tokens = len(sent.encode(errors="replace")) + TOKENS_AROUND_A_PROMPT
    return _cost(price, prompt_tokens, 0, answer_tokens + TOKENS_AROUND_AN_ANSWER)


def actual_cost(price: Price | None, usage: Any, worst: Cost, answer_tokens: int, answer_bytes: int) -> Cost:
    """Return what an answer cost by the server's own count; what it does not count has its worst case.

    Args:
        price: as for `worst_case`, like `answer_tokens`.
        usage: the server's count. Thoughts are a part of the answer that some servers count in the total alone.
        worst: of the request.
        answer_tokens: most tokens of the answer.
        answer_bytes: length of what the model said; tokens too few for it are not believed.
    """
    prompt, answer, total = (token_count(usage, f"{name}_tokens") for name in ("prompt", "completion", "total"))
    details = usage if isinstance(usage, dict) else {}
    thoughts = token_count(details.get("completion_tokens_details"), "reasoning_tokens") or 0
    cached = token_count(details.get("prompt_tokens_details"), "cached_tokens") or 0
    if thoughts > (answer or 0):  # beside the answer, then
        answer = (answer or 0) + thoughts
    if prompt and total:
        answer = max(answer or 0, total - prompt)
    if answer is None or answer * MOST_BYTES_PER_TOKEN < answer_bytes:
        certain = answer_bytes // (MOST_BYTES_PER_TOKEN // 4)  # texts, other than single tokens, have fewer bytes each
        answer = answer_tokens + TOKENS_AROUND_AN_ANSWER if certain <= answer_tokens else answer_bytes
    if not prompt:
        prompt, cached = worst.tokens - answer_tokens - TOKENS_AROUND_AN_ANSWER, 0
    return _cost(price, prompt, min(cached, prompt), answer)


def token_count(usage: Any, name: str) -> int | None:
    """Return a number of tokens that a server reports, or None where it reports none, or something else."""
    value = usage.get(name) if isinstance(usage, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MOST_TOKENS:
        return None
    return int(value)


def _cost(price: Price | None, prompt: int, cached: int, answer: int) -> Cost:
    if price is None:
        return Cost(prompt + answer, 0.0)
    cached_price = price.input if price.cached_input is None else price.cached_input
    usd = ((prompt - cached) * price.input + cached * cached_price + answer * price.output) / 1e6
    return Cost(prompt + answer, usd)
