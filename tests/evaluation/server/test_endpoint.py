from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import mteb
import numpy as np
import pytest
from embedding_server import EmbeddingServer, hashed
from evaluation.server.endpoint_run import evaluate_endpoint
from mteb.models.sentence_transformer_wrapper import SentenceTransformerEncoderWrapper
from things_tasks import ThingsRetrieval, ThingsSTS

from st_llm_embed.errors import InputError
from st_llm_embed.evaluation.server.client import PROBE, Server
from st_llm_embed.evaluation.server.cost import Limits, estimate
from st_llm_embed.evaluation.server.endpoint import endpoint_meta, open_endpoint
from st_llm_embed.modules import LLMSentenceTransformer

RETRIEVAL_PROMPT, STS_PROMPT = "Instruct: Find the thing.\nQuery: ", "Instruct: Find the same.\nQuery: "


@pytest.fixture(scope="module")
def tiny(tiny_base: Path) -> LLMSentenceTransformer:
    return LLMSentenceTransformer.from_base(str(tiny_base), max_seq_length=64)


def test_a_served_model_has_the_scores_of_the_model_itself(tmp_path: Path, tiny: LLMSentenceTransformer) -> None:
    with EmbeddingServer(tiny.encode) as server:
        served = evaluate_endpoint(Server(server.base_url, "tiny"), tmp_path)
    tiny.prompts = {"query": "", "document": "", "Retrieval-query": RETRIEVAL_PROMPT, "STS": STS_PROMPT}
    local = SentenceTransformerEncoderWrapper(tiny)
    results = mteb.evaluate(
        local, [ThingsRetrieval(), ThingsSTS()], cache=None, co2_tracker=False, show_progress_bar=False
    )
    assert served == {one.task_name: pytest.approx(one.get_score(), abs=1e-4) for one in results.task_results}
    # Instructions stand before queries, and not before documents.
    texts = set(server.texts) - {PROBE}
    assert f"{RETRIEVAL_PROMPT}Where is river 0?" in texts
    assert "The river number 0 is old and 0 miles away." in texts
    assert sum(text.startswith(STS_PROMPT) for text in texts) == len({text for text in texts if "A " in text})


def test_a_finished_task_is_not_sent_again_and_prompts_have_results_of_their_own(tmp_path: Path) -> None:
    with EmbeddingServer() as server:
        asked = Server(server.base_url, "tiny")
        first = evaluate_endpoint(asked, tmp_path)
        count = len(server.requests)
        assert evaluate_endpoint(asked, tmp_path) == pytest.approx(first, abs=1e-5)  # mteb rounds what it writes
        assert len(server.requests) == count
    meta = endpoint_meta(asked, "paper", None)
    folder = tmp_path / "results" / str(meta.name).replace("/", "__") / str(meta.revision)
    assert {path.name for path in (folder / "experiments" / "prompts_paper").glob("Things*.json")} == {
        "ThingsRetrieval.json",
        "ThingsSTS.json",
    }


def test_a_killed_run_goes_on_without_sending_an_answered_text_again(tmp_path: Path) -> None:
    reached, killed = threading.Event(), threading.Event()

    def hold_the_ninth(number: int, _texts: list[str]) -> Any:
        if number == 8 and not killed.is_set():
            reached.set()
            killed.wait()
        return None

    with EmbeddingServer(fault=hold_the_ninth) as server:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(["tests", *sys.path]), "HF_HUB_OFFLINE": "1"}
        run = [sys.executable, "tests/evaluation/server/endpoint_run.py", server.base_url, str(tmp_path)]
        with subprocess.Popen(run, env=environment, stderr=subprocess.DEVNULL) as process:
            reached.wait()
            process.kill()
        killed.set()
        answered = {text for texts in server.requests[:8] for text in texts} - {PROBE}
        before = len(server.requests)
        asked = Server(server.base_url, "tiny")
        scores = evaluate_endpoint(asked, tmp_path)
        again = {text for texts in server.requests[before:] for text in texts}
        assert answered & again == set()
        assert len(answered) == 28
        assert scores == pytest.approx(evaluate_endpoint(asked, tmp_path / "whole"), abs=1e-5)


def test_scores_that_were_finished_are_kept_when_the_dimension_changes(tmp_path: Path) -> None:
    with EmbeddingServer() as server:
        server.embed = lambda texts: hashed(texts, 4 if any("morning" in text for text in texts) else 8)
        with pytest.raises(InputError, match=r"dimension 4, and all before had 8: .* finished scores are kept"):
            evaluate_endpoint(Server(server.base_url, "tiny"), tmp_path)
    assert [path.name for path in tmp_path.rglob("Things*.json")] == ["ThingsRetrieval.json"]


def test_the_key_is_written_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    with EmbeddingServer() as server:
        evaluate_endpoint(Server(server.base_url, "tiny"), tmp_path, api_key_env="MY_KEY")
    assert server.keys == {"sk-very-secret"}
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 4
    assert not any(b"very-secret" in path.read_bytes() for path in files)


