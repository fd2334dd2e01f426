"""The one reader of .txt, .jsonl, .csv, .parquet and .arrow files, saved datasets and Hub datasets, streamed.

Texts stay the characters that are in the file. Local files are read with the standard library and pyarrow: `datasets`
guesses types, so that a text 007 becomes 7.
"""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any, cast

from st_llm_embed.errors import InputError, explained, shown

RECORD_FILES = (".jsonl", ".json", ".parquet", ".csv", ".tsv", ".arrow")
"""Endings of files of records, `.gz` omitted."""

ALLOWED = (
    f"Give a {', '.join(RECORD_FILES)} file, also with .gz, a folder of one of these kinds or of save_to_disk, or a "
    "Hub dataset."
)

RECORDS_AT_ONCE = 1_000
"""Records of a parquet file in memory at a time."""

csv.field_size_limit(2**31 - 1)  # by default a cell of more than 128 KiB is refused


def numbered_values(path: Path, columns: Collection[str] | None = None) -> Iterator[tuple[int, Any]]:
    """Yield what a local file holds, each with the number of its line, or of its record in a parquet file, from 1 on.

    A .txt file holds lines; .json values, one a line, or one array, whose items are yielded; .csv, .tsv, .parquet and
    .arrow records. Cells of .csv are texts.

    Args:
        path: the file.
        columns: of a .parquet or .arrow file, those that are read; None, or where one is not there: all.

    Raises:
        InputError: the file cannot be read as what its name says; the line is named.
    """
    ending = file_ending(path)
    with explained(f"{path} cannot be read", "Give a file that is what its name says, and that you may read."):
        if ending in (".parquet", ".arrow"):
            yield from enumerate(_table_records(path, ending, columns), start=1)
        elif ending in (".csv", ".tsv"):
            yield from _cells(path, "\t" if ending == ".tsv" else ",")
        elif ending in (".json", ".jsonl"):
            yield from _json_values(path, may_be_whole=ending == ".json")
        elif ending == ".txt":
            yield from ((number, line.rstrip("\r\n")) for number, line in enumerate(_lines(path), start=1))
        else:
            raise InputError(f"{path} is not a .txt, {', '.join(RECORD_FILES)} file (or one of these with .gz).")


