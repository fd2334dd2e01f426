"""Ablations: a recipe run with one choice after another, over seeds, and what came of it in one table."""

from st_llm_embed.ablation.grid import Grid, Variant
from st_llm_embed.ablation.run import run_grid
from st_llm_embed.ablation.table import Table, collect

__all__ = ["Grid", "Table", "Variant", "collect", "run_grid"]
