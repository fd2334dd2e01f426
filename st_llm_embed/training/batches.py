"""Batches of one task each, free of repeated texts over all processes, with small tasks packed together."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterator, Sequence
from hashlib import blake2b
from itertools import chain, count, islice
from typing import Any, cast

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from sentence_transformers.base.sampler import MultiDatasetDefaultBatchSampler
from torch.utils.data import BatchSampler, ConcatDataset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from st_llm_embed.data.dataset import is_text_column
from st_llm_embed.errors import InputError
from st_llm_embed.recipe import Batches

logger = logging.getLogger(__name__)

HASHED_AT_ONCE = 2_000
"""Rows."""

LABELS = "long-short"
"""Beginning of the names of configurations whose positives are labels: a batch may have one several times."""

NO_REPEAT = -1
"""In place of the number of a text that is in one row only."""


class TaskBatchSampler(MultiDatasetDefaultBatchSampler):
    """Decides which rows make a batch, for `multi_dataset_batch_sampler` of the stock trainer.

    Rows are first put into full batches of one configuration; what is left of each is packed together with what is
    left of others. Only rows that train under the same loss share a batch, and where some of them have no negative,
    the batch has none.

    Negatives are gathered over processes, so it is the joint batch of all of them, `processes` times `batch_size`
    rows, in which no text is repeated: accelerate hands out consecutive batches, one per process. Anchors and
    positives are compared by the hash of the text, and a hard negative with the anchors and positives of other rows;
    instructions, empty texts and labels are not.

    What an epoch has depends on seed and epoch alone, and every epoch has the same number of batches, so a resumed
    training meets the batches it would have met.
    """

    def __init__(
        self,
        dataset: ConcatDataset,
        batch_samplers: Sequence[BatchSampler],
        generator: torch.Generator | None = None,
        seed: int = 0,
        *,
        choices: Batches,
        configurations: Sequence[str],
        losses: Sequence[Hashable],
        processes: int,
    ) -> None:
        """Hash the texts and make the batches of the first epoch; the first four arguments are the stock trainer's.

        Args:
            dataset: one dataset per configuration, with the columns of `to_training`.
            batch_samplers: say batch size and whether incomplete batches are dropped.
            generator: not used; each epoch has a generator of its own.
            seed: of the order of rows and batches.
            choices: the recipe's.
            configurations: their names, one per dataset.
            losses: what identifies the loss, one per dataset; datasets with equal ones may share a batch.
            processes: how many train together.

        Raises:
            InputError: there are configurations whose rows can never fill a batch.
        """
        super().__init__(dataset, list(batch_samplers), generator, seed)
        parts = cast(list[Dataset], dataset.datasets)
        columns = [tuple(sorted(filter(is_text_column, part.column_names))) for part in parts]
        self._processes = processes
        self._joint_size = self.batch_size * processes
        self._own, self._negatives = _repeated_texts(parts, [name.startswith(LABELS) for name in configurations])
        # Who may share a batch, from the strictest rule to the last: one configuration, one shape, one loss.
        rules: list[Sequence[Hashable]] = [configurations, list(zip(columns, losses, strict=True)), losses]
        sizes = [len(part) for part in parts]
        # For each rule the number of each row's group.
        self._groups = [np.repeat([rule.index(key) for key in rule], sizes) for rule in rules[int(choices.mixed) :]]
        first = self._pass(0, 0)
        self._length = len(first)
        self._check_use(first, configurations, sizes)

    def __len__(self) -> int:
        """Batches of an epoch, those of all processes counted."""
        return self._length * self._processes

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the batches of the current epoch, those of one joint batch one after the other."""
        epoch = self.epoch
        # As many as the first epoch has: from more passes over the rows where one has fewer.
        passes = (self._pass(epoch, again) for again in count())
        for joint in islice(chain.from_iterable(passes), self._length):
            for start in range(0, len(joint), self.batch_size):
                yield joint[start : start + self.batch_size]

    def _pass(self, epoch: int, again: int) -> list[list[int]]:
        """Put each row into at most one joint batch."""
        random = np.random.default_rng([self.seed, epoch, again])
        left = random.permutation(len(self._own))
        full: list[list[int]] = []
        last: list[list[int]] = []
        for groups in self._groups:
            by_group = [self._fill(left[groups[left] == group]) for group in np.unique(groups[left])]
            full += [batch for batches in by_group for batch in batches if len(batch) == self._joint_size]
            incomplete = [[batch for batch in batches if len(batch) < self._joint_size] for batches in by_group]
            left = random.permutation(np.array([row for part in incomplete for batch in part for row in batch], int))
            # A row alone has nothing to be compared with.
            last = [max(part, key=len) for part in incomplete if part and max(map(len, part)) > 1]
        batches = [full[place] for place in random.permutation(len(full))]
        return batches if self.drop_last else batches + last

    def _fill(self, rows: NDArray[np.int64]) -> list[list[int]]:
        """Put each row into the first batch with room for it that comes after every batch with a text of the row."""
        batches: list[list[int]] = []
        # next_open[i] leads to the first batch from i on that is not full.
        next_open = [0]
        after_own: dict[int, int] = {}
        after_negative: dict[int, int] = {}
        own_texts, negative_texts = self._own[rows].tolist(), self._negatives[rows].tolist()
        for row, own_of_row, negatives_of_row in zip(rows.tolist(), own_texts, negative_texts, strict=True):
            own = [text for text in own_of_row if text != NO_REPEAT]
            negatives = [text for text in negatives_of_row if text != NO_REPEAT]
            blocked = [after_own.get(text, 0) for text in (*own, *negatives)]
            place = max([0, *blocked, *(after_negative.get(text, 0) for text in own)])
            while next_open[place] != place:
                next_open[place] = next_open[next_open[place]]
                place = next_open[place]
            if place == len(batches):
                batches.append([])
                next_open.append(place + 1)
            batches[place].append(row)
            if len(batches[place]) == self._joint_size:
                next_open[place] = place + 1
            for text in own:
                after_own[text] = place + 1
            for text in negatives:
                after_negative[text] = max(after_negative.get(text, 0), place + 1)
        return batches

    def _check_use(self, first: list[list[int]], configurations: Sequence[str], sizes: Sequence[int]) -> None:
        """Refuse rows that no epoch can use, and log how many one epoch omits."""
        groups = self._groups[-1]
        unused = np.isin(groups, np.unique(groups[[row for batch in first for row in batch]]), invert=True)
        names = [
            name
            for name, rows in zip(configurations, np.split(unused, np.cumsum(sizes)[:-1]), strict=True)
            if any(rows)
        ]
        if names:
            raise InputError(
                f"The {unused.sum()} rows of {', '.join(names)} cannot fill a batch of {self._joint_size} rows "
                f"without a repeated text ({self.batch_size} per process, {self._processes} processes). Lower "
                "training.per_device_train_batch_size, or give more rows that train under the same loss settings."
            )
        if omitted := len(groups) - sum(map(len, first)):
            logger.info("batches: an epoch omits %d of %d rows, other ones each time", omitted, len(groups))


