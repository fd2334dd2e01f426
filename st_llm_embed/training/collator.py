"""Per-row instructions: the collator that puts each row's own instruction before its anchor."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator

from st_llm_embed.data.dataset import is_text_column, task_type_of
from st_llm_embed.instructions import format_query

TASK_TYPE = "task_type"
"""Key of a batch: what all of its rows are of, or SEVERAL."""

SEVERAL = "several"


@dataclass
class InstructionCollator(SentenceTransformerDataCollator):
    """Tokenizes anchors under their instructions, exactly as `encode_query(texts, instruction=[...])` does.

    Only the columns anchor, positive, negative and negative_1, negative_2, ... reach the model, and of those the ones
    that every row of the batch has: a batch of rows with and without a negative has none.
    """

    # Batch samplers do not compare the columns that are named here: rows that share an instruction are not duplicates.
    valid_label_columns: list[str] = field(default_factory=lambda: ["instruction"])

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """Make a batch of rows, which hold at least anchor, positive and instruction."""
        columns = [name for name in features[0] if is_text_column(name) and all(name in row for row in features)]
        kept = [name for name in ("dataset_name",) if name in features[0]]
        batch = super().__call__(
            [
                {name: row[name] for name in (*kept, *columns)}
                | {"anchor": format_query(row["instruction"], row["anchor"])}
                for row in features
            ]
        )
        # Rows of several configurations can share a batch, which names the first one's.
        kinds = {task_type_of(row["dataset_name"]) for row in features if kept}
        return batch | {TASK_TYPE: kinds.pop() if len(kinds) == 1 else SEVERAL}
