"""Score a model on open evaluation sets: STS, retrieval and bitext, with mteb's measures and the model's own prompts.

    python scripts/open_sets.py MODEL FOLDER [--to FILE]

Writes the scores as JSON. FOLDER holds one folder per set with .jsonl.gz files: sentence1, sentence2 and score for
STS; corpus, queries and qrels (one relevant document per query) for retrieval; sentence1 and sentence2, or one text
per line, for bitext.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer

from st_llm_embed import InputError, LLMSentenceTransformer

STS = ("stsb_multi_mt/en/test", "sts16/test_not_in_stsb", "korsts/test")
RETRIEVAL = {"xquad/en": "validation", "xquad/zh": "validation", "jaquad": "validation", "cosqa_dev": "dev"}
"""Folders and the names of their splits."""

BITEXT = ("tatoeba/deu-eng", "tatoeba/cmn-eng", "tatoeba/jpn-eng", "ntrex/deu")
"""The English side of ntrex is ntrex/eng."""

QUERIES = 1_000
"""At most this many queries and sentence pairs of a set are used, the first ones."""

Encode = Callable[[list[str], str], NDArray[np.float32]]
"""Returns the vectors of texts under the prompt of that name, shape (texts, dimensions)."""


def score_open_sets(
    model: SentenceTransformer, data: Path, prompts: Mapping[str, str] | None = None
) -> dict[str, float]:
    """Score a model.

    Args:
        model: any sentence-transformers model.
        data: the folder of the sets.
        prompts: texts put before a query, a document, and the texts of STS and BitextMining, by these names; those
            saved with the model if None.

    Returns:
        By `<task type>: <set>`, in 0..1: the Spearman correlation for STS, instruction on both sides; nDCG@10 for
        retrieval, instruction on the queries; accuracy for bitext into English, instruction on both sides.

    Raises:
        InputError: a set is missing.
    """
    check_open_sets(data)
    encode = _encoder(model, prompts)
    scores = {f"STS: {name}": _sts(encode, _read(data / f"{name}.jsonl.gz")) for name in STS}
    scores |= {f"retrieval: {name}": _retrieval(encode, data / name, split) for name, split in RETRIEVAL.items()}
    scores |= {f"bitext: {name}": _bitext(encode, *_sentence_pairs(data, name)) for name in BITEXT}
    return scores


def retrieval_score(model: SentenceTransformer, folder: Path, split: str) -> float:
    """Return nDCG@10 on one retrieval set, instruction on the queries."""
    return _retrieval(_encoder(model, None), folder, split)


def check_open_sets(data: Path) -> None:
    """Check that every set is there.

    Raises:
        InputError: one is missing.
    """
    if missing := [name for name in open_set_files() if not (data / name).is_file()]:
        raise InputError(
            f"The folder of open evaluation sets {data} lacks {', '.join(missing)}. scripts/open_sets.py describes "
            "the files. Without --open-sets only the held-out rows are scored."
        )


def open_set_files() -> list[str]:
    """Return the paths of all files of the sets, relative to their folder."""
    files = [f"{name}.jsonl.gz" for name in (*STS, *BITEXT, "ntrex/eng")]
    for name, split in RETRIEVAL.items():
        files += [f"{name}/{part}.jsonl.gz" for part in ("corpus", "queries", f"qrels.{split}")]
    return files


def _encoder(model: SentenceTransformer, prompts: Mapping[str, str] | None) -> Encode:
    known = model.prompts if prompts is None else prompts

    def encode(texts: list[str], prompt: str) -> NDArray[np.float32]:
        # An asymmetric pair of models encodes documents with another model than queries.
        side = model.encode_document if prompt == "document" else model.encode_query
        return side(texts, prompt=known[prompt] or "", batch_size=64, normalize_embeddings=True)

    return encode


def _sts(encode: Encode, rows: list[dict]) -> float:
    first, second = (encode([row[side] for row in rows], "STS") for side in ("sentence1", "sentence2"))
    return float(spearmanr((first * second).sum(axis=1), [row["score"] for row in rows]).statistic)


def _retrieval(encode: Encode, folder: Path, split: str) -> float:
    corpus, queries = _read(folder / "corpus.jsonl.gz"), _read(folder / "queries.jsonl.gz")[:QUERIES]
    place = {row["_id"]: number for number, row in enumerate(corpus)}
    relevant = {row["query-id"]: place[row["corpus-id"]] for row in _read(folder / f"qrels.{split}.jsonl.gz")}
    documents = encode([row["text"] for row in corpus], "document")
    similarity = encode([row["text"] for row in queries], "query") @ documents.T
    ranks = _ranks(similarity, np.array([relevant[row["_id"]] for row in queries]))
    return float(np.where(ranks < 10, 1 / np.log2(ranks + 2), 0).mean())


def _sentence_pairs(data: Path, name: str) -> tuple[list[str], list[str]]:
    """Return sentences and their English translations."""
    rows = _read(data / f"{name}.jsonl.gz")[:QUERIES]
    if "text" in rows[0]:
        english = _read(data / "ntrex" / "eng.jsonl.gz")[:QUERIES]
        return [row["text"] for row in rows], [row["text"] for row in english]
    return [row["sentence1"] for row in rows], [row["sentence2"] for row in rows]


def _bitext(encode: Encode, foreign: list[str], english: list[str]) -> float:
    similarity = encode(foreign, "BitextMining") @ encode(english, "BitextMining").T
    return float((_ranks(similarity, np.arange(len(foreign))) == 0).mean())


def _ranks(similarity: NDArray[np.float32], relevant: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the rank, from 0, of each query's relevant document; similarity has shape (queries, documents)."""
    own = np.take_along_axis(similarity, relevant[:, None], axis=1)
    return (similarity >= own).sum(axis=1) - 1


def _read(path: Path) -> list[dict]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", help="Hub id or folder of a sentence-transformers model")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="folder of the open evaluation sets")
    parser.add_argument("--to", type=Path, help="the file to write; default: standard output")
    given = parser.parse_args()
    loaded = cast(SentenceTransformer, LLMSentenceTransformer(given.model))
    text = json.dumps(score_open_sets(loaded, given.folder), indent=1)
    if given.to is None:
        print(text)
    else:
        given.to.write_text(text, encoding="utf-8")
