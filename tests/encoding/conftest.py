from __future__ import annotations

from pathlib import Path

import pytest

from st_llm_embed import LLMSentenceTransformer


@pytest.fixture(scope="session")
def tiny_model(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoding") / "model"
    LLMSentenceTransformer.from_base(str(tiny_base), max_seq_length=64, device="cpu").save(str(folder))
    return folder
