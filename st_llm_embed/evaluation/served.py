"""A model behind an OpenAI-compatible embeddings API: mteb's wrapper, within a budget, every paid vector kept."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from hashlib import blake2b
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
from httpx2 import AsyncClient
from mteb.models.model_meta import ModelMeta, ScoringFunction
from mteb.models.openai_wrappers import OpenAIAPIEncodeWrapper
from numpy.typing import NDArray

from st_llm_embed.api.budget import Cost, SpendingLimit, shipped_prices, token_count
from st_llm_embed.api.exchange import Response, json_object, post, read_api_key, read_vectors
from st_llm_embed.api.outcome import Outcome, classify
from st_llm_embed.api.pacing import retry_after_seconds
from st_llm_embed.errors import InputError, explained
from st_llm_embed.evaluation.mteb_models import experiment, prompts_by_key, task_prompt
from st_llm_embed.instructions import PromptMode, TaskPrompt
from st_llm_embed.modules.lengths import Lengths
from st_llm_embed.recipe import is_plain_address

if TYPE_CHECKING:
    from mteb import TaskMetadata
    from mteb.types import Array

KEY = "OPENAI_API_KEY"
"""Environment variable that holds the key."""
ATTEMPTS = 8
"""Of one request, with pauses that the server states, or of 1, 2, 4, ... and at most 60 seconds, between them."""
TOKENS_AROUND_A_TEXT = 2
"""Begin and end."""
PROBE = "The quick brown fox jumps over the lazy dog."
"""Its vector shows whether a server still serves the model whose vectors are kept."""
SAME_MODEL = 0.99
"""Least cosine of the probe's vectors; those of one model in half precision differ by about 1e-3."""
KEPT = "Vectors that came and finished scores are kept; run the same command again to resume."


