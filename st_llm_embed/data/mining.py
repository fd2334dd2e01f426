"""Hard negatives for the rows of a written dataset that lack them.

What sentence-transformers' mine_hard_negatives does, with the same limits, for rows that each have their own
instruction, in bounded memory and without losing a row or its metadata.

A row's candidates are the documents, positives and negatives, of its configuration and split. Documents that differ in
case and spacing only are one. Rows of the same anchor and instruction are one query: none of their positives becomes a
negative of another, and the limits are those of the least similar of them, as in sentence-transformers.
"""

from __future__ import annotations

import json
import shutil
from array import array
from collections import Counter
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tqdm.auto import tqdm

from st_llm_embed.data.check import MINING_ADVICE
from st_llm_embed.data.dataset import (
    MINING_REPORT,
    ROWS_PER_GROUP,
    DatasetWriter,
    Split,
    negative_columns,
    task_type_of,
)
from st_llm_embed.data.nearest import nearest_documents, pair_scores
from st_llm_embed.data.rows import content_hash, fold
from st_llm_embed.data.vectors import VectorFolder
from st_llm_embed.errors import explained
from st_llm_embed.modules.model import LLMSentenceTransformer
from st_llm_embed.recipe import Mining

SPLITS: tuple[Split, ...] = ("train", "validation")


def mining_model(mining: Mining) -> LLMSentenceTransformer:
    """Load the mining model, where it is not the recipe's base; raise an InputError where that fails."""
    with explained(f"The mining model {mining.model!r} cannot be loaded", MINING_ADVICE):
        return LLMSentenceTransformer(mining.model, revision=mining.revision)


def mine_dataset(
    dataset_dir: Path, mining: Mining, vectors: VectorFolder, device: str = "cpu"
) -> Counter[tuple[str, Split]]:
    """Fill in the negatives that the rows of a written dataset lack, in place; writes mining.json beside them.

    Rows with `num_negatives` negatives make the configuration of their task type, those for which nothing passed the
    limits ``<task type>-pairs``, and those with some ``<task type>-triplets``, which keeps one. A task type whose rows
    all have enough stays as it is.

    An interrupted call is resumed from the vectors; torch searches on `device`.

    Returns:
        The number of rows by (configuration, split), of the whole dataset.

    Raises:
        InputError: the model's vectors are not finite.
    """
    files: dict[str, dict[Split, list[Path]]] = {}
    for split in SPLITS:
        for path in sorted(dataset_dir.glob(f"*/{split}.parquet")):
            name = task_type_of(path.parent.name)
            files.setdefault(name, {}).setdefault(split, []).append(path)
    report: dict[str, dict[Split, Any]] = {}
    written = dataset_dir / ".mined"
    shutil.rmtree(written, ignore_errors=True)
    written.mkdir()
    for name, splits in sorted(files.items()):
        schemas = [pq.read_schema(path) for paths in splits.values() for path in paths]
        if all(len(negative_columns(schema.names)) >= mining.num_negatives for schema in schemas):
            continue
        for split, paths in splits.items():
            rows = _Rows(paths, written / "rows.arrow")
            chosen, search = _mine(rows, mining, vectors, f"{name} {split}", device)
            report.setdefault(name, {})[split] = _write(rows, chosen, written, name, split) | search
            rows.close()
    (written / "rows.arrow").unlink(missing_ok=True)
    new = [path.relative_to(written) for path in written.glob("*/*.parquet")]
    for path in new:
        (dataset_dir / path).parent.mkdir(exist_ok=True)
        (written / path).replace(dataset_dir / path)
    for path in (path for name in report for paths in files[name].values() for path in paths):
        if path.relative_to(dataset_dir) not in new:
            path.unlink()
            if not any(path.parent.iterdir()):
                path.parent.rmdir()
    shutil.rmtree(written)
    vectors.remove_unused()
    content = {"settings": mining.model_dump(mode="json"), "configurations": report}
    (dataset_dir / MINING_REPORT).write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")
    written_files = [(path, split) for split in SPLITS for path in dataset_dir.glob(f"*/{split}.parquet")]
    return Counter({(path.parent.name, split): pq.read_metadata(path).num_rows for path, split in written_files})