class SetSamplerEpoch(TrainerCallback):
    """Sets the epoch of the batch sampler.

    The trainer does so itself, but does not reach the sampler when it resumes in the middle of an epoch with several
    processes (transformers 5.23, `Trainer._run_epoch`), which would then repeat the batches of the first epoch.
    """

    def on_epoch_begin(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **kwargs: Any,
    ) -> None:
        """Look for the sampler in what accelerate has put around it."""
        sampler = kwargs["train_dataloader"].batch_sampler
        while sampler is not None and not hasattr(sampler, "set_epoch"):
            sampler = getattr(sampler, "batch_sampler", None)
        if sampler is not None:
            sampler.set_epoch(int(state.epoch or 0))


def _repeated_texts(parts: Sequence[Dataset], labels: Sequence[bool]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Number the texts that occur in several places; `labels`: datasets whose documents are labels.

    Returns:
        The numbers of anchor and positive, of shape (rows, 2), and of the negatives, of shape (rows, most negatives of
        a row); `NO_REPEAT` for texts that occur in one place, are empty or are labels.
    """
    hashes = []
    for part, labelled in zip(parts, labels, strict=True):
        others = [name for name in part.column_names if is_text_column(name) and name not in ("anchor", "positive")]
        columns = [_hashes(part, name) for name in ("anchor", "positive", *others)]
        if labelled:
            columns[1:] = [np.zeros_like(column) for column in columns[1:]]
        hashes.append(np.stack(columns, axis=1))
    width = max(part.shape[1] for part in hashes)
    padded = np.concatenate([np.pad(part, ((0, 0), (0, width - part.shape[1]))) for part in hashes])
    _, numbers, counts = np.unique(padded, return_inverse=True, return_counts=True)
    numbers = np.where((counts[numbers] > 1) & (padded != 0), numbers, NO_REPEAT)
    return numbers[:, :2], numbers[:, 2:]


def _hashes(part: Dataset, column: str) -> NDArray[np.uint64]:
    """Hash the texts of a column to 64 bits; 0 for empty texts."""
    digests = b"".join(
        blake2b(text.encode(), digest_size=8).digest() if text else bytes(8)
        for table in part.with_format("arrow").iter(batch_size=HASHED_AT_ONCE)
        for text in table[column].to_pylist()
    )
    return np.frombuffer(digests, np.uint64)
