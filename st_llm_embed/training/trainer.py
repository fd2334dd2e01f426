"""The stock trainer with our collator, losses and batches, and what it lacks for several processes."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import load_fsdp_model
from datasets import DatasetDict
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.evaluation import SentenceEvaluator
from sentence_transformers.sentence_transformer.modules import Transformer
from torch import Tensor
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import unset_hf_deepspeed_config
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK
from transformers.trainer_utils import IntervalStrategy

from st_llm_embed.data.dataset import is_text_column
from st_llm_embed.errors import InputError, explained
from st_llm_embed.modules.model import LLMSentenceTransformer
from st_llm_embed.recipe import Recipe
from st_llm_embed.training.batches import SetSamplerEpoch, TaskBatchSampler
from st_llm_embed.training.collator import TASK_TYPE, InstructionCollator
from st_llm_embed.training.loss import build_losses
from st_llm_embed.training.reporting import TrainingLog


class EmbedderTrainer(SentenceTransformerTrainer):
    """Puts each row's instruction before its anchor, and knows which process writes what into a checkpoint.

    Scores on the way leave the training as it would be without them, and the best checkpoint is loaded or an error.
    """

    data_collator_class = InstructionCollator

    def __init__(self, model: SentenceTransformer, **kwargs: Any) -> None:
        """Build the trainer; arguments as in SentenceTransformerTrainer."""
        super().__init__(model=model, **kwargs)
        self._losses: dict[str, list[Tensor]] = {}
        self.add_callback(TrainingLog())
        # They write dictionaries.
        for stock in (PrinterCallback, DEFAULT_PROGRESS_CALLBACK):
            self.remove_callback(stock)
        if self.is_fsdp_enabled:
            # sentence-transformers 6.2 names no layers, and then the whole model would be gathered at once.
            plugin: Any = self.accelerator.state.fsdp_plugin
            plugin.transformer_cls_names_to_wrap = list(cast(Transformer, model[0]).model._no_split_modules or ())
            # accelerate 1.15 looks here for a last norm to shard, finds the module Normalize among the model's own
            # children, and torch cannot shard that ("object layout differs").
            cast(Any, model).base_model_prefix = "0"
        # With ZeRO-3 set up, transformers spreads each model as it is read. Those that are read for comparison and to
        # be saved have to be whole, and the first process reads them alone; the one to train is spread later.
        unset_hf_deepspeed_config()

    def is_sharded(self) -> bool:
        """Whether no process has all of the weights: accelerate was set to use FSDP or DeepSpeed."""
        return bool(self.is_fsdp_enabled or self.is_deepspeed_enabled)

    def gathered_weights(self) -> dict[str, Tensor]:
        """Return the state that is spread over processes, on the CPU; all call this, and the first gets all of it."""
        return self.accelerator.get_state_dict(self.model_wrapped)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Compute the loss of a batch, and remember of which task type it is; arguments as in the stock trainer."""
        task_type = inputs.pop(TASK_TYPE, None)
        computed = super().compute_loss(model, inputs, *args, **kwargs)
        loss = computed[0] if isinstance(computed, tuple) else computed
        if task_type is not None:
            self._losses.setdefault(task_type, []).append(loss.detach())
        return computed

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the mean loss of each task type since the last record, of this process's batches."""
        if "loss" in logs:
            means = {f"loss_{name}": torch.stack(losses).mean().item() for name, losses in self._losses.items()}
            logs, self._losses = logs | means, {}
        super().log(logs, start_time)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Score the model; arguments as in the stock trainer."""
        # Every data loader draws a seed for its workers from torch's generator, which dropout draws from, too.
        with torch.random.fork_rng(devices=[]):
            return super().evaluate(*args, **kwargs)

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], Any]:
        """Take the batches of one step; none where all steps are done."""
        # transformers 5.23 makes one step too many when it resumes from the checkpoint of the last one.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return [], None
        return super().get_batch_samples(*args, **kwargs)

    def _load_best_model(self) -> None:
        # sentence-transformers 6.2 only logs it when this fails: the last weights would be released as the best.
        best = str(self.state.best_model_checkpoint)
        with explained(f"The best checkpoint {best} cannot be loaded", "Choose another --output-dir to train again."):
            self._load_from_checkpoint(best)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        # transformers 5.23 calls this on every process and leaves the choice to it; sentence-transformers 6.2 makes
        # none, so that all processes write into the same files at once. Of sharded weights it would write one
        # process's part, or nothing; what a training resumes from is then in files of FSDP or DeepSpeed.
        if self.args.should_save and not self.is_sharded():
            super()._save(output_dir, state_dict=state_dict)

    def _load_from_checkpoint(self, checkpoint_path: str, model: Any = None) -> None:
        # transformers 5.23 passes the sharded model, too, which sentence-transformers 6.2 does not take.
        if self.is_fsdp_enabled:
            load_fsdp_model(self.accelerator.state.fsdp_plugin, self.accelerator, model, checkpoint_path)
        else:
            super()._load_from_checkpoint(checkpoint_path)


class FindBestCheckpoint(TrainerCallback):
    """Looks for the best checkpoint of a resumed training where it is now."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Replace the recorded path, which is wrong after the output folder was moved or copied.

        Raises:
            InputError: it is gone.
        """
        del control, kwargs
        if state.best_global_step is None:
            return
        checkpoint = Path(str(args.output_dir)) / f"checkpoint-{state.best_global_step}"
        if not checkpoint.is_dir():
            raise InputError(
                f"{checkpoint}, the best checkpoint of the training to resume, is not there. Put it back, or "
                "choose another --output-dir to train again."
            )
        state.best_model_checkpoint = str(checkpoint)


def build_trainer(
    recipe: Recipe,
    model: LLMSentenceTransformer,
    rows: DatasetDict,
    arguments: SentenceTransformerTrainingArguments,
    evaluator: SentenceEvaluator | None = None,
) -> EmbedderTrainer:
    """Put together the trainer, with the recipe's losses and batches.

    Raises:
        InputError: what the recipe asks for cannot be done with weights that are spread over the processes.
    """
    texts = {
        str(name): [column for column in part.column_names if is_text_column(column)] for name, part in rows.items()
    }
    losses = build_losses(model, recipe.loss, texts)
    if recipe.batches is not None:
        arguments.multi_dataset_batch_sampler = partial(
            TaskBatchSampler,
            choices=recipe.batches,
            configurations=[str(name) for name in rows],
            losses=[str(cast(Any, losses[str(name)]).get_config_dict()) for name in rows],
            processes=arguments.world_size,
        )
    trainer = EmbedderTrainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        loss=losses,
        evaluator=evaluator,
        callbacks=[SetSamplerEpoch(), FindBestCheckpoint()],
    )
    if trainer.is_sharded() and arguments.eval_strategy != IntervalStrategy.NO:
        raise InputError(
            f"Recipe {recipe.name}: training.eval_strategy is {IntervalStrategy(arguments.eval_strategy).value}, and "
            "what FSDP or DeepSpeed has spread over the processes cannot be scored on the way. Set it to no; the "
            "report has the scores of the end."
        )
    if trainer.is_deepspeed_enabled and recipe.loss.mini_batch_num_tokens is not None:
        # GradCache goes back several times in a step; DeepSpeed 0.19 (zero/stage3.py) stops at the second.
        raise InputError(
            f"loss.mini_batch_num_tokens is {recipe.loss.mini_batch_num_tokens}, and GradCache does not train with "
            "DeepSpeed. Set it to null with a smaller per_device_train_batch_size, or use FSDP2 (docs/training.md)."
        )
    return trainer