class ServedModel(OpenAIAPIEncodeWrapper):
    """A served model whose requests stay within a limit and whose texts are sent once.

    Nothing is sent or written before the first text is encoded.

    Args:
        base_url: address of the API, such as `https://api.openai.com/v1`.
        model: as the server names it.
        prompt_mode: whose instructions it gets.
        output_dir: vectors and what they cost are kept in its folder `served`; limits are over all runs in it.
        max_usd: most to spend.
        max_tokens: most tokens to send.
        max_seq_length: sent as `truncate_prompt_tokens`, by which vLLM cuts texts.
        sleep: waits for seconds between attempts.

    Raises:
        InputError: the address may hold a secret, there is no key, or nothing limits what a model may cost.
    """

    mteb_model_meta: ModelMeta  # ty: ignore[incompatible-mutable-override]

    def __init__(
        self,
        base_url: str,
        model: str,
        prompt_mode: PromptMode,
        output_dir: Path,
        *,
        max_usd: float | None = None,
        max_tokens: int | None = None,
        max_seq_length: int | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if not is_plain_address(base_url):
            # Not shown: it may hold a secret.
            raise InputError(
                "--base-url has to begin with http:// or https:// and must not hold a user, password, query or "
                f"fragment; the key goes into {KEY}."
            )
        url, price = urlsplit(base_url), shipped_prices().get(model)
        own = url.hostname in ("localhost", "127.0.0.1", "::1")
        if price is None and (max_usd is not None or (max_tokens is None and not own)):
            raise InputError(f"No price is known for {model}, so its cost cannot be limited. Give --max-tokens alone.")
        key = read_api_key(base_url, KEY)
        options: dict[str, Any] = {"max_retries": 1, "modalities": ["text"], "use_chat_template": False}
        super().__init__(base_url, model, key, max_length=max_seq_length, **options)
        served = f"{self.endpoint_url} {model} {max_seq_length}"
        self.mteb_model_meta = ModelMeta.create_empty(
            {
                "name": f"{url.hostname}{f'-{url.port}' if url.port else ''}/{model.replace('/', '__')}",
                "revision": f"served-{blake2b(served.encode(), digest_size=8).hexdigest()}",
                "similarity_fn_name": ScoringFunction.COSINE,
                "max_tokens": max_seq_length,
                "framework": ["API"],
                "reference": base_url,
                "experiment_kwargs": experiment(prompt_mode, max_seq_length),
            }
        )
        self.prompt_mode, self.usage = prompt_mode, dict[str, Lengths]()
        self.usd_per_token = price.input / 1e6 if price else 0.0
        self._limits, self._sleep, self._dimension = (max_usd, max_tokens), sleep, 0
        self._kept = VectorStore(output_dir / "served" / "vectors.sqlite", served)

    def _verify_server(self) -> None:
        """Skip mteb's question to the server, which lacks the key."""

    def _detect_max_length(self) -> None:
        """Skip it: texts are cut only where --max-seq-length says so."""

    def task_prompt(self, metadata: TaskMetadata) -> TaskPrompt:
        """Return what precedes the texts of a task."""
        return task_prompt(self.prompt_mode, metadata)

    def settings(self) -> dict[str, Any]:
        """Return address, length and what was spent so far."""
        spent = self._kept.spent()
        cost = {"tokens": spent.tokens, "usd": round(spent.usd, 6)}
        return {"base_url": self.endpoint_url, "max_seq_length": self.max_length, "spent": cost}

    def estimate(self, characters: int) -> str:
        """Say about what texts will cost, by four characters a token as in English prose."""
        tokens = characters // 4
        return f"About {tokens:,} tokens, ${self._cost(tokens).usd:,.2f}. Texts whose vectors are kept cost nothing."

    def close(self) -> None:
        """Close the file of vectors."""
        self._kept.close()

    def encode(self, inputs: Any, *, task_metadata: TaskMetadata, **kwargs: Any) -> Array:
        """Return the vectors of the texts of a task, shape (number of texts, dimension); zeros for blank texts.

        Raises:
            InputError: the limit is reached, or the server does not answer with vectors of the same model as before.
        """
        self.prompts_dict = self.model_prompts = prompts_by_key(task_metadata, self.task_prompt(task_metadata))
        name, counted = task_metadata.name, Lengths(texts=len(inputs.dataset))
        self.usage[name] = self.usage.get(name, Lengths()) + counted
        return super().encode(inputs, task_metadata=task_metadata, **kwargs)

    def _get_embeddings(self, texts: list[str]) -> NDArray[np.float32]:
        """Return the vectors of one batch: those that are kept, and the others from the server."""
        if not self._dimension:
            [now] = self._asked([PROBE]).values()
            before = self._kept.vectors([PROBE])[PROBE]
            if before.shape != now.shape or before @ now < SAME_MODEL * np.linalg.norm(before) * np.linalg.norm(now):
                raise InputError(
                    f"{self.endpoint_url} serves another model as {self.model_name!r} than the one whose vectors are "
                    f"in {self._kept.path}. Choose another --output-dir."
                )
            self._dimension = len(now)
        wanted = [text for text in dict.fromkeys(texts) if text.strip()]
        found = self._kept.vectors(wanted)
        missing = [text for text in wanted if text not in found]
        if missing:
            found |= self._asked(missing)
        blank = np.zeros(self._dimension, dtype=np.float32)
        return np.stack([found.get(text, blank) for text in texts])

    def _asked(self, texts: list[str]) -> dict[str, NDArray[np.float32]]:
        """Send texts until their vectors are in the file; what may have been billed counts as spent."""
        # A tokenizer that works on bytes makes at most one token of each byte.
        worst = self._cost(sum(len(text.encode(errors="replace")) + TOKENS_AROUND_A_TEXT for text in texts))
        payload: dict[str, Any] = {"model": self.model_name, "input": texts, "encoding_format": "float"}
        if self.max_length:
            payload["truncate_prompt_tokens"] = self.max_length
        for attempt in count():
            spent = self._kept.spent()
            limit = SpendingLimit(*self._limits, spent.usd, spent.tokens)
            if not limit.fits(worst):
                raise InputError(
                    f"The limit is reached: spent are {limit.describe()}, and the next request can cost "
                    f"${worst.usd:.4f} and {worst.tokens:,} tokens. Raise --max-usd or --max-tokens. {KEPT}"
                )
            # Counted before it is sent, so that a kill cannot hide it.
            request = self._kept.begin(worst)
            response = asyncio.run(self._post(payload))
            answer = json_object(response.text)
            if 200 <= response.status < 300 and answer and not answer.get("error"):
                break
            self._pause(classify(response, heard=bool(self._dimension)), request, attempt)
        vectors = read_vectors(answer.get("data") or [], len(texts))
        if isinstance(vectors, str) or self._dimension not in (0, vectors.shape[1]):
            what = vectors if isinstance(vectors, str) else f"vectors of dimension {vectors.shape[1]}"
            wanted = f"one vector for each text{f', of dimension {self._dimension}' if self._dimension else ''}"
            raise InputError(
                f"{self.endpoint_url} (model {self.model_name!r}) answers with {what}; expected is {wanted}. {KEPT}"
            )
        counted = token_count(answer.get("usage"), "prompt_tokens")
        found = dict(zip(texts, vectors, strict=True))
        self._kept.end(request, worst if counted is None else self._cost(counted), found)
        return found

    async def _post(self, payload: dict[str, Any]) -> Response:
        # mteb's own request keeps neither status nor headers of what a server refuses.
        async with AsyncClient(timeout=self.timeout) as http:
            url, key = f"{self.endpoint_url}/embeddings", str(self.api_key)
            return await post(http, url, payload, key=key, seconds=self.timeout)

    def _pause(self, outcome: Outcome, request: int, attempt: int) -> None:
        """Wait before the next attempt, or raise InputError: the server refuses, or these were enough attempts."""
        if outcome.kind not in ("answered", "maybe paid"):
            self._kept.end(request, Cost(0, 0.0), {})  # not billed
        if attempt + 1 == ATTEMPTS or outcome.kind in ("answered", "rejected", "hopeless"):
            advice = {
                400: "If a text is too long, give --max-seq-length (vLLM), or have the server cut it. ",
                401: f"Set {KEY} to a key that may use the model. ",
                403: f"Set {KEY} to a key that may use the model. ",
                404: "Check --base-url, which usually ends in /v1, and MODEL. ",
            }.get(outcome.status, "Add credit to the account. " if outcome.kind == "hopeless" else "")
            reason = outcome.said or outcome.body
            raise InputError(f"{self.endpoint_url} (model {self.model_name!r}): {reason}. {advice}{KEPT}")
        stated = retry_after_seconds(outcome.headers)
        self._sleep(min(60.0, 2.0**attempt) if stated is None else stated)

    def _cost(self, tokens: int) -> Cost:
        return Cost(tokens, tokens * self.usd_per_token)


class VectorStore:
    """Vectors by what serves them and by text, and the cost of all requests: one SQLite file, made on first use."""

    def __init__(self, path: Path, served: str) -> None:
        self.path, self._served = path, served.encode()

    def spent(self) -> Cost:
        """Return the cost of all requests of this file, whatever served them."""
        with self._transaction() as database:
            tokens, usd = database.execute("SELECT total(tokens), total(usd) FROM requests").fetchone()
        return Cost(int(tokens), usd)

    def vectors(self, texts: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """Return the vectors of those texts that have one."""
        with self._transaction() as database:
            query = "SELECT vector FROM vectors WHERE key = ?"
            rows = {text: database.execute(query, (self._key(text),)).fetchone() for text in texts}
        return {text: np.frombuffer(row[0], dtype="<f4") for text, row in rows.items() if row}

    def begin(self, worst: Cost) -> int:
        """Count a request as spent at its worst case, and return its number."""
        with self._transaction() as database:
            row = database.execute("INSERT INTO requests VALUES (?, ?) RETURNING rowid", (worst.tokens, worst.usd))
            return row.fetchone()[0]

    def end(self, request: int, cost: Cost, vectors: Mapping[str, NDArray[np.float32]]) -> None:
        """Replace a request's worst case by its cost, and keep the vectors that came, in one transaction."""
        rows = [(self._key(text), vector.astype("<f4").tobytes()) for text, vector in vectors.items()]
        where = (cost.tokens, cost.usd, request)
        with self._transaction() as database:
            database.execute("UPDATE requests SET tokens = ?, usd = ? WHERE rowid = ?", where)
            database.executemany("INSERT OR IGNORE INTO vectors VALUES (?, ?)", rows)

    def close(self) -> None:
        """Close the file; until then no other process can open it."""
        if "_database" in self.__dict__:
            self._database.close()
            del self._database

    @cached_property
    def _database(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        database = sqlite3.connect(self.path, timeout=0)
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
        database.execute("CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, vector BLOB)")
        database.execute("CREATE TABLE IF NOT EXISTS requests (tokens INTEGER, usd REAL)")
        return database

    @contextmanager
    def _transaction(self) -> Generator[sqlite3.Connection]:
        advice = "End other runs in this folder, make room on the disk, or move a damaged file away and pay again."
        problem = f"The vectors in {self.path} cannot be read or written"
        with explained(problem, advice), self._database as database:
            yield database

    def _key(self, text: str) -> bytes:
        return blake2b(self._served + b"\0" + text.encode(errors="surrogatepass"), digest_size=16).digest()
