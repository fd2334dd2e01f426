"""What the server does wrong, as data: a fault is drawn for each request from a hash of (seed, arrival number)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Literal, NamedTuple


class Answer(NamedTuple):
    """What a model says: the parts of a choice that a fault can change."""

    content: str | None
    finish_reason: str = "stop"
    refusal: str | None = None


NOT_BILLED = ("rate_limit", "server_error", "bad_request")
"""The request is turned away; no answer is computed."""

DELIVERIES = ("hang", "cut_before_headers", "cut_in_body", "html", "straggler", "gateway_timeout", "drip")
"""The answer is computed and billed, and reaches the client late, in part or not at all."""

ANSWERS: Mapping[str, Callable[[str], Answer]] = {
    "fenced": lambda text: Answer(f"```json\n{text}\n```"),
    "refusal": lambda _: Answer(None, refusal="I'm sorry, but I can't help with that request."),
}
"""The answer itself is wrong. These happen to lines of a batch, too."""

KINDS = (*NOT_BILLED, *DELIVERIES, *ANSWERS)


@dataclass(frozen=True)
class Faults:
    """What goes wrong, and how often. Arrival numbers count the chat requests of a server from 0.

    Attributes:
        seed: another seed, other requests.
        shares: fault kind (one of KINDS) -> share of all chat requests.
        storm: arrival numbers (first, end) that all get 429, the end not included.
        retry_after: seconds that a 429 asks to wait; None for no header.
        quota_after: from this arrival number on, every request gets 429 insufficient_quota.
        spared: so many of the first requests have no fault of `shares`.
        thoughts: tokens billed for each answer beside those of its text, reported in total_tokens alone; where they
            alone pass the limit of an answer, they do not count for it.
        zero_usage: report a usage of zeros.
        straggler_factor: a straggler takes this many times the latency.
        reject_response_format: response_format types that get 400.
        ignore_response_format: answer as if none had been given.
        batch_polls: status polls from creation to the end of a batch.
        batch_outcomes: how the first, second, ... batch ends; all others are completed. A damaged one is completed,
            with a line of its output cut and another one lost.
        batch_error_share: share of a batch's lines that fail with 500, in the error file.
    """

    seed: int = 0
    shares: Mapping[str, float] = field(default_factory=dict)
    storm: tuple[int, int] = (0, 0)
    retry_after: float | None = 1.0
    quota_after: int | None = None
    spared: int = 0
    thoughts: int = 0
    zero_usage: bool = False
    straggler_factor: float = 20.0
    reject_response_format: tuple[str, ...] = ()
    ignore_response_format: bool = False
    batch_polls: int = 2
    batch_outcomes: tuple[Literal["completed", "expired", "failed", "damaged"], ...] = ()
    batch_error_share: float = 0.0

    def __post_init__(self) -> None:
        if unknown := set(self.shares) - set(KINDS):
            raise ValueError(f"shares names {unknown}; fault kinds are {', '.join(KINDS)}.")

    def draw(self, number: int) -> tuple[str | None, float]:
        """Draw what happens to the request with this arrival number.

        Returns:
            The fault kind, or None, and a second number in [0, 1) for the choices within a kind.
        """
        if self.quota_after is not None and number >= self.quota_after:
            return "quota", 0.0
        digest = blake2b(b"%d %d" % (self.seed, number), digest_size=8).digest()
        within = int.from_bytes(digest[4:]) / 2**32
        if self.storm[0] <= number < self.storm[1]:
            return "rate_limit", within
        if number < self.spared:
            return None, within
        position = int.from_bytes(digest[:4]) / 2**32
        for kind, share in self.shares.items():
            if position < share:
                return kind, within
            position -= share
        return None, within
