"""The stock trainer, where it has to know of instructions and of other processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformerTrainer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from st_llm_embed.errors import InputError, explained
from st_llm_embed.training.collator import InstructionCollator


class EmbedderTrainer(SentenceTransformerTrainer):
    """Puts each row's instruction before its anchor, and lets one process alone write a checkpoint.

    Scores on the way leave the training as it would be without them, and the best checkpoint is loaded or an error.
    """

    data_collator_class = InstructionCollator

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Score the model; arguments as in the stock trainer."""
        # Every data loader draws a seed for its workers from torch's generator, which dropout draws from, too.
        with torch.random.fork_rng(devices=[]):
            return super().evaluate(*args, **kwargs)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], Any]:
        """Take the batches of one step; none where all steps are done."""
        # transformers 5.23 makes one step too many when it goes on from the checkpoint of the last one.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return [], None
        return super().get_batch_samples(*args, **kwargs)

    def _load_best_model(self) -> None:
        # sentence-transformers 6.2 only logs it when this fails: the last weights would be released as the best.
        best = str(self.state.best_model_checkpoint)
        with explained(f"The best checkpoint {best} cannot be loaded", "Choose another --output-dir to train anew."):
            self._load_from_checkpoint(best)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        # transformers 5.23 calls this on every process and leaves the choice to it; sentence-transformers 6.2 makes
        # none, so that all processes write into the same files at once.
        if self.args.should_save:
            super()._save(output_dir, state_dict=state_dict)


class FindBestCheckpoint(TrainerCallback):
    """Looks for the best checkpoint of a resumed training where it lies now."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Replace the recorded path, which is another one after the output folder was moved or copied.

        Raises:
            InputError: it is gone.
        """
        del control, kwargs
        if state.best_global_step is None:
            return
        checkpoint = Path(str(args.output_dir)) / f"checkpoint-{state.best_global_step}"
        if not checkpoint.is_dir():
            raise InputError(
                f"{checkpoint}, the best checkpoint of the training that is to go on, is not there. Put it back, or "
                "choose another --output-dir to train anew."
            )
        state.best_model_checkpoint = str(checkpoint)
