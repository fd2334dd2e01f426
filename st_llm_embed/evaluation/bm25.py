"""BM25, the baseline that any embedder has to beat: words in common, without a model."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import bm25s
import numpy as np
import Stemmer
from numpy.typing import NDArray

from st_llm_embed.evaluation.ranking import Similarity
from st_llm_embed.languages import LANGUAGE_CODES
from st_llm_embed.synthesis.language_id import language_of

SAMPLED = 200
"""Documents whose beginnings show the language."""

UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff]+"
)
"""Thai, Lao, Burmese, Khmer, kana and Han: no blanks between words."""

NOTHING = "\0"
"""Stands in an empty document, which bm25s cannot index; no query has it."""


def bm25_similarity(queries: Sequence[str], documents: Sequence[str]) -> Similarity:
    """Index the documents, and return what scores queries against them.

    Words are stemmed where Snowball knows the language that most documents are in; where a script has no blanks,
    pairs of characters stand for words.
    """
    stem = _stemmer(documents)
    index = bm25s.BM25()
    index.index([_words(text, stem) or [NOTHING] for text in documents], show_progress=False)
    asked = [_words(query, stem) for query in queries]

    def similarity(start: int, stop: int) -> NDArray[np.float32]:
        scores = np.zeros((stop - start, len(documents)), dtype=np.float32)
        for row, words in zip(scores, asked[start:stop], strict=True):
            if words:
                row[:] = index.get_scores(words)
        return scores

    return similarity


def _stemmer(documents: Sequence[str]) -> Stemmer.Stemmer | None:
    sample = documents[:: max(1, len(documents) // SAMPLED)]
    codes = [language_of(text) for text in sample]
    code = max(set(codes), key=codes.count)
    name = next((name.lower() for name, one in LANGUAGE_CODES.items() if one == code), None)
    return Stemmer.Stemmer(name) if name in Stemmer.algorithms() else None


class _Kept(dict[int, str]):
    """Letters, marks and numbers as they are, and blanks for everything else; for `str.translate`."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        self[code] = character if unicodedata.category(character)[0] in "LMN" else " "
        return self[code]


_KEPT = _Kept()


def _words(text: str, stemmer: Stemmer.Stemmer | None) -> list[str]:
    words: list[str] = []
    for part in unicodedata.normalize("NFKC", text).casefold().translate(_KEPT).split():
        rest = UNSPACED.sub(" ", part).split()
        words += stemmer.stemWords(rest) if stemmer is not None else rest
        for run in UNSPACED.findall(part):
            words += [run[place : place + 2] for place in range(max(1, len(run) - 1))]
    return words
