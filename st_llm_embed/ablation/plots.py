"""The picture of an ablation."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import mean

from st_llm_embed.ablation.table import Table
from st_llm_embed.evaluation.plots import AFTER, BEFORE, figure

COLUMNS = 3


def plot_table(table: Table, path: Path) -> None:
    """Draw each score of each setting to a PNG file: a dot for each seed, their mean, and from lowest to highest.

    Nothing is drawn where no run is finished.
    """
    names, labels = table.names, list(table.runs)
    if not names:
        return
    rows = math.ceil(len(names) / COLUMNS)
    with figure(path, width=13, height=rows * (1.3 + 0.4 * len(labels)), rows=rows, columns=COLUMNS) as panels:
        for panel, axes in enumerate(panels):
            if panel >= len(names):
                axes.set_axis_off()
                continue
            name = names[panel]
            for place, label in enumerate(labels):
                values = list(table.scores(label).get(name, {}).values())
                if values:
                    axes.plot([min(values), max(values)], [place, place], color=BEFORE, linewidth=4, alpha=0.6)
                    axes.plot(values, [place] * len(values), "o", color=AFTER, markersize=4, fillstyle="none")
                    axes.plot(mean(values), place, "|", color=AFTER, markersize=16, markeredgewidth=2.5)
            axes.set_yticks(range(len(labels)), labels if panel % COLUMNS == 0 else [""] * len(labels))
            axes.set_ylim(len(labels) - 0.5, -0.5)
            axes.set(title=name.replace(", ", "\n", 1), xlabel="score (0 to 1, higher is better)")
            axes.margins(x=0.1)
            axes.locator_params(axis="x", nbins=5)
            axes.grid(axis="x", alpha=0.3)
        panels[0].plot([], [], "o", color=AFTER, markersize=4, fillstyle="none", label="one seed")
        panels[0].plot([], [], "|", color=AFTER, markersize=12, markeredgewidth=2.5, linestyle="none", label="mean")
        panels[0].plot([], [], color=BEFORE, linewidth=4, alpha=0.6, label="lowest to highest")
        drawn = panels[0].get_figure()
        if drawn is not None:
            drawn.legend(loc="outside lower center", ncols=3)
