"""The contrastive loss."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple, cast

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.losses.merged_forward import embed_columns, merge_feature_batches
from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss, MatryoshkaLoss
from sentence_transformers.util import all_gather, all_gather_with_grad, get_rank
from torch import Tensor, distributed, nn
from torch.nn.functional import normalize

from st_llm_embed.errors import InputError
from st_llm_embed.recipe import Direction, Loss

Features = dict[str, Any]
"""A tokenizer's output: input_ids and attention_mask of shape (texts, tokens), and more of some models."""

SCORED_ROWS = 128
"""Rows of the score matrix that are in memory at once with GradCache."""


class _Batch(NamedTuple):
    """What the loss knows of its texts besides their embeddings."""

    columns: int
    place: Tensor | None
    """Where each text, column by column, is among the embeddings; None: in this order."""
    hashes: Tensor | None


class InfoNCELoss(CachedMultipleNegativesRankingLoss):
    """InfoNCE over in-batch and hard negatives (arXiv 2401.00368, equation 2) for any number of negatives per row.

    Loss and gradients are those of sentence-transformers' MultipleNegativesRankingLoss, whose GradCache, gathering and
    hardness term are reused, with four additions:

    - Similarities are computed in float32: at a temperature of 0.02, bfloat16 moves a logit by 0.1 or more.
    - Mini-batches of GradCache are made of texts of like length from all columns (`length_sorted`).
    - False negatives are masked (`known_positives`), in the batch of all processes.
    - In-batch negatives can be switched off.

    Args:
        model: the model to train.
        temperature: cosine similarities are divided by it.
        mini_batch_num_tokens: most tokens per forward pass, padding included, with GradCache (arXiv 2101.06983). None:
            no GradCache. Where flash attention does without padding, mini-batches are sentence-transformers' own, of
            as many tokens of a column.
        directions: what is compared, in one softmax (recipe.Loss has papers and values of these and the next).
        hardness_strength: extra weight of a row's own hard negatives (arXiv 2509.20354, EmbeddingGemma).
        in_batch_negatives: False compares each anchor with the documents of its own row only.
        mask_duplicates: mask candidates whose text shows that they are not negatives (`known_positives`).
        false_negative_margin: mask candidates whose similarity is above that of the positive by more than this.
        gather_across_devices: compare with the texts of all processes.

    Raises:
        InputError: in-batch negatives are off and another direction than query_to_doc is asked for.
    """

    def __init__(
        self,
        model: SentenceTransformer,
        *,
        temperature: float,
        mini_batch_num_tokens: int | None = None,
        directions: Sequence[Direction] = ("query_to_doc",),
        hardness_strength: float = 0,
        in_batch_negatives: bool = True,
        mask_duplicates: bool = True,
        false_negative_margin: float | None = None,
        gather_across_devices: bool = False,
    ) -> None:
        if not in_batch_negatives and tuple(directions) != ("query_to_doc",):
            raise InputError(
                f"In-batch negatives are off, and the directions are {', '.join(directions)}. All but query_to_doc "
                "compare with texts of other rows: take them out, or leave in-batch negatives on."
            )
        super().__init__(
            model,
            scale=1 / temperature,
            mini_batch_num_tokens=mini_batch_num_tokens,
            gather_across_devices=gather_across_devices,
            directions=tuple(directions),
            hardness_mode="hard_negatives" if hardness_strength else None,
            hardness_strength=hardness_strength,
        )
        # Read by MatryoshkaLoss, which wraps the two kinds of loss differently.
        self.uses_gradient_cache = mini_batch_num_tokens is not None
        self.in_batch_negatives = in_batch_negatives
        self.mask_duplicates = mask_duplicates
        self.false_negative_margin = false_negative_margin

    def forward(self, sentence_features: Iterable[Features], labels: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Compute the loss of one batch.

        Args:
            sentence_features: one for each column: anchors, positives, negatives.
            labels: not used; the trainer passes them.

        Raises:
            InputError: there are too few columns to compare.
        """
        columns = list(sentence_features)
        needed = 2 if self.in_batch_negatives else 3
        if len(columns) < needed:
            raise InputError(
                f"The rows have {len(columns)} text columns, and the loss needs {needed}: anchor, positive"
                + (", negative. Without in-batch negatives there is nothing else to compare with." * (needed == 3))
            )
        hashes = text_hashes(columns) if self.mask_duplicates else None
        if self.mini_batch_num_tokens is None:
            embeddings = embed_columns(self.model, columns)
            return self.calculate_loss([[column] for column in embeddings], _Batch(len(columns), None, hashes))
        pool = merge_feature_batches(columns)
        if pool is None:
            return self.forward_cached(columns, cast(Tensor, _Batch(len(columns), None, hashes)))
        # To the stock machinery each mini-batch is a column of its own, which it has no reason to cut.
        mini_batches, place = length_sorted(pool, self.mini_batch_num_tokens)
        return self.forward_cached(mini_batches, cast(Tensor, _Batch(len(columns), place, hashes)))

    def calculate_loss(
        self, reps: list[list[Tensor]], labels: Tensor | _Batch | None = None, *, with_backward: bool = False
    ) -> Tensor:
        """Compute the loss from the embeddings.

        Args:
            reps: embeddings of shape (texts, dimensions) by mini-batch.
            labels: what `forward` knows of the texts.
            with_backward: go back to the embeddings, some rows of the score matrix at a time, and detach the loss.
        """
        batch = cast(_Batch, labels)
        texts = torch.cat([mini_batch for column in reps for mini_batch in column])
        with torch.autocast(texts.device.type, enabled=False):
            if batch.place is not None:
                texts = texts[batch.place]
            columns: Sequence[Tensor] = texts.chunk(batch.columns)
            hashes, rows = batch.hashes, len(columns[0])
            local = torch.arange(rows, device=texts.device)
            if self.gather_across_devices and self.in_batch_negatives:
                columns = [all_gather_with_grad(column) for column in columns]
                hashes = None if hashes is None else all_gather(hashes)
                local += get_rank() * rows
            precise = torch.promote_types(texts.dtype, torch.float32)
            columns = [normalize(column.to(precise), dim=-1) for column in columns]
            # Cut off, so that parts of the score matrix go back one by one and what is below goes back once.
            scored = [column.detach().requires_grad_() for column in columns] if with_backward else columns
            total = torch.zeros((), dtype=precise, device=texts.device)
            for some in local.split(SCORED_ROWS if self.uses_gradient_cache else rows):
                loss = self._loss_of(some, scored, hashes) * (len(some) / rows)
                if with_backward:
                    loss.backward()
                    loss = loss.detach()
                total = total + loss
            if with_backward:
                torch.autograd.backward(columns, [column.grad for column in scored])
        return total

    def get_config_dict(self) -> dict[str, Any]:
        """Return the settings for the model's card."""
        names = ("temperature", "mini_batch_num_tokens", "gather_across_devices", "directions", "hardness_strength")
        own = ("in_batch_negatives", "mask_duplicates", "false_negative_margin")
        return {name: getattr(self, name) for name in (*names, *own)}

    def _loss_of(self, rows: Tensor, columns: Sequence[Tensor], hashes: Tensor | None) -> Tensor:
        """Compute the mean loss of some rows against the whole batch, from vectors of unit length."""
        anchors, positives, documents = columns[0], columns[1], torch.cat(list(columns[1:]))
        own = own_rows(rows, len(anchors))
        own_documents = own.repeat(1, len(columns) - 1)
        compared = {
            "query_to_doc": (anchors, documents),
            "query_to_query": (anchors, anchors),
            "doc_to_query": (positives, anchors),
            "doc_to_doc": (positives, documents),
        }
        similarities = {name: compared[name][0][rows] @ compared[name][1].T for name in self.directions}
        masked = {
            "query_to_doc": torch.zeros_like(own_documents) if self.in_batch_negatives else ~own_documents,
            "query_to_query": own,
            "doc_to_query": torch.zeros_like(own),
            "doc_to_doc": own_documents,
        }
        if hashes is not None:
            known_anchors, known_documents = known_positives(hashes, rows)
            for name in self.directions:
                known = known_anchors if name.endswith("query") else known_documents
                masked[name] = masked[name] | known
        place = torch.arange(len(rows), device=rows.device)
        logits = []
        for name, similarity in similarities.items():
            if self.false_negative_margin is not None:
                positive = similarities["query_to_doc"].detach()[place, rows]
                above = similarity.detach() > positive[:, None] + self.false_negative_margin
                # The positive pair itself is among the candidates of doc_to_query, too.
                masked[name] = masked[name] | (above & ~own if name == "doc_to_query" else above)
            logit = similarity * self.scale
            if name == "query_to_doc" and self.hardness_strength:
                hard = own_documents.clone()
                hard[:, : len(anchors)] = False
                logit = logit + self.hardness_strength * similarity.detach() * hard
            logits.append(logit.masked_fill(masked[name], -torch.inf))
        return (torch.cat(logits, dim=1).logsumexp(dim=1) - logits[0][place, rows]).mean()


def build_losses(model: SentenceTransformer, loss: Loss, columns: Mapping[str, Sequence[str]]) -> dict[str, nn.Module]:
    """Build the loss of each configuration of a dataset, whose text columns are given by its name.

    Raises:
        InputError: a configuration without in-batch negatives has no negatives of its own.
    """
    losses: dict[str, nn.Module] = {}
    for name, texts in columns.items():
        own_only = name.startswith(loss.own_negatives_only)
        if own_only and len(texts) < 3:
            raise InputError(
                f"The rows of {name} have the texts {', '.join(texts)} and no negative, and loss.own_negatives_only "
                "lets them be compared with nothing else. Give them negatives, or take their task type out of it."
            )
        strengths = loss.hardness_strength.items()
        losses[name] = InfoNCELoss(
            model,
            temperature=loss.temperature,
            mini_batch_num_tokens=loss.mini_batch_num_tokens,
            directions=("query_to_doc",) if own_only else loss.directions,
            hardness_strength=next((strength for begin, strength in strengths if name.startswith(begin)), 0),
            in_batch_negatives=not own_only,
            mask_duplicates=loss.mask_duplicates,
            false_negative_margin=loss.false_negative_margin,
            # Under torchrun the batch whose texts are negatives is that of all processes.
            gather_across_devices=distributed.is_initialized(),
        )
        if loss.matryoshka_dims:
            losses[name] = MatryoshkaLoss(model, losses[name], list(loss.matryoshka_dims))
    return losses


def length_sorted(pool: Features, num_tokens: int) -> tuple[list[Features], Tensor]:
    """Cut a pool of texts into mini-batches of texts of like length, the longest first, each as wide as its longest.

    Under torchrun every process makes as many as the one that needs most: with weights spread over processes (ZeRO-3,
    FSDP), a process that calls the model more often than the others would wait forever.

    Args:
        pool: features of all texts, padded to one width on any side.
        num_tokens: most tokens of a mini-batch, padding included; a longer text is a mini-batch of its own.

    Returns:
        The mini-batches, padded on the right, and where each text of the pool is in them, of shape (texts,).
    """
    mask: Tensor = pool["attention_mask"]
    lengths = mask.sum(dim=1)
    order = lengths.argsort(descending=True, stable=True)
    # In each row the places of real tokens, in their order, then those of padding.
    real_first = mask.argsort(dim=1, descending=True, stable=True)
    descending = lengths[order].tolist()
    ranges = cut(descending, num_tokens)
    if distributed.is_initialized():
        most = torch.tensor(len(ranges), device=mask.device)
        distributed.all_reduce(most, distributed.ReduceOp.MAX)
        ranges = cut_to(ranges, descending, int(most))
    mini_batches = []
    for begin, end in ranges:
        texts = order[begin:end]
        tokens = real_first[texts, : descending[begin]]
        mini_batches.append({key: _taken(value, texts, tokens, mask) for key, value in pool.items()})
    return mini_batches, order.argsort()


def cut(lengths: Sequence[int], num_tokens: int) -> list[tuple[int, int]]:
    """Return the ranges of mini-batches over lengths in descending order; the first text of each is its longest."""
    ranges, begin = [], 0
    while begin < len(lengths):
        end = min(begin + max(num_tokens // lengths[begin], 1), len(lengths))
        ranges.append((begin, end))
        begin = end
    return ranges


def cut_to(ranges: Sequence[tuple[int, int]], lengths: Sequence[int], count: int) -> list[tuple[int, int]]:
    """Halve the largest mini-batches until there are `count`, or one for each text."""
    ranges = list(ranges)
    while len(ranges) < min(count, len(lengths)):
        begin, end = max(ranges, key=lambda one: (one[1] - one[0] > 1, (one[1] - one[0]) * lengths[one[0]]))
        middle = (begin + end) // 2
        place = ranges.index((begin, end))
        ranges[place : place + 1] = [(begin, middle), (middle, end)]
    return ranges


def text_hashes(columns: Sequence[Features]) -> Tensor:
    """Hash the token ids of each text to 64 bits, the same in every process; of shape (rows, columns).

    Two texts that are cut off at the same token are the same text to the model, and here.
    """

    def hashed(ids: Tensor) -> int:
        return int.from_bytes(blake2b(ids.numpy().tobytes(), digest_size=8).digest(), "little", signed=True)

    hashes = [[hashed(ids) for ids in _token_ids(features)] for features in columns]
    return torch.tensor(hashes, device=columns[0]["input_ids"].device).T


def _token_ids(features: Features) -> list[Tensor]:
    ids: Tensor = features["input_ids"].cpu()
    if "cu_seq_lens_q" in features:  # flash attention: one row of all texts, without padding
        return list(ids.flatten().tensor_split(features["cu_seq_lens_q"][1:-1].cpu().long()))
    return [row[real] for row, real in zip(ids, features["attention_mask"].cpu().bool(), strict=True)]


def _taken(value: Any, texts: Tensor, tokens: Tensor, mask: Tensor) -> Any:
    """Take the chosen texts of a feature, and of one value per token the chosen tokens."""
    if not isinstance(value, Tensor) or value.shape[:1] != mask.shape[:1]:
        return value
    return value[texts].gather(1, tokens) if value.shape == mask.shape else value[texts]


def known_positives(hashes: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Find the false negatives of a row that the texts of the batch show, and repeated candidates.

    For a row these are: each text that is in the row already (its anchor, its positive, another of its negatives), and
    anchor and positive of each other row with the same anchor or the same positive. Without this, n rows with one
    positive have a loss of log n at least, and training pushes apart what belongs together.

    Args:
        hashes: a number for each text, anchor and positive first; of shape (batch, columns).
        rows: the rows of the batch that are asked for, of shape (rows,).

    Returns:
        True where a candidate has to be masked: of shape (rows, batch) for anchors, a row's own never among them, and
        (rows, batch * (columns - 1)) for documents, column by column, a row's own positive never among them.
    """
    batch, columns = hashes.shape
    anchors, positives, documents = hashes[:, 0], hashes[:, 1], hashes[:, 1:].T.flatten()
    own = own_rows(rows, batch)
    related = (anchors[rows, None] == anchors) | (positives[rows, None] == positives)
    same_anchor, same_document = related.clone(), torch.zeros(len(rows), len(documents), dtype=torch.bool).to(own)
    for texts in hashes[rows].T:
        same_anchor |= texts[:, None] == anchors
        same_document |= texts[:, None] == documents
    same_document[:, :batch] |= related
    place = torch.arange(len(rows), device=hashes.device)
    same_document[place, rows] = False
    for column in range(2, columns):
        # A row's own negative stays the first time that its text comes.
        repeated = hashes[rows, :column] == hashes[rows, column, None]
        same_document[place, (column - 1) * batch + rows] = repeated.any(dim=1)
    return same_anchor & ~own, same_document


def own_rows(rows: Tensor, batch: int) -> Tensor:
    """True at each row's own place; of shape (rows, batch)."""
    return rows[:, None] == torch.arange(batch, device=rows.device)
