"""Texts of evaluation sets that must not be trained on.

The paper (appendix B) compares training and evaluation texts ignoring case and spacing, and reports matches of
low-entropy texts, such as labels and single words, separately. Here punctuation is ignored as well, and one word may
differ.
"""

from __future__ import annotations

import hashlib
import unicodedata
from array import array
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np

from st_llm_embed.data.files import RECORD_FILES, file_ending, files_in, numbered_values
from st_llm_embed.errors import InputError

ENDINGS = (".txt", *RECORD_FILES)
"""Of files that evaluation texts are read from, `.gz` omitted."""
ALLOWED = f"{', '.join(ENDINGS)}, or one of these with .gz"

LEAST_COMMON_WORDS = 5
"""Texts with fewer words in common are low-entropy. Sentences in 12 languages against public evaluation sets: those of
4 words equal an evaluation text by chance in 0.2 % of cases and up to an edit in 1.6 %, those of 6 words in none and
0.2 %, those of 8 words or more in none."""

# A polynomial over word hashes modulo 2**64 in an odd base, which has an inverse: removing a word takes constant time.
_BASE = 0x9E3779B97F4A7C15
_INVERSE_BASE = np.uint64(pow(_BASE, -1, 2**64))
_MIX = np.uint64(0xD6E8FEB86659FD93)

_UNSPACED = (
    # first and last character of scripts without spaces, and about how many characters make a word
    (0x0E00, 0x0EFF, 4),  # Thai, Lao
    (0x1000, 0x109F, 4),  # Burmese
    (0x1780, 0x17FF, 4),  # Khmer
    (0x3005, 0x3007, 2),  # ideographic iteration mark and zero
    (0x3041, 0x30FF, 2),  # kana
    (0x31F0, 0x31FF, 2),
    (0x3400, 0x4DBF, 2),  # Han
    (0x4E00, 0x9FFF, 2),
    (0xA9E0, 0xA9FF, 4),  # Burmese
    (0xAA60, 0xAA7F, 4),
    (0xF900, 0xFAFF, 2),  # Han
    (0x20000, 0x3FFFF, 2),
)


class Match(NamedTuple):
    """What a text has in common with the evaluation texts."""

    file: Path
    """The file that has the evaluation text; the first one given, if several have it."""
    kind: Literal["exact", "one-word edit"]
    low_entropy: bool
    """The text is too short to say that it was taken from there: to be reported, not to be rejected."""


class EvaluationTexts:
    """An index of evaluation texts: hashes, sorted; about 12 bytes for each word of each text.

    Texts are compared as words without case, punctuation and spacing (NFKC, casefold); each character of a script
    without spaces is a word. For an edit of one word, a text of w words is hashed w times with one word omitted.
    """

    def __init__(self, texts: Iterable[tuple[str, Path]]) -> None:
        """Index texts, each with the file that has it."""
        files: dict[Path, int] = {}
        self._spellings, self._whole, self._lacking = _Hashes(), _Hashes(), _Hashes()
        self._longest = 0
        for text, path in texts:
            words = _words(text)
            if not words:
                continue
            self._longest = max(self._longest, len(words))
            file = files.setdefault(path, len(files))
            self._spellings.add(_hash_spelling(words), file)
            if len(words) > 1:
                total, without = _without_each(words)
                self._whole.add(total, file)
                self._lacking.add(_at_position(without), file)
        self._files = tuple(files)
        for hashes in (self._spellings, self._whole, self._lacking):
            hashes.sort()

    @classmethod
    def read(cls, paths: Sequence[Path]) -> Self:
        """Read all texts of files, or of all files in folders with one of ENDINGS.

        A .txt file has one text a line. In the other formats every string is a text, also inside lists and objects.

        Raises:
            InputError: a path does not exist, cannot be read as what its name says, or holds no text.
        """
        return cls((text, file) for path in paths for file in _files_of(path) for text in _texts_of(file))

    def match(self, text: str) -> Match | None:
        """Return what a text has in common with an evaluation text: all of it, or all but one word."""
        words = _words(text)
        if not words:
            return None
        file = self._spellings.find(_hash_spelling(words))
        if file is not None:
            return Match(self._files[file], "exact", _count_words(words) < LEAST_COMMON_WORDS)
        if len(words) > self._longest + 1:
            return None
        total, without = _without_each(words)
        candidates = (
            self._lacking.find(_at_position(without)),  # a word is replaced
            self._lacking.find(_at_position(np.repeat(total, len(words) + 1))),  # a word is omitted, at any position
            self._whole.find(without),  # a word is inserted
        )
        found = [file for file in candidates if file is not None]
        if not found:
            return None
        return Match(self._files[min(found)], "one-word edit", _count_words(words) - 1 < LEAST_COMMON_WORDS)


