"""Download the question and passage pairs of the recipe demo-real and write them as it reads them.

    python scripts/training_pairs.py --to data

Takes four public repositories from GitHub at fixed commits (git is needed, a few megabytes each) and writes
train_<set>.jsonl with `query`, `positive` and, where there is one, `title`. The licences are those of the sets: JaQuAD
CC BY-SA 3.0, CMRC 2018 CC BY-SA 4.0, AfriQA CC BY 4.0, ePQA CDLA-Sharing-1.0; check that they allow your use.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

Pairs = Iterator[dict[str, str]]


class PairSet(NamedTuple):
    """Where a set comes from and how it is read."""

    repository: str
    commit: str
    read: Callable[[Path], Pairs]


def main() -> None:
    """Write the sets that are not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, required=True, metavar="FOLDER")
    folder = parser.parse_args().to
    folder.mkdir(parents=True, exist_ok=True)
    for name, source in SETS.items():
        path = folder / f"train_{name}.jsonl"
        if path.exists():
            print(f"{path} is there, kept")
            continue
        with TemporaryDirectory() as clone:
            download(source, Path(clone))
            pairs = list(source.read(Path(clone)))
        partial = path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs), encoding="utf-8")
        partial.replace(path)
        print(f"{path}: {len(pairs):,} pairs of https://github.com/{source.repository} at {source.commit[:8]}")


def download(source: PairSet, folder: Path) -> None:
    """Check out one commit."""
    address = f"https://github.com/{source.repository}"
    for command in (
        ["init", "--quiet"],
        ["fetch", "--quiet", "--depth", "1", address, source.commit],
        ["checkout", "--quiet", "FETCH_HEAD"],
    ):
        if subprocess.run(["git", "-C", str(folder), *command], check=False).returncode:
            raise SystemExit(
                f"{address} cannot be downloaded; git says why. What is finished is kept: run this again."
            )


def jaquad(folder: Path) -> Pairs:
    """Read the training split, each question with its paragraph."""
    for path in sorted((folder / "data" / "train").glob("*.json")):
        yield from squad(path)


def cmrc_trial(folder: Path) -> Pairs:
    """Read the trial split, the smallest."""
    yield from squad(folder / "squad-style-data" / "cmrc2018_trial.json")


def squad(path: Path) -> Pairs:
    """Read a file in SQuAD's format."""
    for article in json.loads(path.read_text(encoding="utf-8"))["data"]:
        title = {"title": article["title"]} if article.get("title") else {}
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                yield {"query": question["question"], "positive": paragraph["context"], **title}


def afriqa(folder: Path) -> Pairs:
    """Read training and development splits, less what the test splits have, too."""
    paths = sorted((folder / "data" / "gold_passages").glob("*/*.json"))
    test_paths = [path for path in paths if path.name.endswith(".test.json")]
    tested = {text for path in test_paths for row in lines(path) for text in (row["context"], row["question_lang"])}
    for path in paths:
        for row in lines(path):
            if not {row["context"], row["question_lang"]} & tested:
                yield {"query": row["question_lang"], "positive": row["context"], "title": row["title"]}


def lines(path: Path) -> Iterator[dict[str, str]]:
    """Read one object a line."""
    for line in path.read_text(encoding="utf-8").splitlines():
        yield json.loads(line)


def epqa(folder: Path) -> Pairs:
    """Read the development split: questions about products and the answers that were judged to be complete."""
    with (folder / "ePQA" / "dev.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["label"] == "2" and row["answer"]:
                yield {"query": row["question"], "positive": row["answer"], "title": row["title"]}


SETS = {
    "jaquad": PairSet("SkelterLabsInc/JaQuAD", "23f5d72cc273c49b35e2d9efe0f51757aa1770bd", jaquad),
    "cmrc_trial": PairSet("ymcui/cmrc2018", "c0eb1b6ba219847457e6af3180da722bbeb656af", cmrc_trial),
    "afriqa": PairSet("masakhane-io/afriqa", "5c29933753692c28773c34ac1f68482007f1d2bb", afriqa),
    "epqa": PairSet("amazon-science/contextual-product-qa", "cec976cc2f2218aa76e562ecc9c7d79f1f3271bc", epqa),
}
"""By the name of the source in the recipe."""


if __name__ == "__main__":
    main()