class _Rows:
    """The rows of one task type and split, on disk, and in memory what they have in common, as numbers.

    The documents of row r are `documents[starts[r]:starts[r + 1]]`, its positive first, then its negatives.
    """

    def __init__(self, paths: list[Path], copy: Path) -> None:
        """Copy parquet files into one Arrow file that is mapped into memory, and number queries and documents."""
        queries, anchors, documents, starts = array("Q"), array("Q"), array("Q"), array("Q", [0])
        names = ("anchor", "positive", *negative_columns(pq.read_schema(paths[0]).names))
        self.metadata = pa.schema([field for field in pq.read_schema(paths[0]) if field.name not in names])
        texts = {"anchor": pa.string(), "positive": pa.string(), "negatives": pa.list_(pa.string())}
        schema = pa.schema([*texts.items(), *self.metadata])
        with pa.OSFile(str(copy), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for batch in (batch for path in paths for batch in pq.ParquetFile(path).iter_batches(ROWS_PER_GROUP)):
                rows = batch.to_pylist()
                for row in rows:
                    row["negatives"] = [row[name] for name in negative_columns(batch.schema.names)]
                    queries.append(_number(row["anchor"], row["instruction"]))
                    anchors.append(_number(row["anchor"]))
                    documents.extend(_number(text) for text in (row["positive"], *row["negatives"]))
                    starts.append(len(documents))
                writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=schema))
        self._map = pa.memory_map(str(copy))
        self.table = pa.ipc.open_file(self._map).read_all()
        self.starts = np.asarray(starts).astype(np.int64)
        self.queries, self.first_of_query, self.query_hashes = _numbered(np.asarray(queries))
        self.documents, self.first_of_document, self.document_hashes = _numbered(np.asarray(documents))
        # Of each query the document that equals its anchor, -1 if there is none.
        order = np.argsort(self.document_hashes)
        own = np.asarray(anchors)[self.first_of_query]
        places = order[np.minimum(np.searchsorted(self.document_hashes, own, sorter=order), len(order) - 1)]
        self.anchor_documents = np.where(self.document_hashes[places] == own, places, -1)

    def document(self, number: int) -> str:
        """Return the text of a document, as the first row that has it spells it."""
        place = int(self.first_of_document[number])
        row = int(np.searchsorted(self.starts, place, side="right")) - 1
        negative = place - int(self.starts[row]) - 1
        return self.text("positive", row) if negative < 0 else self.table["negatives"][row][negative].as_py()

    def text(self, column: str, row: int) -> str:
        """Return a text of a row."""
        return self.table[column][row].as_py()

    def close(self) -> None:
        """Let go of the file."""
        del self.table
        self._map.close()


def _mine(
    rows: _Rows, mining: Mining, vectors: VectorFolder, title: str, device: str
) -> tuple[NDArray[np.int64], dict[str, Any]]:
    """Choose documents for the queries whose rows lack negatives.

    Returns:
        The documents, of shape (queries, num_negatives), -1 where there are no more; and the report.
    """
    lacking = np.diff(rows.starts) - 1 < mining.num_negatives
    wanted = np.unique(rows.queries[lacking])
    first = rows.first_of_query[wanted]
    documents = vectors.encoded(len(rows.first_of_document), rows.document, None, f"{title}: documents")
    queries = vectors.encoded(
        len(wanted),
        lambda number: rows.text("anchor", int(first[number])),
        lambda number: rows.text("instruction", int(first[number])),
        f"{title}: queries",
    )
    query, document, is_positive = _excluded(rows, wanted)
    limit = np.full(len(wanted), np.inf, dtype=np.float32)
    if mining.relative_margin is not None:
        positives = query[is_positive], document[is_positive]
        np.minimum.at(limit, positives[0], pair_scores(queries, documents, positives))
        limit -= np.abs(limit) * mining.relative_margin

    chosen = np.full((len(rows.first_of_query), mining.num_negatives), -1, dtype=np.int64)
    last_score = np.empty(len(wanted), dtype=np.float32)
    too_near = 0
    with tqdm(total=len(wanted), desc=f"{title}: search", unit=" queries") as progress:
        for start, scores, found in nearest_documents(queries, documents, (query, document), mining.range_max, device):
            part = slice(start, start + len(scores))
            last_score[part] = scores[:, -1]
            near, places = scores[:, mining.range_min :], found[:, mining.range_min :]
            exists = np.isfinite(near)
            passed = exists & (near <= limit[part, None])
            order = np.argsort(_priority(rows, wanted[part], places, passed, mining.sampling_strategy), axis=1)
            order = order[:, : mining.num_negatives]
            picked = np.where(np.take_along_axis(passed, order, 1), np.take_along_axis(places, order, 1), -1)
            chosen[wanted[part], : picked.shape[1]] = picked
            too_near += int((exists & ~passed).sum())
            progress.update(len(near))

    # Query, as a position in `wanted`, and positive of each row that lacks negatives.
    pairs = np.searchsorted(wanted, rows.queries[lacking]), rows.documents[rows.starts[:-1][lacking]]
    own = pair_scores(queries, documents, pairs)
    return chosen, {
        "queries": len(wanted),
        "documents": len(documents),
        "dropped": {"relative margin": too_near},
        "positive_not_in_range": float((own < last_score[pairs[0]]).mean()) if len(own) else None,
    }


