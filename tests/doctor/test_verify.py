"""Real models behind real servers and runtimes: the right ones are the same, and each mistake is named."""

from __future__ import annotations

import gc
import json
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from break_repository import edit
from embedding_server import EmbeddingServer, error
from families import save_base
from misbehaving import Served
from sentence_transformers import SentenceTransformer
from transformers import AutoTokenizer

from st_llm_embed import InputError, LLMSentenceTransformer, verify
from st_llm_embed.doctor.probe import PROBE_FILE, TAIL, make_probe, write_probe
from st_llm_embed.doctor.server import server_runtime
from st_llm_embed.doctor.verify import Verification

PROMPT = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery: "


def embedder(folder: Path, family: str) -> Path:
    """A released model without its card: the stock files and a probe."""
    base = save_base(folder / "base", family, "byte-level BPE", bos=True)
    model = LLMSentenceTransformer.from_base(str(base), max_seq_length=192, device="cpu")
    # As they are drawn, weights are so small that a token hardly sees the others.
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.copy_(torch.randn_like(weight) * 0.3)
    saved = folder / "saved"
    model.save_pretrained(str(saved), create_model_card=False)
    write_probe(make_probe(SentenceTransformer(str(saved), device="cpu"), "org/tiny"), saved / PROBE_FILE)
    return saved


