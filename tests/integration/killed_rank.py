"""Train as one of several processes; the second one is killed after a given number of steps, 0 for never."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from st_llm_embed import Recipe
from st_llm_embed.training import train

steps = 0


def kill_when_due(*_: object) -> None:
    global steps  # noqa: PLW0603
    steps += 1
    if os.environ["RANK"] == "1" and steps == int(sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)


torch.set_num_threads(1)
register_optimizer_step_post_hook(kill_when_due)
train(Recipe.load(sys.argv[1]), [Path(sys.argv[2])], Path(sys.argv[3]))
