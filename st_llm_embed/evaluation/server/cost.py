"""What the vectors of a server cost: prices, limits, and an estimate before anything is sent."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from st_llm_embed.api.budget import Cost, SpendingLimit, shipped_prices
from st_llm_embed.errors import InputError

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask

TOKENS_PER_CHARACTER = 0.25
"""Of English prose; other scripts have up to several tokens a character. The journal's own count replaces it."""
TOKENS_AROUND_A_TEXT = 2
"""Begin and end."""


@dataclass(frozen=True)
class Limits:
    """What may be spent over all runs in one output folder."""

    price: float | None = None
    """USD per million tokens; None: the one in prices.yaml."""
    usd: float | None = None
    tokens: int | None = None


class EmbeddingBudget(SpendingLimit):
    """Keeps spent + in flight below the limits.

    A tokenizer that works on bytes makes at most one token of each byte, so the bytes of a text bound its tokens.
    """

    def __init__(self, model: str, limits: Limits, spent: Cost) -> None:
        """Go on from what the journal says was spent.

        Raises:
            InputError: the model has no price, and nothing else limits what it may cost.
        """
        shipped = shipped_prices().get(model)
        price = limits.price if limits.price is not None else shipped and shipped.input
        if price is None and (limits.tokens is None or limits.usd is not None):
            raise InputError(
                f"No price is known for {model}, so what it costs cannot be estimated or limited in USD. Give --price "
                "(USD per million tokens; 0 for a server of your own), or --max-tokens alone."
            )
        super().__init__(limits.usd, limits.tokens, spent.usd, spent.tokens)
        self.price = price

    def worst_case(self, texts: Iterable[str]) -> Cost:
        """Give the most that texts can cost."""
        return self.cost(sum(len(text.encode(errors="replace")) + TOKENS_AROUND_A_TEXT for text in texts))

    def cost(self, tokens: int) -> Cost:
        """Give the price of tokens, 0 USD where none is known."""
        return Cost(tokens, tokens * (self.price or 0.0) / 1e6)


@dataclass(frozen=True)
class Estimate:
    """What the texts of some tasks will cost."""

    characters: int
    tokens: int
    usd: float | None
    """None where no price is known."""
    uncounted: tuple[str, ...]
    """Tasks without statistics: their texts come on top."""

    def describe(self) -> str:
        """Say it in one line."""
        usd = "price unknown" if self.usd is None else f"about ${self.usd:,.2f}"
        rest = f"; not counted, since mteb has no statistics of them: {', '.join(self.uncounted)}"
        return (
            f"{self.characters:,} characters, about {self.tokens:,} tokens, {usd}{rest if self.uncounted else ''}. "
            "Texts that are in the journal already cost nothing."
        )


def estimate(
    tasks: Iterable[AbsTask], prompts: dict[str, str], price: float | None, tokens_per_character: float | None
) -> Estimate:
    """Estimate the cost of tasks from the statistics that mteb ships with them; nothing is loaded or sent.

    Args:
        tasks: with the splits and subsets that will be evaluated.
        prompts: task name -> what stands before its queries; counted with every text, documents excepted.
        price: USD per million tokens.
        tokens_per_character: as the server counted them before; None: `TOKENS_PER_CHARACTER`.
    """
    characters, uncounted = 0, []
    for task in tasks:
        if task.is_aggregate:  # its parts are tasks of their own
            continue
        statistics = task.metadata.descriptive_stats
        if statistics is None:
            uncounted.append(task.metadata.name)
            continue
        # Classification is trained on the vectors of the train split.
        splits = {*task.eval_splits, *({"train"} if "Classification" in str(task.metadata.type) else ())}
        prompt = len(prompts.get(task.metadata.name, ""))
        for split in splits & statistics.keys():
            parts: dict[str, Any] = dict(statistics[split])
            by_subset = parts.pop("hf_subset_descriptive_stats", None)
            for part in [by_subset[name] for name in task.hf_subsets if name in by_subset] if by_subset else [parts]:
                characters += sum(_lengths(part)) + prompt * part.get("num_queries", part.get("num_samples", 0))
    tokens = round(characters * (tokens_per_character or TOKENS_PER_CHARACTER))
    return Estimate(characters, tokens, None if price is None else tokens * price / 1e6, tuple(uncounted))


def _lengths(statistics: dict[str, Any]) -> Iterator[int]:
    """Give the total length of each kind of text in a split's statistics."""
    for name, value in statistics.items():
        if name == "total_text_length":
            yield value
        elif isinstance(value, dict):
            yield from _lengths(value)
