"""Checks of the sections base and training that need no large library."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from st_llm_embed.errors import InputError, explained, shown
from st_llm_embed.modules.layout import has_file
from st_llm_embed.recipe import EMBEDDED, Base

BASE_ADVICE = (
    f"Allowed are {EMBEDDED!r} and the Hub id or local folder of a decoder-only transformers model, complete with its "
    "weights and tokenizer. Set it with --set base.name_or_path=..."
)

ADAPTER_ADVICE = (
    "Give the Hub id or folder of a LoRA adapter that was trained on this base, or set base.adapter to null."
)


def check_base(base: Base) -> None:
    """Check that base and adapter have a configuration, without loading them.

    Raises:
        InputError: one of them has none.
    """
    models = [("base model", base.name_or_path, base.revision, "config.json", BASE_ADVICE)]
    if base.adapter is not None:
        models.append(("adapter", base.adapter, None, "adapter_config.json", ADAPTER_ADVICE))
    for what, name, revision, file, advice in models:
        with explained(f"The {what} {shown(name)} cannot be loaded", advice):
            if not has_file(name, [file], revision=revision):
                raise InputError(f"The {what} {shown(name)} cannot be loaded: no {file} is found there. {advice}")


def check_batches(
    training: Mapping[str, Any],
    sizes: Mapping[str, int],
    negatives: Mapping[str, int],
    where: str,
    *,
    batches: bool,
    processes: int = 1,
) -> None:
    """Check that rows make batches that can be trained with.

    Args:
        training: values of the training section.
        sizes: the number of training rows by configuration.
        negatives: how many each row has that are used, by configuration; those without any may be omitted.
        where: the section, for messages.
        batches: whether the recipe's own batches are used, which pack configurations together.
        processes: that train together.

    Raises:
        InputError: a batch has nothing to compare with, no batch can be filled, or processes would get batches of
            different columns.
    """
    size = training.get("per_device_train_batch_size", 8)
    without = sorted(name for name in sizes if not negatives.get(name))
    if size * processes == 1 and without:
        raise InputError(
            f"{where}.per_device_train_batch_size is 1, and the rows of {', '.join(without)} have no negatives: a row "
            "alone is compared with nothing, and its loss is 0. Give 2 or more (gradient_accumulation_steps does not "
            "help, since each of its batches is compared on its own), or rows with negatives."
        )
    most = max(negatives.values(), default=0)
    others = sorted(name for name in sizes if negatives.get(name, 0) != most)
    if processes > 1 and others and not batches:
        # Vectors are gathered over processes, which ends in a crash where some have more of them.
        raise InputError(
            f"{processes} processes train together, and each would have a batch of another configuration, while the "
            f"rows of {', '.join(others)} have fewer negatives than others. Add the section `batches: {{}}` (without "
            f"{where}.batch_sampler and multi_dataset_batch_sampler), which has them share a batch, or train with "
            "one process."
        )
    if not training.get("dataloader_drop_last"):
        return
    together = {"all configurations": sum(sizes.values())} if batches else dict(sizes)
    least = size * processes if batches else size
    if few := {name: count for name, count in together.items() if count < least}:
        raise InputError(
            f"{where}.per_device_train_batch_size is {size}"
            + (f" on {processes} processes" if processes > 1 else "")
            + ", dataloader_drop_last drops what does not fill a batch, and there are only "
            + ", ".join(f"{count:,} training rows of {name}" for name, count in few.items())
            + ". Lower the one, set the other to false, or give more rows."
        )


def is_without_gpu() -> bool:
    """Whether the installed torch can surely use no GPU; False where only importing it would show."""
    return version("torch").endswith("+cpu")
