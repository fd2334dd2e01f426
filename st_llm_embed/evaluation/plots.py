"""The report's pictures."""

from __future__ import annotations

import unicodedata
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from textwrap import wrap
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from st_llm_embed.evaluation.held_out import Scores

# Okabe-Ito, distinguished by colour-blind readers and in grey print.
BEFORE, AFTER, POSITIVE, NEGATIVE = "#9aa5b1", "#0072b2", "#009e73", "#d55e00"

STYLE: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid.axis": "y",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "font.size": 10,
    "legend.frameon": False,
}

SMOOTHED = 5
"""Least records of the loss that its running mean is over."""

SHOWN = 66
"""Characters of a document in the picture of examples."""


class Example(NamedTuple):
    """A query, and the documents nearest to it before and after training, each with whether it is the right one."""

    query: str
    before: list[tuple[str, bool]]
    after: list[tuple[str, bool]]


def plot_loss(log: list[dict[str, Any]], path: Path) -> None:
    """Draw the training loss over steps, from the trainer's log, and its running mean, to a PNG file."""
    steps, losses = zip(*((entry["step"], entry["loss"]) for entry in log if "loss" in entry), strict=True)
    width = max(SMOOTHED, len(losses) // 10)
    means = [np.mean(losses[max(0, place + 1 - width) : place + 1]) for place in range(len(losses))]
    with figure(path, width=7) as [axes]:
        axes.plot(steps, losses, color=BEFORE, marker="o", markersize=2, linewidth=1, label="each record")
        axes.plot(steps, means, color=AFTER, linewidth=2, label=f"mean of {width} records")
        axes.set(title="Training loss", ylabel="InfoNCE loss (nats)", ylim=(0, None))
        _steps(axes)
        axes.legend()


def plot_scores(log: list[dict[str, Any]], labels: dict[str, str], path: Path) -> None:
    """Draw those of the labelled scores that the trainer's log has, over steps, to a PNG file."""
    with figure(path, width=7) as [axes]:
        for (name, label), colour in zip(labels.items(), (AFTER, BEFORE, POSITIVE, NEGATIVE), strict=True):
            points = [(entry["step"], entry[f"eval_{name}"]) for entry in log if f"eval_{name}" in entry]
            if points:
                axes.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=3, label=label)
        axes.set(title="Held-out rows during training", ylabel="score", ylim=(0, 1))
        _steps(axes)
        axes.legend()


def plot_before_after(before: dict[str, Any], after: dict[str, Any], path: Path) -> None:
    """Draw nDCG@10 by task type and language, and the accuracies, before and after, to a PNG file."""
    kinds = {"all": (before, after)} | {
        name: (part, after[group][name])
        for group in ("by_task_type", "by_language")
        for name, part in before[group].items()
    }
    retrieval = {name: [part["retrieval_ndcg_at_10"] for part in pair] for name, pair in kinds.items()}
    bounds = {name: [part["retrieval_ndcg_at_10_interval"] for part in pair] for name, pair in kinds.items()}
    accuracy = {
        label: [before[name], after[name]]
        for label, name in (("STS triplets", "sts_triplet_accuracy"), ("bitext", "bitext_accuracy"))
        if before[name] is not None
    }
    ratios = (len(retrieval), len(accuracy) + 1) if accuracy else None
    with figure(path, width=11, columns=2 if accuracy else 1, width_ratios=ratios) as [left, *right]:
        _bars(left, retrieval, bounds)
        left.set(title="Held-out retrieval, with 95 % intervals", ylabel="nDCG@10", ylim=(0, 1))
        left.legend()
        for axes in right:
            _bars(axes, accuracy, {})
            axes.set(title="Held-out accuracy", ylabel="accuracy", ylim=(0, 1.08))
            axes.legend()


def plot_similarity(before: Scores, after: Scores, path: Path) -> None:
    """Draw how far positives and hard negatives are apart in cosine similarity, before and after, to a PNG file."""
    similarities = [(scores.positive_similarity, scores.negative_similarity) for scores in (before, after)]
    bins = np.histogram_bin_edges(np.concatenate([np.concatenate(pair) for pair in similarities]), bins=40).tolist()
    with figure(path, width=11, columns=2, shared=True) as panels:
        for axes, pair, title in zip(panels, similarities, ("Before training", "After training"), strict=True):
            for values, label, colour in zip(pair, ("positives", "hard negatives"), (POSITIVE, NEGATIVE), strict=True):
                _histogram(axes, values, bins, label, colour)
            axes.set(title=title, xlabel="cosine similarity to the query", ylabel="share of the pairs")
            axes.legend(loc="upper left")


