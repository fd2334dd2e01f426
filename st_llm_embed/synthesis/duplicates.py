"""Texts that repeat an earlier text, exactly or nearly.

Near duplicates are found by MinHash (Broder 1997, "On the resemblance and containment of documents"): two texts agree
in a share of their signatures that estimates the Jaccard similarity of their sets of character 5-shingles. Characters
rather than words, so that languages without spaces need no rule of their own.
"""

from __future__ import annotations

import hashlib
import tempfile
import unicodedata
from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np

DEFAULT_SIMILARITY = 0.8
"""Jaccard similarity from which on a text repeats another; scripts/bench_duplicates.py prints what it finds."""

SHINGLE_CHARACTERS = 5
PERMUTATIONS = 128
BAND_RECALL = 0.9
"""Least probability that two texts of the wanted similarity share a band, hence are compared."""
NEIGHBOURS = 4
"""Earlier texts of the same band that a text is compared with, so that no band costs more than linear time."""

BLOCK = 1_024
"""Shingles that are permuted at once: block x permutations x 4 bytes stay in a core's second-level cache."""
BATCH = 8_192
"""Texts whose signatures are written, read or compared at once."""

# Not numpy's generators, which may change between versions: signatures are the same on every machine.
_MULTIPLIERS, _ADDENDS = np.frombuffer(
    hashlib.shake_256(b"st_llm_embed.synthesis.duplicates").digest(8 * PERMUTATIONS), dtype="<u4"
).reshape(2, PERMUTATIONS, 1)
_MULTIPLIERS = (_MULTIPLIERS | 1).astype(np.uint32)
_ADDENDS = _ADDENDS.astype(np.uint32)
_PLACES = np.array([pow(0x9E3779B97F4A7C15, place + 1, 2**64) for place in range(SHINGLE_CHARACTERS)], dtype=np.uint64)
_MIX = np.uint64(0xD6E8FEB86659FD93)


def text_hash(text: str) -> int:
    """Hash a text to 64 bits; texts that differ in case, spacing or compatibility characters alone share a hash."""
    return _hash(_folded(text))


def near_duplicates(
    texts: Iterable[str], *, workspace: Path, similarity: float = DEFAULT_SIMILARITY
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Find for each text an earlier text that it repeats.

    Exact repetitions of a folded text (NFKC, casefold, spacing) name its first occurrence. Others are compared with a
    few earlier texts of the same band of MinHash values, so time is linear. Signatures, 512 bytes a text, are on disk.

    Args:
        texts: read once, one at a time.
        workspace: an existing folder for the signatures, which are gone afterwards, also if the process is killed.
        similarity: Jaccard similarity of the 5-shingles from which on a text counts as a repetition, in (0, 1].

    Returns:
        (texts,) for each text the index of the earlier text, -1 if there is none. That text may itself repeat another.
    """
    with tempfile.TemporaryFile(dir=workspace) as file:
        hashes = _write_signatures(texts, file)
        _, firsts, groups = np.unique(hashes, return_index=True, return_inverse=True)
        earlier = firsts[groups].astype(np.int64)
        earlier[firsts] = -1
        if len(firsts) > 1:
            _find_similar(file, np.sort(firsts), earlier, similarity)
    return earlier


def _write_signatures(texts: Iterable[str], file: BinaryIO) -> np.ndarray:
    """Write a row of PERMUTATIONS values for each text; return (texts,) hashes of the whole folded texts."""
    hashes = array("Q")
    for text in texts:
        folded = _folded(text)
        hashes.append(_hash(folded))
        file.write(_signature(np.frombuffer(folded, dtype="<u4")).tobytes())
    file.flush()
    return np.array(hashes, dtype=np.uint64)


def _signature(characters: np.ndarray) -> np.ndarray:
    """Return the least value of each permutation over the shingles of (characters,) code points."""
    least = np.full(PERMUTATIONS, np.iinfo(np.uint32).max, dtype="<u4")
    if 0 < len(characters) < SHINGLE_CHARACTERS:
        characters = np.pad(characters, (0, SHINGLE_CHARACTERS - len(characters)))
    shingles = len(characters) - SHINGLE_CHARACTERS + 1
    for start in range(0, shingles, BLOCK):
        stop = min(start + BLOCK, shingles)
        values = np.zeros(stop - start, dtype=np.uint64)
        for place, multiplier in enumerate(_PLACES):
            values += characters[start + place : stop + place] * multiplier
        values ^= values >> np.uint64(32)
        values *= _MIX
        permuted = (values >> np.uint64(32)).astype(np.uint32) * _MULTIPLIERS
        permuted += _ADDENDS
        np.minimum(least, permuted.min(axis=1), out=least)
    return least


def _find_similar(file: BinaryIO, texts: np.ndarray, earlier: np.ndarray, similarity: float) -> None:
    """Compare these texts band by band and note in `earlier` what they repeat."""
    rows = _rows_per_band(similarity)
    shape = (len(earlier), PERMUTATIONS)
    for band in range(PERMUTATIONS // rows):
        # Mapped again for each band: pages that were read count as this process's memory until they are unmapped.
        signatures = np.memmap(file, dtype="<u4", mode="r", shape=shape)
        keys = _band_keys(signatures, texts, slice(band * rows, (band + 1) * rows))
        order = np.argsort(keys, kind="stable")  # stable: within a band earlier texts come first
        keys, ordered = keys[order], texts[order]
        starts = np.concatenate(([True], keys[1:] != keys[:-1]))
        group_starts = np.maximum.accumulate(np.where(starts, np.arange(len(keys)), 0))
        _compare(signatures, ordered, ordered[group_starts], earlier, similarity)
        for distance in range(1, NEIGHBOURS + 1):
            same = group_starts[distance:] == group_starts[:-distance]
            _compare(signatures, ordered[distance:][same], ordered[:-distance][same], earlier, similarity)


def _rows_per_band(similarity: float) -> int:
    """Return the most rows with which texts of the wanted similarity still share a band with BAND_RECALL."""
    for rows in range(PERMUTATIONS, 1, -1):
        if 1 - (1 - similarity**rows) ** (PERMUTATIONS // rows) >= BAND_RECALL:
            return rows
    return 1


def _band_keys(signatures: np.ndarray, texts: np.ndarray, columns: slice) -> np.ndarray:
    """Hash some columns of the signatures of (texts,) to (texts,) 64-bit keys."""
    keys = np.zeros(len(texts), dtype=np.uint64)
    for start in range(0, len(texts), BATCH):
        batch = keys[start : start + BATCH]
        for column in signatures[texts[start : start + BATCH], columns].T:
            batch ^= column
            batch *= _MIX
            batch ^= batch >> np.uint64(32)
    return keys


def _compare(
    signatures: np.ndarray, later: np.ndarray, candidates: np.ndarray, earlier: np.ndarray, similarity: float
) -> None:
    """Note in `earlier` which of the later texts repeat their candidate; each has its own, or itself for none."""
    open_pairs = (earlier[later] < 0) & (later != candidates)
    later, candidates = later[open_pairs], candidates[open_pairs]
    for start in range(0, len(later), BATCH):
        texts, others = later[start : start + BATCH], candidates[start : start + BATCH]
        agreement = (signatures[texts] == signatures[others]).mean(axis=1)
        found = agreement >= similarity
        earlier[texts[found]] = others[found]


def _folded(text: str) -> bytes:
    """Fold a text, in 4 bytes a character; lone surrogates, which a JSON escape can produce, are kept."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).encode("utf-32-le", "surrogatepass")


def _hash(folded: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(folded, digest_size=8).digest(), "little")
