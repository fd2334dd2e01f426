"""Money: what a request can cost at the most, what it did cost, and the limit that neither passes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import yaml

from st_llm_embed.errors import InputError
from st_llm_embed.recipe import REPLAY, Endpoint, Price, Synthesis
from st_llm_embed.synthesis.plan import Request
from st_llm_embed.synthesis.progress import Progress

TOKENS_AROUND_A_PROMPT = 64
"""More than any chat template puts around one message."""
BATCH_SHARE = 0.5
"""Of the shipped prices, for what goes through the Batch API."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Tokens and USD of one request."""

    tokens: int
    usd: float


class SpendingLimit:
    """Keeps spent + in flight below limits: the worst case of a request is set aside before it is sent."""

    def __init__(self, usd: float | None, tokens: int | None, spent_usd: float, spent_tokens: int) -> None:
        """Go on from what was spent before; a limit that is None is none."""
        self._usd, self._tokens = usd, tokens
        self.spent_usd = spent_usd
        self.spent_tokens = spent_tokens
        self._reserved = Cost(0, 0.0)
        self.in_flight = 0
        """Requests for which a worst case is set aside."""

    def fits(self, worst: Cost) -> bool:
        """Whether a worst case fits beside what is spent and in flight."""
        tokens = self.spent_tokens + self._reserved.tokens + worst.tokens
        usd = self.spent_usd + self._reserved.usd + worst.usd
        return (self._tokens is None or tokens <= self._tokens) and (self._usd is None or usd <= self._usd)

    def set_aside(self, worst: Cost) -> None:
        """Set a worst case aside, whether it fits or not: an earlier process may have sent the request."""
        self._reserved = Cost(self._reserved.tokens + worst.tokens, self._reserved.usd + worst.usd)
        self.in_flight += 1

    def settle(self, reserved: Cost, actual: Cost | None) -> None:
        """Put the actual cost, none if nothing was billed, in the place of what was set aside."""
        self._reserved = Cost(self._reserved.tokens - reserved.tokens, self._reserved.usd - reserved.usd)
        self.in_flight -= 1
        if not self.in_flight:
            self._reserved = Cost(0, 0.0)  # no rounding is carried on
        if actual:
            self.spent_tokens += actual.tokens
            self.spent_usd += actual.usd

    def describe(self) -> str:
        """Say what is spent of what."""
        usd = "" if self._usd is None else f" of {self._usd:.2f}"
        tokens = "" if self._tokens is None else f" of {self._tokens:,}"
        return f"${self.spent_usd:.2f}{usd}, {self.spent_tokens:,}{tokens} tokens"


class Budget(SpendingLimit):
    """Keeps spent + in flight below the recipe's limits.

    A tokenizer that works on bytes makes at most one token of each byte, so the bytes of a prompt and its schema
    bound its tokens whatever the model is.
    """

    def __init__(self, synthesis: Synthesis, spent_usd: float, spent_tokens: int) -> None:
        """Go on from what the journal says was spent.

        Raises:
            InputError: a limit in USD and a model without a price, no limit at all for such a model, or nothing that
                bounds an answer's length.
        """
        super().__init__(synthesis.budget.usd, synthesis.budget.tokens, spent_usd, spent_tokens)
        self._prices = model_prices(synthesis)
        self.max_answer_tokens = max_answer_tokens(synthesis.endpoint)

    def reserve(self, request: Request) -> Cost | None:
        """Set the worst case of a request aside; None when it does not fit beside what is spent and in flight."""
        worst = self.worst_case(request)
        if not self.fits(worst):
            return None
        self.set_aside(worst)
        return worst

    def worst_case(self, request: Request) -> Cost:
        """Give the most that a request can cost."""
        prompt = len(json.dumps([request.messages, request.schema], ensure_ascii=False).encode(errors="replace"))
        prompt += TOKENS_AROUND_A_PROMPT
        return self._cost(request.model, prompt, 0, self.max_answer_tokens)

    def actual(self, model: str, usage: Any, worst: Cost) -> Cost:
        """Give what an answer cost by the server's own count; the worst case where it does not count."""
        prompt, answer = (token_count(usage, name) for name in ("prompt_tokens", "completion_tokens"))
        if prompt is None or answer is None:
            return worst
        cached = token_count((usage or {}).get("prompt_tokens_details"), "cached_tokens") or 0
        return self._cost(model, prompt, min(cached, prompt), answer)

    def reached(self, request: Request, progress: Progress) -> InputError:
        """Give the error for a request that does not fit."""
        worst = self.worst_case(request)
        return InputError(
            f"The limit is reached: spent are {self.describe()}, and the next request can cost ${worst.usd:.4f} and "
            f"{worst.tokens:,} tokens. {progress.done:,} of {progress.planned:,} requests are answered. Raise "
            "synthesis.budget to go on, or make the dataset of what there is with st-llm-embed reparse."
        )

    def _cost(self, model: str, prompt: int, cached: int, answer: int) -> Cost:
        price = self._prices.get(model)
        if price is None:
            return Cost(prompt + answer, 0.0)
        cached_price = price.input if price.cached_input is None else price.cached_input
        usd = ((prompt - cached) * price.input + cached * cached_price + answer * price.output) / 1e6
        return Cost(prompt + answer, usd)


def shipped_prices() -> dict[str, Price]:
    """Return the prices of chat and embedding models in prices.yaml, by the name of the model."""
    content = (files("st_llm_embed") / "api" / "prices.yaml").read_text(encoding="utf-8")
    return {name: Price.model_validate(price) for name, price in yaml.safe_load(content).items()}


def token_count(usage: Any, name: str) -> int | None:
    """Give a number of tokens that a server states; None where it states none, or something else."""
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def max_answer_tokens(endpoint: Endpoint) -> int:
    """Give the most tokens an answer can have by the recipe's request parameters.

    Raises:
        InputError: nothing bounds them.
    """
    given = [endpoint.parameters[key] for key in ("max_completion_tokens", "max_tokens") if key in endpoint.parameters]
    if not given or not all(isinstance(value, int) and value > 0 for value in given):
        raise InputError(
            f"synthesis.endpoint.parameters has {given or 'no'} max_completion_tokens or max_tokens; one whole number "
            "above 0 is needed, since it bounds what an answer can cost. The default is 4096."
        )
    return max(given)


def model_prices(synthesis: Synthesis) -> dict[str, Price]:
    """Give the price of each model of the recipe that has one.

    Raises:
        InputError: a model has no price, and nothing else limits what it may cost.
    """
    share = BATCH_SHARE if synthesis.endpoint.mode == "batch" else 1.0
    shipped = {
        name: Price(**{kind: usd * share for kind, usd in price.model_dump(exclude_none=True).items()})
        for name, price in shipped_prices().items()
    }
    prices = shipped | synthesis.budget.prices
    if synthesis.endpoint.base_url == REPLAY:
        prices |= dict.fromkeys(synthesis.endpoint.models, Price(input=0, output=0))
    models = [*synthesis.endpoint.models, *filter(None, [synthesis.filters.judge_model])]
    unknown = [name for name in models if name not in prices]
    if unknown and (synthesis.budget.usd is not None or synthesis.budget.tokens is None):
        raise InputError(
            f"No price is known for {', '.join(unknown)}, so what it spends cannot be limited in USD. Give "
            f"synthesis.budget.prices (USD per million tokens, {{{unknown[0]}: {{input: 0.5, output: 1.5}}}}; 0 for a "
            "server of your own), or synthesis.budget.tokens alone."
        )
    return {name: prices[name] for name in models if name in prices}
