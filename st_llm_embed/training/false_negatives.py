"""Which candidates of a batch are no negatives."""

from __future__ import annotations

import torch
from torch import Tensor


def known_positives(hashes: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Find the candidates that the texts of the batch themselves show to be no negatives of a row, or to be repeated.

    For a row these are: each text that is in the row already (its anchor, its positive, another of its negatives), and
    anchor and positive of each other row with the same anchor or the same positive. Without this, n rows with one
    positive have a loss of log n at least, and training pushes apart what belongs together.

    Args:
        hashes: of shape (batch, columns): a number for each text, anchor and positive first.
        rows: of shape (rows,): the rows of the batch that are asked for.

    Returns:
        True where a candidate has to be left out. Of shape (rows, batch) for the anchors as candidates, a row's own
        never among them; of shape (rows, batch * (columns - 1)) for the documents, column by column, a row's own
        positive never among them.
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
