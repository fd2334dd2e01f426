"""Own data: a BEIR folder, or rows beside a corpus, by BM25 and by models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Outcome, example_rows, write_rows
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from sklearn.metrics import ndcg_score
from tokenizers import Tokenizer

from st_llm_embed import InputError, LLMSentenceTransformer
from st_llm_embed.data.beir import RetrievalSet, read_retrieval_set
from st_llm_embed.evaluation.bm25 import bm25_similarity
from st_llm_embed.evaluation.ranking import dot_products, interval, rank
from st_llm_embed.evaluation.retrieval import OWN_INSTRUCTIONS, search, search_with_model

RunCli = Callable[..., Outcome]

CORPUS = {
    "d1": "The ferry to the island leaves at nine.",
    "d2": "Ferries to islands are cheaper in winter.",
    "d3": "A recipe for bread with rye flour.",
    "d4": "",
}
QUERIES = {"q1": "when does the ferry leave", "q2": "rye bread recipe", "q3": "nothing is relevant here"}
QRELS = [("q1", "d1", "2"), ("q1", "d2", "1"), ("q2", "d3", "1"), ("q3", "d1", "0")]


def jsonl(path: Path, texts: dict[str, str]) -> Path:
    lines = (json.dumps({"_id": name, "title": "", "text": text}) for name, text in texts.items())
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture
def beir(tmp_path: Path) -> Path:
    folder = tmp_path / "beir"
    (folder / "qrels").mkdir(parents=True)
    jsonl(folder / "corpus.jsonl", CORPUS)
    jsonl(folder / "queries.jsonl", QUERIES)
    lines = ("\t".join(one) for one in [("query-id", "corpus-id", "score"), *QRELS])
    (folder / "qrels" / "test.tsv").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def models(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A decoder that takes instructions, and static embeddings, which have neither a length nor instructions."""
    folder = tmp_path_factory.mktemp("models")
    LLMSentenceTransformer.from_base(str(tiny_base), max_seq_length=24, device="cpu").save(str(folder / "decoder"))
    tokenizer = Tokenizer.from_file(str(tiny_base / "tokenizer.json"))
    static = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=16)], device="cpu")
    static.save(str(folder / "static"))
    return folder / "decoder", folder / "static"


def test_scores_of_many_relevant_documents_are_those_of_others(models: tuple[Path, Path]) -> None:
    random = np.random.default_rng(1)
    queries, documents = (random.normal(size=(count, 8)).astype(np.float32) for count in (30, 150))
    relevant = [
        {int(place): int(random.integers(1, 4)) for place in random.choice(150, random.integers(1, 15), replace=False)}
        for _ in queries
    ]
    found = rank(dot_products(queries, documents), 150, relevant)
    for number, graded in enumerate(relevant):
        grades = np.array([graded.get(place, 0) for place in range(150)])
        expected = ndcg_score([grades], [documents @ queries[number]], k=10)
        assert found.scores["ndcg_at_10"][number] == pytest.approx(expected)
    assert (found.top == np.argsort(-(queries @ documents.T), axis=1)[:, :3]).all()

    texts = {name: {str(n): f"{name} {n} {n % 7}" for n in range(20)} for name in ("corpus", "queries")}
    rows = RetrievalSet(
        **texts, relevance={str(n): {str(n): 1, str((n + 7) % 20): 1} for n in range(20)}, instructions={}
    )
    model = LLMSentenceTransformer(str(models[0]), device="cpu")
    scores = search_with_model(rows, model, instruction="").ranked.scores
    model.prompts = {"query": "", "document": ""}
    judged = {query: set(graded) for query, graded in rows.relevance.items()}
    stock = InformationRetrievalEvaluator(
        rows.queries, rows.corpus, judged, main_score_function="cosine", mrr_at_k=[20], write_csv=False
    )(model)
    expected = {"recall_at_1": "recall@1", "recall_at_10": "recall@10", "mrr": "mrr@20", "ndcg_at_10": "ndcg@10"}
    for ours, theirs in expected.items():
        assert scores[ours].mean() == pytest.approx(stock[f"cosine_{theirs}"], abs=1e-6), ours


def test_of_equally_near_documents_the_less_relevant_comes_first() -> None:
    queries, documents = np.ones((2, 1), dtype=np.float32), np.ones((20, 1), dtype=np.float32)
    found = rank(dot_products(queries, documents), 20, [{7: 1}, {0: 1, 3: 2}]).scores
    assert found["mrr"].tolist() == [1 / 20, 1 / 19]
    assert found["ndcg_at_10"].tolist() == [0, 0]
    low, high = interval(np.array([0.0, 1.0] * 200))
    assert 0.44 < low < 0.47
    assert 0.53 < high < 0.56


def test_a_folder_is_scored_by_bm25_and_models_side_by_side(
    beir: Path, models: tuple[Path, Path], run_cli: RunCli
) -> None:
    decoder, static = models
    command = ["evaluate", decoder, "--data", beir, "--beside", static, "--instruction", "Find it"]
    outcome = run_cli(*command, "--json")
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    # q3 has no relevant document.
    assert (found["queries"], found["documents"]) == (2, 4)
    systems = found["systems"]
    assert list(systems) == ["BM25", str(decoder), str(static)]
    assert {name: one["query_prompt"] for name, one in systems.items()} == {
        "BM25": "",
        str(decoder): "Instruct: Find it\nQuery: ",
        str(static): "",
    }
    assert systems["BM25"]["scores"]["recall_at_1"] == {"mean": 0.75, "low": 0.5, "high": 1.0}
    assert systems["BM25"]["scores"]["ndcg_at_10"]["mean"] == 1.0
    assert systems[str(decoder)]["lengths"]["cut"] > 0
    assert systems[str(static)]["lengths"] == {"texts": 6, "cut": 0, "tokens": 0, "read": 0}

    table = run_cli(*command).out
    assert "nDCG@10" in table
    assert "texts (" in table.split(str(decoder))[-1]
    assert "2 queries, 4 documents; nothing is evaluated" in run_cli(*command, "--dry-run").out
    # A name that cannot be one is found before anything is encoded.
    mistyped = run_cli(*command, "--beside", "no/such/folder", "--dry-run")
    assert (mistyped.code, "no model folder 'no/such/folder'" in mistyped.err) == (2, True)


