"""What a training run takes, before anything is spent: steps, tokens, negatives, operations and memory.

Nothing is written and no weights are loaded. What is counted, and what is estimated how, is in docs/training.md.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from sentence_transformers import SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.training_args import MultiDatasetBatchSamplers
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.trainer_utils import SaveStrategy

from st_llm_embed.errors import InputError, explained
from st_llm_embed.modules import base_path, load_tokenizer
from st_llm_embed.recipe import Loss, Recipe, TrainingStage
from st_llm_embed.training.adapter import add_without_weights
from st_llm_embed.training.arguments import training_arguments
from st_llm_embed.training.cost import (
    SCORE_COPIES,
    Decoder,
    Flops,
    Memory,
    Tokens,
    disk_bytes,
    embedding_bytes,
    flops,
    state_bytes,
    step_peak,
)
from st_llm_embed.training.loss import SCORED_ROWS
from st_llm_embed.training.mini_batches import cut
from st_llm_embed.training.planned_rows import PlannedRows, planned_set
from st_llm_embed.training.rehearsal import rehearse_first_step
from st_llm_embed.training.stages import check_configurations
from st_llm_embed.training.starting_model import BASE_ADVICE

GIB = 2**30

USABLE = 0.9
"""Share of a device's memory that is counted on; the rest is for the driver and for gaps between tensors."""

OF_ANOTHER_MACHINE = ("bf16", "fp16", "tf32", "fsdp", "fsdp_config", "deepspeed", "use_cpu")
"""Keys of the training section that transformers refuses where the machine of the plan lacks what they need."""


@dataclass(frozen=True)
class Configuration:
    """One configuration of the training set in the plan."""

    name: str
    rows: int
    hard_negatives: int
    """Of a row's own."""
    negatives_per_anchor: int
    """Texts that an anchor is told from, or pairs of other directions; masked ones are not subtracted."""
    tokens_per_row: float
    """Mean, without padding."""


@dataclass(frozen=True)
class Plan:
    """What a run takes. Tokens and operations are those of all devices together, memory is that of one."""

    recipe: str
    configurations: list[Configuration]
    rows: int
    batch_per_device: int
    devices: int
    gradient_accumulation: int
    steps: int
    warmup_steps: int
    tokens_per_step: float
    padded_tokens_per_step: float
    decoder: Decoder
    flops_per_step: Flops
    mini_batch_num_tokens: int | None
    memory: Memory
    sharded: bool
    device_memory: float | None
    """Bytes; None where it was not said."""
    disk: float
    """Bytes of checkpoints, model and release."""
    rehearsed: int
    """Weights and biases that the first step moves, gone through on tensors without content."""
    largest_mini_batch: int | None
    """The largest power of two for loss.mini_batch_num_tokens that fits the device; None where it was not asked."""
    notes: list[str]

    @property
    def fits(self) -> bool:
        """Whether the recipe as it is fits the device."""
        return self.device_memory is None or self.memory.total <= USABLE * self.device_memory

    def to_dict(self) -> dict[str, Any]:
        """Give the plan as JSON types, with the sums."""
        operations, memory = self.flops_per_step, self.memory
        return asdict(self) | {
            "tokens": self.tokens_per_step * self.steps,
            "padded_tokens": self.padded_tokens_per_step * self.steps,
            "flops": operations.total * self.steps,
            "hours_at_100_tflops": hours(operations.total * self.steps),
            "memory": asdict(memory) | {"total": memory.total},
            "fits": self.fits,
        }


def hours(operations: float) -> float:
    """Give the hours that operations take at 10^14 a second, 100 TFLOP/s."""
    return operations / 1e14 / 3600


def plan_trainings(
    recipe: Recipe,
    output_dir: Path,
    *,
    devices: int = 1,
    sharded: bool = False,
    device_memory: float | None = None,
) -> list[Plan]:
    """Work out what each stage of a recipe takes, or its one training; arguments and errors as of `plan_training`.

    A stage that names rows which are known not to be there is refused, too.
    """
    check_configurations(recipe)
    return [
        plan_training(training, output_dir, stage=stage, devices=devices, sharded=sharded, device_memory=device_memory)
        for training, stage in zip(recipe.trainings(), recipe.stages or (None,), strict=True)
    ]


