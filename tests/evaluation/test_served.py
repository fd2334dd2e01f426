"""A served model under mteb, by a real server: within the budget, every text sent once, the key written nowhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import mteb
import numpy as np
import pytest
from conftest import Outcome
from datasets import Dataset
from embedding_server import EmbeddingServer, error, hashed
from mteb._create_dataloaders import create_dataloader
from mteb.models import SentenceTransformerEncoderWrapper
from small_tasks import SmallRetrieval, SmallSTS

import st_llm_embed.evaluation.mteb as evaluation
from st_llm_embed.errors import InputError
from st_llm_embed.evaluation.served import PROBE, ServedModel
from st_llm_embed.modules.model import LLMSentenceTransformer

TEXTS = [f"text {number} about {number % 7}" for number in range(40)]
RETRIEVAL_PROMPT, STS_PROMPT = "Instruct: Find the thing.\nQuery: ", "Instruct: Find the same.\nQuery: "


def embed(server: EmbeddingServer, folder: Path, texts: list[str] = TEXTS, **options: Any) -> Any:
    """Encode texts as a task without prompts does, 10 in a request."""
    loader = create_dataloader(Dataset.from_dict({"text": texts}), task_metadata=SmallSTS.metadata)
    with closing(ServedModel(server.base_url, "tiny", "none", folder, sleep=lambda _: None, **options)) as model:
        return model.encode(
            loader, task_metadata=SmallSTS.metadata, hf_split="test", hf_subset="default", batch_size=10
        )


def evaluate(server: EmbeddingServer, folder: Path, **options: Any) -> dict[str, float]:
    with closing(ServedModel(server.base_url, "tiny", "paper", folder, **options)) as model:
        results = evaluation.evaluate(model, [SmallRetrieval(), SmallSTS()], folder)
    return {one.task_name: one.get_score() for one in results}


def spent(folder: Path) -> tuple[int, float]:
    with closing(ServedModel("http://localhost/v1", "tiny", "none", folder)) as model:
        return tuple(model.settings()["spent"].values())


@pytest.fixture(scope="module")
def tiny(tiny_base: Path) -> LLMSentenceTransformer:
    return LLMSentenceTransformer.from_base(str(tiny_base), max_seq_length=64)


def test_a_served_model_has_the_scores_of_the_model_itself(tmp_path: Path, tiny: LLMSentenceTransformer) -> None:
    with EmbeddingServer(tiny.encode) as server:
        served = evaluate(server, tmp_path)
    tiny.prompts = {"query": "", "document": "", "Retrieval-query": RETRIEVAL_PROMPT, "STS": STS_PROMPT}
    local = SentenceTransformerEncoderWrapper(tiny)
    results = mteb.evaluate(
        local, [SmallRetrieval(), SmallSTS()], cache=None, co2_tracker=False, show_progress_bar=False
    )
    assert served == {one.task_name: pytest.approx(one.get_score(), abs=1e-4) for one in results.task_results}
    # Instructions precede queries, and not documents.
    texts = set(server.texts) - {PROBE}
    assert f"{RETRIEVAL_PROMPT}Where is river 0?" in texts
    assert "The river number 0 is 0 miles away." in texts
    assert all(text.startswith(STS_PROMPT) for text in texts if "thing " in text)


def test_a_text_is_sent_once_a_finished_task_not_again_and_the_key_is_written_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    with EmbeddingServer() as server:
        first = evaluate(server, tmp_path)
        sent = [text for text in server.texts if text != PROBE]
        assert len(sent) == len(set(sent))
        count = len(server.requests)
        assert evaluate(server, tmp_path) == pytest.approx(first, abs=1e-5)  # mteb rounds what it writes
        assert len(server.requests) == count
    [folder] = (tmp_path / "results").glob("*/*/experiments/prompts_paper")
    assert {path.name for path in folder.glob("Small*.json")} == {"SmallRetrieval.json", "SmallSTS.json"}
    assert server.keys == {"sk-very-secret"}
    assert not any(b"very-secret" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_what_came_before_a_stop_is_kept_and_what_may_be_billed_counts(tmp_path: Path) -> None:
    def refuse_the_third(number: int, _texts: list[str]) -> Any:
        return error(400, "maximum context length is 8 tokens") if number == 3 else None

    with EmbeddingServer(fault=refuse_the_third) as server:
        with pytest.raises(InputError, match=r"maximum context length.*--max-seq-length.*are kept"):
            embed(server, tmp_path)
        counted = sum(len(text.split()) for texts in server.requests[:3] for text in texts)
        assert spent(tmp_path) == (counted, 0.0)
        server.fault = lambda _number, _texts: None
        before = len(server.requests)
        np.testing.assert_array_equal(embed(server, tmp_path), hashed(TEXTS))
        assert [text for texts in server.requests[before:] for text in texts] == [PROBE, *TEXTS[20:]]


def test_an_empty_text_is_not_sent_and_has_a_vector_of_zeros(tmp_path: Path) -> None:
    with EmbeddingServer() as server:
        vectors = embed(server, tmp_path, ["one", "  ", "two"])
    np.testing.assert_array_equal(vectors, np.stack([hashed(["one"])[0], np.zeros(8), hashed(["two"])[0]]))
    assert set(server.texts) == {PROBE, "one", "two"}


def test_the_limit_holds_over_runs_and_can_be_raised(tmp_path: Path) -> None:
    with EmbeddingServer() as server:
        for _ in range(2):
            with pytest.raises(InputError, match=r"The limit is reached.*--max-tokens.*are kept"):
                embed(server, tmp_path, max_tokens=250)
        billed = sum(len(text.split()) for text in server.texts)
        assert 0 < billed <= 250
        assert spent(tmp_path)[0] == billed
        np.testing.assert_array_equal(embed(server, tmp_path, max_tokens=10_000), hashed(TEXTS))


def test_a_limit_in_usd_goes_by_the_shipped_price(tmp_path: Path) -> None:
    with EmbeddingServer() as server:
        model = ServedModel(server.base_url, "text-embedding-3-small", "none", tmp_path, max_usd=1e-9)
        with closing(model), pytest.raises(InputError, match=r"The limit is reached.*--max-usd"):
            model._get_embeddings(TEXTS)
        assert server.requests == []
        assert model.usd_per_token == pytest.approx(0.02e-6)


@pytest.mark.parametrize(
    ("base_url", "limits", "told"),
    [
        ("https://api.example.org/v1", {}, r"No price is known for tiny.*--max-tokens"),
        ("http://localhost/v1", {"max_usd": 1.0, "max_tokens": 10}, r"No price is known for tiny.*--max-tokens"),
        ("api.openai.com", {}, "--base-url has to begin with http"),
        ("https://user:sk-1@host/v1", {}, "--base-url has to begin with http"),
        ("https://host/v1?key=sk-1", {}, "--base-url has to begin with http"),
    ],
)
def test_what_may_cost_without_limit_or_hold_a_secret_is_refused(
    base_url: str, limits: Any, told: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=told) as caught:
        ServedModel(base_url, "tiny", "none", tmp_path, **limits)
    assert "sk-1" not in str(caught.value)


def test_errors_of_the_server_are_tried_again_with_pauses(tmp_path: Path) -> None:
    faults = {1: error(503, "overloaded"), 2: error(429, "slow down"), 3: "cut", 4: error(429, "", retry_after="7")}
    pauses: list[float] = []
    with EmbeddingServer(fault=lambda number, _: faults.get(number)) as server:
        model = ServedModel(server.base_url, "tiny", "none", tmp_path, sleep=pauses.append)
        with closing(model):
            np.testing.assert_array_equal(model._get_embeddings(TEXTS), hashed(TEXTS))
    assert pauses == [1.0, 2.0, 4.0, 7.0]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (error(503, "overloaded"), "503"),
        ("cut", "Error: "),
        (error(429, "slow down"), "slow down"),
        (error(401, "Incorrect API key provided: sk-secret"), "Incorrect API key.*Set OPENAI_API_KEY"),
        (error(404, "no such model"), "Check --base-url"),
        (error(429, "Insufficient balance"), "Insufficient balance.*Add credit"),
        (error(403, "Forbidden"), "Forbidden.*Set OPENAI_API_KEY"),
        ([[1.0, float("nan")]] * 10, "zero or not finite"),
        ([[1.0, 2.0]] * 9, "9 vectors for 10 texts"),
        ([[1.0, 2.0]] * 10, "vectors of dimension 2; expected is one vector for each text, of dimension 8"),
    ],
)
def test_a_server_that_does_not_answer_with_vectors_is_given_up(
    tmp_path: Path, fault: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with EmbeddingServer(fault=lambda number, _: fault if number >= 2 else None) as server:
        with pytest.raises(InputError, match=f"{message}.*are kept") as caught:
            embed(server, tmp_path)
        # What no waiting fixes is asked once, after the probe and the first batch.
        assert ("Insufficient" not in message) or len(server.requests) == 3
        assert "sk-secret" not in str(caught.value)
        server.fault = lambda _number, _texts: None
        before = len(server.requests)
        embed(server, tmp_path)
    assert [text for texts in server.requests[before:] for text in texts] == [PROBE, *TEXTS[10:]]


def test_another_model_behind_the_same_name_is_refused(tmp_path: Path) -> None:
    with EmbeddingServer() as server:
        embed(server, tmp_path, TEXTS[:10])
        server.embed = lambda texts: hashed([f"other {text}" for text in texts])
        with pytest.raises(InputError, match="serves another model as 'tiny'"):
            embed(server, tmp_path)


def test_two_runs_in_one_folder_are_refused(tmp_path: Path) -> None:
    with EmbeddingServer() as server, closing(ServedModel(server.base_url, "tiny", "none", tmp_path)) as first:
        first._get_embeddings(TEXTS)
        with pytest.raises(InputError, match=r"vectors\.sqlite cannot be read or written.*End other runs"):
            embed(server, tmp_path)


def test_a_model_is_named_by_host_and_versioned_by_what_shapes_its_vectors(tmp_path: Path) -> None:
    def meta(base_url: str, mode: Any = "mteb", length: int | None = None) -> mteb.models.ModelMeta:
        return ServedModel(base_url, "org/model", mode, tmp_path, max_seq_length=length).mteb_model_meta

    plain = meta("http://localhost:8000/v1")
    assert (plain.name, plain.experiment_kwargs) == ("localhost-8000/org__model", None)
    assert plain.revision not in {meta("http://localhost:8001/v1").revision}
    cut = meta("http://localhost:8000/v1", "paper", 512)
    assert cut.experiment_kwargs == {"prompts": "paper", "max_seq_length": 512}


def test_a_served_model_is_evaluated_by_the_command(
    tmp_path: Path, run_cli: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "resolve_tasks", lambda *_: [SmallSTS()])
    with EmbeddingServer() as server:
        command = ["evaluate", "org/tiny", "--base-url", server.base_url, "--tasks", "SmallSTS"]
        command += ["--output-dir", str(tmp_path / "out"), "--max-seq-length", "24"]
        dry = run_cli(*command, "--dry-run")
        assert (dry.code, server.requests) == (0, []), dry.err
        assert "About 0 tokens, $0.00." in dry.out
        assert not (tmp_path / "out").exists()
        outcome = run_cli(*command, "--max-tokens", "100000")
        assert outcome.code == 0, outcome.err
        assert all(body["truncate_prompt_tokens"] == 24 for body in server.bodies)
    run = json.loads((tmp_path / "out" / "run.json").read_text(encoding="utf-8"))
    assert run["model"] == f"127.0.0.1-{server.base_url.split(':')[2].split('/')[0]}/org__tiny"
    assert run["parameters"] is None
    assert run["spent"]["tokens"] == sum(len(text.split()) for text in server.texts)
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert report["tasks"]["SmallSTS"]["query"] == "Instruct: Find the same.\nQuery: "


def test_the_cost_is_estimated_from_mtebs_statistics(tmp_path: Path) -> None:
    statistics = json.loads(mteb.get_task("STSBenchmark").metadata.descriptive_stat_path.read_text())["test"]
    model = ServedModel("http://localhost/v1", "text-embedding-3-large", "none", tmp_path)
    [sts, unknown] = evaluation.preflight(model, [mteb.get_task("STSBenchmark"), SmallSTS()])
    assert sts.characters == statistics["number_of_characters"]
    assert (unknown.texts, unknown.characters) == (None, 0)
    assert "About 1,000,000 tokens, $0.13." in model.estimate(4_000_000)
    assert not list(tmp_path.iterdir())
