"""The stock trainer, where it has to know of instructions and of other processes."""

from __future__ import annotations

from typing import Any

from sentence_transformers import SentenceTransformerTrainer

from st_llm_embed.training.collator import InstructionCollator


class EmbedderTrainer(SentenceTransformerTrainer):
    """Puts each row's instruction before its anchor, and lets one process alone write a checkpoint."""

    data_collator_class = InstructionCollator

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        # transformers 5.23 calls this on every process and leaves the choice to it; sentence-transformers 6.2 makes
        # none, so that all processes write into the same files at once.
        if self.args.should_save:
            super()._save(output_dir, state_dict=state_dict)
