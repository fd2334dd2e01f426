"""The stock trainer, where it has to know of instructions and of other processes."""

from __future__ import annotations

from typing import Any, cast

from accelerate.utils import load_fsdp_model
from sentence_transformers import SentenceTransformerTrainer
from sentence_transformers.sentence_transformer.modules import Transformer
from torch import Tensor
from transformers.integrations import unset_hf_deepspeed_config

from st_llm_embed.modules import LLMSentenceTransformer
from st_llm_embed.training.collator import InstructionCollator


class EmbedderTrainer(SentenceTransformerTrainer):
    """Puts each row's instruction before its anchor, and knows which process writes what into a checkpoint."""

    data_collator_class = InstructionCollator

    def __init__(self, model: LLMSentenceTransformer, **kwargs: Any) -> None:
        """Build the trainer; arguments as in SentenceTransformerTrainer."""
        super().__init__(model=model, **kwargs)
        if self.is_fsdp_enabled:
            # sentence-transformers 6.2 names no layers, and then the whole model would be gathered at once.
            plugin: Any = self.accelerator.state.fsdp_plugin
            plugin.transformer_cls_names_to_wrap = list(cast(Transformer, model[0]).model._no_split_modules or ())
            # accelerate 1.15 looks here for a last norm to shard, finds the module Normalize among the model's own
            # children, and torch cannot shard that ("object layout differs").
            cast(Any, model).base_model_prefix = "0"
        # Told of ZeRO-3, transformers spreads each model as it is read. Those that are read for comparison and to be
        # saved have to be whole, and the first process reads them alone; the one to train is spread later.
        unset_hf_deepspeed_config()

    def is_sharded(self) -> bool:
        """Tell whether no process has all of the weights: accelerate was told to use FSDP or DeepSpeed."""
        return bool(self.is_fsdp_enabled or self.is_deepspeed_enabled)

    def gathered_weights(self) -> dict[str, Tensor]:
        """Put together the weights that are spread over processes, all of which have to call this.

        Returns:
            The model's state on the CPU, by name; in other processes than the first it may be empty.
        """
        return self.accelerator.get_state_dict(self.model_wrapped)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        # transformers 5.23 calls this on every process and leaves the choice to it; sentence-transformers 6.2 makes
        # none, so that all processes write into the same files at once. Of sharded weights it would write one
        # process's part, or nothing; what a training goes on from is then in files of FSDP or DeepSpeed.
        if self.args.should_save and not self.is_sharded():
            super()._save(output_dir, state_dict=state_dict)

    def _load_from_checkpoint(self, checkpoint_path: str, model: Any = None) -> None:
        # transformers 5.23 gives the sharded model, too, which sentence-transformers 6.2 does not take.
        if self.is_fsdp_enabled:
            load_fsdp_model(self.accelerator.state.fsdp_plugin, self.accelerator, model, checkpoint_path)
        else:
            super()._load_from_checkpoint(checkpoint_path)