def strings_in(value: Any) -> Iterator[str]:
    """Yield a string, or every string inside lists and objects."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from strings_in(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from strings_in(item)


class _Hashes:
    """Hashes with the number of the file that has each: added first, then sorted, then looked up."""

    def __init__(self) -> None:
        # Arrays of the standard library grow in place, numpy's are copied.
        self._added, self._files_added = array("Q"), array("I")

    def add(self, hashes: np.ndarray, file: int) -> None:
        """Add the hashes of a text in a file."""
        self._added.frombytes(hashes.tobytes())
        self._files_added.extend([file] * len(hashes))

    def sort(self) -> None:
        """Sort what was added; of equal hashes the first file's comes first."""
        hashes, files = np.asarray(self._added), np.asarray(self._files_added)
        order = np.argsort(hashes, kind="stable")
        self._hashes, self._files = hashes[order], files[order]
        del self._added, self._files_added

    def find(self, wanted: np.ndarray) -> int | None:
        """Return the least file number among the wanted hashes that are here."""
        if not len(self._hashes):
            return None
        places = np.minimum(np.searchsorted(self._hashes, wanted), len(self._hashes) - 1)
        hits = self._files[places[self._hashes[places] == wanted]]
        return int(hits.min()) if len(hits) else None


class _Folding(dict[int, str]):
    """What a character becomes before texts are compared; filled as characters are met."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        category = unicodedata.category(character)
        if category[0] == "P" or category in ("Sk", "Cf"):
            folded = ""
        elif category[0] in "ZC":
            folded = " "
        else:
            folded = character if _characters_per_word(character) == 1 else f" {character} "
        self[code] = folded
        return folded


# casefold ignores Turkish, where the capital of a dotless i is I and that of an i has a dot above.
_FOLDING = _Folding({ord("\N{LATIN SMALL LETTER DOTLESS I}"): "i", ord("\N{COMBINING DOT ABOVE}"): ""})


def _words(text: str) -> list[str]:
    folded = unicodedata.normalize("NFKC", text).casefold()
    # Folding case can take characters apart that have no small letter of their own.
    return unicodedata.normalize("NFKC", folded).translate(_FOLDING).split()


def _characters_per_word(character: str) -> int:
    """Return about how many characters of an unspaced script make a word, 1 for all other scripts."""
    code = ord(character)
    return next((count for first, last, count in _UNSPACED if first <= code <= last), 1)


def _count_words(words: list[str]) -> float:
    """Count words; a character of an unspaced script is a part of one."""
    return sum(1 / _characters_per_word(word[0]) for word in words)


@lru_cache(maxsize=65_536)
def _hash_word(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def _hash_spelling(words: list[str]) -> np.ndarray:
    """Hash words as they are when written without spaces, to (1,)."""
    digest = hashlib.blake2b("".join(words).encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return np.frombuffer(digest, dtype="<u8")


def _without_each(words: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Hash a sequence of words, and the same sequence without each of its words.

    Returns:
        (1,) the hash of all words; (words,) the hashes of the sequences that lack the word of this position.
    """
    hashes = np.fromiter(map(_hash_word, words), dtype=np.uint64, count=len(words))
    powers = np.full(len(words), _BASE, dtype=np.uint64)
    powers[0] = 1
    terms = hashes * np.multiply.accumulate(powers)
    sums = np.cumsum(terms, dtype=np.uint64)
    # What follows the word moves one place down, hence the inverse of the base.
    return sums[-1:], sums - terms + (sums[-1] - sums) * _INVERSE_BASE


def _at_position(hashes: np.ndarray) -> np.ndarray:
    """Mix each hash with its position, so that texts match only if they lack a word at the same place."""
    mixed = (hashes ^ np.arange(len(hashes), dtype=np.uint64)) * _MIX
    return mixed ^ (mixed >> np.uint64(32))


def _files_of(path: Path) -> list[Path]:
    if not path.exists():
        raise InputError(f"There is no file or folder of evaluation texts {path}. Check the path.")
    files = files_in(path, ENDINGS) if path.is_dir() else [path]
    if not files or file_ending(files[0]) not in ENDINGS:
        raise InputError(f"{path} is not a file or folder of evaluation texts that end in {ALLOWED}.")
    return files


def _texts_of(file: Path) -> Iterator[str]:
    has_text = False
    for _, value in numbered_values(file):
        for text in strings_in(value):
            has_text = has_text or bool(text.strip())
            yield text
    if not has_text:
        raise InputError(f"The file of evaluation texts {file} holds no text. Remove it or give another one.")
