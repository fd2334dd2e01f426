"""The log of a training, and TensorBoard and W&B beside it: whether they can be used, and where they write."""

from __future__ import annotations

import logging
import os
from collections.abc import Generator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformerTrainingArguments
from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import is_tensorboard_available, is_wandb_available

from st_llm_embed.errors import InputError
from st_llm_embed.processes import is_on_terminal

logger = logging.getLogger(__name__)

PACKAGES = {"tensorboard": is_tensorboard_available, "wandb": is_wandb_available}

FOLDERS = {"tensorboard": "TENSORBOARD_LOGGING_DIR", "wandb": "WANDB_DIR"}
"""The variables that say where the two write."""


class TrainingLog(TrainerCallback):
    """Logs one line for each record of the trainer, with a bar below them on a terminal."""

    _bar: tqdm | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Draw the bar."""
        del control, kwargs
        if state.is_world_process_zero:
            hidden = args.disable_tqdm or not is_on_terminal()
            start, steps = state.global_step, state.max_steps
            self._bar = tqdm(total=steps, initial=start, desc="training", unit=" steps", disable=hidden)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Move the bar."""
        del args, control, kwargs
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Log losses, learning rate and scores."""
        del args, control, kwargs
        values = {name: value for name, value in (logs or {}).items() if _is_shown(name)}
        if values and state.is_world_process_zero:
            numbers = ", ".join(f"{name.removeprefix('eval_')} {value:.4g}" for name, value in values.items())
            with tqdm.external_write_mode():
                logger.info("training: step %d of %d: %s", state.global_step, state.max_steps, numbers)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the bar."""
        del args, state, control, kwargs
        if self._bar is not None:
            self._bar.close()


def _is_shown(name: str) -> bool:
    speed = name.endswith(("_runtime", "_per_second"))
    return name in ("loss", "learning_rate") or (name.startswith(("loss_", "eval_")) and not speed)


def check_reporting(arguments: SentenceTransformerTrainingArguments, section: str) -> None:
    """Check that what `report_to` names is installed and, with W&B, that there is a key; else raise an InputError.

    Args:
        arguments: the trainer's.
        section: of the recipe that they are from, for messages.
    """
    for name in arguments.report_to or ():
        if name in PACKAGES and not PACKAGES[name]():
            raise InputError(
                f"{section}.report_to names {name}, which is not installed. Install it (pip install {name}), or set "
                "report_to to none: log.json in the training's folder has its losses and scores anyhow."
            )
    if "wandb" not in (arguments.report_to or ()) or os.environ.get("WANDB_MODE", "online") != "online":
        return
    if not import_module("wandb").login(prompt=False, verify=False):
        raise InputError(
            f"{section}.report_to names wandb, and there is no key for it. Run wandb login, set the variable "
            "WANDB_API_KEY, or set WANDB_MODE=offline to keep the records in logs/ of the training's folder."
        )


@contextmanager
def reporting_into(folder: Path, arguments: SentenceTransformerTrainingArguments) -> Generator[None]:
    """Have TensorBoard and W&B write into a folder while the block runs, unless the user's variables say where."""
    reported = [name for name in FOLDERS if name in (arguments.report_to or ())]
    ours = [FOLDERS[name] for name in reported if FOLDERS[name] not in os.environ]
    if "WANDB_DIR" in ours:
        # W&B writes elsewhere if this folder is missing.
        folder.mkdir(parents=True, exist_ok=True)
    os.environ.update(dict.fromkeys(ours, str(folder.absolute())))
    try:
        yield
    finally:
        for variable in ours:
            del os.environ[variable]
        if "wandb" in reported:
            # Otherwise the next training of this process would continue this one's record.
            import_module("wandb").finish()