def plot_examples(examples: Sequence[Example], path: Path) -> None:
    """Draw queries beside their nearest documents before and after, the right ones in colour, to a PNG file."""
    lines = max(len(example.after) for example in examples) + 1
    with figure(path, width=13, height=0.6 + 0.19 * lines * len(examples)) as [axes]:
        axes.set(xlim=(0, 1), ylim=(lines * len(examples), -1.5))
        axes.set_axis_off()
        for place, moment in ((0.24, "before"), (0.62, "after")):
            firsts = sum(getattr(example, moment)[0][1] for example in examples)
            title = f"{moment} training: the right one is first for {firsts} of {len(examples)}"
            axes.text(place, -1, title, weight="bold", color=BEFORE if moment == "before" else AFTER)
        for number, example in enumerate(examples):
            top = number * lines
            axes.axhline(top - 0.6, color=BEFORE, linewidth=0.5)
            for line, text in enumerate(wrap(example.query, 36, max_lines=lines - 1, placeholder=" ...")):
                axes.text(0, top + line, text, fontsize=8, va="center", parse_math=False)
            for place, found in ((0.24, example.before), (0.62, example.after)):
                for line, (text, right) in enumerate(found):
                    colour, weight = (POSITIVE, "bold") if right else ("#444444", "normal")
                    shown = f"{line + 1}. {text[:SHOWN]}{'...' if text[SHOWN:] else ''}"
                    options: dict[str, Any] = {"fontsize": 8, "va": "center", "parse_math": False}
                    axes.text(place, top + line, shown, color=colour, weight=weight, **options)


def drawable(text: str) -> bool:
    """Whether the pictures' font has every character, and draws it as it is written: not so for Arabic."""
    return all(_has_glyph(character) for character in text)


@cache
def _has_glyph(character: str) -> bool:
    font = get_font(findfont("DejaVu Sans"))
    leftward = unicodedata.bidirectional(character) in ("R", "AL")
    return not leftward and not unicodedata.combining(character) and font.get_char_index(ord(character)) != 0


def _histogram(axes: Axes, values: NDArray[np.float32], bins: list[float], label: str, colour: str) -> None:
    if not len(values):
        return
    shares = np.full(len(values), 1 / len(values))
    label = f"{label}, mean {values.mean():.2f}"
    axes.hist(values, bins=bins, weights=shares, histtype="stepfilled", alpha=0.4, color=colour, label=label)
    axes.axvline(float(values.mean()), color=colour, linestyle="--")


def _bars(axes: Axes, values: dict[str, list[float]], bounds: dict[str, list[list[float]]]) -> None:
    for offset, colour, label, index in ((-0.2, BEFORE, "before", 0), (0.2, AFTER, "after", 1)):
        heights = [pair[index] for pair in values.values()]
        spread = np.array([pair[index] for pair in bounds.values()]).T if bounds else None
        # The mean of resampled queries can be a hair off.
        errors = None if spread is None else np.abs(np.stack([heights - spread[0], spread[1] - heights]))
        places = [place + offset for place in range(len(values))]
        style = {"elinewidth": 1, "capsize": 2, "ecolor": "#444444"}
        bars = axes.bar(places, heights, width=0.38, color=colour, label=label, yerr=errors, error_kw=style)
        axes.bar_label(bars, fmt="%.2f", fontsize=8, padding=1)
    axes.set_xticks(range(len(values)), list(values), rotation=30, ha="right")


def _steps(axes: Axes) -> None:
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


@contextmanager
def figure(
    path: Path,
    *,
    width: float,
    height: float = 4,
    rows: int = 1,
    columns: int = 1,
    width_ratios: tuple[float, ...] | None = None,
    shared: bool = False,
) -> Generator[list[Axes]]:
    """Yield the axes of a new figure, row by row, and save it as PNG when the block ends. Sizes in inches.

    With `shared`, all axes have one range.
    """
    with mpl.rc_context(STYLE):
        drawn = Figure(figsize=(width, height), layout="constrained")
        axes = drawn.subplots(rows, columns, width_ratios=width_ratios, squeeze=False, sharex=shared, sharey=shared)
        yield axes.ravel().tolist()
        drawn.savefig(path, dpi=130)