@pytest.fixture(scope="module")
def mistral(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return embedder(tmp_path_factory.mktemp("mistral"), "mistral")


def served(folder: Path) -> Served:
    model = SentenceTransformer(str(folder), device="cpu")
    return Served(model, AutoTokenizer.from_pretrained(folder), 192)


def asked(folder: Path, one: Served, *, ids: bool = False, weights: bool = True) -> Verification:
    with EmbeddingServer(one.embed, fault=without_tokens(one), tokenize=one.tokenize if ids else None) as server:
        return verify(folder if weights else folder / PROBE_FILE, server.base_url)


def without_tokens(one: Served) -> Callable[[int, list[str]], Any]:
    """A text that has no token at all is refused."""
    return lambda _number, texts: None if all(map(one.ids, texts)) else error(400, "the input is empty")


def traps(verification: Verification) -> set[str]:
    assert not verification.same
    return {one.trap for one in verification.explanations}


MISTAKES: dict[str, dict[str, Any]] = {
    "right padding": {"read": "last position"},
    "left padding": {"padding": "left", "has_mask": False},
    "left padding read as right": {"padding": "left", "read": "length"},
    "prompt missing": {"removed_prompt": PROMPT},
    "prompt on documents": {"documents_prompt": PROMPT},
    "not normalised": {"normalised": False},
    "mean pooling": {"pooling": "mean"},
    "first-token pooling": {"pooling": "first"},
    "max length": {"max_length": 32},
    "missing EOS": {"loses_end": True},
    "EOS cut off": {"cuts_end": True},
    "special tokens in texts": {"splits_special": True},
    "prompt doubled": {"queries_prompt": PROMPT},
    "no special tokens": {"adds_special": False},
    "doubled BOS": {"prepended": "<s>"},
    "doubled EOS": {"appended": "</s>"},
    "whitespace": {"stripped": True},
    "dimension": {"dimensions": 16},
    "extra dimensions": {"extra": 32},
    "lower case": {"changed": str.lower},
    "Unicode form": {"changed": lambda text: unicodedata.normalize("NFKC", text)},
    "line ends": {"changed": lambda text: text.replace("\n", " ")},
    "order": {"shuffled": True},
    "one vector for all": {"repeated": True},
}
"""By the trap that has to be named."""


@pytest.mark.parametrize("dialect", ["vllm", "tei", "llama.cpp"])
@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1", "", "/embed"])
def test_a_server_that_does_it_right_is_the_same(
    path: str, dialect: Literal["vllm", "tei", "llama.cpp"], mistral: Path
) -> None:
    one = served(mistral)
    with EmbeddingServer(one.embed, tokenize=one.tokenize, dialect=dialect) as server:
        verification = verify(mistral, server.base_url.removesuffix("/v1") + path)
    assert verification.same
    assert verification.ids_equal
    assert verification.worst_cosine is not None
    assert verification.worst_cosine > 0.99999
    # /tokenize does not cut.
    assert [row.ids_equal for row in verification.rows].count(None) >= 2
    assert verification.explanations == ()


def test_an_address_that_ends_in_embeddings_is_used_as_it_is(mistral: Path) -> None:
    one = served(mistral)
    with EmbeddingServer(one.embed, path="/api/embeddings") as server:
        address = server.base_url.removesuffix("/v1") + "/api/embeddings"
        assert verify(mistral, address).same
        with pytest.raises(InputError, match="answers with status 404"):
            verify(mistral, server.base_url)


@pytest.mark.parametrize("path", ["/v1", "/embed"])
def test_a_text_that_tokenize_refuses_takes_no_other_texts_ids_away(path: str, mistral: Path) -> None:
    one = served(mistral)

    def tokenize(text: str) -> list[int] | None:
        return one.tokenize(text) if text else None

    with EmbeddingServer(one.embed, tokenize=tokenize, dialect="tei") as server:
        runtime = server_runtime(server.base_url.removesuffix("/v1") + path)
        ids = [embedding.ids for embedding in runtime(["a", "", "b"])]
    assert ids == [one.tokenize("a"), None, one.tokenize("b")]


@pytest.mark.parametrize("family", ["mistral", "qwen3"])
def test_each_mistake_is_named_and_neither_side_of_padding_is_one(family: str, tmp_path: Path) -> None:
    released = embedder(tmp_path, family)
    right = served(released)
    for side in ("right", "left"):
        verification = asked(released, right.but(padding=side), ids=True)
        assert verification.same
        assert verification.ids_equal
    named = {trap: traps(asked(released, right.but(**mistake))) for trap, mistake in MISTAKES.items()}
    assert named == {trap: {trap} for trap in MISTAKES}


WITH_IDS = ("prompt missing", "prompt on documents", "missing EOS", "no special tokens", "doubled BOS", "doubled EOS")


@pytest.mark.parametrize("trap", [*WITH_IDS, "whitespace", "not normalised", "dimension"])
def test_the_probe_and_the_servers_ids_are_enough_to_name_it(trap: str, mistral: Path) -> None:
    one = served(mistral).but(**MISTAKES[trap])
    assert trap in traps(asked(mistral, one, ids=True, weights=False))


@pytest.mark.parametrize(
    ("trap", "expected"),
    [
        ("right padding", "padding"),
        ("left padding", "padding"),
        ("not normalised", "not normalised"),
        ("prompt missing", "prompt missing"),
        ("whitespace", "whitespace"),
        ("max length", "max length"),
        ("mean pooling", "ends, pooling or weights"),
        ("missing EOS", "ends, pooling or weights"),
        ("dimension", "dimension"),
        ("extra dimensions", "extra dimensions"),
        ("lower case", "lower case"),
        ("Unicode form", "Unicode form"),
        ("line ends", "line ends"),
        ("order", "order"),
        ("one vector for all", "one vector for all"),
    ],
)
def test_the_vectors_alone_show_what_they_can(trap: str, expected: str, mistral: Path) -> None:
    mistake = MISTAKES[trap] if trap != "max length" else {"max_length": 1000}
    verification = asked(mistral, served(mistral).but(**mistake), weights=False)
    assert traps(verification) == {expected}


def test_the_other_length_is_said(mistral: Path) -> None:
    [one] = asked(mistral, served(mistral).but(max_length=48)).explanations
    assert "They are cut at 48 tokens, and have to be at 192." in one.sentence
    [one] = asked(mistral, served(mistral).but(max_length=1000)).explanations
    assert "They are not cut at all." in one.sentence


@pytest.mark.parametrize("ids", [True, False])
@pytest.mark.parametrize("weights", [True, False])
def test_another_tokenizer_is_named(ids: bool, weights: bool, mistral: Path, tmp_path: Path) -> None:
    """Of the same size, with other merges: as a vocabulary rebuilt without the scores of its pieces."""
    content = json.loads((mistral / "tokenizer.json").read_text(encoding="utf-8"))
    content["model"]["merges"] = content["model"]["merges"][:5]
    shutil.copytree(mistral, tmp_path / "other")
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    other = AutoTokenizer.from_pretrained(tmp_path / "other")
    verification = asked(mistral, served(mistral).but(tokenizer=other), ids=ids, weights=weights)
    assert "tokenizer" in traps(verification)
    assert verification.ids_equal is (False if ids else None)


def test_other_weights_are_named(mistral: Path) -> None:
    one = served(mistral)
    torch.manual_seed(3)
    with torch.no_grad():
        for weight in one.model.parameters():
            weight.copy_(torch.randn_like(weight) * 0.1)
    for ids, unknown in ((True, "pooling or weights"), (False, "ends, pooling or weights")):
        assert traps(asked(mistral, one, ids=ids)) == {"weights"}
        assert traps(asked(mistral, one, ids=ids, weights=False)) == {unknown}


def test_two_mistakes_are_both_named(mistral: Path) -> None:
    one = served(mistral).but(pooling="mean", adds_special=False, normalised=False)
    assert traps(asked(mistral, one)) == {"mean pooling", "no special tokens", "not normalised"}


def test_half_precision_is_distinguished_from_a_fault(mistral: Path) -> None:
    one = served(mistral)
    one.model.to(torch.bfloat16)
    verification = asked(mistral, one)
    assert traps(verification) == {"precision"}
    with EmbeddingServer(one.embed) as server:
        assert verify(mistral, server.base_url, minimum_cosine=0.98).same


def refuses(test: Callable[[str], bool]) -> Callable[[int, list[str]], Any]:
    return lambda _number, texts: error(400, "input is too long or empty") if any(map(test, texts)) else None


def test_texts_that_a_server_refuses_are_reported_and_are_not_a_difference(mistral: Path) -> None:
    one = served(mistral)
    with EmbeddingServer(one.embed, fault=refuses(lambda text: not text or TAIL in text)) as server:
        verification = verify(mistral, server.base_url)
    assert verification.same
    refused = {row.name for row in verification.rows if row.same is None}
    assert refused == {"empty", "over-long"}
    assert all("400: " in row.refusal for row in verification.rows if row.same is None)
    with EmbeddingServer(one.embed, fault=refuses(lambda text: len(text) > 40)) as server:
        verification = verify(mistral, server.base_url)
    assert traps(verification) == {"refused"}
    [refusal] = verification.explanations
    assert "cyrillic" in refusal.sentence
    assert "over-long" not in refusal.sentence
    # The others were still asked for as one batch.
    wrong = one.but(read="last position")
    with EmbeddingServer(wrong.embed, fault=refuses(lambda text: not text or TAIL in text)) as server:
        assert traps(verify(mistral, server.base_url)) == {"right padding"}


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (lambda _number, _texts: error(400, "no such thing"), "None of the 17 texts was embedded"),
        (lambda _number, _texts: error(404, "no such model"), "answers with status 404"),
        (lambda _number, _texts: error(401, "wrong key"), "--api-key-env names"),
        (lambda _number, _texts: error(429, "slow down"), r"answers with status 429.*: wait, or raise"),
        (lambda _number, _texts: error(429, "Insufficient balance"), "when the account has credit"),
        (lambda _number, _texts: "cut", "cut the connection"),
        (lambda _number, texts: [[float("nan")] * 32 for _ in texts], "not finite"),
        (lambda _number, texts: [[1.0]] * (len(texts) - 1), "16 vectors for 17 texts"),
        (lambda _number, _texts: (200, {}, {"hello": "world"}), "0 vectors for 17 texts"),
    ],
)
def test_a_server_that_cannot_be_compared_is_one_message(
    fault: Callable[[int, list[str]], Any], expected: str, mistral: Path
) -> None:
    with (
        EmbeddingServer(served(mistral).embed, fault=fault) as server,
        pytest.raises(InputError, match=expected),
    ):
        verify(mistral, server.base_url)


