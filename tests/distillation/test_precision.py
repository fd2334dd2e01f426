"""Indexes of fewer and smaller numbers."""

from __future__ import annotations

import numpy as np
import pytest

from st_llm_embed.distillation.precision import cut, index_costs, int8_ranges


@pytest.fixture
def documents() -> np.ndarray:
    drawn = np.random.default_rng(0).normal(size=(300, 32)).astype(np.float32)
    return cut(drawn, 32)


def test_quality_falls_with_the_bits_and_int8_nearly_keeps_it(documents: np.ndarray) -> None:
    queries = cut(documents + np.random.default_rng(1).normal(scale=0.25, size=documents.shape).astype(np.float32), 32)
    rows = index_costs(queries, documents, np.arange(300), int8_ranges(documents, (32, 8)))
    found = {(row["length"], row["precision"]): row["ndcg_at_10"] for row in rows}
    assert found[32, "int8"] == pytest.approx(found[32, "float32"], abs=0.02)
    assert found[32, "binary"] < found[32, "float32"] - 0.02
    assert found[8, "float32"] < found[32, "float32"]
    assert [row["bytes_per_document"] for row in rows] == [128, 32, 4, 32, 8, 1]


def test_equal_vectors_find_nothing() -> None:
    same = np.full((50, 8), 8**-0.5, dtype=np.float32)
    rows = index_costs(same, same, np.arange(50), int8_ranges(same, (8,)))
    assert all(row["ndcg_at_10"] == 0 for row in rows)


def test_a_cut_vector_has_unit_length(documents: np.ndarray) -> None:
    np.testing.assert_allclose(np.linalg.norm(cut(documents, 5), axis=1), 1, rtol=1e-5)
    assert not np.isnan(cut(np.zeros((2, 8), dtype=np.float32), 4)).any()
