"""Measure st_llm_embed.data.contamination: memory, speed, what it finds of planted texts, and false hits.

    OMP_NUM_THREADS=1 taskset -c 1 python scripts/bench_contamination.py [--sentences 1000000] [--evaluation PATH ...]

Indexes made-up sentences of 8 to 22 words and looks for some of them as they are, with case and spacing changed, and
with a word replaced, inserted or left out, and for the texts of the packaged rows. With --evaluation the packaged rows
are matched against those files or folders instead of the made-up sentences.
"""

from __future__ import annotations

import argparse
import random
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from st_llm_embed.data.contamination import EvaluationTexts
from st_llm_embed.data.rows import read_rows, rows_file


def main() -> None:
    """Index, match, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sentences", type=int, default=100_000)
    parser.add_argument("--evaluation", type=Path, nargs="*", default=[])
    arguments = parser.parse_args()
    print(f"peak memory before: {peak_memory()} MiB")
    if arguments.evaluation:
        match_rows(read(arguments.evaluation))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sentences.txt"
        with path.open("w", encoding="utf-8") as file:
            file.writelines(sentence + "\n" for sentence in sentences(arguments.sentences))
        evaluation = read([path])
    generator = random.Random(2)  # noqa: S311
    planted = [
        sentence for sentence in sentences(arguments.sentences) if generator.random() < 5_000 / arguments.sentences
    ]
    for name, change in (("as they are", str), ("case and spacing changed", respaced), ("one word edited", edited)):
        changed = [change(sentence) for sentence in planted]
        start = time.perf_counter()
        found = sum(evaluation.match(sentence) is not None for sentence in changed)
        seconds = time.perf_counter() - start
        print(f"{name}: {found:,} of {len(planted):,} found, {len(planted) / seconds:,.0f} texts/s")
    match_rows(evaluation)


def read(paths: list[Path]) -> EvaluationTexts:
    """Index files and say what it took."""
    start = time.perf_counter()
    evaluation = EvaluationTexts.read(paths)
    print(f"indexed in {time.perf_counter() - start:.1f} s, peak memory {peak_memory()} MiB")
    return evaluation


def match_rows(evaluation: EvaluationTexts) -> None:
    """Match the packaged rows, and print all matches that are not of low entropy."""
    rows = list(read_rows(rows_file("embedded")))
    texts = [text for row in rows for text in (row.anchor, row.positive, row.negative) if text is not None]
    counts: Counter[str] = Counter()
    start = time.perf_counter()
    matches = [(text, evaluation.match(text)) for text in texts]
    seconds = time.perf_counter() - start
    for text, match in matches:
        if match is None:
            continue
        counts[f"{match.kind}{', low entropy' if match.low_entropy else ''}"] += 1
        if not match.low_entropy:
            print(f"  {match.kind}, {match.file.name}: {text[:100]!r}")
    print(f"packaged rows, {len(texts):,} texts: {dict(counts)}, {len(texts) / seconds:,.0f} texts/s")


def sentences(count: int) -> Iterator[str]:
    """Made-up sentences, the same at every call."""
    generator = random.Random(1)  # noqa: S311
    vocabulary = ["".join(generator.choices("etaoinshrdlucmfw", k=generator.randint(2, 9))) for _ in range(20_000)]
    for _ in range(count):
        yield " ".join(generator.choices(vocabulary, k=generator.randint(8, 22))).capitalize() + "."


def respaced(sentence: str) -> str:
    """Capitals, wider spaces and other punctuation."""
    return "  ".join(sentence.upper().split()).removesuffix(".") + " !"


def edited(sentence: str) -> str:
    """One word replaced, inserted or left out."""
    generator = random.Random(sentence)  # noqa: S311
    words = sentence.split()
    position = generator.randrange(len(words))
    edit = generator.choice(("replace", "insert", "leave out"))
    words[position : position + (edit != "insert")] = [] if edit == "leave out" else ["otherwise"]
    return " ".join(words)


def peak_memory() -> int:
    """Peak memory of the process in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    main()
