"""The pictures of a report on mteb tasks."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from st_llm_embed.evaluation.benchmark.comparison import BENCHMARK, PAPER_SYSTEMS, Category
from st_llm_embed.evaluation.benchmark.references import MEAN
from st_llm_embed.evaluation.benchmark.results import is_high_resource
from st_llm_embed.evaluation.plots import AFTER, BEFORE, figure

REFERENCE_COLOURS = ("#d55e00", "#e69f00", "#f0e442")
LANGUAGES_IN_A_ROW = 28


def plot_categories(categories: list[Category], model: str, path: Path) -> None:
    """Draw the means by type of task beside the paper's over the same tasks, to a PNG file."""
    bars = {model: [category.score for category in categories]} | {
        label: [category.references.get(system, np.nan) for category in categories]
        for system, label in PAPER_SYSTEMS.items()
    }
    width = 0.84 / len(bars)
    with figure(path, width=2.2 + 1.5 * len(categories), height=4.6) as [axes]:
        for number, (label, heights) in enumerate(bars.items()):
            places = np.arange(len(categories)) + (number - (len(bars) - 1) / 2) * width
            colour = (AFTER, *REFERENCE_COLOURS)[number]
            drawn = axes.bar(places, heights, width=0.94 * width, color=colour, label=label)
            axes.bar_label(drawn, fmt="%.1f", fontsize=7, padding=1)
        sizes = [f"{len(one.done)} of {len(one.done) + len(one.missing)} tasks" for one in categories]
        names = ["all" if one.name == MEAN else one.name for one in categories]
        labels = [f"{name}\n{size}" for name, size in zip(names, sizes, strict=True)]
        axes.set_xticks(range(len(categories)), labels, fontsize=8)
        axes.set(
            title=f"{BENCHMARK}, means over the same tasks",
            ylabel="mean main score (%)",
            ylim=(min(0, *bars[model]), 115),
        )
        axes.set_yticks(range(0, 101, 20))
        axes.legend(loc="upper left", ncols=2, fontsize=8)


def plot_languages(scores: dict[str, dict[str, float]], path: Path) -> None:
    """Draw a heat map of tasks by languages, high-resource languages apart, to a PNG file.

    Args:
        scores: task -> language, ISO 639-3 -> main score in percent.
        path: the file.
    """
    languages = sorted({language for by_language in scores.values() for language in by_language})
    panels: list[tuple[str, list[str]]] = []
    for title, group in (
        ("High-resource languages", [one for one in languages if is_high_resource(one)]),
        ("Other languages", [one for one in languages if not is_high_resource(one)]),
    ):
        rows = -(-len(group) // LANGUAGES_IN_A_ROW)
        panels += [
            (title if not row else f"{title} (continued)", group[row * LANGUAGES_IN_A_ROW :][:LANGUAGES_IN_A_ROW])
            for row in range(rows)
        ]
    widest = max(len(group) for _, group in panels)
    # Tasks that have none of a panel's languages are left out of it.
    rows_of = [
        [task for task, by_language in scores.items() if by_language.keys() & set(group)] for _, group in panels
    ]
    heights = tuple(0.9 + 0.28 * len(tasks) for tasks in rows_of)
    with figure(
        path, width=3.6 + 0.36 * widest, height=sum(heights) + 0.3, rows=len(panels), height_ratios=heights
    ) as drawn:
        for axes, (title, group), tasks in zip(drawn, panels, rows_of, strict=True):
            cells = np.full((len(tasks), widest), np.nan)
            for row, task in enumerate(tasks):
                cells[row, : len(group)] = [scores[task].get(language, np.nan) for language in group]
            image = axes.imshow(cells, cmap="viridis", vmin=0, vmax=100, aspect="auto")
            for row, column in np.argwhere(~np.isnan(cells)):
                value = cells[row, column]
                colour = "black" if value > 60 else "white"
                axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=7, color=colour)
            axes.set_xticks(range(len(group)), group, fontsize=8, rotation=60)
            axes.set_yticks(range(len(tasks)), tasks, fontsize=8)
            axes.tick_params(length=0)
            axes.set_title(title, fontsize=10)
            for side in axes.spines.values():
                side.set_visible(False)
        drawn[-1].set_xlabel("language (ISO 639-3)")
        drawn[0].figure.colorbar(image, ax=drawn, label="main score (%)", shrink=0.9, pad=0.02)


def plot_before_after(before: dict[str, float], after: dict[str, float], labels: tuple[str, str], path: Path) -> None:
    """Draw the scores of two runs on the tasks that both have, to a PNG file.

    Args:
        before: task -> main score in percent.
        after: likewise.
        labels: what the two runs are called.
        path: the file.
    """
    tasks = [task for task in after if task in before]
    places = np.arange(len(tasks))[::-1]
    with figure(path, width=9, height=1.6 + 0.42 * len(tasks)) as [axes]:
        for offset, colour, label, scores in ((0.2, BEFORE, labels[0], before), (-0.2, AFTER, labels[1], after)):
            drawn = axes.barh(places + offset, [scores[task] for task in tasks], 0.38, color=colour, label=label)
            axes.bar_label(drawn, fmt="%.1f", fontsize=8, padding=2)
        axes.set_yticks(places, tasks, fontsize=8)
        axes.set(title="Before and after, by task", xlabel="main score (%)", xlim=(min(0, *before.values()), 108))
        axes.set_xticks(range(0, 101, 20))
        axes.set_ylim(-0.6, len(tasks) - 0.4)
        axes.figure.legend(loc="outside upper center", ncols=2, fontsize=8)
