"""The loss of a student: the rows' contrast, the teacher's scores, the teacher's vectors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.losses.merged_forward import embed_columns
from sentence_transformers.sentence_transformer.losses import EmbedDistillLoss, MatryoshkaLoss
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax, normalize

from st_llm_embed.distillation.teacher import TeacherVectors
from st_llm_embed.recipe import DistillationLoss
from st_llm_embed.training.loss import known_positives


class StudentLoss(nn.Module):
    """Weighted sum of three parts, for students of whole rows, of queries alone, and of unlabelled texts.

    - InfoNCE over the documents of the batch, without those that are no negatives (`known_positives`).
    - Kullback-Leibler divergence of the student's from the teacher's softmax over documents, as in
      sentence-transformers' DistillKLDivLoss, but over all documents of the batch: a row has one or two of its own,
      and over one document there is nothing to learn.
    - 1 - cosine similarity with the teacher's vectors (sentence-transformers' EmbedDistillLoss), at full length.

    Args:
        model: the student.
        weights: the recipe's.
        teacher: vectors of the texts; None leaves the last two parts out.
        contrastive: whether a text's first document is its positive; False leaves the first part out.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        weights: DistillationLoss,
        teacher: TeacherVectors | None,
        *,
        contrastive: bool,
    ) -> None:
        super().__init__()
        self.model = model
        self.weights = weights
        self.teacher = teacher
        self.contrastive = contrastive
        self.embedding = EmbedDistillLoss(model, distance_metric="cosine")
        self.dimension = int(model.get_embedding_dimension() or 0)
        self.axes: Tensor | None = None
        if teacher is not None and weights.embedding and self.dimension < teacher.dimension:
            self.axes = teacher.principal_axes(self.dimension)

    def forward(self, sentence_features: Iterable[dict[str, Any]], labels: Tensor) -> Tensor:
        """Compute the loss of one batch.

        Args:
            sentence_features: one for each column that the student encodes: anchors, positives, negatives.
            labels: the numbers of the row's texts, shape (batch, texts); texts beyond the columns are documents whose
                vectors are the teacher's.
        """
        columns = [normalize(column.float(), dim=-1) for column in embed_columns(self.model, sentence_features)]
        targets = None if self.teacher is None else self.teacher.of(labels).to(columns[0].device)
        encoded = len(columns)
        if targets is not None and encoded < labels.shape[1]:
            # Documents are the teacher's; a shorter student compares with as many of their dimensions.
            documents = normalize(targets[:, encoded:, : columns[0].shape[1]], dim=-1)
            columns += list(documents.unbind(dim=1))
        total = columns[0].new_zeros(())
        if self.contrastive and self.weights.contrastive:
            total = total + self.weights.contrastive * self._contrast(columns, labels)
        if targets is None:
            return total
        if self.weights.scores:
            total = total + self.weights.scores * self._divergence(columns, list(targets.unbind(dim=1)))
        if self.weights.embedding and columns[0].shape[1] == self.dimension:
            own = targets[:, :encoded] if self.axes is None else targets[:, :encoded] @ self.axes.to(targets.device)
            vectors = self.embedding.compute_loss_from_embeddings(columns[:encoded], list(own.unbind(dim=1)))
            total = total + self.weights.embedding * vectors
        return total

    def get_config_dict(self) -> dict[str, Any]:
        """Give the settings for the model's card."""
        return self.weights.model_dump()

    def _contrast(self, columns: list[Tensor], labels: Tensor) -> Tensor:
        # InfoNCELoss, which this equals, is one of sentence-transformers' cached losses; those refuse static models.
        rows = torch.arange(len(labels), device=labels.device)
        _, no_negatives = known_positives(labels, rows)
        logits = _scores(columns) / self.weights.temperature
        return cross_entropy(logits.masked_fill(no_negatives, -torch.inf), rows)

    def _divergence(self, student: list[Tensor], teacher: list[Tensor]) -> Tensor:
        scores, wanted = (
            log_softmax(_scores(texts) / self.weights.temperature, dim=1) for texts in (student, teacher)
        )
        return kl_div(scores, wanted, reduction="batchmean", log_target=True)


def _scores(columns: list[Tensor]) -> Tensor:
    """Give similarities of the first column with all others; without others, of its texts with each other."""
    if len(columns) > 1:
        return columns[0] @ torch.cat(columns[1:]).T
    similarity = columns[0] @ columns[0].T
    others = ~torch.eye(len(similarity), dtype=torch.bool, device=similarity.device)
    return similarity[others].view(len(similarity), len(similarity) - 1)


def student_loss(
    model: SentenceTransformer, weights: DistillationLoss, teacher: TeacherVectors | None, *, contrastive: bool
) -> nn.Module:
    """Build the loss, over several lengths of the vectors where the recipe says so; arguments as in `StudentLoss`."""
    loss = StudentLoss(model, weights, teacher, contrastive=contrastive)
    return MatryoshkaLoss(model, loss, list(weights.matryoshka_dims)) if weights.matryoshka_dims else loss