def test_an_address_with_a_secret_is_refused_and_not_repeated(mistral: Path) -> None:
    with pytest.raises(InputError, match="no user, password") as refused:
        verify(mistral, "http://ada:secret@localhost/v1")
    assert "secret" not in str(refused.value)


def test_the_key_goes_to_the_server_and_the_name_is_its_own(mistral: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "key-of-mine")
    with EmbeddingServer(served(mistral).embed) as server:
        runtime = server_runtime(server.base_url, api_key_env="MY_KEY")
        assert verify(mistral, runtime).same
        assert server.keys == {"key-of-mine"}
        assert {body["model"] for body in server.bodies} == {"the-only-model"}
        server_runtime(server.base_url, served_name="mine")(["a"])
        assert server.bodies[-1]["model"] == "mine"


def test_the_command_says_what_differs_and_exits_with_one(
    mistral: Path, run_cli: Callable[..., Any], tmp_path: Path
) -> None:
    same = run_cli("verify", mistral, "--against", mistral)
    assert (same.code, same.err) == (0, "")
    assert "The vectors are the same" in same.out
    with EmbeddingServer(served(mistral).but(read="last position").embed) as server:
        outcome = run_cli("verify", mistral, "--against", server.base_url)
        assert outcome.code == 1
        assert "right padding: In a batch" in outcome.out
        outcome = run_cli("verify", mistral, "--against", server.base_url, "--json")
    content = json.loads(outcome.out)
    assert outcome.code == 1
    assert content["same"] is False
    assert [one["trap"] for one in content["explanations"]] == ["right padding"]
    assert len(content["texts"]) == 17
    for arguments, expected in (
        ((mistral, "--against", tmp_path / "none"), "A model cannot be compared with"),
        ((tmp_path / "none", "--against", mistral), "There is no model"),
        ((mistral, "--against", mistral, "--minimum-cosine", "2"), "has to be above 0 and at most 1"),
        ((mistral, "--against", "http://127.0.0.1:9/v1"), "cannot be reached"),
    ):
        outcome = run_cli("verify", *arguments)
        assert outcome.code == 2
        assert expected in outcome.err
        assert outcome.err.count("\n") == 1


