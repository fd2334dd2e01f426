"""Exact search over shards, against the same in numpy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Outcome
from numpy.typing import NDArray

from st_llm_embed import InputError
from st_llm_embed.encoding.encode import Embedder, Job
from st_llm_embed.encoding.search import VectorIndex
from st_llm_embed.encoding.shards import Manifest, Texts, VectorType, shard_path
from st_llm_embed.modules.layout import model_identity
from st_llm_embed.modules.lengths import Lengths

Cli = Callable[..., Outcome]


def write_index(
    folder: Path, vectors: NDArray[Any], model: str = "lab/model", revision: str = "", similarity: str = "cosine"
) -> Path:
    """Three shards, as `encode` writes them."""
    folder.mkdir()
    dtype: VectorType = "float16" if vectors.dtype == np.float16 else "float32"
    size = -(-len(vectors) // 3)
    manifest = Manifest(
        input="texts.jsonl",
        input_hash="",
        rows=len(vectors),
        shards=3,
        model=model,
        model_revision=revision,
        prompts={},
        similarity=similarity,
        role="document",
        dimension=vectors.shape[1],
        dtype=dtype,
        shard_size=size,
        keep_text=True,
        versions={},
    )
    manifest.write(folder)
    job = Job(Texts(manifest.input), model, folder, dtype=dtype)
    for number in range(3):
        places = range(number * size, min((number + 1) * size, len(vectors)))
        ids, texts = [f"id {place}" for place in places], [f"text {place}" for place in places]
        job.write(shard_path(folder, number, 3), ids, texts, vectors[places.start : places.stop], Lengths())
    return folder


@pytest.mark.parametrize(
    ("similarity", "dtype"), [("cosine", np.float32), ("cosine", np.float16), ("dot", np.float32)]
)
def test_what_is_found_is_what_comparing_with_every_vector_finds(similarity: str, dtype: type, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    vectors, query = draw.normal(size=(1000, 24)), draw.normal(size=24).astype(np.float32)
    index = VectorIndex(write_index(tmp_path / "index", vectors.astype(dtype), similarity=similarity))
    scores = vectors @ query
    if similarity == "cosine":
        scores /= np.linalg.norm(vectors, axis=1) * np.linalg.norm(query)
    expected = np.argsort(-scores)[:20]
    found = index.search(query, 20)
    assert [hit.id for hit in found] == [f"id {place}" for place in expected]
    assert [hit.text for hit in found] == [f"text {place}" for place in expected]
    assert np.abs([hit.score for hit in found] - scores[expected]).max() < (1e-2 if dtype is np.float16 else 1e-4)
    assert len(index.search(query, 5000)) == 1000


def test_two_folders_side_by_side(tiny_model: Path, tmp_path: Path, run_cli: Cli) -> None:
    vectors = np.random.default_rng(0).normal(size=(4, 32)).astype(np.float32)
    embedder = Embedder(str(tiny_model), "query", device="cpu")
    [vectors[1]] = embedder.encode(["text 1"])
    _, revision = model_identity(str(tiny_model))
    straight = write_index(tmp_path / "straight", vectors, str(tiny_model), revision)
    turned = write_index(tmp_path / "turned", vectors[::-1], str(tiny_model), revision)
    shown = run_cli("search", straight, turned, "text 1", "-k", "1")
    assert shown.code == 0
    [line] = [line for line in shown.out.splitlines() if "id 1" in line]
    assert line.count("1.0000") == 2
    assert line.index("id 1") < line.index("id 2")
    # Another model of the same space may encode the query; the one that the folder names has to be what it was.
    stale = write_index(tmp_path / "stale", vectors, str(tiny_model), "another")
    refused = run_cli("search", stale, "text 1")
    assert (refused.code, "no longer the model that made" in refused.err) == (2, True)
    assert "id 1" in run_cli("search", stale, "text 1", "--model", tiny_model, "-k", 1).out
    refused = run_cli("search", straight, turned, "text 1", "--model", tiny_model)
    assert (refused.code, "--model is given 1 times for 2 folders" in refused.err) == (2, True)
    refused = run_cli("search", straight, "caf\udce9")
    assert (refused.code, "is not Unicode" in refused.err) == (2, True)
    shard_path(turned, 2, 3).write_bytes(b"PAR1")
    refused = run_cli("search", turned, "text 1")
    assert (refused.code, "Remove shard-00002-of-00003.parquet" in " ".join(refused.err.split())) == (2, True)
    wide = write_index(tmp_path / "wide", np.ones((3, 33), np.float32), str(tiny_model), revision)
    with pytest.raises(InputError, match="have 32"):
        VectorIndex(wide).embedder()


def test_a_folder_that_cannot_be_searched_is_refused(tmp_path: Path, run_cli: Cli) -> None:
    vectors = np.ones((6, 4), np.float32)
    unfinished = write_index(tmp_path / "unfinished", vectors)
    shard_path(unfinished, 1, 3).unlink()
    torn = write_index(tmp_path / "torn", vectors)
    (torn / "_manifest.json").write_text(json.dumps({"rows": 1}))
    for folder, message in (
        (tmp_path, "holds no _manifest.json"),
        (unfinished, "lacks 1 of 3 shards"),
        (torn, "is not what st-llm-embed encode writes"),
    ):
        refused = run_cli("search", folder, "query")
        assert (refused.code, message in " ".join(refused.err.split())) == (2, True), refused
