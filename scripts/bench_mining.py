"""Measure st_llm_embed.data.mining: time, peak memory, and how many planted false negatives are dropped.

    OMP_NUM_THREADS=1 python scripts/bench_mining.py [--rows 200000] [--dimension 64] [--twice]

Rows of random vectors: the cosine of anchor and positive is 0.8. For every tenth row the positive of another row is a
near copy of its own, which the stock search would take as its hardest negative: each nearness has a quarter of them.
The vectors are made of the texts, so encoding costs little; what is measured is numbering, search, choice and writing.
With --twice all is done again in a new folder, with the vectors that are there, and the results are compared.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from st_llm_embed.data.dataset import write_dataset
from st_llm_embed.data.mining import mine_dataset
from st_llm_embed.data.rows import Row
from st_llm_embed.data.vectors import VectorFolder
from st_llm_embed.recipe import Mining

POSITIVE_COSINE = 0.8
NEARNESS = (0.999, 0.995, 0.99, 0.98)
"""Cosine of a positive and its near copy."""


def main() -> None:
    """Write rows, mine, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--dimension", type=int, default=64)
    parser.add_argument("--twice", action="store_true")
    arguments = parser.parse_args()

    def encode(texts: list[str], instructions: list[str] | None) -> NDArray[np.float32]:
        numbers = (int(text.rsplit(" ", 1)[1]) for text in texts)
        return np.stack([vector(number, instructions is not None, arguments.dimension) for number in numbers])

    with tempfile.TemporaryDirectory() as folder:
        vectors = Path(folder) / "vectors"
        results = []
        for attempt in range(1 + arguments.twice):
            dataset = Path(folder) / str(attempt)
            write_dataset(map(row, range(arguments.rows)), dataset, 1e-9)
            before, start = peak_memory(), time.perf_counter()
            mine_dataset(dataset, Mining(model="random vectors"), VectorFolder(vectors, encode, "random"))
            print(f"mined {arguments.rows:,} rows in {time.perf_counter() - start:.0f} s")
            print(f"peak memory: {before} MiB before, {peak_memory()} MiB after")
            results.append((dataset / "short-short" / "train.parquet").read_bytes())
        if arguments.twice:
            print(f"the second result is {'equal' if results[0] == results[1] else 'DIFFERENT'}")
        print_found(dataset)


def print_found(dataset: Path) -> None:
    """Print how many planted false negatives became no negative, and what else was dropped."""
    table = pq.read_table(dataset / "short-short" / "train.parquet", columns=["anchor", "negative"])
    planted, taken = Counter[float](), Counter[float]()
    for anchor, negative in zip(*(column.to_pylist() for column in table.columns), strict=True):
        number = int(anchor.rsplit(" ", 1)[1])
        copy = copy_of(number)
        if copy is not None:
            planted[nearness(number)] += 1
            taken[nearness(number)] += negative == f"document {copy}"
    for cosine, count in sorted(planted.items(), reverse=True):
        print(f"planted at cosine {cosine}: {1 - taken[cosine] / count:.2%} of {count:,} dropped")
    report = json.loads((dataset / "mining.json").read_text(encoding="utf-8"))["configurations"]["short-short"][
        "train"
    ]
    print(report)


def row(number: int) -> Row:
    """Return a row that has no negative."""
    return Row(
        anchor=f"question {number}", positive=f"document {number}", instruction="Find it.", task_type="short-short"
    )


def copy_of(number: int) -> int | None:
    """Return the row whose positive is a near copy of this one's."""
    return number + 1 if number % 20 == 0 else number - 1 if number % 20 == 1 else None


def nearness(number: int) -> float:
    """Return the cosine of a positive that has a near copy with it."""
    return NEARNESS[number // 20 % len(NEARNESS)]


def vector(number: int, is_query: bool, dimension: int) -> NDArray[np.float32]:
    """Return the unit vector of a row's positive, or of its anchor."""
    if copy_of(number) is not None and number % 20 == 1:
        positive = tilted(random_unit(number - 1, dimension), nearness(number), number)
    else:
        positive = random_unit(number, dimension)
    return (tilted(positive, POSITIVE_COSINE, number) if is_query else positive).astype(np.float32)


def random_unit(seed: int, dimension: int) -> NDArray[np.float64]:
    """Return a random direction."""
    drawn = np.random.default_rng(seed).standard_normal(dimension)
    return drawn / np.linalg.norm(drawn)


def tilted(direction: NDArray[np.float64], cosine: float, seed: int) -> NDArray[np.float64]:
    """Return a unit vector that has this cosine with a direction."""
    drawn = np.random.default_rng([seed, int(cosine * 1_000)]).standard_normal(len(direction))
    aside = drawn - drawn @ direction * direction
    return cosine * direction + np.sqrt(1 - cosine**2) * aside / np.linalg.norm(aside)


def peak_memory() -> int:
    """Peak memory of the process in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    main()
