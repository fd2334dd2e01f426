"""Measure st_llm_embed.synthesis.duplicates: speed, peak memory, and what it finds at planted similarities.

    OMP_NUM_THREADS=1 taskset -c 1 python scripts/bench_duplicates.py [--documents 1000000] [--words 150]

Prints the share of planted pairs that are found, by their exact Jaccard similarity of character 5-shingles, for words
and for a script without spaces; then time, documents a second, peak memory and wrong finds on random documents, one in
ten of which repeats an earlier one with one word in fifty changed.
"""

from __future__ import annotations

import argparse
import random
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from st_llm_embed.synthesis.duplicates import DEFAULT_SIMILARITY, SHINGLE_CHARACTERS, near_duplicates

JACCARDS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)


def main() -> None:
    """Print two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--words", type=int, default=150)
    parser.add_argument("--pairs", type=int, default=400, help="planted pairs at each similarity")
    parser.add_argument("--similarity", type=float, default=DEFAULT_SIMILARITY)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        workspace = Path(folder)
        print_recall(arguments, workspace)
        print_speed(arguments, workspace)


def print_recall(arguments: argparse.Namespace, workspace: Path) -> None:
    """Plant pairs of a known similarity and count which are found."""
    print(f"share of planted pairs found with similarity {arguments.similarity}, {arguments.pairs} pairs each\n")
    print(f"| Jaccard | {' | '.join(map(str, JACCARDS))} |\n{'|---' * (len(JACCARDS) + 1)}|")
    han = [chr(0x4E00 + number) for number in range(3_000)]
    for name, vocabulary, separator in (("words", words(), " "), ("Han characters", han, "")):
        shares = []
        for jaccard in JACCARDS:
            generator = random.Random(jaccard)  # noqa: S311
            pairs = [planted_pair(generator, vocabulary, separator, jaccard) for _ in range(arguments.pairs)]
            texts = [text for pair in pairs for text in pair]
            earlier = near_duplicates(texts, workspace=workspace, similarity=arguments.similarity)
            shares.append((earlier[1::2] == np.arange(0, len(texts), 2)).mean())
        print(f"| {name} | {' | '.join(f'{share:.3f}' for share in shares)} |", flush=True)


def print_speed(arguments: argparse.Namespace, workspace: Path) -> None:
    """Time near_duplicates on random documents, the time to make them subtracted."""
    copies: list[int] = []
    start = time.perf_counter()
    making = sum(1 for _ in documents(arguments.documents, arguments.words, [])) and time.perf_counter() - start
    start = time.perf_counter()
    texts = documents(arguments.documents, arguments.words, copies)
    earlier = near_duplicates(texts, workspace=workspace, similarity=arguments.similarity)
    seconds = time.perf_counter() - start - making
    found = earlier >= 0
    planted = np.zeros(arguments.documents, dtype=bool)
    planted[copies] = True
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"\n{arguments.documents:,} documents of {arguments.words} words: {seconds:.1f} s, ", end="")
    print(f"{arguments.documents / seconds:,.0f} documents/s, peak memory of the process {peak:.0f} MiB")
    print(f"found {(found & planted).sum():,} of {planted.sum():,} planted, {(found & ~planted).sum():,} others")


def words() -> list[str]:
    """5,000 made-up words of 2 to 9 letters."""
    generator = random.Random(0)  # noqa: S311
    return ["".join(generator.choices("etaoinshrdlucmfw", k=generator.randint(2, 9))) for _ in range(5_000)]


def documents(count: int, length: int, copies: list[int]) -> Iterator[str]:
    """Random documents; one in ten repeats an earlier one with one word in fifty changed, and is noted in copies."""
    generator = random.Random(1)  # noqa: S311
    vocabulary = words()
    recent: list[list[str]] = []
    for number in range(count):
        document = generator.choices(vocabulary, k=length)
        if number % 10 == 9:
            document = list(recent[generator.randrange(len(recent))])
            for _ in range(max(1, length // 50)):
                document[generator.randrange(length)] = generator.choice(vocabulary)
            copies.append(number)
        elif len(recent) < 5_000:
            recent.append(document)
        else:
            recent[generator.randrange(5_000)] = document
        yield " ".join(document)


def planted_pair(generator: random.Random, vocabulary: list[str], separator: str, jaccard: float) -> tuple[str, str]:
    """A document and a copy of it, in which words are replaced until their similarity is at most jaccard."""
    document = generator.choices(vocabulary, k=150 if separator else 400)
    copy = list(document)
    original = shingles(separator.join(document))
    for position in generator.sample(range(len(copy)), len(copy)):
        copy[position] = generator.choice(vocabulary)
        changed = shingles(separator.join(copy))
        if len(original & changed) <= jaccard * len(original | changed):
            break
    return separator.join(document), separator.join(copy)


def shingles(text: str) -> set[str]:
    """The character shingles of a text."""
    return {text[start : start + SHINGLE_CHARACTERS] for start in range(len(text) - SHINGLE_CHARACTERS + 1)}


if __name__ == "__main__":
    main()
