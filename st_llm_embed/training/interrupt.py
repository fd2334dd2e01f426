"""Ctrl-C during training: the step is finished and a checkpoint written, so that nothing has to be trained again."""

from __future__ import annotations

import logging
import os
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any, Self

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)


def train_from(trainer: Trainer, checkpoint: Path | None) -> None:
    """Train to the end, from a checkpoint if there is one.

    Raises:
        KeyboardInterrupt: Ctrl-C; a checkpoint of the last step was written.
    """
    with Interruption(trainer.args) as interruption:
        trainer.add_callback(interruption)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if interruption.noted:
        logger.warning("training: stopped with a checkpoint of step %d", trainer.state.global_step)
        raise KeyboardInterrupt


class Interruption(TrainerCallback):
    """Takes note of Ctrl-C while its `with` block runs, and ends the training with a checkpoint after that step.

    A second Ctrl-C breaks off. Where several processes train, they would stop at different steps, and outside of the
    main thread Python allows no handler: Ctrl-C breaks off at once there, and the last checkpoint is what is left.
    """

    noted = False

    def __init__(self, arguments: TrainingArguments) -> None:
        main = threading.current_thread() is threading.main_thread()
        self._former = signal.getsignal(signal.SIGINT) if main and arguments.world_size == 1 else None
        self._process = os.getpid()

    def __enter__(self) -> Self:
        """Install the handler."""
        if self._former is not None:
            signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        """Put back the handler of before."""
        if self._former is not None:
            signal.signal(signal.SIGINT, self._former)

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        # The processes that read batches inherit the handler, and a terminal's Ctrl-C reaches them, too.
        if os.getpid() != self._process:
            return
        self.noted = True
        signal.signal(signal.SIGINT, self._former)
        logger.warning("training: Ctrl-C: a checkpoint is written after this step; a second Ctrl-C breaks off")

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ask the trainer for a checkpoint and to stop."""
        del args, state, kwargs
        if self.noted:
            control.should_save = control.should_training_stop = True