def test_rows_look_for_their_positives_in_a_corpus(tmp_path: Path, models: tuple[Path, Path]) -> None:
    rows = [row for row in example_rows(8) if row["task_type"] != "bitext"]
    rows[0]["positive"] = "A document of the corpus."
    rows.append(rows[1] | {"positive": "another answer to the same"})
    path = write_rows(tmp_path / "rows.jsonl", rows)
    (tmp_path / "corpus.txt").write_text("Noise.\n A document of the corpus.\nMore noise.\n", encoding="utf-8")
    found = read_retrieval_set(path, tmp_path / "corpus.txt")
    assert found.relevance["1"] == {"2": 1}
    assert list(found.relevance["2"]) == ["positive of row 2", f"positive of row {len(rows)}"]
    assert len(found.queries) == len(rows) - 1
    texts = {text for row in rows for text in (row["positive"], row.get("negative")) if text}
    assert set(found.corpus.values()) == {"Noise.", "More noise.", " A document of the corpus.".strip()} | texts
    decoder = LLMSentenceTransformer(str(models[0]), device="cpu")
    assert search_with_model(found, decoder).query_prompt == OWN_INSTRUCTIONS
    assert len(read_retrieval_set(path).corpus) == len(texts)


@pytest.mark.parametrize(
    ("queries", "documents", "nearest"),
    [
        (["leaving ferries"], ["the ferry leaves", "the island", "a ferryman"], 0),
        (["Hunde bellen"], ["Die Katze schläft am Ofen.", "Der Hund bellt laut.", "Es regnet in Strömen."], 1),
        (["北海道の天気"], ["東京の電車は速い", "今日の北海道は天気がいい", "猫が好きです"], 1),
        (["मौसम कैसा है"], ["यह किताब अच्छी है", "आज का मौसम सुहावना है", "मेरा घर बड़ा है"], 1),
    ],
)
def test_bm25_finds_words_in_any_script(queries: list[str], documents: list[str], nearest: int) -> None:
    assert bm25_similarity(queries, documents)(0, 1)[0].argmax() == nearest


def test_bm25_takes_texts_without_words() -> None:
    assert bm25_similarity(["?!", "unseen"], ["", "..."])(0, 2).tolist() == [[0, 0], [0, 0]]


def test_a_query_does_not_find_itself() -> None:
    """As in ArguAna, where the queries are in the corpus under the same id."""
    corpus = {"a": "Why: taxes are good", "b": "taxes are bad", "1": "something else"}
    rows = RetrievalSet(corpus, {"a": "taxes are good", "1": "taxes are"}, {"a": {"b": 1}, "1": {"b": 1}}, {})
    similarity = np.array([[3, 2, 1], [0, 1, 2]], dtype=np.float32)
    assert search(rows, lambda start, stop: similarity[start:stop].copy()).scores["mrr"].tolist() == [1, 0.5]


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("corpus.jsonl", None, r"has no corpus\.jsonl. A BEIR folder has"),
        ("queries.jsonl", None, r"has no queries\.jsonl"),
        ("qrels/test.tsv", None, r"has no qrels/test\.tsv, only dev\.tsv"),
        ("corpus.jsonl", '{"_id": "d1", "text": "a"}\n' * 2, r"corpus\.jsonl, line 2 has the id 'd1'"),
        ("queries.jsonl", '{"_id": "q1"}\n', r"queries\.jsonl, line 1 holds no text"),
        ("corpus.jsonl", "", "holds no texts"),
        ("corpus.jsonl", '{"_id": "d1", "text": "a"}\n', r"test\.tsv names documents .* lacks: 'd2', 'd3'\."),
        ("queries.jsonl", '{"_id": "q9", "text": "a"}\n', r"test\.tsv names queries .* lacks: 'q1', 'q2', 'q3'\."),
        ("qrels/test.tsv", "q1\td1\t1\nq2\td2\t1\n", r"line 2 lacks query-id, corpus-id, score"),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\nq1\td1\thigh\n", "has the score 'high'"),
        ("qrels/test.tsv", "query-id\tcorpus-id\tscore\nq1\td1\t0\n", "no grade above 0"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused(beir: Path, file: str, content: str | None, told: str) -> None:
    (beir / "qrels" / "dev.tsv").write_text("", encoding="utf-8")
    if content is None:
        (beir / file).unlink()
    else:
        (beir / file).write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=told):
        read_retrieval_set(beir)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--data", "nowhere"), "no folder or file nowhere"),
        (("--data", "nowhere", "--tasks", "STS12"), "--tasks cannot be used with --data"),
        (("--tasks", "STS12", "--json", "--corpus", "x.txt"), "--corpus, --json cannot be used without --data"),
    ],
)
def test_options_of_the_other_kind_are_refused(arguments: tuple[str, ...], told: str, run_cli: RunCli) -> None:
    outcome = run_cli("evaluate", "model", *arguments)
    assert (outcome.code, told in outcome.err) == (2, True), outcome.err