def plan_training(
    recipe: Recipe,
    output_dir: Path,
    *,
    stage: TrainingStage | None = None,
    devices: int = 1,
    sharded: bool = False,
    device_memory: float | None = None,
) -> Plan:
    """Work out what one training takes.

    Args:
        recipe: all choices; of a stage, one of `Recipe.trainings`.
        output_dir: of the run; rows that are there already are counted.
        stage: says which rows are trained on; None: all.
        devices: processes that train together, one device each.
        sharded: weights, gradients and optimizer states are spread over the devices (ZeRO-3, FSDP); always so where
            the training section has `fsdp` or `deepspeed`.
        device_memory: GiB of one device; the largest mini-batch that fits is then looked for.

    Raises:
        InputError: the base, its tokenizer, the rows or a section of the recipe cannot be used, or not even the
            smallest mini-batch fits the device.
    """
    tokenizer = load_tokenizer(
        recipe.base.name_or_path, revision=recipe.base.revision, max_seq_length=recipe.base.max_seq_length
    )
    arguments = _arguments(recipe)
    model = _model(recipe, arguments)
    decoder = Decoder.of(model, quantized=recipe.base.quantization is not None)
    rows = planned_set(recipe, output_dir, tokenizer, stage)
    batch = arguments.per_device_train_batch_size
    steps, rows_per_step = _steps(recipe, arguments, rows.configurations, devices)
    real = padded = pairs = 0.0
    for part in rows.configurations:
        share = part.rows / rows.rows * rows_per_step
        texts = random.Random(recipe.seed).choices(part.lengths, k=min(batch, part.rows))  # noqa: S311
        tokens = _padded(texts, recipe.loss.mini_batch_num_tokens)
        real += share * sum(chain(*texts)) / len(texts)
        padded += share * tokens.count / len(texts)
        pairs += share * tokens.pairs / len(texts)
    sharded = (sharded or bool(recipe.training.get("fsdp") or recipe.training.get("deepspeed"))) and devices > 1
    columns = max(part.columns for part in rows.configurations)
    device = _Device(recipe, model, decoder, str(arguments.optim), batch, columns, devices, sharded)
    memory = device.memory(recipe.loss.mini_batch_num_tokens)
    checkpoints = 0 if arguments.save_strategy == SaveStrategy.NO else arguments.save_total_limit
    if checkpoints is None:
        checkpoints = math.ceil(steps / arguments.save_steps) if arguments.save_steps >= 1 else steps
    available = None if device_memory is None else device_memory * GIB
    return Plan(
        recipe=recipe.name,
        configurations=[_configuration(part, recipe, batch, devices) for part in rows.configurations],
        rows=rows.rows,
        batch_per_device=batch,
        devices=devices,
        gradient_accumulation=arguments.gradient_accumulation_steps,
        steps=steps,
        warmup_steps=arguments.get_warmup_steps(steps),
        tokens_per_step=real,
        padded_tokens_per_step=padded,
        decoder=decoder,
        flops_per_step=flops(
            decoder,
            Tokens(padded, pairs),
            grad_cache=recipe.loss.mini_batch_num_tokens is not None,
            checkpointing=bool(arguments.activation_checkpointing),
        ),
        mini_batch_num_tokens=recipe.loss.mini_batch_num_tokens,
        memory=memory,
        sharded=sharded,
        device_memory=available,
        disk=disk_bytes(
            decoder,
            str(arguments.optim),
            model_bytes=decoder.parameters * model.dtype.itemsize,
            checkpoints=checkpoints,
        ),
        rehearsed=rehearse_first_step(model, recipe, arguments),
        largest_mini_batch=None if available is None else device.largest_mini_batch(memory, available),
        notes=rows.notes,
    )


