"""The loss on vectors that are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, StaticEmbedding
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn.functional import log_softmax, normalize

from st_llm_embed.distillation.train import TeacherVectors, student_loss
from st_llm_embed.recipe import DistillationLoss
from st_llm_embed.training.loss import InfoNCELoss

WORDS = [f"w{number}" for number in range(12)]


@pytest.fixture
def vectors() -> np.ndarray:
    drawn = np.random.default_rng(0).normal(size=(len(WORDS), 16)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def one_word_each(vectors: np.ndarray) -> SentenceTransformer:
    """A student whose vector of a text of one word is the word's."""
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token=WORDS[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_weights=vectors.copy()), Normalize()])


def computed(
    student: SentenceTransformer, teacher: np.ndarray, weights: dict[str, Any], columns: list[list[str]]
) -> float:
    loss = student_loss(
        student,
        DistillationLoss(**({"contrastive": 0, "scores": 0, "embedding": 0, "temperature": 0.1} | weights)),
        TeacherVectors(teacher[:4], teacher[4:]),
        contrastive=True,
    )
    numbers = torch.tensor([[-1, 0, 4], [-2, 1, 5], [-3, 2, 6], [-4, 3, 7]])
    return float(loss([student.preprocess(column) for column in columns], numbers[:, : len(columns)]).detach())


ROWS = [WORDS[:4], WORDS[4:8], WORDS[8:]]


def test_a_student_equal_to_its_teacher_has_nothing_to_learn(vectors: np.ndarray) -> None:
    student = one_word_each(vectors)
    for part in ("scores", "embedding"):
        assert computed(student, vectors, {part: 1}, ROWS) == pytest.approx(0, abs=1e-5)
        assert computed(student, vectors[::-1].copy(), {part: 1}, ROWS) > 0.1


def test_scores_are_compared_over_all_documents_of_the_batch(vectors: np.ndarray) -> None:
    teacher = np.roll(vectors, 1, axis=1) * 0.7 + vectors * 0.3
    teacher /= np.linalg.norm(teacher, axis=1, keepdims=True)
    own, wanted = (log_softmax(torch.from_numpy(of[:4] @ of[4:].T).double() / 0.1, dim=1) for of in (vectors, teacher))
    expected = float((wanted.exp() * (wanted - own)).sum(dim=1).mean())
    assert computed(one_word_each(vectors), teacher, {"scores": 1}, ROWS) == pytest.approx(expected, rel=1e-4)
    assert computed(one_word_each(vectors), teacher, {"scores": 3}, ROWS) == pytest.approx(3 * expected, rel=1e-4)


def test_unlabelled_texts_are_compared_with_each_other(vectors: np.ndarray) -> None:
    student, loss = one_word_each(vectors), DistillationLoss(contrastive=0, embedding=0, temperature=0.1)
    built = student_loss(student, loss, TeacherVectors(vectors[:0], vectors), contrastive=False)
    same, other, alone = (
        built([student.preprocess(WORDS[: len(numbers)])], torch.tensor(numbers)).item()
        for numbers in ([[0], [1], [2], [3]], [[4], [1], [2], [3]], [[0]])
    )
    assert same == pytest.approx(0, abs=1e-5)
    assert other > 0.01
    assert alone == 0


def test_a_shorter_student_learns_the_axes_that_keep_the_products(vectors: np.ndarray) -> None:
    flat = vectors.copy()
    flat[:, 8:] *= 1e-3
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    mixed = torch.linalg.qr(torch.from_numpy(np.random.default_rng(2).normal(size=(16, 16)))).Q.float()
    teacher = TeacherVectors((flat @ mixed.numpy())[:4], (flat @ mixed.numpy())[4:])
    shorter = normalize(torch.from_numpy(flat @ mixed.numpy()) @ teacher.principal_axes(8), dim=-1)
    torch.testing.assert_close(shorter @ shorter.T, torch.from_numpy(flat @ flat.T), atol=1e-3, rtol=0)
    student = one_word_each(shorter.numpy())
    loss = student_loss(student, DistillationLoss(contrastive=0, scores=0), teacher, contrastive=True)
    numbers = torch.tensor([[-1, 0], [-2, 1], [-3, 2], [-4, 3]])
    assert loss([student.preprocess(column) for column in ROWS[:2]], numbers).item() == pytest.approx(0, abs=1e-5)


def test_vectors_are_trained_at_each_length(vectors: np.ndarray) -> None:
    student, targets = one_word_each(vectors), np.roll(vectors, 1, axis=1)
    whole = computed(student, targets, {"contrastive": 1}, ROWS)
    both = computed(student, targets, {"contrastive": 1, "matryoshka_dims": (16, 8)}, ROWS)
    half = computed(one_word_each(vectors[:, :8].copy()), targets, {"contrastive": 1}, ROWS)
    assert both == pytest.approx(whole + half, rel=1e-4)


def test_the_contrast_is_that_of_the_embedders_own_loss(checkpoint: Path, vectors: np.ndarray) -> None:
    student = SentenceTransformer(str(checkpoint))
    rows = [["a", "b", "a", "d"], ["e", "f", "g", "f"], ["i", "j", "k", "l"]]
    student.eval()
    weights = DistillationLoss(temperature=0.1, scores=0, embedding=0)
    ours = student_loss(student, weights, TeacherVectors(vectors[:4], vectors[4:]), contrastive=True)
    theirs = InfoNCELoss(student, temperature=0.1)
    numbers = torch.tensor([[-1, 0, 4], [-2, 1, 5], [-1, 2, 6], [-4, 1, 7]])
    found = ours([student.preprocess(column) for column in rows], numbers)
    torch.testing.assert_close(found, theirs([student.preprocess(column) for column in rows]))
