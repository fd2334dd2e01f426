"""On-disk cache of vectors. Encodes in chunks and resumes after an interruption."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from st_llm_embed.errors import InputError
from st_llm_embed.processes import progress
from st_llm_embed.recipe import Mining, Teacher

if TYPE_CHECKING:
    from st_llm_embed.modules.model import LLMSentenceTransformer

DTYPE: np.dtype[Any] = np.dtype(np.float16)
"""Changes the cosine of unit vectors by about 1e-4."""

TEXTS_AT_ONCE = 4_096
"""What a kill can lose, and what is in memory at once."""


Encode = Callable[[list[str], list[str] | None], NDArray[np.float32]]
"""Encodes queries, each under its own instruction, or, with None, documents: unit vectors, (texts, dimension)."""


def encoder_with_prompts(embedder: LLMSentenceTransformer, prompts: Mining | Teacher) -> Encode:
    """Return what encodes queries, each under its own instruction or under the prompt given, and documents."""
    options: dict[str, Any] = {
        "batch_size": prompts.batch_size,
        "normalize_embeddings": True,
        "show_progress_bar": False,
    }

    def encode(texts: list[str], instructions: list[str] | None) -> NDArray[np.float32]:
        if instructions is None:
            return embedder.encode_document(texts, prompt=prompts.document_prompt, **options)
        if prompts.query_prompt is None:
            return embedder.encode_query(texts, instruction=instructions, **options)
        return embedder.encode_query(texts, prompt=prompts.query_prompt, **options)

    return encode


def check_vectors(vectors: NDArray[np.floating], texts: Sequence[str], what: str, advice: str) -> None:
    """Check that vectors of texts, shape (texts, dimension), are finite.

    Raises:
        InputError: some are not; it begins with `what` they are and ends with the advice.
    """
    broken = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
    if len(broken):
        raise InputError(
            f"{what} are not finite for {len(broken)} of {len(texts)} texts, the first of them "
            f"{texts[broken[0]][:60]!r}. {advice}"
        )


class VectorFolder:
    """A folder of vectors, each file named by the model and by the texts that it holds."""

    def __init__(self, folder: Path, encode: Encode, encoder: str, dtype: np.dtype[Any] = DTYPE) -> None:
        """Keep what `encode` returns in a folder; `encoder` identifies what it does: model, revision, prompts."""
        self._folder, self._encode, self._encoder, self._dtype = folder, encode, encoder, dtype
        self._ending = f"f{self._dtype.itemsize * 8}"
        self._used: set[Path] = set()

    def encoded(
        self, count: int, text: Callable[[int], str], instruction: Callable[[int], str] | None, title: str
    ) -> NDArray[Any]:
        """Return the vectors of texts from disk, shape (count, dimension), after encoding those that are missing.

        Args:
            count: number of texts.
            text: returns one of them.
            instruction: returns that of a query; None for documents.
            title: of the progress bar.

        Raises:
            InputError: a vector is not finite.
        """
        digest = hashlib.blake2b(f"{self._encoder}\n{instruction is not None}\n".encode(), digest_size=12)
        for number in range(count):
            for part in (text(number), instruction(number) if instruction else ""):
                digest.update(hashlib.blake2b(part.encode(), digest_size=16).digest())
        name = digest.hexdigest()
        self._folder.mkdir(parents=True, exist_ok=True)
        # The dimension is in the name: it is not known before the first texts are encoded.
        path = next(self._folder.glob(f"{name}.*.{self._ending}"), None)
        done = path.stat().st_size // (self._dtype.itemsize * _dimension(path)) if path else 0
        if done < count:
            # Whole pieces, so that texts share their batches with the same ones as without the kill.
            done -= done % TEXTS_AT_ONCE
        with progress(title, count, done, "texts") as update:
            for start in range(done, count, TEXTS_AT_ONCE):
                numbers = range(start, min(start + TEXTS_AT_ONCE, count))
                texts = [text(number) for number in numbers]
                vectors = self._encode(texts, [instruction(number) for number in numbers] if instruction else None)
                advice = "Choose another model, or bfloat16 or float32 as its data type."
                check_vectors(vectors, texts, "The model's vectors", advice)
                path = path or self._folder / f"{name}.{vectors.shape[1]}.{self._ending}"
                with path.open("r+b" if path.exists() else "wb") as file:
                    # Over the torn vector that a kill may have left at the end.
                    file.seek(start * vectors.shape[1] * self._dtype.itemsize)
                    file.write(vectors.astype(self._dtype).tobytes())
                update(len(texts))
        if path is None:
            return np.empty((0, 1), dtype=self._dtype)
        self._used.add(path)
        return np.memmap(path, dtype=self._dtype, mode="r", shape=(count, _dimension(path)))

    def remove_unused(self) -> None:
        """Delete the vectors that were not asked for, of other texts or another model."""
        for path in self._folder.glob(f"*.{self._ending}"):
            if path not in self._used:
                path.unlink()


def _dimension(path: Path) -> int:
    return int(path.name.split(".")[1])
