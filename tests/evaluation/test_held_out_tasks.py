from __future__ import annotations

from pathlib import Path

import mteb
import numpy as np
import pytest
from conftest import example_rows
from mteb.cache import ResultCache

from st_llm_embed import InputError, LLMSentenceTransformer
from st_llm_embed.data import Row, write_dataset
from st_llm_embed.evaluation import evaluate_held_out, load_held_out
from st_llm_embed.evaluation.held_out_tasks import held_out_tasks


def dataset(folder: Path, count: int) -> Path:
    examples = example_rows(count)
    # Some positives repeat their anchor, so that a random model finds some and misses some.
    for row in examples[::3]:
        row["positive"] = f"Instruct: {row['instruction']}\nQuery: {row['anchor']}."
    write_dataset((Row.model_validate(row) for row in examples), folder, 0.4)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dataset(tmp_path_factory.mktemp("dataset"), 60)


@pytest.fixture(scope="module")
def model(tiny_base: Path) -> LLMSentenceTransformer:
    """It has saved prompts for queries, STS and bitext, as every released model does."""
    return LLMSentenceTransformer.from_base(str(tiny_base), max_seq_length=64, device="cpu")


def main_scores(model: LLMSentenceTransformer, folder: Path, cache: ResultCache | None = None) -> dict[str, float]:
    results = mteb.evaluate(model, held_out_tasks(folder), cache=cache, show_progress_bar=False)
    return {result.task_name.split("-")[0]: result.get_score() for result in results.task_results}


def test_scores_are_those_of_the_report(model: LLMSentenceTransformer, folder: Path) -> None:
    ours = evaluate_held_out(model, load_held_out(folder), batch_size=8).summary
    scores = main_scores(model, folder)
    assert scores["HeldOutRetrieval"] == pytest.approx(ours["retrieval_ndcg_at_10"], abs=1e-5)
    assert scores["HeldOutSTS"] == pytest.approx(ours["sts_triplet_accuracy"], abs=1e-5)
    assert scores["HeldOutBitext"] == pytest.approx(ours["bitext_accuracy"], abs=1e-5)
    assert 0 < scores["HeldOutRetrieval"] < 1


def test_each_query_has_its_own_instruction_and_no_other(folder: Path) -> None:
    [retrieval, *_] = held_out_tasks(folder)
    queries = retrieval.data["queries"]["text"]
    assert len({query.split("\nQuery: ")[0] for query in queries}) > 1
    assert all(query.count("Instruct: ") == 1 for query in queries)


def test_a_model_trained_without_instructions_is_asked_without(folder: Path) -> None:
    [retrieval, *_] = held_out_tasks(folder, "none")
    assert retrieval.data["queries"]["text"] == load_held_out(folder).anchors


def test_the_revision_is_the_content_and_is_in_the_name(folder: Path, tmp_path: Path) -> None:
    [again, *_] = held_out_tasks(folder)
    [other, *_] = held_out_tasks(dataset(tmp_path, 40))
    [task, *_] = held_out_tasks(folder)
    assert task.metadata.revision == again.metadata.revision
    assert task.metadata.revision != other.metadata.revision
    assert task.metadata.name == f"HeldOutRetrieval-{task.metadata.revision[:8]}"


def test_two_datasets_in_one_cache_have_scores_of_their_own(
    model: LLMSentenceTransformer, folder: Path, tmp_path: Path
) -> None:
    cache = ResultCache(tmp_path / "cache")
    other = dataset(tmp_path / "other", 40)
    first, second = main_scores(model, folder, cache), main_scores(model, other, cache)
    expected = evaluate_held_out(model, load_held_out(other), batch_size=8).summary["retrieval_ndcg_at_10"]
    assert second["HeldOutRetrieval"] == pytest.approx(expected, abs=1e-5)
    assert not np.isclose(first["HeldOutRetrieval"], second["HeldOutRetrieval"], atol=1e-3)


def test_task_types_without_rows_make_no_task(tmp_path: Path) -> None:
    examples = [row for row in example_rows(60) if row["task_type"] == "short-long"]
    write_dataset((Row.model_validate(row) for row in examples), tmp_path, 0.4)
    assert [task.metadata.name.split("-")[0] for task in held_out_tasks(tmp_path)] == ["HeldOutRetrieval"]


def test_a_folder_without_held_out_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no held-out rows.*dataset folder of a run"):
        held_out_tasks(tmp_path)
