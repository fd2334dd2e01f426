"""What we save, read by sentence-transformers 5.1.2 and transformers 4.57.6 in an environment of their own."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from st_llm_embed import LLMSentenceTransformer

PYTHON = Path(__file__).parents[2] / ".venv-compat" / "bin" / "python"

pytestmark = [
    pytest.mark.compat,
    pytest.mark.skipif(not PYTHON.exists(), reason="make test-compat builds the environment of the old versions"),
]

# sentence-transformers 5 strips texts, 6 does not; texts with edge whitespace are left out for that reason.
TEXTS = ["", "a", "how to fix a slow query", "Bonjour à tous", "你好 мир 🎈", "long " * 300 + "tail", "x </s> y"]

PROGRAM = """
import json, sys
import numpy as np
import sentence_transformers, transformers
folder, texts = sys.argv[1], json.loads(sys.argv[2])
model = sentence_transformers.SentenceTransformer(folder, device="cpu")
ids = [model.tokenizer(text, truncation=True, max_length=model.max_seq_length)["input_ids"] for text in texts]
np.savez(f"{folder}/old.npz", plain=model.encode(texts), query=model.encode_query(texts))
versions = [sentence_transformers.__version__, transformers.__version__, model.max_seq_length]
print(json.dumps({"versions": versions, "ids": ids}))
"""


@pytest.mark.parametrize("base", ["embedded", "tiny"])
def test_the_old_stack_gives_the_same_tokens_and_vectors(base: str, tiny_base: Path, tmp_path: Path) -> None:
    name = base if base == "embedded" else str(tiny_base)
    model = LLMSentenceTransformer.from_base(name, max_seq_length=64, device="cpu")
    model.save_pretrained(str(tmp_path))
    command = [str(PYTHON), "-W", "ignore", "-c", PROGRAM, str(tmp_path), json.dumps(TEXTS)]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout.splitlines()[-1])
    assert told["versions"] == ["5.1.2", "4.57.6", 64]
    assert told["ids"] == [list(row) for row in model[0].token_ids(TEXTS)]
    old = np.load(tmp_path / "old.npz")
    assert (old["plain"] * model.encode(TEXTS)).sum(axis=1).min() >= 0.9999
    # An empty query is its prompt alone, which ends in a space.
    assert (old["query"] * model.encode_query(TEXTS))[1:].sum(axis=1).min() >= 0.9999
