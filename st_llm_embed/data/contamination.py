"""Texts of evaluation sets that must not be trained on.

The paper (appendix B) compares training and evaluation texts ignoring case and spacing, and reports matches of
low-entropy texts, such as labels and single words, apart. Here punctuation is ignored too, and one word may differ.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import unicodedata
import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np

from st_llm_embed.errors import InputError

SUFFIXES = (".txt", ".jsonl", ".jsonl.gz", ".json", ".json.gz", ".parquet")
"""Files that evaluation texts are read from."""

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
    without spaces is a word. For an edit of one word, a text of w words is hashed w times with one word left out.
    """

    def __init__(self, texts: Iterable[tuple[str, Path]]) -> None:
        """Index texts, each with the file that has it."""
        files: dict[Path, int] = {}
        spellings, whole, lacking = _GatheredHashes(), _GatheredHashes(), _GatheredHashes()
        self._longest = 0
        for text, path in texts:
            words = _words(text)
            if not words:
                continue
            self._longest = max(self._longest, len(words))
            file = files.setdefault(path, len(files))
            spellings.add(_hash_spelling(words), file)
            if len(words) > 1:
                total, without = _without_each(words)
                whole.add(total, file)
                lacking.add(_at_position(without), file)
        self._files = tuple(files)
        self._spellings, self._whole, self._lacking = spellings.sorted(), whole.sorted(), lacking.sorted()

    @classmethod
    def read(cls, paths: Sequence[Path]) -> Self:
        """Read all texts of files, or of all files in folders that end in one of SUFFIXES.

        A .txt file has one text a line. Of the other formats every string is a text, also inside lists and objects.

        Raises:
            InputError: a path does not exist, cannot be read as what its name says, or holds no text.
        """
        return cls((text, file) for path in paths for file in _files_of(Path(path)) for text in _texts_of(file))

    def match(self, text: str) -> Match | None:
        """Say whether a text is an evaluation text, as it is or with one word replaced, inserted or left out."""
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
            self._lacking.find(_at_position(np.repeat(total, len(words) + 1))),  # a word is left out, at any position
            self._whole.find(without),  # a word is inserted
        )
        found = [file for file in candidates if file is not None]
        if not found:
            return None
        return Match(self._files[min(found)], "one-word edit", _count_words(words) - 1 < LEAST_COMMON_WORDS)


def strings_in(value: Any) -> Iterator[str]:
    """Give a string, or every string inside lists and objects."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from strings_in(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from strings_in(item)


class _SortedHashes(NamedTuple):
    """Hashes in order, and the number of the file that has each; of equal hashes the first file's comes first."""

    hashes: np.ndarray
    files: np.ndarray

    def find(self, wanted: np.ndarray) -> int | None:
        """Give the least file number among the wanted hashes that are here."""
        if not len(self.hashes):
            return None
        places = np.minimum(np.searchsorted(self.hashes, wanted), len(self.hashes) - 1)
        hits = self.files[places[self.hashes[places] == wanted]]
        return int(hits.min()) if len(hits) else None


class _GatheredHashes:
    """Hashes that are still being gathered. Arrays of the standard library grow in place, numpy's are copied."""

    def __init__(self) -> None:
        self._hashes = array("Q")
        self._files = array("I")

    def add(self, hashes: np.ndarray, file: int) -> None:
        """Add the hashes of a text in a file."""
        self._hashes.frombytes(hashes.tobytes())
        self._files.extend([file] * len(hashes))

    def sorted(self) -> _SortedHashes:
        """Give what was added, sorted."""
        hashes, files = np.asarray(self._hashes), np.asarray(self._files)
        order = np.argsort(hashes, kind="stable")
        return _SortedHashes(hashes[order], files[order])


class _Folding(dict[int, str]):
    """Gives what a character becomes before texts are compared; filled as characters are met."""

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


# casefold knows nothing of Turkish, where the capital of a dotless i is I and that of an i has a dot above.
_FOLDING = _Folding({ord("\N{LATIN SMALL LETTER DOTLESS I}"): "i", ord("\N{COMBINING DOT ABOVE}"): ""})


def _words(text: str) -> list[str]:
    folded = unicodedata.normalize("NFKC", text).casefold()
    # Folding case can take characters apart that have no small letter of their own.
    return unicodedata.normalize("NFKC", folded).translate(_FOLDING).split()


def _characters_per_word(character: str) -> int:
    """About how many characters of an unspaced script make a word, 1 for all other scripts."""
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
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.name.endswith(SUFFIXES) and file.is_file())
        if not files:
            raise InputError(
                f"The folder of evaluation texts {path} has no file that ends in {', '.join(SUFFIXES)}. Give a folder "
                f"with such files, or the files themselves."
            )
        return files
    if not path.is_file():
        raise InputError(f"There is no file or folder of evaluation texts {path}. Check the path.")
    if not path.name.endswith(SUFFIXES):
        raise InputError(
            f"The file of evaluation texts {path} has to end in {', '.join(SUFFIXES)}. Convert it, for example to a "
            f".txt file with one text a line."
        )
    return [path]


def _texts_of(file: Path) -> Iterator[str]:
    import pyarrow as pa

    has_text = False
    try:
        for text in _texts_of_parquet(file) if file.suffix == ".parquet" else _texts_of_lines(file):
            has_text = has_text or bool(text.strip())
            yield text
    except (OSError, EOFError, zlib.error, ValueError, RecursionError, pa.ArrowException) as error:
        if isinstance(error, InputError):
            raise
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error) or type(error).__name__
        raise InputError(
            f"The evaluation texts in {file} cannot be read: {reason}. A .txt file has one text a line, a .jsonl file "
            f"one JSON value a line, both in UTF-8; .gz and .parquet say what the file is. Mend or remove the file."
        ) from error
    if not has_text:
        raise InputError(f"The file of evaluation texts {file} holds no text. Remove it or give another one.")


def _texts_of_lines(file: Path) -> Iterator[str]:
    opened = gzip.open if file.suffix == ".gz" else open
    with opened(file, "rt", encoding="utf-8-sig") as lines:
        if file.suffix == ".txt":
            yield from lines
            return
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except json.JSONDecodeError as error:
                if number > 1 or ".jsonl" in file.suffixes:
                    raise InputError(
                        f"The evaluation texts in {file} cannot be read: line {number} is not JSON: {error}. Write "
                        f"one JSON value a line, or mend the file."
                    ) from error
                lines.seek(0)
                yield from strings_in(json.loads(lines.read()))
                return
            yield from strings_in(value)


def _texts_of_parquet(file: Path) -> Iterator[str]:
    from pyarrow import parquet

    with parquet.ParquetFile(file) as table:
        for batch in table.iter_batches(batch_size=1_000):
            for column in batch.columns:
                yield from strings_in(column.to_pylist())
