"""The batch sampler, through accelerate's sharding and skipping as the trainer uses them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain

import pytest
from accelerate.data_loader import BatchSamplerShard, DataLoaderShard, SkipBatchSampler
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from sentence_transformers.base.sampler import DefaultBatchSampler
from torch.utils.data import ConcatDataset
from transformers import TrainerControl, TrainerState, TrainingArguments

from st_llm_embed import InputError
from st_llm_embed.recipe import Batches
from st_llm_embed.training.batches import SetSamplerEpoch, TaskBatchSampler

Rows = dict[str, list[str]]


def rows_of(name: str, count: int, *, negatives: int = 0) -> Rows:
    """Rows without a repeated text."""
    columns = ["anchor", "positive", *(f"negative_{number}" for number in range(negatives))]
    texts = {column: [f"{name} {column} {row}" for row in range(count)] for column in columns}
    return texts | {"instruction": [f"instruction {row % 3}" for row in range(count)]}


def sampler_of(
    parts: dict[str, Rows],
    *,
    batch_size: int = 8,
    processes: int = 1,
    drop_last: bool = True,
    seed: int = 1,
    mixed: bool = False,
    losses: Sequence[str] | None = None,
) -> TaskBatchSampler:
    datasets = [Dataset.from_dict(rows) for rows in parts.values()]
    return TaskBatchSampler(
        ConcatDataset(datasets),
        [DefaultBatchSampler(dataset, batch_size, drop_last) for dataset in datasets],
        seed=seed,
        choices=Batches(mixed=mixed),
        configurations=list(parts),
        losses=losses or [""] * len(parts),
        processes=processes,
    )


def joint_batches(sampler: TaskBatchSampler, epoch: int = 0) -> list[list[int]]:
    """The rows that all processes train on at one step, as accelerate hands them out."""
    sampler.set_epoch(epoch)
    if sampler._processes == 1:
        return list(sampler)
    shards = [
        BatchSamplerShard(sampler, num_processes=sampler._processes, process_index=rank, even_batches=False)
        for rank in range(sampler._processes)
    ]
    assert len({len(shard) for shard in shards}) == 1
    steps = list(zip(*shards, strict=True))
    assert len(steps) == len(shards[0])
    return [list(chain(*step)) for step in steps]


def texts_of(parts: dict[str, Rows], column: str) -> list[str | None]:
    counts = [len(rows["anchor"]) for rows in parts.values()]
    return [
        text for rows, count in zip(parts.values(), counts, strict=True) for text in rows.get(column, [None] * count)
    ]


def names_of(parts: dict[str, Rows]) -> list[str]:
    return [name for name, rows in parts.items() for _ in rows["anchor"]]


def test_a_batch_holds_one_configuration_and_what_is_left_is_packed() -> None:
    parts = {f"task-{number}": rows_of(f"task {number}", 10) for number in range(30)}
    sampler = sampler_of(parts)
    batches = joint_batches(sampler)
    names = names_of(parts)
    kinds = [len({names[row] for row in batch}) for batch in batches]
    assert all(len(batch) == 8 for batch in batches)
    assert Counter(kinds)[1] == 30, "each task of 10 rows fills one batch of 8"
    assert len(batches) == 37, "300 rows; the 60 that are left fill 7 batches more"
    assert len(set(chain(*batches))) == 296


def test_tasks_smaller_than_a_batch_are_packed_and_none_is_lost() -> None:
    parts = {f"task-{number}": rows_of(f"task {number}", 3) for number in range(40)}
    used = {row for epoch in range(20) for row in chain(*joint_batches(sampler_of(parts, processes=2), epoch))}
    assert used == set(range(120)), "112 rows an epoch, other ones each time"


def test_instructions_empty_texts_and_labels_may_repeat() -> None:
    rows = rows_of("x", 64, negatives=1)
    rows["instruction"] = ["always the same"] * 64
    rows["negative_0"] = [""] * 64
    assert len(sampler_of({"short-long": rows})) == 8
    rows["positive"] = ["sports", "politics"] * 32
    rows["negative_0"] = ["politics", "sports"] * 32
    assert len(sampler_of({"long-short-triplets": rows})) == 8
    with pytest.raises(InputError, match="cannot fill a batch"):
        sampler_of({"short-long": rows})


def test_configurations_under_other_losses_never_share_a_batch() -> None:
    parts = {name: rows_of(name, 12) for name in ("sts", "bitext", "short-short")}
    sampler = sampler_of(parts, mixed=True, losses=["hard", "plain", "plain"])
    names = names_of(parts)
    kinds = [frozenset(names[row] for row in batch) for batch in joint_batches(sampler)]
    assert frozenset({"sts"}) in kinds
    assert all("sts" not in kind or len(kind) == 1 for kind in kinds)
    assert frozenset({"bitext", "short-short"}) in kinds


def test_rows_with_as_many_negatives_are_packed_first() -> None:
    """Packing rows of several shapes costs the batch its negatives."""
    parts = {"triplets": rows_of("a", 8, negatives=1), "more": rows_of("b", 8, negatives=1), "pairs": rows_of("c", 10)}
    names = names_of(parts)
    sampler = sampler_of(parts, batch_size=16, drop_last=False)
    kinds = [{names[row] for row in batch} for batch in joint_batches(sampler)]
    assert kinds == [{"triplets", "more"}, {"pairs"}]


def test_rows_that_no_epoch_can_use_are_refused() -> None:
    parts = {"sts": rows_of("sts", 100), "tiny": rows_of("tiny", 5)}
    assert len(sampler_of(parts)) == 13, "under one loss they are packed"
    with pytest.raises(InputError, match="The 5 rows of tiny cannot fill a batch of 16 rows") as error:
        sampler_of(parts, losses=["a", "b"], processes=2)
    assert "per_device_train_batch_size" in str(error.value)
    assert len(sampler_of(parts, losses=["a", "b"], drop_last=False)) == 14


def test_batches_depend_on_seed_and_epoch_alone() -> None:
    parts = {name: rows_of(name, 50) for name in ("sts", "bitext")}
    seen = {(seed, epoch): joint_batches(sampler_of(parts, seed=seed), epoch) for seed in (1, 2) for epoch in (0, 1)}
    assert len({str(batches) for batches in seen.values()}) == 4
    # Whatever was asked for before.
    sampler = sampler_of(parts)
    for epoch in (1, 0, 1):
        assert joint_batches(sampler, epoch) == seen[1, epoch]


@st.composite
def any_parts(draw: st.DrawFn) -> dict[str, Rows]:
    texts = st.sampled_from(["", *"abcdefghijklmnopqrstuvwxyz0123456789"])
    parts = {}
    for number in range(draw(st.integers(1, 4))):
        count = draw(st.integers(1, 40))
        columns = ["anchor", "positive", *(["negative"] if draw(st.booleans()) else [])]
        rows = {name: draw(st.lists(texts, min_size=count, max_size=count)) for name in columns}
        parts[f"part-{number}"] = rows | {"instruction": ["i"] * count}
    return parts


@settings(max_examples=60, deadline=None)
@given(
    parts=any_parts(),
    batch_size=st.integers(1, 5),
    processes=st.integers(1, 3),
    mixed=st.booleans(),
    drop_last=st.booleans(),
)
def test_what_holds_of_any_rows(
    parts: dict[str, Rows], batch_size: int, processes: int, mixed: bool, drop_last: bool
) -> None:
    processes = processes if drop_last else 1
    try:
        sampler = sampler_of(parts, batch_size=batch_size, processes=processes, mixed=mixed, drop_last=drop_last)
    except InputError:
        return
    anchors, positives, negatives = (texts_of(parts, name) for name in ("anchor", "positive", "negative"))

    def own_of(row: int) -> Iterator[str]:
        yield from {text for text in (anchors[row], positives[row]) if text}

    for epoch in range(2):
        batches = joint_batches(sampler, epoch)
        assert len(batches) == len(sampler) // processes > 0
        for batch in batches:
            assert len(batch) == batch_size * processes or (not drop_last and 1 < len(batch) < batch_size)
            own = [text for row in batch for text in own_of(row)]
            assert len(own) == len(set(own))
            for row in batch:
                others = {text for other in batch if other != row for text in own_of(other)}
                assert negatives[row] is None or negatives[row] not in others


@pytest.mark.parametrize("processes", [1, 2])
def test_the_sampler_learns_its_epoch_under_what_accelerate_puts_around_it(processes: int) -> None:
    sampler = sampler_of({"sts": rows_of("sts", 100)}, processes=processes)
    around = sampler if processes == 1 else BatchSamplerShard(sampler, processes, 1, even_batches=False)
    for wrapped in (around, SkipBatchSampler(around, 2)):
        sampler.set_epoch(0)
        loader = DataLoaderShard(sampler.dataset, batch_sampler=wrapped)
        SetSamplerEpoch().on_epoch_begin(
            TrainingArguments(), TrainerState(epoch=1.5), TrainerControl(), train_dataloader=loader
        )
        assert sampler.epoch == 1
