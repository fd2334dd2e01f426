"""The report's pictures."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from st_llm_embed.evaluation.held_out import Scores

# Okabe-Ito, distinguished by colour-blind readers and in grey print.
BEFORE, AFTER, POSITIVE, NEGATIVE = "#9aa5b1", "#0072b2", "#009e73", "#d55e00"

STYLE: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "font.size": 10,
    "legend.frameon": False,
}


def plot_loss(log: list[dict[str, Any]], path: Path) -> None:
    """Draw the training loss over steps, from the trainer's log, to a PNG file."""
    points = [(entry["step"], entry["loss"]) for entry in log if "loss" in entry]
    with figure(path, width=7) as [axes]:
        axes.plot([step for step, _ in points], [loss for _, loss in points], color=AFTER, marker="o", markersize=3)
        axes.set(title="Training loss", xlabel="step", ylabel="InfoNCE loss (nats)", ylim=(0, None))
        axes.grid(axis="y", alpha=0.3)


def plot_scores(log: list[dict[str, Any]], labels: dict[str, str], path: Path) -> None:
    """Draw those of the labelled scores that the trainer's log has, over steps, to a PNG file."""
    with figure(path, width=7, columns=1) as [axes]:
        for (name, label), colour in zip(labels.items(), (AFTER, BEFORE, POSITIVE, NEGATIVE), strict=True):
            points = [(entry["step"], entry[f"eval_{name}"]) for entry in log if f"eval_{name}" in entry]
            if points:
                axes.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=3, label=label)
        axes.set(title="Held-out rows during training", xlabel="step", ylabel="score", ylim=(0, None))
        axes.grid(axis="y", alpha=0.3)
        axes.legend()


def plot_before_after(before: dict[str, Any], after: dict[str, Any], path: Path) -> None:
    """Draw nDCG@10 by task type and language, and the accuracies, before and after, to a PNG file."""
    retrieval = {
        "all": (before["retrieval_ndcg_at_10"], after["retrieval_ndcg_at_10"]),
        **{
            name: (before[group][name]["retrieval_ndcg_at_10"], after[group][name]["retrieval_ndcg_at_10"])
            for group in ("by_task_type", "by_language")
            for name in before[group]
        },
    }
    accuracy = {
        label: (before[name], after[name])
        for label, name in (("STS triplets", "sts_triplet_accuracy"), ("bitext", "bitext_accuracy"))
    }
    with figure(path, width=11, columns=2, width_ratios=(len(retrieval), len(accuracy) + 1)) as [left, right]:
        _bars(left, retrieval)
        left.set(title="Held-out retrieval", ylabel="nDCG@10")
        _bars(right, accuracy)
        right.set(title="Held-out accuracy", ylabel="accuracy")
        right.legend()


def plot_similarity(before: Scores, after: Scores, path: Path) -> None:
    """Draw how far positives and hard negatives are apart in cosine similarity, before and after, to a PNG file."""
    with figure(path, width=11, columns=2) as panels:
        for axes, scores, title in zip(panels, (before, after), ("Before training", "After training"), strict=True):
            groups = {"positives": scores.positive_similarity, "hard negatives": scores.negative_similarity}
            bins = np.histogram_bin_edges(np.concatenate(list(groups.values())), bins=30).tolist()
            for (label, values), colour in zip(groups.items(), (POSITIVE, NEGATIVE), strict=True):
                if not len(values):
                    continue
                axes.hist(values, bins=bins, density=True, histtype="stepfilled", alpha=0.35, color=colour)
                axes.axvline(values.mean(), color=colour, linestyle="--", label=f"{label}, mean {values.mean():.2f}")
            axes.set(title=title, xlabel="cosine similarity to the query", ylabel="density")
            axes.legend(loc="upper left")


def _bars(axes: Axes, values: dict[str, tuple[float | None, float | None]]) -> None:
    shown = {name: (old, new) for name, (old, new) in values.items() if old is not None and new is not None}
    for offset, colour, label, index in ((-0.2, BEFORE, "before", 0), (0.2, AFTER, "after", 1)):
        heights = [pair[index] for pair in shown.values()]
        bars = axes.bar([x + offset for x in range(len(shown))], heights, width=0.38, color=colour, label=label)
        axes.bar_label(bars, fmt="%.2f", fontsize=8, padding=1)
    axes.set_xticks(range(len(shown)), list(shown), rotation=30, ha="right")
    axes.margins(y=0.12)


@contextmanager
def figure(
    path: Path,
    *,
    width: float,
    height: float = 4,
    rows: int = 1,
    columns: int = 1,
    width_ratios: tuple[float, ...] | None = None,
) -> Generator[list[Axes]]:
    """Yield the axes of a new figure, row by row, and save it as PNG when the block ends. Sizes in inches."""
    with mpl.rc_context(STYLE):
        drawn = Figure(figsize=(width, height), layout="constrained")
        axes = drawn.subplots(rows, columns, width_ratios=width_ratios, squeeze=False)
        yield axes.ravel().tolist()
        drawn.savefig(path, dpi=130)
