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
        rows, rejected = self.rows_by_type.total(), self.rejected_by_reason.total()
        return {
            "rows": rows,
            "rejected": rejected,
            "distinct_instructions": len(self._instructions),
            "rows_by_task_type": dict(self.rows_by_type.most_common()),
            "rows_by_language": dict(self.rows_by_language.most_common()),
            "rows_by_generator": dict(self.rows_by_generator.most_common()),
            "rejected_by_reason": dict(self.rejected_by_reason.most_common()),
            "rejected_by_task_type": dict(self.rejected_by_type.most_common()),
            "share_rejected_by_language": {
                language: round(reasons.total() / (reasons.total() + self.rows_by_language[language]), 4)
                for language, reasons in sorted(self.rejected_by_language.items())
            },
            "share_duplicates_by_language": {
                language: round(duplicates / (reasons.total() + self.rows_by_language[language]), 4)
                for language, reasons in sorted(self.rejected_by_language.items())
                if (duplicates := reasons["duplicate"] + reasons["near duplicate"])
            },
            "characters": {
                f"{task_type}.{column}": {f"p{q * 100:.0f}": _quantile(counts, q) for q in QUANTILES}
                for (task_type, column), counts in sorted(self.lengths.items())
            },
            "cost": _cost(journal),
        }

    def plot(self, folder: Path) -> list[str]:
        """Draw task types, languages, lengths and reasons of rejection; return the names of the files."""
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator

        bars = {
            "task_types": ("Rows by task type", self.rows_by_type),
            "languages": ("Rows by language", self.rows_by_language),
            "rejected": ("Rejected answers by reason", self.rejected_by_reason),
        }
        names = []
        for name, (title, counts) in bars.items():
            if not counts:
                continue
            shown = counts.most_common(MOST_BARS)[::-1]
            extent = f", the {MOST_BARS} most frequent of {len(counts)}" if len(shown) < len(counts) else ""
            figure = Figure(figsize=(6.4, 1.2 + 0.22 * len(shown)), layout="constrained")
            axes = figure.subplots()
            bars_drawn = axes.barh([label for label, _ in shown], [count for _, count in shown])
            axes.bar_label(bars_drawn, fmt="{:,.0f}", padding=2, fontsize=8)
            axes.set(title=title + extent, xlabel="rows" if name != "rejected" else "answers")
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            axes.xaxis.set_major_formatter("{x:,.0f}")
            axes.margins(x=0.15, y=0.3 / len(shown))
            figure.savefig(folder / f"{name}.png", dpi=120)
            names.append(f"{name}.png")
        if self.lengths:
            figure = Figure(figsize=(6.4, 1.2 + 0.26 * len(self.lengths)), layout="constrained")
            axes = figure.subplots()
            labels = sorted(self.lengths, reverse=True)
            boxes = [
                {
                    "label": f"{task_type} {column}",
                    **{
                        key: _quantile(self.lengths[task_type, column], q)
                        for key, q in zip(("whislo", "q1", "med", "q3", "whishi"), QUANTILES, strict=True)
                    },
                }
                for task_type, column in labels
            ]
            axes.bxp(boxes, orientation="horizontal", showfliers=False)
            axes.set(title="Length of the texts (5 % to 95 %)", xlabel="characters", xscale="log")
            axes.xaxis.set_major_formatter("{x:,.0f}")
            figure.savefig(folder / "lengths.png", dpi=120)
            names.append("lengths.png")
        return names


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