def test_a_key_that_is_missing_is_asked_for_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    asked = Server("https://api.openai.com/v1", "text-embedding-3-small")
    with (
        pytest.raises(InputError, match=r"MY_KEY is not set.*--api-key-env"),
        open_endpoint(asked, "none", tmp_path / "out", api_key_env="MY_KEY"),
    ):
        pass
    assert not (tmp_path / "out").exists()


def test_texts_are_cut_where_the_last_allowed_token_ends(tmp_path: Path, tiny: LLMSentenceTransformer) -> None:
    tiny.tokenizer.save_pretrained(tmp_path / "tokenizer")
    texts = ["A short one", "A much longer one, which says the same over and over again, over and over again"]
    with EmbeddingServer() as server:
        asked = Server(server.base_url, "tiny")
        options = {"limits": Limits(price=0), "tokenizer": str(tmp_path / "tokenizer"), "max_seq_length": 24}
        with open_endpoint(asked, "none", tmp_path, **options) as model:
            loader: Any = [{"text": texts}]
            model.encode(loader, task_metadata=ThingsSTS.metadata, hf_split="test", hf_subset="default")
    short, cut = server.requests[1]
    assert short == texts[0]
    assert texts[1].startswith(cut)
    assert 22 <= len(tiny.tokenizer(cut)["input_ids"]) <= 24
    usage = model.usage["ThingsSTS"]
    assert (usage.texts, usage.truncated) == (2, 1)
    with (
        pytest.raises(InputError, match="--max-seq-length needs --tokenizer"),
        open_endpoint(asked, "none", tmp_path, max_seq_length=24),
    ):
        pass


def test_a_model_is_named_by_host_and_versioned_by_what_shapes_its_vectors() -> None:
    server = Server("http://localhost:8000/v1", "org/model")
    meta = endpoint_meta(server, "mteb", None)
    assert (meta.name, meta.experiment_kwargs) == ("localhost-8000/org__model", None)
    others = [
        Server("http://localhost:8001/v1", "org/model"),
        Server("http://localhost:8000/v1", "org/model", parameters={"dimensions": 8}),
    ]
    assert meta.revision not in {endpoint_meta(other, "mteb", None).revision for other in others}
    assert endpoint_meta(server, "paper", 512).experiment_kwargs == {"prompts": "paper", "max_seq_length": 512}


def test_the_estimate_counts_the_characters_of_mtebs_statistics() -> None:
    statistics = json.loads(mteb.get_task("STSBenchmark").metadata.descriptive_stat_path.read_text())["test"]
    [sts] = mteb.get_tasks(tasks=["STSBenchmark"])
    cost = estimate([sts, ThingsSTS()], {"STSBenchmark": "x" * 10}, 0.13, None)
    assert cost.characters == statistics["number_of_characters"] + 10 * statistics["num_samples"]
    assert cost.tokens == round(cost.characters / 4)
    assert cost.usd == pytest.approx(cost.tokens * 0.13e-6)
    assert cost.uncounted == ("ThingsSTS",)
    assert "not counted, since mteb has no statistics of them: ThingsSTS" in cost.describe()
    assert estimate([sts], {}, None, 0.5).usd is None
    [tatoeba] = mteb.get_tasks(tasks=["Tatoeba"], languages=["sqi"])
    assert estimate([tatoeba], {}, None, None).characters == 70_260


def test_an_empty_text_is_not_sent_and_has_a_vector_of_zeros(tmp_path: Path) -> None:
    with EmbeddingServer() as server:
        asked = Server(server.base_url, "tiny")
        with open_endpoint(asked, "none", tmp_path, limits=Limits(price=0)) as model:
            loader: Any = [{"text": ["one", "  ", "two"]}]
            vectors = model.encode(loader, task_metadata=ThingsSTS.metadata, hf_split="test", hf_subset="default")
    np.testing.assert_array_equal(vectors, np.stack([hashed(["one"])[0], np.zeros(8), hashed(["two"])[0]]))
    assert set(server.texts) == {PROBE, "one", "two"}
    assert model.usage["ThingsSTS"].texts == 3


def test_the_estimate_learns_from_what_the_server_counted(tmp_path: Path) -> None:
    [sts] = mteb.get_tasks(tasks=["STSBenchmark"])
    with EmbeddingServer() as server:
        asked = Server(server.base_url, "tiny")
        with open_endpoint(asked, "none", tmp_path, limits=Limits(price=1.0)) as model:
            first = model.estimate([sts])
            loader: Any = [{"text": ["a b c d e f g h i j"]}]
            model.encode(loader, task_metadata=ThingsSTS.metadata, hf_split="test", hf_subset="default")
            # The server counts words, of which the probe has nine.
            share = 19 / (len(PROBE) + 19)
            assert first.tokens == round(first.characters / 4)
            assert model.estimate([sts]).tokens == round(first.characters * share)
            assert model.settings()["spent"] == {"tokens": 19, "usd": 0.000019}
