from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from embedding_server import EmbeddingServer, error, hashed

from st_llm_embed.errors import InputError
from st_llm_embed.evaluation.server.client import PROBE, EmbeddingClient, Server
from st_llm_embed.evaluation.server.cost import EmbeddingBudget, Limits
from st_llm_embed.evaluation.server.endpoint import served
from st_llm_embed.evaluation.server.journal import VectorJournal

TEXTS = [f"text {number} about {number % 7}" for number in range(40)]
FREE = Limits(price=0)


class Clock:
    """Time that passes only while something sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)


@contextmanager
def opened(
    server: EmbeddingServer, folder: Path, *, limits: Limits = FREE, clock: Clock | None = None, **settings: Any
) -> Iterator[tuple[EmbeddingClient, VectorJournal]]:
    asked = Server(server.base_url, "tiny", **settings)
    clock = clock or Clock()
    with VectorJournal(folder, served(asked)) as journal:
        budget = EmbeddingBudget("tiny", limits, journal.spent())
        yield EmbeddingClient(asked, "sk-secret", journal, budget, clock=clock, sleep=clock.sleep), journal


def embed(server: EmbeddingServer, folder: Path, texts: list[str] = TEXTS, **options: Any) -> np.ndarray:
    with opened(server, folder, **options) as (client, journal):
        client.embed(texts, "test")
        return journal.vectors(texts)


@pytest.mark.parametrize("base64_vectors", [True, False])
def test_each_text_gets_the_vector_the_server_gave_it(tmp_path: Path, *, base64_vectors: bool) -> None:
    with EmbeddingServer(base64_vectors=base64_vectors) as server:
        vectors = embed(server, tmp_path)
    np.testing.assert_array_equal(vectors, hashed(TEXTS))
    assert server.keys == {"sk-secret"}


def test_a_text_is_sent_once(tmp_path: Path) -> None:
    with EmbeddingServer() as server:
        embed(server, tmp_path, TEXTS[:30] + TEXTS[:10])
        embed(server, tmp_path)
        sent = [text for text in server.texts if text != PROBE]
        count = len(server.requests)
        embed(server, tmp_path)
    assert sorted(sent) == sorted(TEXTS)
    assert len(server.requests) == count


def test_requests_hold_no_more_texts_and_bytes_than_allowed(tmp_path: Path) -> None:
    texts = ["x" * 40, "y" * 50, "z" * 300, *TEXTS]
    with EmbeddingServer() as server:
        embed(server, tmp_path, texts, texts_per_request=5, tokens_per_request=100, concurrency=1)
    assert max(map(len, server.requests)) == 5
    assert server.requests[1:3] == [["x" * 40, "y" * 50], ["z" * 300]]
    assert all(sum(map(len, request)) <= 100 for request in server.requests if len(request) > 1)


def test_what_the_server_allows_is_found_by_halving(tmp_path: Path) -> None:
    def at_most_four(_number: int, texts: list[str]) -> Any:
        return error(422, "batch size > maximum allowed batch size 4") if len(texts) > 4 else None

    with EmbeddingServer(fault=at_most_four) as server:
        np.testing.assert_array_equal(embed(server, tmp_path), hashed(TEXTS))


def test_a_text_that_is_refused_is_named_and_the_others_are_kept(tmp_path: Path) -> None:
    def too_long(_number: int, texts: list[str]) -> Any:
        return error(400, "maximum context length is 8 tokens") if "long" in texts else None

    with EmbeddingServer(fault=too_long) as server, opened(server, tmp_path, concurrency=1) as (client, journal):
        with pytest.raises(InputError, match=r"refuses a text of 4 characters, 'long'.*maximum context length"):
            client.embed([*TEXTS, "long"], "test")
        assert journal.missing(TEXTS) == []


def test_the_pause_that_the_server_asks_for_is_kept(tmp_path: Path) -> None:
    clock = Clock()
    with EmbeddingServer(
        fault=lambda number, _: error(429, "slow down", retry_after="90") if number == 1 else None
    ) as server:
        np.testing.assert_array_equal(embed(server, tmp_path, clock=clock), hashed(TEXTS))
    assert clock.now >= 90


def test_errors_of_the_server_are_tried_again(tmp_path: Path) -> None:
    faults = {1: error(503, "overloaded"), 2: error(500, "oh"), 3: "cut"}
    with EmbeddingServer(fault=lambda number, _: faults.get(number)) as server:
        np.testing.assert_array_equal(embed(server, tmp_path, concurrency=1), hashed(TEXTS))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (error(503, "overloaded"), "gives no vectors: status 503"),
        ("cut", "gives no vectors: RemoteProtocolError"),
        ((200, {}, {"html": "page of a proxy"}), "gives no vectors: status 200 without embeddings"),
        (error(429, "slow down"), "gives no vectors: slow down|gives no vectors: .*slow down"),
        (error(401, "Incorrect API key provided: sk-secret"), "refuses the key .*that --api-key-env names"),
        (error(404, "no such model"), "has no embeddings, or not for this model .*Check --base-url"),
        ((429, {}, {"error": {"message": "no credit", "code": "insufficient_quota"}}), "until the account has credit"),
    ],
)
def test_a_server_that_does_not_answer_is_given_up_and_what_came_is_kept(
    tmp_path: Path, fault: Any, message: str
) -> None:
    with (
        EmbeddingServer(fault=lambda number, _: fault if number >= 3 else None) as server,
        opened(server, tmp_path, concurrency=1, texts_per_request=10) as (client, journal),
    ):
        with pytest.raises(InputError, match=message) as caught:
            client.embed(TEXTS, "test")
        assert "sk-secret" not in str(caught.value)
        assert journal.missing(TEXTS) == TEXTS[20:]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([[1.0, None]] * 10, "zero or not finite"),
        ([[1.0, float("nan")]] * 10, "zero or not finite"),
        ([[0.0, 0.0]] * 10, "zero or not finite"),
        ([[]] * 10, "an empty vector"),
        ([["a", "b"]] * 10, "not a vector"),
        ([[[1.0]]] * 10, "not a vector"),
        ([[1.0, 2.0]] * 9, "9 vectors for 10 texts"),
        ([[1.0, 2.0]] * 9 + [[1.0]], "all of one dimension"),
        ([[1.0, 2.0]] * 10, "vectors of dimension 2, and all before had 8"),
    ],
)
def test_what_is_no_vector_of_this_model_is_refused(tmp_path: Path, answer: list[Any], message: str) -> None:
    with (
        EmbeddingServer(fault=lambda number, _: answer if number == 2 else None) as server,
        opened(server, tmp_path, concurrency=1, texts_per_request=10) as (client, journal),
    ):
        with pytest.raises(InputError, match=f"{message}.*are kept"):
            client.embed(TEXTS, "test")
        assert journal.missing(TEXTS) == TEXTS[10:]
        np.testing.assert_array_equal(journal.vectors(TEXTS[:10]), hashed(TEXTS[:10]))


def test_another_model_behind_the_same_name_is_refused(tmp_path: Path) -> None:
    with EmbeddingServer() as server:
        embed(server, tmp_path, TEXTS[:10])
        server.embed = lambda texts: hashed([f"other {text}" for text in texts])
        with pytest.raises(InputError, match="serves another model as 'tiny'"):
            embed(server, tmp_path)
        assert len([text for text in server.texts if text != PROBE]) == 10


def test_the_limit_holds_and_can_be_raised(tmp_path: Path) -> None:
    with EmbeddingServer() as server:
        with pytest.raises(InputError, match=r"The limit is reached.*--max-tokens.*are kept"):
            embed(server, tmp_path, limits=Limits(price=1e4, tokens=120), texts_per_request=4)
        billed = sum(len(text.split()) for text in server.texts)
        assert 0 < billed <= 120
        with opened(server, tmp_path) as (_, journal):
            assert (journal.spent().tokens, journal.spent().usd) == (billed, pytest.approx(billed / 100))
        np.testing.assert_array_equal(embed(server, tmp_path, limits=Limits(price=1e4, usd=1e3)), hashed(TEXTS))


@pytest.mark.parametrize("limits", [Limits(), Limits(usd=1.0), Limits(usd=1.0, tokens=10)])
def test_a_model_without_a_price_needs_a_limit_in_tokens(tmp_path: Path, limits: Limits) -> None:
    with EmbeddingServer() as server:
        with pytest.raises(InputError, match=r"No price is known for tiny.*--price.*--max-tokens"):
            embed(server, tmp_path, limits=limits)
        assert server.requests == []
        embed(server, tmp_path, limits=Limits(tokens=10_000))


def test_two_runs_in_one_folder_are_refused(tmp_path: Path) -> None:
    with (
        EmbeddingServer() as server,
        opened(server, tmp_path),
        pytest.raises(InputError, match="Another process is writing"),
        opened(server, tmp_path),
    ):
        pass


def test_a_damaged_journal_is_named(tmp_path: Path) -> None:
    (tmp_path / "vectors.sqlite").write_bytes(b"no database" * 1000)
    with EmbeddingServer() as server, pytest.raises(InputError, match=r"vectors\.sqlite cannot be read or written"):
        embed(server, tmp_path)


@pytest.mark.parametrize(
    "base_url", ["api.openai.com", "https://user:sk-secret@host/v1", "https://host/v1?key=sk-secret"]
)
def test_an_address_that_may_hold_a_secret_is_refused_and_not_shown(base_url: str) -> None:
    with pytest.raises(InputError, match="--base-url has to begin with http") as caught:
        Server(base_url, "tiny")
    assert "sk-secret" not in str(caught.value)


def test_parameters_are_sent_and_cannot_replace_the_texts(tmp_path: Path) -> None:
    with EmbeddingServer() as server:
        embed(server, tmp_path, TEXTS[:2], parameters={"dimensions": 8, "encoding_format": "float"})
    assert all(
        (body["dimensions"], body["encoding_format"], body["model"]) == (8, "float", "tiny") for body in server.bodies
    )
    with pytest.raises(InputError, match="input cannot be set"):
        Server(server.base_url, "tiny", parameters={"input": "x"})
