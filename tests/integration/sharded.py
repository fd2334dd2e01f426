"""Train as one of two processes that share the weights, on CPUs: `sharded.py CONFIG RECIPE DATASET OUTPUT KILLED_AT`.

Started by torchrun. CONFIG is a file for `accelerate launch`, or `none` for weights that every process has. accelerate
1.15 itself starts FSDP on GPUs only (commands/launch.py, `use_fsdp and not args.cpu`), so its own code turns the file
into environment variables here; and its `AcceleratorState` knows FSDP on GPUs only (state.py,
`DistributedType.MULTI_GPU`), so the processes are said to have them.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_multi_gpu_env
from torch.distributed.fsdp import FSDPModule
from torch.optim.optimizer import register_optimizer_step_post_hook

from st_llm_embed import Recipe
from st_llm_embed.training.train import train
from st_llm_embed.training.trainer import EmbedderTrainer

join = PartialState.__init__
steps = 0
units: dict[str, list[str]] = {}


def use_fsdp(config: str) -> None:
    arguments = launch_command_parser().parse_args(["--config_file", config, "-m", "st_llm_embed.cli"])
    given = _validate_launch_command(arguments)[0]
    own = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
    os.environ.update({key: value for key, value in prepare_multi_gpu_env(given).items() if key not in own})

    def join_as_gpu(self: PartialState, *args: object, **kwargs: object) -> None:
        join(self, *args, **kwargs)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_GPU

    PartialState.__init__ = join_as_gpu


def kill_when_due(*_: object) -> None:
    global steps  # noqa: PLW0603
    steps += 1
    if os.environ["RANK"] == "1" and steps == int(sys.argv[5]):
        os.kill(os.getpid(), signal.SIGKILL)


def note_units(trainer: EmbedderTrainer) -> dict[str, torch.Tensor]:
    """Tell which modules had their weights spread, and how much of them this process had."""
    model = trainer.model_wrapped
    parts = [weight._local_tensor.numel() for weight in model.parameters() if hasattr(weight, "_local_tensor")]
    units["units"] = sorted({type(module).__name__ for module in model.modules() if isinstance(module, FSDPModule)})
    units["numbers"] = [sum(parts), sum(weight.numel() for weight in model.parameters())]
    return gather(trainer)


gather = EmbedderTrainer.gathered_weights
EmbedderTrainer.gathered_weights = note_units
torch.set_num_threads(1)
register_optimizer_step_post_hook(kill_when_due)
if sys.argv[1] != "none":
    use_fsdp(sys.argv[1])
train(Recipe.load(sys.argv[2]), [Path(sys.argv[3])], Path(sys.argv[4]))
if os.environ["RANK"] == "0":
    (Path(sys.argv[4]) / "units.json").write_text(json.dumps(units), encoding="utf-8")
