from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from st_llm_embed.synthesis.duplicates import SHINGLE_CHARACTERS, near_duplicates, text_hash


def shingles(text: str) -> set[str]:
    return {text[start : start + SHINGLE_CHARACTERS] for start in range(len(text) - SHINGLE_CHARACTERS + 1)}


def script(first: int, last: int) -> list[str]:
    return [chr(code) for code in range(first, last)]


def planted(generator: random.Random, vocabulary: list[str], separator: str, jaccard: float) -> tuple[str, str]:
    """A text and a copy with words replaced until the exact similarity is at most `jaccard`."""
    text = generator.choices(vocabulary, k=150 if separator else 300)
    copy = list(text)
    original = shingles(separator.join(text))
    for position in generator.sample(range(len(text)), len(text)):
        copy[position] = generator.choice(vocabulary)
        changed = shingles(separator.join(copy))
        if len(original & changed) <= jaccard * len(original | changed):
            break
    return separator.join(text), separator.join(copy)


def words(generator: random.Random) -> list[str]:
    return ["".join(generator.choices("etaoinshrdlu", k=generator.randint(2, 9))) for _ in range(2_000)]


@pytest.mark.parametrize("name", ["words", "Chinese", "Thai"])
def test_pairs_are_found_by_their_similarity(name: str, tmp_path: Path) -> None:
    generator = random.Random(3)  # noqa: S311
    vocabulary, separator = {
        "words": (words(generator), " "),
        "Chinese": (script(0x4E00, 0x5800), ""),
        "Thai": (script(0x0E01, 0x0E2F), ""),
    }[name]
    for jaccard, similarity, least, most in (
        (0.9, 0.8, 57, 60),
        (0.65, 0.5, 54, 60),
        (0.65, 0.8, 0, 3),
        (0.9, 1, 0, 0),
    ):
        pairs = [planted(generator, vocabulary, separator, jaccard) for _ in range(60)]
        texts = (text for pair in pairs for text in pair)
        earlier = near_duplicates(texts, workspace=tmp_path, similarity=similarity)
        assert least <= sum(int(earlier[2 * number + 1]) == 2 * number for number in range(60)) <= most
        assert (earlier[0::2] == -1).all()


def test_exact_repetitions_name_the_first_occurrence(tmp_path: Path) -> None:
    full_width = "\uff25\uff49\uff4e satz"
    texts = ["The cat sat.", "", "Ein Satz", "the  CAT sat. ", " ", "Straße", "STRASSE", full_width, "x", "x", "y"]
    assert near_duplicates(texts, workspace=tmp_path).tolist() == [-1, -1, -1, 0, 1, -1, 5, 2, -1, 8, -1]
    assert text_hash(texts[0]) == text_hash(texts[3]) != text_hash(texts[2])
    assert 0 <= text_hash("") < 2**64


def test_a_pair_is_found_amid_many_texts_made_from_one_template(tmp_path: Path) -> None:
    generator = random.Random(5)  # noqa: S311
    vocabulary = words(generator)
    template = " ".join(generator.choices(vocabulary, k=60))
    texts = [f"{template} {' '.join(generator.choices(vocabulary, k=80))}" for _ in range(1_500)]
    copies = [text.rsplit(" ", 2)[0] + " something else" for text in texts[:100]]
    earlier = near_duplicates(texts + copies, workspace=tmp_path)
    assert (earlier[: len(texts)] == -1).all()
    assert sum(earlier[len(texts) :] == range(100)) >= 95


def test_adversarial_texts_neither_crash_nor_explode(tmp_path: Path) -> None:
    def texts() -> Iterator[str]:
        yield from ["The same words over and over again."] * 5_000
        for number in range(5_000):
            yield f"A template of many words in which only the very last one differs from text to text: {number}"
        for number in range(1_000):
            yield chr(0x4E00 + number)
            yield ""
        yield "word " * 200_000
        yield "word " * 200_001
        yield "\ud800 a lone surrogate"

    earlier = near_duplicates(texts(), workspace=tmp_path)
    assert len(earlier) == 12_003
    assert (earlier[:5_000] == [-1] + [0] * 4_999).all()
    assert (earlier[5_001:10_000] >= 5_000).mean() > 0.99
    assert (earlier[10_000:12_000:2] == -1).all()
    assert (earlier[10_001:12_000:2] == [-1] + [10_001] * 999).all()
    assert earlier[12_000:].tolist() == [-1, 12_000, -1]


def test_nothing_is_left_in_the_workspace(tmp_path: Path) -> None:
    def texts() -> Iterator[str]:
        yield "one"
        raise KeyboardInterrupt

    assert near_duplicates([], workspace=tmp_path).tolist() == []
    assert near_duplicates(["alone"], workspace=tmp_path).tolist() == [-1]
    with pytest.raises(KeyboardInterrupt):
        near_duplicates(texts(), workspace=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_hashes_are_the_same_on_every_machine() -> None:
    assert text_hash("Grüße  aus 東京") == text_hash("grüsse aus 東京")
    assert f"{text_hash('the same everywhere'):016x}" == "aa3c0e883ab8e6b5"
