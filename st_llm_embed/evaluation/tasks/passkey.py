"""Personalized passkey retrieval (paper, section 5.2): whose pass key stands in which long text.

Each text is filler of an exact length in tokens, with one sentence about one person's pass key at a random place. A
model that does not see that place cannot tell the texts apart. Filler and wording are our own.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, product
from typing import Any

import numpy as np
from datasets import Dataset
from mteb.abstasks import AbsTaskRetrieval
from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
from mteb.abstasks.task_metadata import TaskMetadata
from transformers import PreTrainedTokenizerBase

from st_llm_embed.errors import InputError

LENGTHS = (256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
"""Tokens of a text, special tokens included."""

CANDIDATES = 100
"""Texts of each length, each about another person."""

QUERIES = 50
"""Queries of each length, for the first texts."""

INSTRUCTION = "Given a question about the pass key of a person, retrieve the text that states it"
NEEDLE = "{name}'s pass key is {key}. Remember it."
QUERY = "What is the pass key for {name}?"

FILLER = (
    "The river runs down to the sea.",
    "Bread is baked early in the morning.",
    "Leaves turn yellow when it grows cold.",
    "Boats lie in the harbour at night.",
    "A cat sleeps on the warm step.",
    "Then the day begins again.",
)
FIRST_NAMES = (
    "Ada Amir Anna Arun Beatriz Boris Carla Chen Clara Daniel Dina Elena Emil Farah Felix Grace Hana Hugo Ines Ivan "
    "Jonas Julia Kofi Laila Leo Lucia Marek Maya Nadia Nils Omar Paula"
)
LAST_NAMES = (
    "Abbott Becker Castro Diaz Eriksen Fischer Garcia Haddad Ibrahim Jensen Kaya Larsen Mendes Novak Okafor Petrov "
    "Quinn Rossi Santos Tanaka Ueda Varga Weber Xu Yilmaz Zimmer Bauer Costa Dumont Evans Fontaine Gruber"
)

ENDINGS = (" a", " I", ".", " 1", "!", ",")
"""What fills up a text that is a few tokens short; one of them is a single token in almost any vocabulary."""

WORDS_GIVEN_UP = 8
"""Words of filler that are replaced by an ending, at the most, to hit a length."""


class PasskeyRetrieval(AbsTaskRetrieval):
    """Find the text with a person's pass key among 100 of one length; one split per length, named `len256` and so on.

    The main score is nDCG@1, which is top-1 accuracy: 0.01 by chance. The texts follow from seed, length and
    tokenizer, so models with other tokenizers get other texts. The revision is the hash of wording and seed, and ends
    the name, since mteb takes a finished result for that of any task of the same name. The model has to be let take
    texts of this length (`max_seq_length`).
    """

    k_values = (1, 3, 5, 10)

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase | None, lengths: Sequence[int] = LENGTHS, seed: int = 0
    ) -> None:
        """Describe the task; the texts are made when it is evaluated.

        Args:
            tokenizer: the model's, which lengths are measured with; None if only what is finished is asked for.
            lengths: tokens of the texts, special tokens included.
            seed: draws names, keys and places.
        """
        self.tokenizer = tokenizer
        self.lengths = {split_name(length): length for length in lengths}
        wording = [FILLER, NEEDLE, QUERY, FIRST_NAMES, LAST_NAMES, ENDINGS, CANDIDATES, QUERIES, seed]
        revision = hashlib.sha256(json.dumps(wording).encode()).hexdigest()
        self.metadata = TaskMetadata(
            name=f"PersonalizedPasskeyRetrieval-{revision[:8]}",
            description="The text that states a person's pass key, among texts of one length about other persons.",
            reference="https://arxiv.org/abs/2401.00368",
            dataset={"path": "local/personalized-passkey", "revision": revision},
            type="Retrieval",
            category="t2t",
            eval_splits=list(self.lengths),
            eval_langs=["eng-Latn"],
            main_score="ndcg_at_1",
            sample_creation="created",
            prompt={"query": INSTRUCTION},
        )
        super().__init__(seed=seed)

    def load_data(self, *_: Any, **__: Any) -> None:
        """Make the texts of every length."""
        if self.data_loaded:
            return
        if self.tokenizer is None:
            raise InputError("A PasskeyRetrieval without a tokenizer cannot be evaluated. Give it that of the model.")
        splits = {split: _split(self.tokenizer, length, self.seed) for split, length in self.lengths.items()}
        self.dataset = {"default": splits}
        self.data_loaded = True

    def unload_data(self) -> None:
        """Forget the texts; mteb's own would forget this task's metadata, too."""
        self.dataset, self.data_loaded = {}, False


def split_name(length: int) -> str:
    """Give the name of the split with texts of a length."""
    return f"len{length}"


def passkey_texts(tokenizer: PreTrainedTokenizerBase, length: int, seed: int) -> tuple[list[str], list[str]]:
    """Make the texts of one length.

    Args:
        tokenizer: measures the length.
        length: tokens of each text, special tokens included, exactly.
        seed: draws names, keys and places, each length its own.

    Returns:
        `CANDIDATES` names, all different, and the text about each.

    Raises:
        InputError: the sentence with the pass key does not fit, or no text has exactly this length.
    """
    generator = np.random.default_rng([seed, length])
    people = [f"{first} {last}" for first, last in product(FIRST_NAMES.split(), LAST_NAMES.split())]
    names = [people[place] for place in generator.choice(len(people), CANDIDATES, replace=False)]
    keys = 10_000 + generator.choice(90_000, CANDIDATES, replace=False)
    depths = generator.random(CANDIDATES)
    fitting = _Fitting(tokenizer, length)
    needles = [NEEDLE.format(name=name, key=key) for name, key in zip(names, keys, strict=True)]
    return names, [fitting.text(needle, depth) for needle, depth in zip(needles, depths, strict=True)]


def _split(tokenizer: PreTrainedTokenizerBase, length: int, seed: int) -> RetrievalSplitData:
    names, texts = passkey_texts(tokenizer, length, seed)
    documents = [f"document-{place}" for place in range(CANDIDATES)]
    queries = [f"query-{place}" for place in range(QUERIES)]
    return RetrievalSplitData(
        corpus=Dataset.from_dict({"id": documents, "text": texts, "title": [""] * CANDIDATES}),
        queries=Dataset.from_dict({"id": queries, "text": [QUERY.format(name=name) for name in names[:QUERIES]]}),
        relevant_docs={query: {document: 1} for query, document in zip(queries, documents, strict=False)},
        top_ranked=None,
    )


class _Fitting:
    """Makes texts of an exact length in tokens, with a sentence somewhere in the filler.

    A tokenizer's count is no sum over words, so the number of words is estimated, and what is left is filled by a
    short ending; only the count of the whole text decides.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, length: int) -> None:
        self.tokenizer = tokenizer
        self.length = length
        sentences = [sentence.split() for sentence in FILLER]
        self.round = [word for sentence in sentences for word in sentence]
        # A word has a token at least, so these are enough.
        rounds = length // len(self.round) + 1
        self.words = self.round * rounds
        self.sentence_starts = [0, *accumulate(map(len, sentences * rounds))]
        once, twice = (self.count(" ".join(self.round * times)) for times in (1, 2))
        self.tokens_of_round = twice - once
        beginnings = (" ".join([*self.round, *self.round[:words]]) for words in range(len(self.round)))
        self.tokens_of_beginning = [self.count(text) - once for text in beginnings]

    def count(self, text: str) -> int:
        return len(self.tokenizer(text, truncation=False, return_attention_mask=False, verbose=False)["input_ids"])

    def text(self, needle: str, depth: float) -> str:
        """Put the needle behind the share `depth` of the filler's sentences."""
        most = self._words_around(needle)
        for words in range(most, max(most - WORDS_GIVEN_UP, -1), -1):
            text = self._joined(needle, depth, words)
            missing = self.length - self.count(text)
            if missing == 0:
                return text
            for ending in ENDINGS:
                for times in range(1, missing + 1):
                    if self.count(text + ending * times) == self.length:
                        return text + ending * times
        raise InputError(
            f"No text about a pass key has exactly {self.length} tokens, special ones included, with the tokenizer "
            f"of this model: {needle!r} alone takes {self.count(needle)}. Give lengths of 64 tokens or more."
        )

    def _words_around(self, needle: str) -> int:
        """Estimate how many words of filler fit beside the needle; one more than that, to be on the safe side."""
        filler = " ".join(self.round)
        room = self.length - self.count(f"{filler} {needle} {filler}") + 2 * self.tokens_of_round
        rounds, rest = divmod(max(room, 0), self.tokens_of_round)
        return rounds * len(self.round) + sum(tokens <= rest for tokens in self.tokens_of_beginning)

    def _joined(self, needle: str, depth: float, words: int) -> str:
        sentences = bisect_right(self.sentence_starts, words)
        place = self.sentence_starts[int(depth * sentences)]
        return " ".join([*self.words[:place], needle, *self.words[place:words]])
