"""A part of the faults of scripts/fault_table.py: what files show is found in them, and the rest by the probe."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from fault_table import TABLE, Fault
from inject_faults import Result, inject, make_releases, summary, vectors_of

from st_llm_embed import InputError, diagnose

CHANGES_NOTHING = {"merges of nobody's"}
WHOLE = [fault for number, fault in enumerate(TABLE) if number % 10 == 0]
"""Those that are measured before and after a repair; the rest is only looked for in the files."""


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_releases(tmp_path_factory.mktemp("releases"))
