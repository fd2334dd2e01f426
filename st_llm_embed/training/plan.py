"""Estimate the steps, tokens, FLOPs, peak memory and disk of a training, without weights and without writing anything.

FLOPs and peak memory are counted in a step of the base's own code on fake tensors, which have shapes and no content.
docs/training.md says what is counted, what is estimated, and how far off that is.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import chain, cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, cast

import pyarrow.parquet as pq
import torch
from sentence_transformers import SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.training_args import MultiDatasetBatchSamplers
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop, sdpa_flop
from transformers import PreTrainedModel
from transformers.trainer_utils import SaveStrategy

from st_llm_embed.data.dataset import negative_columns, write_dataset, write_source
from st_llm_embed.data.rows import read_rows, rows_file
from st_llm_embed.data.sources import read_source
from st_llm_embed.errors import InputError, explained
from st_llm_embed.instructions import format_query, instruction_of
from st_llm_embed.modules.base import load_tokenizer
from st_llm_embed.recipe import EMBEDDED, SYNTHESIS, Instructions, Recipe, TrainingStage
from st_llm_embed.training.adapter import decoder_without_weights
from st_llm_embed.training.arguments import training_arguments
from st_llm_embed.training.loss import SCORED_ROWS, cut
from st_llm_embed.training.train import takes

GIB = 2**30

USABLE = 0.9
"""Share of a device's memory that is counted on; the rest is for the driver and for gaps between tensors."""

FLOPS_PER_HOUR = 1e14 * 3600
"""Of a device that sustains 100 TFLOP/s."""

FIRST_ROWS = 500
"""Rows of each configuration whose texts are counted in tokens."""

NF4_BYTES = 4.127 / 8
"""Bytes of a weight in 4 bits with its share of the constants, quantized as well (arXiv 2305.14314, section 3)."""

SCORE_COPIES = 5
"""Copies of a piece of the score matrix, in float32, that the loss and its backward pass hold at once; measured."""

STATES = 2
"""Optimizer states of a trained weight, in its type: those of AdamW."""

OF_ANOTHER_MACHINE = ("bf16", "fp16", "tf32", "fsdp", "fsdp_config", "deepspeed", "use_cpu")
"""Keys of the training section that transformers refuses where the machine of the plan lacks what they need."""


# FlopCounterMode does not know the CPU's fused attention.
CPU_ATTENTION: dict[Any, Any] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop(q, k, v),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda gradient, q, k, v, *_, **__: sdpa_backward_flop(gradient, q, k, v)
    ),
}


