"""The catalogue of traps, shared by doctor and verify, and what doctor says about one repository.

A trap is a known way in which an embedding model returns other vectors than it should, without an error.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from importlib.resources import files
from typing import Any, Literal, NamedTuple

import yaml

from st_llm_embed.errors import InputError

Severity = Literal["error", "warning"]


class Trap(NamedTuple):
    """One way to get wrong vectors."""

    message: str
    fix: str
    severity: Severity = "error"
    """error where vectors will be wrong, or a library stops, somewhere; warning where they may be."""


_FILE = files("st_llm_embed.doctor").joinpath("traps.yaml")
TRAPS = {name: Trap(**trap) for name, trap in yaml.safe_load(_FILE.read_text(encoding="utf-8")).items()}
"""By name, from traps.yaml. What they do to vectors was measured; docs/publishing.md has the table."""


@dataclass(frozen=True)
class Finding:
    """A trap that a repository has."""

    trap: str
    """Its name in `TRAPS`."""
    file: str
    detail: str = ""
    """What was seen, a sentence."""
    readers: tuple[str, ...] = ()
    """Who is affected; empty means everybody."""

    @property
    def severity(self) -> Severity:
        """That of the trap."""
        return TRAPS[self.trap].severity

    @property
    def message(self) -> str:
        """What is wrong, and what was seen."""
        return f"{TRAPS[self.trap].message} {self.detail}".rstrip()

    @property
    def fix(self) -> str:
        """What to do."""
        return TRAPS[self.trap].fix

    def to_json(self) -> dict[str, Any]:
        """Return the finding as JSON."""
        names = ("trap", "severity", "file", "message", "fix", "readers")
        return {name: getattr(self, name) for name in names}


class NotCheckedError(InputError):
    """A check that cannot be made of this repository, with the reason."""


@dataclass(frozen=True)
class Check:
    """One check: what was looked at, and why not where it could not be."""

    what: str
    live: bool
    not_checked: str | None = None


@dataclass(frozen=True)
class Reading:
    """What a library understands when it reads the repository; None where it does not say or does not matter."""

    reader: str
    refuses: str | None = None
    """The file that the library stops at, a colon, and its error."""
    not_for: str | None = None
    """Why the library takes no model of this family as it is, whatever the repository holds."""
    pooling: str | None = None
    max_length: int | None = None
    ends_with: str | None = None
    """The special token after each text; empty for none."""
    begins_with: str | None = None
    """The special token before each text; empty for none."""

    @property
    def reads(self) -> bool:
        """Whether the library gets as far as making vectors."""
        return self.refuses is None and self.not_for is None

    def shown(self) -> str:
        """Say in one line what the library understands."""
        parts = {
            "pooling": self.pooling,
            "cuts at": self.max_length,
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
        """Return everything as JSON."""
        return {
            "model": self.model,
            "healthy": not self.findings,
            "findings": [finding.to_json() for finding in self.findings],
            "checks": [asdict(check) | {"done": check.not_checked is None} for check in self.checks],
            "readers": [asdict(reading) for reading in self.readings],
        }
