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


@pytest.mark.parametrize("name", ["words", "Chinese", "Thai", "Amharic"])
def test_pairs_are_found_at_0_9_and_left_at_0_5(name: str, tmp_path: Path) -> None:
    generator = random.Random(3)  # noqa: S311
    vocabulary, separator = {
        "words": (words(generator), " "),
        "Chinese": (script(0x4E00, 0x5800), ""),
        "Thai": (script(0x0E01, 0x0E2F), ""),
        "Amharic": (script(0x1200, 0x1240), ""),
    }[name]
    for jaccard, least, most in ((0.9, 95, 100), (0.5, 0, 5)):
        pairs = [planted(generator, vocabulary, separator, jaccard) for _ in range(100)]
        earlier = near_duplicates((text for pair in pairs for text in pair), workspace=tmp_path)
        found = sum(int(earlier[2 * number + 1]) == 2 * number for number in range(100))
        assert least <= found <= most
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
        for _ in range(20_000):
            yield "The same words over and over again."
        for number in range(20_000):
            yield f"A template of many words in which only the very last one differs from text to text: {number}"
        for number in range(3_000):
            yield chr(0x4E00 + number)
            yield ""
        yield "word " * 200_000
        yield "word " * 200_001
        yield "\ud800 a lone surrogate"

    earlier = near_duplicates(texts(), workspace=tmp_path)
    assert len(earlier) == 46_003
    assert earlier[0] == -1
    assert (earlier[1:20_000] == 0).all()
    assert (earlier[20_001:40_000] >= 20_000).mean() > 0.99
    characters, empties = earlier[40_000:46_000:2], earlier[40_001:46_000:2]
    assert (characters == -1).all()
    assert empties[0] == -1
    assert (empties[1:] == 40_001).all()
    assert earlier[46_001] == 46_000
    assert earlier[46_002] == -1


def test_no_text_or_one_text(tmp_path: Path) -> None:
    assert near_duplicates([], workspace=tmp_path).tolist() == []
    assert near_duplicates(["alone"], workspace=tmp_path).tolist() == [-1]


def test_nothing_is_left_in_the_workspace(tmp_path: Path) -> None:
    def texts() -> Iterator[str]:
        yield "one"
        raise KeyboardInterrupt

    near_duplicates(["one", "two"], workspace=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        near_duplicates(texts(), workspace=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_lower_similarity_finds_more(tmp_path: Path) -> None:
    generator = random.Random(7)  # noqa: S311
    vocabulary = words(generator)
    texts = [text for _ in range(50) for text in planted(generator, vocabulary, " ", 0.65)]
    found = {
        similarity: int((near_duplicates(texts, workspace=tmp_path, similarity=similarity) >= 0).sum())
        for similarity in (0.5, 0.8, 1.0)
    }
    assert found[0.5] >= 45
    assert found[0.8] <= 2
    assert found[1.0] == 0


def test_hashes_are_the_same_on_every_machine() -> None:
    assert text_hash("Grüße  aus 東京") == text_hash("grüsse aus 東京")
    assert f"{text_hash('the same everywhere'):016x}" == "aa3c0e883ab8e6b5"
