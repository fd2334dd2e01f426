"""Rows, their files, and the split into what is trained on and what is held out."""

from st_llm_embed.data.dataset import Split, check_rows, load_split, split_of, to_training, write_dataset
from st_llm_embed.data.rows import Attributes, Row, read_rows, rows_file

__all__ = [
    "Attributes",
    "Row",
    "Split",
    "check_rows",
    "load_split",
    "read_rows",
    "rows_file",
    "split_of",
    "to_training",
    "write_dataset",
]
