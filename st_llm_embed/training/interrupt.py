"""Ctrl-C during training: the step is finished and a checkpoint written, so that nothing has to be trained again."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType
from typing import Any, Self

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)


class Interruption(TrainerCallback):
    """Takes note of Ctrl-C while its `with` block runs, and ends the training with a checkpoint after that step.

    A second Ctrl-C breaks off. Where several processes train, they would stop at different steps, and outside of the
    main thread Python allows no handler: Ctrl-C breaks off at once there, and the last checkpoint is what is left.
    """

    noted = False

    def __init__(self, arguments: TrainingArguments) -> None:
        main = threading.current_thread() is threading.main_thread()
        self._former = signal.getsignal(signal.SIGINT) if main and arguments.world_size == 1 else None

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