@dataclass(frozen=True)
class Plan:
    """What a training takes. Tokens and FLOPs are those of all devices together, memory is that of one."""

    recipe: str
    configurations: dict[str, int]
    """Rows of each configuration."""
    batch_per_device: int
    devices: int
    gradient_accumulation: int
    steps: int
    warmup_steps: int
    tokens_per_step: float
    padded_tokens_per_step: float
    parameters: int
    """Without the head that predicts tokens, which an embedder does not have."""
    trainable_parameters: int
    flops_per_step: float
    memory: dict[str, float]
    """Bytes in a step by what holds them; `total` is their peak."""
    device_memory: float | None
    """Bytes; None where it was not given."""
    disk: float
    """Bytes of checkpoints, model and release."""
    notes: list[str]

    @property
    def fits(self) -> bool:
        """Whether the recipe as it is fits the device."""
        return self.device_memory is None or self.memory["total"] <= USABLE * self.device_memory

    @property
    def hours(self) -> float:
        """Hours of all devices together, at 100 TFLOP/s sustained."""
        return self.flops_per_step * self.steps / FLOPS_PER_HOUR

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON types, with the sums."""
        return asdict(self) | {
            "rows": sum(self.configurations.values()),
            "tokens": self.tokens_per_step * self.steps,
            "padded_tokens": self.padded_tokens_per_step * self.steps,
            "flops": self.flops_per_step * self.steps,
            "hours_at_100_tflops": self.hours,
            "fits": self.fits,
        }


class _Rows(NamedTuple):
    """The training rows of one configuration."""

    count: int
    texts: list[list[str]]
    """Of the first rows: anchor under its instruction, positive, negatives."""


def plan_trainings(
    recipe: Recipe,
    output_dir: Path,
    *,
    devices: int = 1,
    sharded: bool = False,
    device_memory: float | None = None,
) -> list[Plan]:
    """Estimate what each stage of a recipe takes, or its one training.

    Args:
        recipe: all choices.
        output_dir: of the run; rows that are there already are counted.
        devices: processes that train together, one device each.
        sharded: weights, gradients and optimizer states are spread over the devices (ZeRO-3, FSDP); always so where
            the training section has `fsdp` or `deepspeed`.
        device_memory: GiB of one device, for `Plan.fits`.

    Raises:
        InputError: the base, its tokenizer, the rows or a section of the recipe cannot be used.
    """
    notes: list[str] = []
    known, unread = _known_rows(recipe, output_dir, notes)
    plans = []
    for training, stage in zip(recipe.trainings(), recipe.stages or (None,), strict=True):
        rows, own = _of_stage(stage, known, unread)
        plans.append(_plan(training, rows, notes + own, devices, sharded=sharded, device_memory=device_memory))
    return plans


def _plan(
    recipe: Recipe,
    known: dict[str, _Rows],
    notes: list[str],
    devices: int,
    *,
    sharded: bool,
    device_memory: float | None,
) -> Plan:
    longest, budget = recipe.base.max_seq_length, recipe.loss.mini_batch_num_tokens
    tokenizer = load_tokenizer(recipe.base.name_or_path, revision=recipe.base.revision, max_seq_length=longest)
    portable = {key: value for key, value in recipe.training.items() if key not in OF_ANOTHER_MACHINE}
    with TemporaryDirectory() as folder:
        training = recipe.model_copy(update={"training": portable | {"use_cpu": True}})
        arguments = training_arguments(training, Path(folder))
    model = decoder_without_weights(recipe).train()
    if arguments.activation_checkpointing:
        model.activation_checkpointing_enable(cast(Any, arguments.activation_checkpointing_kwargs))
    batch, rows = arguments.per_device_train_batch_size, sum(part.count for part in known.values())
    steps, rows_per_step = _steps(recipe, arguments, [part.count for part in known.values()], devices)
    real = padded = texts = 0.0
    for part in known.values():
        # As in training, they are cut off.
        ids = tokenizer(list(chain(*part.texts)), truncation=True, max_length=longest)["input_ids"]
        counts = map(len, ids)
        lengths = [[next(counts) for _ in row] for row in part.texts]
        own_rows = part.count / rows * rows_per_step
        tokens = own_rows * sum(chain(*lengths)) / len(lengths)
        real += tokens
        filled = list(islice(cycle(lengths), min(batch, part.count)))
        padded += tokens * _padded(filled, budget) / sum(chain(*filled))
        texts += own_rows * len(part.texts[0])
    parameters, trainable = model.num_parameters(), model.num_parameters(only_trainable=True)
    trainable_bytes = sum(weight.nbytes for weight in model.parameters() if weight.requires_grad)
    sharded = (sharded or bool(recipe.training.get("fsdp") or recipe.training.get("deepspeed"))) and devices > 1
    columns = max(len(part.texts[0]) for part in known.values())
    memory = _memory(recipe, model, batch, columns, devices, sharded=sharded)
    forward, both = step_flops(model, round(padded / texts))
    checkpoints = 0 if arguments.save_strategy == SaveStrategy.NO else arguments.save_total_limit
    if checkpoints is None:
        checkpoints = math.ceil(steps / arguments.save_steps) if arguments.save_steps >= 1 else steps
    return Plan(
        recipe=recipe.name,
        configurations={name: part.count for name, part in sorted(known.items())},
        batch_per_device=batch,
        devices=devices,
        gradient_accumulation=arguments.gradient_accumulation_steps,
        steps=steps,
        warmup_steps=arguments.get_warmup_steps(steps),
        tokens_per_step=real,
        padded_tokens_per_step=padded,
        parameters=parameters,
        trainable_parameters=trainable,
        flops_per_step=(both if budget is None else both + forward) * texts,
        memory=memory,
        device_memory=None if device_memory is None else device_memory * GIB,
        # The trained model and the release have all weights; a checkpoint has what is trained, and its states.
        disk=2 * parameters * model.dtype.itemsize
        + (trainable_bytes if trainable < parameters else 0)
        + checkpoints * (1 + STATES) * trainable_bytes,
        notes=notes,
    )


def _steps(
    recipe: Recipe, arguments: SentenceTransformerTrainingArguments, parts: Sequence[int], devices: int
) -> tuple[int, float]:
    """Return the optimizer's steps and the rows of each, on all devices; `parts`: rows of each configuration."""
    batch = arguments.per_device_train_batch_size
    # sentence-transformers drops incomplete batches wherever several processes train.
    drop_last = arguments.dataloader_drop_last or devices > 1
    rows = sum(parts)
    if recipe.batches is None:
        whole = [part // batch if drop_last else math.ceil(part / batch) for part in parts]
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


def _padded(texts: Sequence[Sequence[int]], budget: int | None) -> int:
    """Count the tokens of a device's batch, padding included, from lengths of shape (rows, columns)."""
    if budget is None:
        # One forward pass for anchors, and one for all documents.
        groups = [[row[0] for row in texts], list(chain(*(row[1:] for row in texts)))]
        return sum(len(group) * max(group) for group in groups)
    lengths = sorted(chain(*texts), reverse=True)
    return sum((end - begin) * lengths[begin] for begin, end in cut(lengths, budget))


def _memory(
    recipe: Recipe, model: PreTrainedModel, batch: int, columns: int, devices: int, *, sharded: bool
) -> dict[str, float]:
    """Estimate the memory of a step in bytes, with mini-batches of texts of full length."""
    sizes = {weight: float(weight.nbytes) for weight in model.parameters()}
    if recipe.base.quantization is not None:
        # All but the frozen linear layers is in float32 then.
        linear = {module.weight for module in model.modules() if isinstance(module, nn.Linear)}
        frozen = {weight for weight in linear if not weight.requires_grad}
        sizes = {weight: weight.numel() * (NF4_BYTES if weight in frozen else 4) for weight in sizes}
    trainable = sum(weight.nbytes for weight in sizes if weight.requires_grad)
    inner = sum(sizes.values()) - sizes[cast(nn.Parameter, model.get_input_embeddings().weight)]
    text_config = model.config.get_text_config()
    # Of sharded weights the largest one, or two layers, are gathered at a time.
    gathered = max(*sizes.values(), 2 * inner / text_config.num_hidden_layers) if sharded else 0
    # DistributedDataParallel has the gradients once more, in buckets.
    copies, parts = (1, devices) if sharded else (1 if devices == 1 else 2, 1)
    budget, texts, rows = recipe.loss.mini_batch_num_tokens, batch * columns, batch * devices
    candidates = {"query_to_doc": rows * (columns - 1), "doc_to_doc": rows * (columns - 1)}
    scores = sum(candidates.get(direction, rows) for direction in recipe.loss.directions)
    width = recipe.base.max_seq_length
    at_once = texts if budget is None else min(max(budget // width, 1), texts)
    half = recipe.training.get("bf16") or recipe.training.get("fp16")
    memory = {
        "weights": sum(sizes.values()) / parts + gathered,
        "gradients": copies * trainable / parts,
        "optimizer": STATES * trainable / parts,
        "embeddings": embedding_bytes(text_config.hidden_size, texts, texts * devices, model.dtype.itemsize),
        "activations": step_peak(model, at_once, width, autocast=torch.bfloat16 if half else None),
        "scores": 4.0 * SCORE_COPIES * scores * (batch if budget is None else min(SCORED_ROWS, batch)),
    }
    # The model's backward pass and the loss have their peaks at different times.
    return memory | {"total": sum(memory.values()) - min(memory["activations"], memory["scores"])}


def embedding_bytes(hidden_size: int, texts: int, texts_of_all: int, element_size: int) -> float:
    """Return the bytes of the texts' vectors in the loss, with their gradients.

    Of this device's texts there are GradCache's vectors, the same in one piece, and in order; of all devices' texts,
    in float32, four more: the vectors, those of unit length, their gradients, and the documents in one piece.
    """
    return hidden_size * (3 * element_size * texts + 4 * 4 * texts_of_all)


def step_peak(model: PreTrainedModel, texts: int, width: int, *, autocast: torch.dtype | None = None) -> int:
    """Return the peak memory in bytes of one pass forward and back, besides weights and their gradients.

    The model is on the meta device; its own code runs on fake tensors, in seconds and without memory at any size.
    Kernels are those of a CPU; a GPU's keep as much except for dropout, whose mask is smaller there.
    """
    with _fake(model, texts, width) as forward, torch.autocast("cpu", autocast, enabled=autocast is not None):
        gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
        return peak_bytes(lambda: forward().backward(), [*model.parameters(), *model.buffers(), *gradients])


def step_flops(model: PreTrainedModel, width: int) -> tuple[int, int]:
    """Count the FLOPs of one text, forward and of both passes; a multiplication and an addition are two.

    What activation checkpointing computes again is counted. The model is on the meta device.
    """
    counter = FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION)
    with _fake(model, 1, width) as forward, counter:
        result = forward()
        flops = counter.get_total_flops()
        result.backward()
        return flops, counter.get_total_flops()


@contextmanager
def _fake(model: PreTrainedModel, texts: int, width: int) -> Generator[Callable[[], Tensor]]:
    """Replace a model's parameters and buffers by fake tensors (shapes only), with gradients.

    Yields:
        A pass forward, which returns a number to go back from.

    Raises:
        InputError: the model's code does not run on fake tensors.
    """
    with (
        explained(
            f"A base of type {model.config.model_type!r} cannot be planned: its code does not run on fake tensors",
            "This is so for mixtures of experts. Train it without a plan, with training.max_steps=2 first.",
        ),
        FakeTensorMode(allow_non_fake_inputs=True),
    ):
        for module in model.modules():
            for name, weight in list(module.named_parameters(recurse=False)):
                fake = nn.Parameter(torch.empty(weight.shape, dtype=weight.dtype), weight.requires_grad)
                fake.grad = torch.empty_like(fake) if weight.requires_grad else None
                setattr(module, name, fake)
            for name, buffer in list(module.named_buffers(recurse=False)):
                setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype))
        ids = torch.empty(texts, width, dtype=torch.long)
        mask = torch.ones(texts, width, dtype=torch.long)

        def forward() -> Tensor:
            hidden = model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
            return hidden[:, -1].float().sum()

        yield forward


