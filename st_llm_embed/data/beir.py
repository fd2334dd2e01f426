"""Queries, documents, and which of them belong together: read from a BEIR folder, or from rows beside a corpus."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from st_llm_embed.data.files import RECORD_FILES, file_ending, numbered_values
from st_llm_embed.data.rows import read_rows
from st_llm_embed.errors import InputError, shown

QRELS = Path("qrels", "test.tsv")

QRELS_COLUMNS = ("query-id", "corpus-id", "score")

LAYOUT = (
    'A BEIR folder has corpus.jsonl with {"_id", "title", "text"} a line, queries.jsonl with {"_id", "text"}, and '
    f"{QRELS} with the tab-separated columns {', '.join(QRELS_COLUMNS)}."
)

NAMED = 3
"""Ids that a message shows."""


class RetrievalSet(NamedTuple):
    """What retrieval is scored on. Every id of `relevance` is one of a query or of a document."""

    corpus: dict[str, str]
    """Title and text of each document."""
    queries: dict[str, str]
    """Those that have a relevant document."""
    relevance: dict[str, dict[str, int]]
    """The grades, above 0, of each query's relevant documents."""
    instructions: dict[str, str]
    """Of the queries that have one of their own."""


def read_retrieval_set(data: Path, corpus: Path | None = None) -> RetrievalSet:
    """Read a BEIR folder; or a file of rows, whose anchors look for their positives.

    Args:
        data: folder or file.
        corpus: with rows: a file of further documents, one a line of .txt or a record with `text`.

    Raises:
        InputError: a file is missing or is not what it should be, an id is there twice or nowhere, or no query has a
            relevant document.
    """
    if data.is_dir():
        if corpus is not None:
            raise InputError(f"{data} is a folder with a corpus of its own. Omit --corpus, or give a file of rows.")
        return _read_folder(data)
    if not data.is_file():
        raise InputError(f"There is no folder or file {data}. Give a file of rows, or a BEIR folder. {LAYOUT}")
    return _read_rows(data, corpus)


def _read_folder(folder: Path) -> RetrievalSet:
    corpus, queries = (_texts(_file(folder, name)) for name in ("corpus", "queries"))
    path = folder / QRELS
    if not path.is_file():
        others = sorted(one.name for one in path.parent.glob("*")) if path.parent.is_dir() else []
        there = f", only {', '.join(others)}" if others else ""
        raise InputError(f"{folder} has no {QRELS}{there}. {LAYOUT}")
    relevance: dict[str, dict[str, int]] = {}
    for number, record in numbered_values(path):
        query, document, grade = _judgement(record, f"{path}, line {number}")
        relevance.setdefault(query, {})[document] = grade
    _check_known(relevance, queries, f"{path} names queries that queries.jsonl lacks")
    documents = [document for graded in relevance.values() for document in graded]
    _check_known(documents, corpus, f"{path} names documents that corpus.jsonl lacks")
    positive = {
        query: {name: grade for name, grade in graded.items() if grade > 0} for query, graded in relevance.items()
    }
    relevance = {query: graded for query, graded in positive.items() if graded}
    if not relevance:
        raise InputError(f"{path} has no grade above 0, so that no query has a relevant document. {LAYOUT}")
    return RetrievalSet(corpus, {query: queries[query] for query in relevance}, relevance, {})


def _read_rows(path: Path, corpus_path: Path | None) -> RetrievalSet:
    """Make queries of anchors under their instructions; positives and negatives are documents beside the corpus's."""
    corpus = _texts(corpus_path) if corpus_path is not None else {}
    names = {text.strip(): name for name, text in reversed(corpus.items())}
    by_query: dict[tuple[str, str], dict[str, int]] = {}
    for number, row in enumerate(read_rows(path), start=1):
        for side, text in (("positive", row.positive), ("negative", row.negative)):
            if text is not None and text not in names:
                names[text] = f"{side} of row {number}"
                corpus[names[text]] = text
        by_query.setdefault((row.instruction, row.anchor), {})[names[row.positive]] = 1
    asked = {str(number): asked for number, asked in enumerate(by_query, start=1)}
    return RetrievalSet(
        corpus=corpus,
        queries={name: anchor for name, (_, anchor) in asked.items()},
        relevance={name: by_query[one] for name, one in asked.items()},
        instructions={name: instruction for name, (instruction, _) in asked.items()},
    )


def _file(folder: Path, name: str) -> Path:
    paths = [folder / f"{name}{ending}{packed}" for ending in RECORD_FILES for packed in ("", ".gz")]
    found = next((path for path in paths if path.is_file()), None)
    if found is None:
        raise InputError(f"{folder} has no {name}.jsonl. {LAYOUT}")
    return found


def _texts(path: Path) -> dict[str, str]:
    """Read texts by their ids; lines of .txt, and records without an id, are named by their number."""
    found: dict[str, str] = {}
    for number, value in numbered_values(path):
        record = {"text": value} if file_ending(path) == ".txt" else value
        where = f"{path}, line {number}"
        if not isinstance(record, dict) or not isinstance(record.get("text"), str):
            raise InputError(f'{where} holds no text: {shown(value)}. Write {{"_id": "...", "text": "..."}} a line.')
        name = str(record.get("_id", record.get("id", number)))
        if name in found:
            raise InputError(f"{where} has the id {shown(name)}, which an earlier line has, too. Ids have to differ.")
        found[name] = f"{record.get('title') or ''} {record['text']}".strip()
    if not found:
        raise InputError(f"{path} holds no texts. {LAYOUT}")
    return found


def _judgement(record: Any, where: str) -> tuple[str, str, int]:
    if not isinstance(record, dict) or any(record.get(name) is None for name in QRELS_COLUMNS):
        raise InputError(f"{where} lacks {', '.join(QRELS_COLUMNS)}: {shown(record)}. {LAYOUT}")
    query, document, grade = (str(record[name]).strip() for name in QRELS_COLUMNS)
    if not grade.removeprefix("-").isdecimal():
        raise InputError(f"{where} has the score {shown(grade)}. Give a whole number; above 0 is relevant.")
    return query, document, int(grade)


def _check_known(names: Iterable[str], known: Mapping[str, object], problem: str) -> None:
    unknown = [name for name in dict.fromkeys(names) if name not in known]
    if unknown:
        first = ", ".join(map(repr, unknown[:NAMED]))
        raise InputError(f"{problem}: {first}{f' and {len(unknown) - NAMED:,} more' if unknown[NAMED:] else ''}.")