def read_records(
    path: str,
    *,
    config: str | None = None,
    file: str | None = None,
    split: str = "train",
    revision: str | None = None,
    columns: Collection[str] | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield the records of a local file, of a folder's files, or of a Hub dataset; each time in the same order.

    Args:
        path: a file, a folder of files of one kind or of `save_to_disk`, or the id of a dataset on the Hub.
        config: configuration of a Hub dataset.
        file: file of a Hub dataset, or a pattern of several, in place of `config` and `split`.
        split: split of a Hub dataset, or of one that `save_to_disk` wrote.
        revision: branch, tag or commit of a Hub dataset.
        columns: those that are needed; others may be omitted.

    Raises:
        InputError: there is no such file or dataset, or it holds something else than records; the line is named.
    """
    local = Path(path)
    if local.exists():
        files = record_files(local, split)
    elif path.startswith(("/", ".")) or path.count("/") > 1 or file_ending(local) in RECORD_FILES:
        raise InputError(f"There is no folder or file {path}. {ALLOWED}")
    elif file is None:
        from datasets import load_dataset

        with explained(f"The dataset {path!r} cannot be loaded", ALLOWED):
            loaded: Any = load_dataset(path, config, split=split, revision=revision)
            if columns is not None and set(columns) <= set(loaded.column_names):
                loaded = loaded.select_columns(list(columns))
        yield from loaded
        return
    else:
        files = _repository_files(path, file, revision)
    endings = {file_ending(one) for one in files}
    if len(endings) != 1 or not endings <= set(RECORD_FILES):
        raise InputError(f"{path} holds no files of records, or files of several kinds. {ALLOWED}")
    for one in files:
        for number, value in numbered_values(one, columns):
            if not isinstance(value, dict):
                raise InputError(f"{one}, line {number} is {shown(value)}. Write one JSON object a line.")
            yield value


def record_files(path: Path, split: str = "train") -> list[Path]:
    """Return the files of records of a local file or folder, in a fixed order.

    Raises:
        InputError: it is a BEIR folder, or a saved dataset without this split.
    """
    if not path.is_dir():
        return [path]
    if {"corpus", "queries"} <= {one.name.split(".")[0] for one in files_in(path, (".jsonl",))}:
        raise InputError(
            f"{path} is a BEIR folder: documents, queries and judgements. Evaluate a model on it with st-llm-embed "
            f"evaluate MODEL --data {path}. To train on it, write a .jsonl file of rows, for each judgement "
            '{"anchor": QUERY, "positive": DOCUMENT, "instruction": "..."}. To encode it, give its file corpus.jsonl.'
        )
    with explained(f"{path} cannot be read", "Save the dataset again with save_to_disk."):
        if (path / "dataset_dict.json").is_file():
            splits = json.loads(read_text(path / "dataset_dict.json"))["splits"]
            if split not in splits:
                raise InputError(f"{path} has no split {split!r}; it has {', '.join(splits)}. Give the folder of one.")
            path /= split
        if (path / "state.json").is_file():
            return [path / part["filename"] for part in json.loads(read_text(path / "state.json"))["_data_files"]]
    return files_in(path, RECORD_FILES)


def text_of(value: object, where: str, column: str) -> str:
    """Return a value that has to be a text; of null an empty one.

    Args:
        value: what was read.
        where: names the record in errors.
        column: the column it is from.

    Raises:
        InputError: it is something else, or no Unicode.
    """
    if value is None:
        return ""
    if isinstance(value, list):
        raise InputError(
            f"{where}: {column} is the list {shown(value)}, and one text is expected. Name one of its items, such as "
            f"the first by {{{column}[0]}}, or write one record for each."
        )
    if not isinstance(value, str):
        raise InputError(f"{where}: {column} is {shown(value)}, and a text is expected. Write it in quotes.")
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise InputError(
            f"{where}: {column} is {shown(value)}, which holds half of a surrogate pair and is not Unicode. Remove it."
        )
    return value


def read_texts(path: Path) -> Iterator[str]:
    """Yield the texts of a local file, stripped: lines of .txt that are not blank, or the key text of records.

    Raises:
        InputError: the file cannot be read, or a record has no text; the line is named.
    """
    for number, value in numbered_values(path, ["text"]):
        where = f"{path}, line {number}"
        found = value if file_ending(path) == ".txt" else value.get("text") if isinstance(value, dict) else None
        if text := text_of(found, where, "text").strip():
            yield text
        elif file_ending(path) != ".txt":
            raise InputError(f'{where} holds no text. Write {{"text": "..."}}, one object a line.')


def read_text(path: Path) -> str:
    """Return the content of a UTF-8 text file, a byte order mark omitted.

    Raises:
        InputError: it cannot be read; a line that is not UTF-8 is named.
    """
    with explained(f"{path} cannot be read", "Give a text file that you may read."):
        return "".join(_lines(path))


def file_ending(path: Path) -> str:
    """Return the ending of a file's name in small letters, `.gz` omitted."""
    return next((suffix.lower() for suffix in reversed(path.suffixes) if suffix.lower() != ".gz"), "")


def files_in(folder: Path, endings: tuple[str, ...]) -> list[Path]:
    """Return the files in and below a folder that are not hidden, in the same order on every machine."""
    found = [
        path
        for path in folder.rglob("*")
        if file_ending(path) in endings
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    for path in found:
        check_name(path)
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def check_name(path: Path) -> Path:
    """Return a path, which is written into records and reports; raise an InputError if its name is not UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise InputError(f"The name of {path} is not UTF-8. Rename it.") from error
    return path


def _table_records(path: Path, ending: str, columns: Collection[str] | None) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _opened(path) as file:
        if ending == ".parquet":
            table = pq.ParquetFile(cast(Any, file))
            names, batches = table.schema_arrow.names, partial(table.iter_batches, batch_size=RECORDS_AT_ONCE)
        else:
            reader = pa.ipc.open_stream(file)
            names = reader.schema.names

            def batches(columns: Collection[str]) -> Iterator[pa.RecordBatch]:
                return (batch.select(columns) for batch in reader)

        wanted = names if columns is None or not set(columns) <= set(names) else list(columns)
        for batch in batches(columns=wanted):
            yield from batch.to_pylist()


def _cells(path: Path, delimiter: str) -> Iterator[tuple[int, dict[str, str | None]]]:
    # Without strict a quote that is not closed takes the rest of the file into one cell.
    reader = csv.DictReader(_lines(path), delimiter=delimiter, strict=True)
    names = list(reader.fieldnames or ())
    if len(set(names)) < len(names):
        raise InputError(f"{path} has two columns of one name in its first line, {shown(names)}. Rename one.")
    for record in reader:
        if None in record:
            raise InputError(f"{path}, line {reader.line_num} has more cells than the first line has names.")
        yield reader.line_num, record


def _json_values(path: Path, *, may_be_whole: bool) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            if not may_be_whole:
                raise InputError(
                    f"{path}, line {number} is not JSON: {error}. Write one JSON value a line, or fix the line."
                ) from error
            value = json.loads("".join(_lines(path)))
            yield from ((number, item) for item in (value if isinstance(value, list) else [value]))
            return
        if may_be_whole and isinstance(value, list):
            yield from ((number, item) for item in value)
        else:
            yield number, value
        may_be_whole = False


def _lines(path: Path) -> Iterator[str]:
    """Yield the lines of a UTF-8 file with their ends, a byte order mark omitted."""
    with _opened(path) as file:
        for number, line in enumerate(file, start=1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{path}, line {number} is not UTF-8. Save the text as UTF-8, and unpack a compressed file."
                ) from error


def _opened(path: Path) -> IO[bytes]:
    check_name(path)
    return cast(IO[bytes], gzip.open(path)) if path.suffix.lower() == ".gz" else path.open("rb")


def _repository_files(name: str, pattern: str, revision: str | None) -> list[Path]:
    """Download files of a Hub dataset; not by `datasets`, which refuses repositories with a loading script."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import filter_repo_objects

    with explained(f"The dataset {name!r} cannot be loaded", ALLOWED):
        folder = Path(snapshot_download(name, repo_type="dataset", revision=revision, allow_patterns=pattern))
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    files = [paths[one] for one in sorted(filter_repo_objects(paths, allow_patterns=pattern))]
    if not files:
        raise InputError(f"No file of the dataset {name!r} is called {pattern!r}. Give the path of one, or a pattern.")
    return files