def test_one_model_is_in_memory_at_a_time(mistral: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the probe, that of the runtime, and the one that explains the difference."""
    for name in ("last", "mean"):
        shutil.copytree(mistral, tmp_path / name, ignore=lambda *_: [PROBE_FILE])
    pooling = tmp_path / "mean" / "1_Pooling" / "config.json"
    edit(pooling, pooling_mode_mean_tokens=True, pooling_mode_lasttoken=False)
    alive: list[int] = []
    load = SentenceTransformer.__init__

    def count(self: SentenceTransformer, *arguments: Any, **options: Any) -> None:
        alive.append(sum(type(one) is SentenceTransformer for one in gc.get_objects()))
        load(self, *arguments, **options)

    gc.collect()
    before = sum(type(one) is SentenceTransformer for one in gc.get_objects())
    monkeypatch.setattr(SentenceTransformer, "__init__", count)
    gc.disable()
    try:
        assert traps(verify(tmp_path / "last", tmp_path / "mean")) == {"mean pooling"}
    finally:
        gc.enable()
    assert alive == [before + 1] * 3


def test_a_model_without_a_probe_is_its_own_probe(mistral: Path, tmp_path: Path) -> None:
    shutil.copytree(mistral, tmp_path / "copy", ignore=lambda *_: [PROBE_FILE])
    assert verify(tmp_path / "copy", mistral).same
    assert np.isclose(verify(tmp_path / "copy", tmp_path / "copy").worst_cosine or 0, 1)