def negatives_per_anchor(loss: Loss, configuration: str, rows: int, columns: int) -> int:
    """Count what a row is told from in `InfoNCELoss`, which gathers the texts of all processes.

    Args:
        loss: the recipe's choices.
        configuration: name of the row's configuration.
        rows: of the batch of all processes.
        columns: texts of a row.
    """
    documents = columns - 1
    if configuration.startswith(loss.own_negatives_only):
        return documents - 1
    candidates = {
        "query_to_doc": rows * documents - 1,
        "query_to_query": rows - 1,
        "doc_to_query": rows - 1,
        "doc_to_doc": (rows - 1) * documents,
    }
    return sum(candidates[direction] for direction in loss.directions)


@dataclass(frozen=True)
class _Device:
    """One device of a run."""

    recipe: Recipe
    model: PreTrainedModel
    decoder: Decoder
    optimizer: str
    batch: int
    columns: int
    devices: int
    sharded: bool

    def memory(self, budget: int | None) -> Memory:
        """Estimate the bytes of a step with a mini-batch of so many tokens, or of the whole batch."""
        loss, width, texts = self.recipe.loss, self.recipe.base.max_seq_length, self.batch * self.columns
        # DistributedDataParallel has the gradients once more, in buckets.
        copies, parts = (1, self.devices) if self.sharded else (1 if self.devices == 1 else 2, 1)
        rows = self.batch * self.devices
        candidates = {"query_to_doc": rows * (self.columns - 1), "doc_to_doc": rows * (self.columns - 1)}
        scores = sum(candidates.get(direction, rows) for direction in loss.directions)
        at_once = texts if budget is None else min(max(budget // width, 1), texts)
        half = self.recipe.training.get("bf16") or self.recipe.training.get("fp16")
        return Memory(
            weights=self.decoder.weight_bytes / parts + (self.decoder.largest_bytes if self.sharded else 0),
            gradients=copies * self.decoder.trainable_bytes / parts,
            optimizer=state_bytes(self.decoder, self.optimizer) / parts,
            activations=step_peak(self.model, at_once, width, autocast=torch.bfloat16 if half else None),
            embeddings=embedding_bytes(
                self.decoder.hidden_size, texts, texts * self.devices, self.model.dtype.itemsize
            ),
            scores=4 * SCORE_COPIES * scores * (self.batch if budget is None else min(SCORED_ROWS, self.batch)),
        )

    def largest_mini_batch(self, memory: Memory, available: float) -> int:
        """Find the largest power of two that fits, from one text of full length to the whole batch.

        Raises:
            InputError: the smallest does not fit.
        """
        got = f"One device has {available / GIB:,.1f} GiB, of which {USABLE * available / GIB:,.1f} are counted on."
        if memory.resident > USABLE * available:
            raise InputError(
                f"{got} Weights ({memory.weights / GIB:,.1f} GiB), gradients ({memory.gradients / GIB:,.1f}) and "
                f"optimizer states ({memory.optimizer / GIB:,.1f}) of recipe {self.recipe.name} alone take "
                f"{memory.resident / GIB:,.1f}. Train an adapter (lora), load the base in 16 bits (base.dtype) or in "
                "4 (base.quantization nf4), spread the weights over more devices (--devices N --sharded), or take a "
                "smaller base."
            )
        width, texts = self.recipe.base.max_seq_length, self.batch * self.columns
        sizes = [2**power for power in range((width - 1).bit_length(), (width * texts - 1).bit_length() + 1)]
        low, high = 0, len(sizes)
        while low < high:
            middle = (low + high) // 2
            if self.memory(sizes[middle]).total <= USABLE * available:
                low = middle + 1
            else:
                high = middle
        if low == 0:
            smallest = self.memory(sizes[0])
            raise InputError(
                f"{got} Recipe {self.recipe.name} takes {memory.resident / GIB:,.1f} GiB for weights, gradients and "
                f"optimizer states, and {(smallest.total - smallest.resident) / GIB:,.1f} more even for a mini-batch "
                f"of one text of {width} tokens. Set training.activation_checkpointing to true, or lower "
                "base.max_seq_length or training.per_device_train_batch_size."
            )
        return sizes[low - 1]


def _arguments(recipe: Recipe) -> SentenceTransformerTrainingArguments:
    """Build the trainer's arguments as they are on any machine."""
    kept = {key: value for key, value in recipe.training.items() if key not in OF_ANOTHER_MACHINE}
    with TemporaryDirectory() as folder:
        portable = recipe.model_copy(update={"training": kept | {"use_cpu": True}})
        return training_arguments(portable, Path(folder))


def _model(recipe: Recipe, arguments: SentenceTransformerTrainingArguments) -> PreTrainedModel:
    """Build what is trained on the meta device: from the base's configuration alone, its adapter upon it."""
    name = recipe.base.name_or_path
    with explained(f"The base model {name!r} cannot be loaded", BASE_ADVICE), torch.device("meta"):
        config = AutoConfig.from_pretrained(base_path(name), revision=recipe.base.revision)
        model = cast(PreTrainedModel, AutoModel.from_config(config, dtype=getattr(torch, recipe.base.dtype)))
    add_without_weights(model, recipe)
    if arguments.activation_checkpointing:
        model.activation_checkpointing_enable(cast(Any, arguments.activation_checkpointing_kwargs))
    return model.train()


def _steps(
    recipe: Recipe, arguments: SentenceTransformerTrainingArguments, parts: Sequence[PlannedRows], devices: int
) -> tuple[int, float]:
    """Give the optimizer's steps and the rows of each, on all devices."""
    batch = arguments.per_device_train_batch_size
    # sentence-transformers drops incomplete batches wherever several processes train.
    drop_last = arguments.dataloader_drop_last or devices > 1
    rows = sum(part.rows for part in parts)
    if recipe.batches is None:
        whole = [part.rows // batch if drop_last else math.ceil(part.rows / batch) for part in parts]
        in_turn = arguments.multi_dataset_batch_sampler == MultiDatasetBatchSamplers.ROUND_ROBIN
        per_epoch = (min(whole) * len(whole) if in_turn else sum(whole)) // devices
    else:
        # Full batches of a configuration, and then of what is left of each.
        joint = batch * devices
        per_epoch = rows // joint if drop_last else math.ceil(rows / joint)
    if per_epoch == 0:
        raise InputError(
            f"The {rows} rows that are known of recipe {recipe.name}, in {len(parts)} configurations, fill no batch "
            f"of {batch} rows on each of {devices} devices. Lower training.per_device_train_batch_size, or give more "
            "rows."
        )
    updates = math.ceil(per_epoch / arguments.gradient_accumulation_steps)
    steps = arguments.max_steps if arguments.max_steps > 0 else math.ceil(updates * arguments.num_train_epochs)
    return steps, min(batch * devices * arguments.gradient_accumulation_steps, rows / updates)


def _padded(texts: Sequence[Sequence[int]], budget: int | None) -> Tokens:
    """Count the tokens, padding included, of a device's batch.

    Args:
        texts: lengths of shape (rows, columns).
        budget: most tokens of a mini-batch; None: one forward pass for anchors and one for all documents.
    """
    if budget is None:
        groups = [[row[0] for row in texts], list(chain(*(row[1:] for row in texts)))]
        pieces = [(len(group), max(group)) for group in groups]
    else:
        lengths = sorted(chain(*texts), reverse=True)
        pieces = [(end - begin, lengths[begin]) for begin, end in cut(lengths, budget)]
    return Tokens(sum(count * width for count, width in pieces), sum(count * width**2 for count, width in pieces))


def _configuration(part: PlannedRows, recipe: Recipe, batch: int, devices: int) -> Configuration:
    rows = batch * devices
    return Configuration(
        name=part.name,
        rows=part.rows,
        hard_negatives=part.columns - 2,
        # Stock batches are of one configuration; ours are filled up with others.
        negatives_per_anchor=negatives_per_anchor(
            recipe.loss, part.name, min(rows, part.rows) if recipe.batches is None else rows, part.columns
        ),
        tokens_per_row=sum(chain(*part.lengths)) / len(part.lengths),
    )
