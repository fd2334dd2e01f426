"""Scores before and after training, and the report on them."""

from st_llm_embed.evaluation.benchmark.saved_prompts import mteb_prompts
from st_llm_embed.evaluation.during_training import HeldOutEvaluator, check_best_score, held_out_evaluator
from st_llm_embed.evaluation.held_out import HeldOut, Scores, evaluate_held_out, load_held_out
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
    "mteb_prompts",
    "write_report",
]
