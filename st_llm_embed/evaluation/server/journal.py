"""The vectors that an embeddings server was paid for, on disk before anything else happens to them.

One SQLite file in write-ahead mode. The vectors of a request and what it cost are one transaction, so a kill leaves
both or neither. Nothing is ever changed or deleted in it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import Self

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from st_llm_embed.api.budget import Cost
from st_llm_embed.errors import InputError
from st_llm_embed.synthesis.journal import take_lock

KEYS_AT_ONCE = 500

_TABLES = """
CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, vector BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS requests (
    at TEXT NOT NULL, served TEXT NOT NULL, status TEXT NOT NULL, texts INTEGER NOT NULL, characters INTEGER NOT NULL,
    tokens INTEGER NOT NULL, usd REAL NOT NULL
);
"""


class VectorJournal:
    """Vectors by what serves them and by text; a context manager that holds the folder's lock."""

    def __init__(self, folder: Path, served: str) -> None:
        """Name the folder; nothing is read or written before the context is entered.

        Args:
            folder: created when needed.
            served: identifies the model behind the vectors: address, name and parameters of the requests.
        """
        self.path = folder / "vectors.sqlite"
        self._lock = FileLock(folder / ".lock", timeout=0)
        self._served = served
        self._prefix = blake2b(served.encode(), digest_size=16).digest()

    def __enter__(self) -> Self:
        """Take the lock and open the file.

        Raises:
            InputError: another process has the journal, or it cannot be read or written.
        """
        take_lock(self._lock, self.path.parent)
        try:
            with self._explained():
                self._database = sqlite3.connect(self.path, isolation_level=None)
                self._database.execute("PRAGMA journal_mode=WAL")
                self._database.execute("PRAGMA synchronous=FULL")
                self._database.executescript(_TABLES)
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file and let go of the lock."""
        self._database.close()
        self._lock.release()

    def missing(self, texts: Iterable[str]) -> list[str]:
        """Give the distinct texts that have no vector yet, in their order."""
        distinct = dict.fromkeys(texts)
        keys = {self._key(text): text for text in distinct}
        for key, _ in self._select(list(keys), "1"):
            del distinct[keys[key]]
        return list(distinct)

    def vectors(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Give the vectors of texts that all have one, shape (number of texts, dimension)."""
        keys = [self._key(text) for text in texts]
        found = {key: np.frombuffer(blob, dtype="<f4") for key, blob in self._select(list(set(keys)), "vector")}
        return np.stack([found[key] for key in keys]).astype(np.float32, copy=False)

    def dimension(self) -> int | None:
        """Give the dimension of the vectors of this model; None before the first."""
        with self._explained():
            row = self._database.execute(
                "SELECT length(vector) / 4 FROM vectors WHERE key >= ? AND key < ? LIMIT 1",
                (self._prefix, self._prefix + b"\xff" * 17),
            ).fetchone()
        return row[0] if row else None

    def spent(self) -> Cost:
        """Give what all requests of this file have cost, whatever served them."""
        with self._explained():
            tokens, usd = self._database.execute(
                "SELECT coalesce(sum(tokens), 0), coalesce(sum(usd), 0.0) FROM requests"
            ).fetchone()
        return Cost(tokens, usd)

    def tokens_per_character(self) -> float | None:
        """Give the tokens that the server counted for a character so far; None before the first answer."""
        with self._explained():
            tokens, characters = self._database.execute(
                "SELECT sum(tokens), sum(characters) FROM requests WHERE served = ? AND status = 'answered'",
                (self._served,),
            ).fetchone()
        return tokens / characters if characters else None

    def append(self, status: str, texts: Sequence[str], vectors: NDArray[np.float32] | None, cost: Cost) -> None:
        """Write what became of one request; when this returns, a kill cannot lose it.

        Args:
            status: `answered`, or `maybe paid` and `unusable`, which have no vectors.
            texts: what was sent.
            vectors: shape (number of texts, dimension).
            cost: as billed.

        Raises:
            InputError: the disk is full; the journal is as it was.
        """
        now = datetime.now(UTC).isoformat(timespec="seconds")
        characters = sum(map(len, texts))
        with self._explained():
            self._database.execute("BEGIN")
            try:
                if vectors is not None:
                    blobs = (vector.astype("<f4").tobytes() for vector in vectors)
                    self._database.executemany(
                        "INSERT OR IGNORE INTO vectors VALUES (?, ?)", zip(map(self._key, texts), blobs, strict=True)
                    )
                self._database.execute(
                    "INSERT INTO requests VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (now, self._served, status, len(texts), characters, cost.tokens, cost.usd),
                )
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise

    def _key(self, text: str) -> bytes:
        return self._prefix + blake2b(text.encode(errors="surrogatepass"), digest_size=16).digest()

    def _select(self, keys: Sequence[bytes], column: str) -> Iterator[tuple[bytes, bytes]]:
        with self._explained():
            for start in range(0, len(keys), KEYS_AT_ONCE):
                some = keys[start : start + KEYS_AT_ONCE]
                places = ",".join("?" * len(some))
                yield from self._database.execute(
                    f"SELECT key, {column} FROM vectors WHERE key IN ({places})",  # noqa: S608
                    some,
                )

    @contextmanager
    def _explained(self) -> Generator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise InputError(
                f"The vectors in {self.path} cannot be read or written: {error}. If the disk is full, make room and "
                "run the same command again; if the file is damaged, move its folder away, and what it held will be "
                "paid for anew."
            ) from error
