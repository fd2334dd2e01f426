"""The pictures of a student's report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.ticker import LogLocator

from st_llm_embed.evaluation.plots import AFTER, LINES, MARKERS, NEGATIVE, figure


def plot_cost_and_quality(report: dict[str, Any], path: Path) -> None:
    """Draw nDCG@10 over the time of a query and over the number of parameters, a point per model, to a PNG file."""
    with figure(path, width=9, columns=2) as panels:
        names = list(report["costs"])
        costs = {
            "one query, p50 (ms)": [report["speed"][name]["query_p50_ms"] for name in names],
            "parameters (millions)": [report["costs"][name]["parameters"] / 1e6 for name in names],
        }
        quality = [report["scores"][name]["retrieval_ndcg_at_10"] for name in names]
        for axes, title, (label, values) in zip(panels, ("Speed", "Size"), costs.items(), strict=True):
            for name, cost, score, colour, marker in zip(
                names, values, quality, (NEGATIVE, AFTER), MARKERS, strict=False
            ):
                axes.scatter([cost], [score], color=colour, marker=marker, s=60, label=name)
            axes.set_xscale("log")
            # Models of one size would have a mark at every digit otherwise, one over the other.
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.minorticks_off()
            axes.xaxis.set_major_formatter("{x:g}")
            axes.set_xlim(min(values) / 3, max(values) * 3)
            axes.set_ylim(0, max(quality) * 1.25 or 1)
            axes.set(title=f"{title} and quality", xlabel=label, ylabel="held-out nDCG@10")
            axes.grid(alpha=0.3)
            axes.legend(loc="lower right")


def plot_index(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw nDCG@10 over the bytes of a document in the index, a line per precision, to a PNG file."""
    with figure(path, width=7, columns=1) as [axes]:
        for place, precision in enumerate(dict.fromkeys(row["precision"] for row in rows)):
            points = sorted(
                (row["bytes_per_document"], row["ndcg_at_10"]) for row in rows if row["precision"] == precision
            )
            axes.plot(*zip(*points, strict=True), color=LINES[place], marker=MARKERS[place], label=precision)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_ylim(0, max(row["ndcg_at_10"] for row in rows) * 1.25 or 1)
        axes.set(title="Index size and quality", xlabel="bytes a document", ylabel="held-out nDCG@10")
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right")
