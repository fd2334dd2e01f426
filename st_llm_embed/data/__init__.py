"""Rows, their files, and the split into what is trained on and what is held out.

Names are imported lazily, so that rows can be read and written without the libraries of datasets and training.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from st_llm_embed.data.dataset import (
        Split,
        check_rows,
        is_text_column,
        load_split,
        negative_columns,
        split_of,
        to_training,
        write_dataset,
    )
    from st_llm_embed.data.rows import Attributes, Row, read_rows, rows_file

__all__ = [
    "Attributes",
    "Row",
    "Split",
    "check_rows",
    "is_text_column",
    "load_split",
    "negative_columns",
    "read_rows",
    "rows_file",
    "split_of",
    "to_training",
    "write_dataset",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "rows" if name in {"Attributes", "Row", "read_rows", "rows_file"} else "dataset"
    return getattr(import_module(f"{__name__}.{home}"), name)
