"""What a set of rows is made of, counted while it is written: as JSON for cards and as plots for readers."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from st_llm_embed.data.rows import Row
from st_llm_embed.synthesis.journal import read_journal
from st_llm_embed.synthesis.selection import Rejected

MOST_BARS = 30
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass
class Statistics:
    """Counts; memory grows with distinct instructions alone, by eight bytes or so each."""

    rows_by_type: Counter[str] = field(default_factory=Counter)
    rows_by_language: Counter[str] = field(default_factory=Counter)
    rows_by_generator: Counter[str] = field(default_factory=Counter)
    rejected_by_reason: Counter[str] = field(default_factory=Counter)
    rejected_by_type: Counter[str] = field(default_factory=Counter)
    rejected_by_language: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    lengths: dict[tuple[str, str], Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    """By task type and column: characters of the texts, rounded to two digits."""
    _instructions: set[int] = field(default_factory=set)

    def add(self, item: Row | Rejected) -> None:
        """Count one row or one rejected answer."""
        if isinstance(item, Rejected):
            self.rejected_by_reason[item.reason] += 1
            self.rejected_by_type[item.task_type] += 1
            self.rejected_by_language[item.language][item.reason] += 1
            return
        self.rows_by_type[item.task_type] += 1
        self.rows_by_language[item.language] += 1
        self.rows_by_generator[item.generator] += 1
        self._instructions.add(hash((item.task_type, item.instruction)))
        for column in ("anchor", "positive", "negative"):
            text = getattr(item, column)
            if text is not None:
                self.lengths[item.task_type, column][_two_digits(len(text))] += 1

    def to_json(self, journal: Path) -> dict[str, Any]:
        """Return all figures, with what was paid by the journal."""

        def share(count: int, language: str) -> float:
            of = self.rejected_by_language[language].total() + self.rows_by_language[language]
            return round(count / of, 4)

        rejected = sorted(self.rejected_by_language.items())
        return {
            "rows": self.rows_by_type.total(),
            "rejected": self.rejected_by_reason.total(),
            "distinct_instructions": len(self._instructions),
            "rows_by_task_type": dict(self.rows_by_type.most_common()),
            "rows_by_language": dict(self.rows_by_language.most_common()),
            "rows_by_generator": dict(self.rows_by_generator.most_common()),
            "rejected_by_reason": dict(self.rejected_by_reason.most_common()),
            "rejected_by_task_type": dict(self.rejected_by_type.most_common()),
            "share_rejected_by_language": {name: share(reasons.total(), name) for name, reasons in rejected},
            "share_duplicates_by_language": {
                language: share(duplicates, language)
                for language, reasons in rejected
                if (duplicates := reasons["duplicate"] + reasons["near duplicate"])
            },
            "characters": {
                f"{task_type}.{column}": {f"p{q * 100:.0f}": _quantile(counts, q) for q in QUANTILES}
                for (task_type, column), counts in sorted(self.lengths.items())
            },
            "cost": _cost(journal),
        }

    def plot(self, folder: Path) -> None:
        """Draw task types, languages and lengths of the texts, for the card."""
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator

        bars = (("task_types", "task type", self.rows_by_type), ("languages", "language", self.rows_by_language))
        for name, what, counts in bars:
            shown = counts.most_common(MOST_BARS)[::-1]
            extent = f", the {MOST_BARS} most frequent of {len(counts)}" if len(shown) < len(counts) else ""
            figure = Figure(figsize=(6.4, 1.2 + 0.22 * len(shown)), layout="constrained")
            axes = figure.subplots()
            bars_drawn = axes.barh([label for label, _ in shown], [count for _, count in shown])
            axes.bar_label(bars_drawn, fmt="{:,.0f}", padding=2, fontsize=8)
            axes.set(title=f"Rows by {what}{extent}", xlabel="rows")
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            axes.xaxis.set_major_formatter("{x:,.0f}")
            axes.margins(x=0.15, y=0.3 / len(shown))
            figure.savefig(folder / f"{name}.png", dpi=120)
        figure = Figure(figsize=(6.4, 1.2 + 0.26 * len(self.lengths)), layout="constrained")
        axes = figure.subplots()
        boxes = [
            dict(zip(("whislo", "q1", "med", "q3", "whishi"), (_quantile(counts, q) for q in QUANTILES), strict=True))
            | {"label": f"{task_type} {column}"}
            for (task_type, column), counts in sorted(self.lengths.items(), reverse=True)
        ]
        axes.bxp(boxes, orientation="horizontal", showfliers=False)
        axes.set(title="Length of the texts (5 % to 95 %)", xlabel="characters", xscale="log")
        axes.xaxis.set_major_formatter("{x:,.0f}")
        figure.savefig(folder / "lengths.png", dpi=120)


def _cost(journal: Path) -> dict[str, Any]:
    """Add up what was paid, by model; what may have been paid apart."""
    by_model: dict[str, Counter[str]] = defaultdict(Counter)
    usd: dict[str, float] = defaultdict(float)
    for record, _ in read_journal(journal):
        if "model" in record and "tokens" in record:
            by_model[record["model"]][record["status"]] += 1
            by_model[record["model"]]["tokens"] += record["tokens"]
            usd[record["model"]] += record["usd"]
    return {
        "usd": round(sum(usd.values()), 6),
        "by_model": {model: {**counts, "usd": round(usd[model], 6)} for model, counts in sorted(by_model.items())},
    }


def _two_digits(number: int) -> int:
    unit = 10 ** max(0, len(str(number)) - 2)
    return number // unit * unit


def _quantile(counts: Counter[int], share: float) -> int:
    wanted = share * counts.total()
    reached = 0
    for value, count in sorted(counts.items()):
        reached += count
        if reached >= wanted:
            return value
    return 0
