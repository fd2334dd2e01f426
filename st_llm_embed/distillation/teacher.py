"""The teacher: its vectors of all texts, computed once and kept on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers.util import load_file_path
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from st_llm_embed.data.vectors import VectorFolder, encoding
from st_llm_embed.distillation.texts import StudentTexts
from st_llm_embed.errors import InputError, explained, shown
from st_llm_embed.modules import LLMSentenceTransformer
from st_llm_embed.recipe import TRAINED, Teacher

FLOAT32: np.dtype[Any] = np.dtype(np.float32)

AXES_FROM = 20_000
"""Most vectors of queries, and of documents, that the principal axes are computed from."""

TEACHER_ADVICE = (
    f"Allowed are {TRAINED!r}, what this recipe trains, and the Hub id or folder of a sentence-transformers model. "
    "Set it with --set distillation.teacher.name_or_path=..."
)


class TeacherVectors:
    """The teacher's vectors of a student's texts, of unit length, by the numbers of `StudentTexts`."""

    def __init__(self, queries: NDArray[np.float32], documents: NDArray[np.float32]) -> None:
        """Take the vectors; both may lie on disk.

        Args:
            queries: shape (queries, dimension).
            documents: shape (documents, dimension).
        """
        self.queries, self.documents = queries, documents

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return max(self.queries.shape[1], self.documents.shape[1])

    def of(self, numbers: Tensor) -> Tensor:
        """Give the vectors of texts, shape (*shape of numbers, dimension), where the numbers are."""
        wanted = numbers.cpu().numpy()
        found = np.empty((*wanted.shape, self.dimension), dtype=FLOAT32)
        is_query = wanted < len(self.queries)
        found[is_query] = self.queries[wanted[is_query]]
        found[~is_query] = self.documents[wanted[~is_query] - len(self.queries)]
        return torch.from_numpy(found).to(numbers.device)

    def principal_axes(self, dimension: int) -> Tensor:
        """Give the axes that keep most of the dot products, largest first; shape (own dimension, dimension)."""
        # Without rows there are no queries, and their array has no columns.
        parts = [part[:AXES_FROM] for part in (self.queries, self.documents) if len(part)]
        some = np.concatenate(parts).astype(np.float64)
        _, axes = np.linalg.eigh(some.T @ some)
        return torch.from_numpy(np.ascontiguousarray(axes[:, ::-1][:, :dimension], dtype=FLOAT32))


def check_teacher(teacher: Teacher) -> None:
    """Check that there is such a model, without loading it.

    Raises:
        InputError: there is none.
    """
    if teacher.name_or_path == TRAINED:
        return
    name = shown(teacher.name_or_path)
    with explained(f"The teacher {name} cannot be loaded", TEACHER_ADVICE):
        found = load_file_path(teacher.name_or_path, "modules.json", revision=teacher.revision)
    if not found:
        raise InputError(
            f"distillation.teacher.name_or_path is {name}, and no modules.json of a sentence-transformers model is "
            f"found there. {TEACHER_ADVICE}"
        )


def load_teacher(teacher: Teacher, path: str) -> LLMSentenceTransformer:
    """Load the teacher.

    Args:
        teacher: says which.
        path: where it is, of one that the recipe trains, too.

    Raises:
        InputError: it cannot be loaded.
    """
    with explained(f"The teacher {path!r} cannot be loaded", TEACHER_ADVICE):
        return LLMSentenceTransformer(path, revision=teacher.revision)


def teacher_vectors(
    embedder: LLMSentenceTransformer, teacher: Teacher, identity: str, texts: StudentTexts, folder: Path
) -> TeacherVectors:
    """Give the teacher's vectors of all texts, from disk as far as they are there.

    Args:
        embedder: the teacher.
        teacher: its prompts.
        identity: names its weights; vectors of others are not used.
        texts: what to encode.
        folder: keeps the vectors in float32; a call that was killed goes on from there.

    Raises:
        InputError: a vector is not finite.
    """
    vectors = _folder(embedder, teacher, identity, folder)
    queries, documents = texts.queries, texts.documents
    return TeacherVectors(
        vectors.encoded(
            len(queries), lambda n: queries[n][1], lambda n: queries[n][0], "teacher's vectors of the queries"
        ),
        vectors.encoded(len(documents), documents.__getitem__, None, "teacher's vectors of the documents"),
    )


def token_vectors(
    embedder: LLMSentenceTransformer,
    teacher: Teacher,
    identity: str,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
) -> NDArray[np.float32]:
    """Give the teacher's vector of each token as a text of its own (Model2Vec); arguments as in `teacher_vectors`.

    Returns:
        Shape (tokens, dimension).
    """
    texts = [str(tokenizer.decode([number])).strip() or " " for number in range(len(tokenizer))]
    vectors = _folder(embedder, teacher, identity, folder)
    return vectors.encoded(len(texts), texts.__getitem__, None, "teacher's vectors of the tokens")


def _folder(embedder: LLMSentenceTransformer, teacher: Teacher, identity: str, folder: Path) -> VectorFolder:
    encoder = f"{identity}\n{teacher.query_prompt!r}\n{teacher.document_prompt!r}"
    return VectorFolder(folder, encoding(embedder, teacher), encoder, FLOAT32)