def _excluded(
    rows: _Rows, wanted: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Return what is not a candidate: the documents of a query's rows, and its anchor; sorted, each pair once.

    Returns:
        Query, as a position in `wanted`, document, and whether it is a positive; each of shape (pairs,).
    """
    has_document = np.flatnonzero(rows.anchor_documents >= 0)
    query = np.concatenate([np.repeat(rows.queries, np.diff(rows.starts)), has_document])
    document = np.concatenate([rows.documents, rows.anchor_documents[has_document]])
    is_positive = np.zeros(len(query), dtype=bool)
    is_positive[rows.starts[:-1]] = True
    order = np.lexsort((~is_positive, document, query))
    query, document, is_positive = query[order], document[order], is_positive[order]
    once = np.ones(len(query), dtype=bool)
    once[1:] = (query[1:] != query[:-1]) | (document[1:] != document[:-1])
    once &= np.isin(query, wanted)
    return np.searchsorted(wanted, query[once]), document[once], is_positive[once]


def _priority(
    rows: _Rows,
    queries: NDArray[np.int64],
    documents: NDArray[np.int64],
    passed: NDArray[np.bool_],
    strategy: Literal["top", "random"],
) -> NDArray[np.float64]:
    """Return numbers by which candidates are taken, the least first; those that did not pass come last."""
    if strategy == "top":
        drawn = np.broadcast_to(np.linspace(0, 0.5, documents.shape[1]), documents.shape)
    else:
        # A draw that depends on the two texts alone; the constants are those of splitmix64.
        mixed = (rows.query_hashes[queries][:, None] ^ rows.document_hashes[documents]) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        drawn = (mixed >> np.uint64(11)) / 2.0**54
    return np.where(passed, drawn, 1.0)


def _write(rows: _Rows, chosen: NDArray[np.int64], folder: Path, name: str, split: Split) -> dict[str, int]:
    """Write the rows with their negatives into the configurations where they belong; count them."""
    wanted = chosen.shape[1]
    configs = {0: f"{name}-pairs", 1: f"{name}-triplets", wanted: name}
    counts = Counter(rows=0, had_enough=0, filled=0, partly=0, without=0)
    with DatasetWriter(folder, rows.metadata) as writer:
        each = (row for batch in rows.table.to_batches(ROWS_PER_GROUP) for row in batch.to_pylist())
        for number, row in enumerate(each):
            own = row.pop("negatives")[:wanted]
            mined = [rows.document(found) for found in chosen[rows.queries[number]] if found >= 0]
            negatives = [*own, *mined[: wanted - len(own)]]
            size = wanted if len(negatives) == wanted else min(len(negatives), 1)
            kind = ("without", "partly")[size] if size < wanted else "filled"
            counts["rows"] += 1
            counts["had_enough" if len(own) == wanted else kind] += 1
            columns = ["negative"] if size == 1 else [f"negative_{place}" for place in range(1, size + 1)]
            writer.add((configs[size], split), row | dict(zip(columns, negatives, strict=False)))
    return dict(counts)


def _number(*texts: str) -> int:
    return int(content_hash(*map(fold, texts)), 16)


def _numbered(hashes: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint64]]:
    """Number distinct hashes in the order in which they first occur.

    Returns:
        The number of each hash, shape (hashes,); where each number first occurs, and its hash, shape (numbers,).
    """
    distinct, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    order = np.argsort(first)
    numbers = np.empty(len(order), dtype=np.int64)
    numbers[order] = np.arange(len(order))
    return numbers[inverse], first[order], distinct[order]
