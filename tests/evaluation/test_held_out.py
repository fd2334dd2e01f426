from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import example_rows
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator, TripletEvaluator

from st_llm_embed import InputError, LLMSentenceTransformer
from st_llm_embed.data.dataset import write_dataset
from st_llm_embed.data.rows import Row
from st_llm_embed.evaluation.held_out import HeldOut, evaluate_held_out, load_held_out


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> HeldOut:
    folder = tmp_path_factory.mktemp("dataset")
    examples = example_rows(60)
    # Some positives repeat their anchor, so that a random model finds some and misses some.
    for row in examples[::3]:
        row["positive"] = f"Instruct: {row['instruction']}\nQuery: {row['anchor']}."
    write_dataset((Row.model_validate(row) for row in examples), folder, 0.4)
    return load_held_out(folder)


@pytest.fixture(scope="module")
def model(tiny_base: Path) -> SentenceTransformer:
    model = LLMSentenceTransformer.from_base(str(tiny_base), max_seq_length=64, device="cpu")
    # The stock evaluator would put the saved query prompt before queries that carry their own instruction.
    model.prompts = {"query": "", "document": ""}
    return model


def test_scores_are_those_of_the_stock_evaluators(model: SentenceTransformer, rows: HeldOut) -> None:
    stock = InformationRetrievalEvaluator(
        {str(number): query for number, query in enumerate(rows.queries)},
        {str(number): document for number, document in enumerate(rows.documents)},
        {str(number): {str(positive)} for number, positive in enumerate(rows.positive)},
        main_score_function="cosine",
        write_csv=False,
    )(model)
    chosen = np.flatnonzero(rows.task_type == "sts")
    stock |= TripletEvaluator(
        [rows.queries[number] for number in chosen],
        [rows.documents[rows.positive[number]] for number in chosen],
        [rows.documents[rows.negative[number]] for number in chosen],
        main_similarity_function="cosine",
        write_csv=False,
    )(model)
    ours = evaluate_held_out(model, rows, batch_size=8).summary
    assert ours["retrieval_ndcg_at_10"] == pytest.approx(stock["cosine_ndcg@10"], abs=1e-6)
    assert ours["retrieval_recall_at_1"] == pytest.approx(stock["cosine_recall@1"], abs=1e-6)
    assert ours["sts_triplet_accuracy"] == pytest.approx(stock["cosine_accuracy"], abs=1e-6)
    assert 0 < ours["retrieval_recall_at_1"] < 1


def test_parts_weigh_up_to_the_whole(model: SentenceTransformer, rows: HeldOut) -> None:
    summary = evaluate_held_out(model, rows, batch_size=8).summary
    for group in ("by_task_type", "by_language"):
        parts = summary[group].values()
        assert sum(part["retrieval_queries"] for part in parts) == summary["queries"]
        weighted = sum(part["retrieval_ndcg_at_10"] * part["retrieval_queries"] for part in parts) / summary["queries"]
        assert weighted == pytest.approx(summary["retrieval_ndcg_at_10"])
    assert summary["by_language"]["other languages"]["retrieval_queries"] == np.sum(rows.task_type == "bitext")


def test_a_model_that_training_broke_is_refused(tiny_base: Path, rows: HeldOut) -> None:
    broken = LLMSentenceTransformer.from_base(str(tiny_base), max_seq_length=64, device="cpu")
    with torch.no_grad():
        next(broken.parameters()).fill_(float("nan"))
    with pytest.raises(InputError, match=r"not finite.*lower training.learning_rate, use bf16"):
        evaluate_held_out(broken, rows, batch_size=8)


def test_random_pairs_are_never_a_query_and_its_own_document() -> None:
    """Each text has a direction of its own, a query that of its document."""

    class Directions:
        def encode(self, texts: list[str], **_: object) -> np.ndarray:
            return np.eye(8, dtype=np.float32)[[int(text[-1]) for text in texts]]

    for count in (1, 2, 8):
        rows = HeldOut(
            queries=[f"query {number}" for number in range(count)],
            anchors=[f"query {number}" for number in range(count)],
            documents=[f"document {number}" for number in range(count)],
            positive=np.arange(count),
            negative=np.full(count, -1),
            task_type=np.array(["sts"] * count),
            language=np.array(["English"] * count),
        )
        scores = evaluate_held_out(Directions(), rows, batch_size=4)
        assert scores.positive_similarity.tolist() == [1.0] * count
        assert scores.random_similarity.tolist() == [0.0] * (count if count > 1 else 0)