def peak_bytes(call: Callable[[], object], known: Iterable[Tensor]) -> int:
    """Call, and return the most bytes of tensors that were alive at once and are not among those known before."""
    with _Allocations(known) as allocations:
        call()
    return allocations.peak


class _Allocations(TorchDispatchMode):
    """Follows every piece of memory that an operation returns until it is freed."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known = [tensor.untyped_storage() for tensor in known]
        self._seen = weakref.WeakSet(self._known)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(given):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage()) not in self._seen:
                self._seen.add(storage)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._freed, storage.nbytes())
        return given

    def _freed(self, size: int) -> None:
        self.now -= size


def _known_rows(recipe: Recipe, output_dir: Path, notes: list[str]) -> tuple[dict[str, _Rows], list[str]]:
    """Count the training rows by configuration: what a run has written, else what it would write.

    Returns:
        The rows, and the names of the sources on the Hub, which are not downloaded for a plan.
    """
    data, dataset, sources, unread = recipe.data, output_dir / "dataset", output_dir / "sources", []
    written = dataset.is_dir()
    with TemporaryDirectory() as folder:
        if not written:
            dataset = Path(folder) / "dataset"
            file = rows_file(EMBEDDED if data.rows == SYNTHESIS else data.rows)
            write_dataset(read_rows(file, data.instruction), dataset, data.validation_fraction, data.hold_out)
        if not sources.is_dir():
            sources = Path(folder) / "sources"
            unread = [name for name, source in data.sources.items() if not Path(source.path).exists()]
            for name, source in data.sources.items():
                if name not in unread:
                    rows = read_source(name, source)
                    write_source(rows, sources, name, with_negatives="negative" in source.columns)
        known, others = (_rows_in(path, recipe.base.instructions) for path in (dataset, sources))
    if written:
        notes.append(f"Rows are those of {dataset}.")
    elif data.rows == SYNTHESIS:
        known = _requested(recipe, known)
        notes.append(
            "Rows are an upper bound: one for every request of synthesis.plan.requests that is not held out. Their "
            "lengths are those of the sample inside the package, which was written to the paper's plan."
        )
    if data.mining is not None and not written:
        most = 2 + data.mining.num_negatives
        for part in known.values():
            part.texts[:] = [row + [row[1]] * (most - len(row)) for row in part.texts]
        notes.append("Every row is taken to get its mined negatives, as long as its positive.")
    return known | others, unread


def _rows_in(folder: Path, instructions: Instructions) -> dict[str, _Rows]:
    known = {}
    for path in sorted(folder.glob("*/train.parquet")):
        file = pq.ParquetFile(path)
        columns = ["positive", *negative_columns(file.schema_arrow.names)]
        texts = []
        for row in next(file.iter_batches(FIRST_ROWS)).to_pylist():
            anchor = format_query(instruction_of(instructions, row["instruction"], row["task_type"]), row["anchor"])
            texts.append([anchor, *(row[column] for column in columns)])
        known[path.parent.name] = _Rows(file.metadata.num_rows, texts)
    return known


def _requested(recipe: Recipe, sample: dict[str, _Rows]) -> dict[str, _Rows]:
    """Take the package's sample for rows that nobody has asked for, in the plan's shares of task types."""
    assert recipe.synthesis is not None  # noqa: S101 - the recipe's own check
    plan = recipe.synthesis.plan
    shares = {name: float(plan.task_types.get(name, 0)) for name in sample}
    if not any(shares.values()):
        shares = {name: float(part.count) for name, part in sample.items()}
    requests = plan.requests * (1 - recipe.data.validation_fraction)
    rows = {name: round(requests * share / sum(shares.values())) for name, share in shares.items()}
    return {name: _Rows(rows[name], part.texts) for name, part in sample.items() if rows[name]}


def _of_stage(
    stage: TrainingStage | None, known: dict[str, _Rows], unread: Sequence[str]
) -> tuple[dict[str, _Rows], list[str]]:
    """Return what a stage trains on, or all, and notes; where none of its rows are known, all others stand in."""
    chosen = {name: part for name, part in known.items() if stage is None or takes(stage, name)}
    missing = [name for name in unread if stage is None or takes(stage, name)]
    if stage is not None:
        found = (*known, *missing)
        missing += [begin for begin in stage.configurations if not any(name.startswith(begin) for name in found)]
    taken = "are not counted, and a run takes longer by their share, unless training.max_steps is set"
    if not chosen:
        chosen, taken = known, f"are taken to be {', '.join(sorted(known))}"
    if stage is not None and not stage.hard_negatives:
        chosen = {name: _Rows(part.count, [row[:2] for row in part.texts]) for name, part in chosen.items()}
    return chosen, [f"No rows of {', '.join(missing)} are known before a run reads them; they {taken}."] * bool(
        missing
    )
