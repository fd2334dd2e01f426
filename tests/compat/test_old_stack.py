"""What we save, read by sentence-transformers 5.1.2 and transformers 4.57.6 in an environment of their own."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from families import ROTARY, save_base

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
texts, *folders = json.loads(sys.argv[1])
found = [sentence_transformers.__version__, transformers.__version__]
for folder in folders:
    model = sentence_transformers.SentenceTransformer(folder, device="cpu")
    ids = [model.tokenizer(text, truncation=True, max_length=model.max_seq_length)["input_ids"] for text in texts]
    np.savez(f"{folder}/old.npz", plain=model.encode(texts), query=model.encode_query(texts))
    found.append([model.max_seq_length, ids])
print(json.dumps(found))
"""

SCALED = [*(("llama", kind) for kind in ROTARY), ("phi3", "longrope"), ("gpt-neox", "linear"), ("phi", "yarn")]


def models(tiny_base: Path, folder: Path) -> dict[str, LLMSentenceTransformer]:
    """Embedders of many kinds, by the name that they are saved under."""
    made = {"embedded": LLMSentenceTransformer.from_base("embedded", max_seq_length=64, device="cpu")}
    for pooling in ("lasttoken", "mean", "weightedmean"):
        made[pooling] = LLMSentenceTransformer.from_base(
            tiny_base, max_seq_length=64, pooling_mode=pooling, device="cpu"
        )
    made["splitting"] = LLMSentenceTransformer.from_base(tiny_base, max_seq_length=64, device="cpu")
    made["splitting"][0].processing_kwargs = {"text": {"split_special_tokens": True}}
    for family, kind in SCALED:
        base = save_base(folder / "bases" / f"{family}-{kind}", family, "byte-level BPE", bos=False, rotary=kind)
        made[f"{family}-{kind}"] = LLMSentenceTransformer.from_base(base, max_seq_length=100, device="cpu")
    return made


def test_the_old_stack_gives_the_same_tokens_and_vectors(tiny_base: Path, tmp_path: Path) -> None:
    made = models(tiny_base, tmp_path)
    for name, model in made.items():
        model.save_pretrained(str(tmp_path / name))
    asked = json.dumps([TEXTS, *(str(tmp_path / name) for name in made)])
    result = subprocess.run(
        [str(PYTHON), "-W", "ignore", "-c", PROGRAM, asked], check=False, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    assert found[:2] == ["5.1.2", "4.57.6"]
    for (name, model), (length, ids) in zip(made.items(), found[2:], strict=True):
        assert length == model.max_seq_length, name
        assert ids == [list(row) for row in model[0].token_ids(TEXTS)], name
        old = np.load(tmp_path / name / "old.npz")
        assert (old["plain"] * model.encode(TEXTS)).sum(axis=1).min() >= 0.9999, name
        # An empty query is its prompt alone, which ends in a space.
        assert (old["query"] * model.encode_query(TEXTS))[1:].sum(axis=1).min() >= 0.9999, name
