from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import mteb
import numpy as np
import pytest
import torch
from mteb.cache import ResultCache
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import InputModule
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from st_llm_embed import InputError
from st_llm_embed.evaluation.tasks import PasskeyRetrieval
from st_llm_embed.evaluation.tasks.passkey import (
    FILLER,
    FIRST_NAMES,
    LAST_NAMES,
    NEEDLE,
    QUERIES,
    QUERY,
    passkey_texts,
)
from st_llm_embed.modules.base import load_tokenizer

STATED = re.compile(r"(\w+ \w+)'s pass key is (\d{5})\. Remember it\.")


def word_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each word and sign that texts and queries have, another for all numbers."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(special_tokens=["<unk>", "<pad>"], show_progress=False)
    tokenizer.train_from_iterator([*FILLER, FIRST_NAMES, LAST_NAMES, NEEDLE, QUERY, "a I !"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>")


class LastWords(InputModule):
    """Embeds which words are among the last `window` ones; of longer texts than `longest` it sees nothing."""

    def __init__(self, window: int, longest: int) -> None:
        super().__init__()
        self.window, self.longest = window, longest
        self.tokenizer = word_tokenizer()

    def preprocess(self, inputs: list[str], prompt: str | None = None, **_: Any) -> dict[str, torch.Tensor]:
        seen = torch.zeros(len(inputs), self.get_embedding_dimension())
        for row, text in enumerate(inputs):
            ids = self.tokenizer((prompt or "") + text)["input_ids"]
            if len(ids) <= self.longest:
                seen[row, ids[-self.window :]] = 1
            else:
                seen[row, 0] = 1
        return {"seen": seen}

    def forward(self, features: dict[str, torch.Tensor], **_: Any) -> dict[str, torch.Tensor]:
        return {"sentence_embedding": features["seen"]}

    def get_embedding_dimension(self) -> int:
        return len(self.tokenizer)

    def save(self, *_: Any, **__: Any) -> None:
        raise NotImplementedError


def accuracy(model: SentenceTransformer, lengths: list[int], seed: int = 0) -> dict[int, float]:
    task = PasskeyRetrieval(model.tokenizer, lengths, seed)
    [result] = mteb.evaluate(model, task, cache=None, show_progress_bar=False).task_results
    return {length: result.scores[f"len{length}"][0]["main_score"] for length in lengths}


@pytest.fixture(params=["pieces", "bytes", "words"])
def tokenizer(request: pytest.FixtureRequest, tiny_base: Path) -> PreTrainedTokenizerBase:
    if request.param == "words":
        return word_tokenizer()
    return load_tokenizer("embedded" if request.param == "pieces" else str(tiny_base))


@pytest.mark.parametrize("length", [150, 600])
def test_every_text_has_the_length_exactly(tokenizer: PreTrainedTokenizerBase, length: int) -> None:
    names, texts = passkey_texts(tokenizer, length, 0)
    assert {len(tokenizer(text)["input_ids"]) for text in texts} == {length}
    assert [STATED.search(text).group(1) for text in texts] == names  # type: ignore[union-attr]
    assert len(set(names)) == len(texts) == 100
    assert len({STATED.search(text).group(2) for text in texts}) == 100  # type: ignore[union-attr]


def test_needles_lie_anywhere() -> None:
    _, texts = passkey_texts(word_tokenizer(), 2048, 0)
    depths = np.array([text.index("'s pass key") / len(text) for text in texts])
    assert np.all(np.histogram(depths, bins=4, range=(0, 1))[0] >= 12)


def test_texts_follow_from_the_seed() -> None:
    tokenizer = word_tokenizer()
    assert passkey_texts(tokenizer, 128, 3) == passkey_texts(tokenizer, 128, 3)
    assert passkey_texts(tokenizer, 128, 3) != passkey_texts(tokenizer, 128, 4)
    assert passkey_texts(tokenizer, 128, 3)[0] != passkey_texts(tokenizer, 256, 3)[0]


def test_seeds_are_tasks_of_their_own() -> None:
    tokenizer = word_tokenizer()
    names = {PasskeyRetrieval(tokenizer, [64], seed).metadata.name for seed in (0, 0, 1)}
    assert len(names) == 2


def test_a_length_too_short_for_the_needle_is_refused() -> None:
    with pytest.raises(InputError, match=r"exactly 8 tokens.*64 tokens or more"):
        passkey_texts(word_tokenizer(), 8, 0)


def test_a_model_that_sees_the_text_finds_every_key_and_one_that_does_not_finds_none() -> None:
    scores = accuracy(SentenceTransformer(modules=[LastWords(10_000, 512)], device="cpu"), [64, 512, 1024])
    assert scores[64] == scores[512] == 1.0
    # All texts get one vector: each query is given the same text, right for one query at the most.
    assert scores[1024] <= 1 / QUERIES


def test_a_window_finds_the_keys_that_lie_in_it() -> None:
    window = 64
    model = SentenceTransformer(modules=[LastWords(window, 10_000)], device="cpu")
    scores = accuracy(model, [64, 256, 4096])
    for length, score in scores.items():
        names, texts = passkey_texts(model.tokenizer, length, 0)
        seen = 0
        for name, text in list(zip(names, texts, strict=True))[:QUERIES]:
            rest = text[text.index(name) :]
            seen += len(model.tokenizer(rest)["input_ids"]) <= window
        assert score == pytest.approx(seen / QUERIES, abs=0.021), length
    assert scores[64] == 1.0
    assert 0.1 < scores[256] < 0.5
    assert scores[4096] < 0.05


def test_lengths_are_added_to_a_finished_result(tmp_path: Path) -> None:
    model = SentenceTransformer(modules=[LastWords(64, 10_000)], device="cpu")
    cache = ResultCache(tmp_path)
    for length in (64, 128):
        task = PasskeyRetrieval(model.tokenizer, [length])
        mteb.evaluate(model, task, cache=cache, show_progress_bar=False)
    [path] = tmp_path.rglob("PersonalizedPasskey*.json")
    assert set(mteb.TaskResult.from_disk(path).scores) == {"len64", "len128"}
