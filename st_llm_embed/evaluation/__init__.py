"""Scores before, during and after training, and the report on them."""

from st_llm_embed.evaluation.held_out import (
    HeldOut,
    HeldOutEvaluator,
    Scores,
    check_best_score,
    evaluate_held_out,
    held_out_evaluator,
    load_held_out,
)
from st_llm_embed.evaluation.report import headline_rows, markdown_table, write_report

__all__ = [
    "HeldOut",
    "HeldOutEvaluator",
    "Scores",
    "check_best_score",
    "evaluate_held_out",
    "headline_rows",
    "held_out_evaluator",
    "load_held_out",
    "markdown_table",
    "write_report",
]
