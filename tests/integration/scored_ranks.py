"""Train with scores on the way, as one of several processes; each writes down what it knows of the scores."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from st_llm_embed import Recipe
from st_llm_embed.evaluation.held_out import held_out_evaluator
from st_llm_embed.training.train import train
from st_llm_embed.training.trainer import FindBestCheckpoint

recipe, dataset, out, killed_at = Recipe.load(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])


def note(
    self: TrainerCallback, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
) -> None:
    """Write the scores down after each evaluation, and die where it is asked for."""
    del self, args, control
    scores = {name: value for name, value in kwargs["metrics"].items() if name.endswith(("_10", "_1", "accuracy"))}
    known = {"scores": scores, "best_before": state.best_global_step, "at": state.global_step}
    rank = os.environ["RANK"]
    (out.parent / f"{out.name}-{rank}-{state.global_step}.json").write_text(json.dumps(known), encoding="utf-8")
    if rank == "1" and state.global_step == killed_at:
        os.kill(os.getpid(), signal.SIGKILL)


torch.set_num_threads(1)
FindBestCheckpoint.on_evaluate = note
train(recipe, [dataset], out, evaluator=held_out_evaluator(recipe, dataset))
