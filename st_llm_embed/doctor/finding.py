"""What doctor says: the traps by name, one finding, one check that was done or not, and the whole diagnosis."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

TRAPS: dict[int | str, str] = {
    1: "EOS missing",
    2: "EOS or BOS doubled",
    3: "EOS cut off by truncation",
    4: "padding read as text",
    5: "pooling lost",
    6: "query prompt wrong",
    7: "adapter not applied",
    8: "adapter's base not pinned",
    9: "merged in low precision",
    10: "similarity in 16 bits while training",
    11: "duplicates in a batch",
    12: "normalisation missing",
    13: "whitespace or case treated differently",
    14: "tokenizer rebuilt wrongly",
    15: "maximum length differs",
    "layout": "a library cannot read the files",
    "rope": "rotary base read differently",
    "weights": "weights are broken",
}
"""Number or word, and name. What they do to vectors was measured; docs/publishing.md has the table."""

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """One defect of a repository.

    `severity` is error where vectors will be wrong, or a library stops, somewhere; warning where they may be.
    """

    trap: int | str
    severity: Severity
    file: str
    message: str
    fix: str
    readers: tuple[str, ...] = ()
    """Who is hit; empty means everybody."""

    @property
    def name(self) -> str:
        """The trap's name."""
        return TRAPS[self.trap]

    def to_json(self) -> dict[str, Any]:
        """Give the finding as JSON."""
        return asdict(self) | {"name": self.name, "readers": list(self.readers)}


class NotCheckedError(Exception):
    """A check that cannot be made of this repository, with the reason."""


@dataclass(frozen=True)
class Check:
    """One check: for which trap, what was looked at, and why not where it could not be made."""

    trap: int | str
    what: str
    live: bool
    not_checked: str | None = None


@dataclass(frozen=True)
class Reading:
    """What a library understands when it reads the repository; None where it does not say or does not matter."""

    reader: str
    source: str
    """The upstream file that this simulates."""
    refuses: str | None = None
    """The error that the library stops with."""
    not_for: str | None = None
    """Why the library takes no model of this family as it is, whatever the repository holds."""
    pooling: str | None = None
    normalize: bool | None = None
    max_length: int | None = None
    ends_with: str | None = None
    """The special token behind each text; empty for none."""
    lower_case: bool | None = None

    @property
    def reads(self) -> bool:
        """Whether the library gets as far as making vectors."""
        return self.refuses is None and self.not_for is None

    def shown(self) -> str:
        """Say in one line what the library understands."""
        parts = {
            "pooling": self.pooling,
            "normalised": None if self.normalize is None else ("yes" if self.normalize else "no"),
            "cuts off at": self.max_length,
            "ends texts in": self.ends_with or ("nothing" if self.ends_with == "" else None),
        }
        return ", ".join(f"{name} {value}" for name, value in parts.items() if value is not None)


@dataclass
class Diagnosis:
    """All that doctor found out about one repository."""

    model: str
    readings: list[Reading] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Give everything as JSON, the checks with what they found."""
        hit = {finding.trap for finding in self.findings}
        return {
            "model": self.model,
            "healthy": not self.findings,
            "findings": [finding.to_json() for finding in self.findings],
            "checks": [
                asdict(check)
                | {"name": TRAPS[check.trap], "done": check.not_checked is None, "hit": check.trap in hit}
                for check in self.checks
            ],
            "readers": [asdict(reading) for reading in self.readings],
        }
