"""What is checked in seconds before hours are spent: tokens, padding, prompts, mteb's mock tasks, and the time."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import mteb
import numpy as np
from mteb.mocks import ALL_MOCK_TASK_TEST_GRID
from mteb.mocks.mock_run import is_dependency_error
from sentence_transformers import SentenceTransformer
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from st_llm_embed.errors import InputError
from st_llm_embed.evaluation.benchmark.models import EvaluatedModel, LocalModel
from st_llm_embed.evaluation.benchmark.prompts import TaskPrompt
from st_llm_embed.modules import LLMSentenceTransformer, check_eos

if TYPE_CHECKING:
    from mteb.abstasks import AbsTask

LEAST_COSINE = 0.999
"""Between the vectors of a text alone and in a batch; 16-bit weights stay above it."""

UNNAMED = ("no_model_name/available", "no_revision_available")
"""What mteb writes for a model that it cannot name; the scores of all such models are one."""

TEXTS = (
    "An index on the filtered column spares the server from reading every row.",
    "Short.",
    "Zwei Sätze in einer anderen Sprache. Der zweite ist nur da, damit der Text länger wird als die übrigen, "
    "und endet hier.",
)

ENOUGH_SECONDS = 1.0
"""A sample that took this long says how fast the model is."""


MOST_TEXTS = 2_000


class TextCount(NamedTuple):
    """The texts of a task, by mteb's own statistics on its data."""

    texts: int
    characters: int


class PlannedTask(NamedTuple):
    """What the preflight says of one task."""

    name: str
    prompt: TaskPrompt
    size: TextCount | None
    """None where mteb has no statistics."""
    seconds: float | None
    """A rough estimate from the speed on sample texts."""


def preflight(model: EvaluatedModel, tasks: Sequence[AbsTask], *, batch_size: int) -> list[PlannedTask]:
    """Check a model before it is evaluated, and say what each task will be.

    Args:
        model: what is to be evaluated.
        tasks: those that are still to be done.
        batch_size: texts per forward pass.

    Raises:
        InputError: the model has no name, texts do not begin and end as its tokenizer says, its vectors depend on
            what else is in a batch, or mteb's mock tasks of these types fail.
    """
    check_named(model)
    if isinstance(model, LocalModel):
        check_tokens(model.model)
        check_padding(model.model)
    check_mock_tasks(model, tasks, batch_size)
    speed = _characters_per_second(model.model, batch_size) if isinstance(model, LocalModel) else None
    planned = []
    for task in tasks:
        size = text_count(task)
        seconds = size.characters / speed if size and speed else None
        planned.append(PlannedTask(task.metadata.name, model.task_prompt(task.metadata), size, seconds))
    return planned


def check_named(model: EvaluatedModel) -> None:
    """Refuse a model without name or revision.

    Raises:
        InputError: it has none.
    """
    meta = model.mteb_model_meta
    if not meta.name or not meta.revision or meta.name == UNNAMED[0] or meta.revision == UNNAMED[1]:
        raise InputError(
            f"The model is called {meta.name!r} with the revision {meta.revision!r}. mteb would keep its scores where "
            "those of all models without a name are kept, and give it theirs. Load it with load_model, or set name "
            "and revision in its mteb_model_meta."
        )


def check_tokens(model: LLMSentenceTransformer) -> None:
    """Check that texts end in EOS, and begin with BOS if the tokenizer's configuration says so.

    Only decoders whose embedding is read at the last token are asked.

    Raises:
        InputError: a text begins or ends otherwise.
    """
    if not model.reads_last_token:
        return
    check_eos(model)
    tokenizer = model.tokenizer
    # The attribute of the same name is false for tokenizers of transformers 5, whatever the file says.
    promised = get_tokenizer_config(tokenizer.name_or_path).get("add_bos_token") if tokenizer.name_or_path else False
    if not promised or tokenizer.bos_token_id is None:
        return
    batch = model.preprocess(list(TEXTS))
    for ids, mask in zip(batch["input_ids"].tolist(), batch["attention_mask"].tolist(), strict=True):
        first = next(token for token, attend in zip(ids, mask, strict=True) if attend)
        if first != tokenizer.bos_token_id:
            raise InputError(
                f"Texts begin with {tokenizer.convert_ids_to_tokens(first)!r}, but the tokenizer's configuration says "
                f"add_bos_token, so they have to begin with {tokenizer.bos_token!r}. Let the post-processor in "
                "tokenizer.json put it there, or set add_bos_token to false if the model was trained without."
            )


def check_padding(model: SentenceTransformer) -> None:
    """Check that a text has the same vector alone and in a batch with longer texts.

    Raises:
        InputError: it has not, or a vector is not finite or zero.
    """
    options: dict[str, Any] = {"prompt": "", "convert_to_numpy": True, "show_progress_bar": False}
    together = model.encode(list(TEXTS), **options)
    for text, vector in zip(TEXTS, together, strict=True):
        alone = model.encode([text], **options)[0]
        lengths = np.linalg.norm(alone) * np.linalg.norm(vector)
        cosine = float(alone @ vector / lengths) if lengths else 0.0
        # NaN is not above anything.
        if not cosine > LEAST_COSINE:
            raise InputError(
                f"The vector of {text[:20]!r} alone and that in a batch have a cosine of {cosine:.4f}; at least "
                f"{LEAST_COSINE} is needed, or scores depend on the batch size. Padding (side "
                f"{model.tokenizer.padding_side!r}) is not masked out, or the weights are broken: save the model with "
                "the padding side that it was trained with, and try float32."
            )


def check_mock_tasks(model: EvaluatedModel, tasks: Sequence[AbsTask], batch_size: int) -> None:
    """Run mteb's mock tasks of the types that are asked for.

    Raises:
        InputError: one of them fails.
    """
    types = {task.metadata.type for task in tasks}
    mocks = [one for one in ALL_MOCK_TASK_TEST_GRID if one.metadata.type in types and one.modalities == ["text"]]
    if not mocks:
        return
    with warnings.catch_warnings():
        # Of scores on two texts.
        warnings.simplefilter("ignore")
        result = mteb.evaluate(
            model,
            mocks,
            cache=None,
            raise_error=False,
            show_progress_bar=False,
            co2_tracker=False,
            encode_kwargs={"batch_size": batch_size, "show_progress_bar": False},
        )
    failed = [one for one in result.exceptions or [] if not is_dependency_error(one)]
    for mock in mocks:
        model.usage.pop(mock.metadata.name, None)
    if failed:
        raise InputError(
            f"mteb's mock task {failed[0].task_name} fails with this model: {failed[0].exception}. So would the tasks "
            "of its type; nothing was evaluated."
        )


def text_count(task: AbsTask) -> TextCount | None:
    """Count the texts that a task will have encoded, by mteb's statistics; None where there are none."""
    if task.is_aggregate:
        return TextCount(0, 0)
    statistics = task.metadata.descriptive_stats
    if not statistics:
        return None
    found = []
    for split in task.eval_splits:
        of_split = statistics.get(split, {})
        by_subset = of_split.get("hf_subset_descriptive_stats")
        for part in [by_subset.get(name, {}) for name in task.hf_subsets] if by_subset else [of_split]:
            found += _text_statistics(part)
    if not found:
        return None
    characters = [one["total_text_length"] for one in found]
    texts = [round(one["total_text_length"] / (one["average_text_length"] or 1)) for one in found]
    return TextCount(sum(texts), sum(characters))


def _text_statistics(part: Any) -> Iterator[dict[str, float]]:
    if not isinstance(part, dict):
        return
    if "total_text_length" in part:
        yield part
        return
    for key, value in part.items():
        if key != "hf_subset_descriptive_stats":
            yield from _text_statistics(value)


def _characters_per_second(model: SentenceTransformer, batch_size: int) -> float:
    """Encode sample texts, more and more, until there is something to measure."""
    texts = list(TEXTS)
    while True:
        start = time.perf_counter()
        model.encode(texts, prompt="", batch_size=batch_size, show_progress_bar=False)
        seconds = time.perf_counter() - start
        if seconds >= ENOUGH_SECONDS or len(texts) > MOST_TEXTS:
            return sum(map(len, texts)) / seconds
        texts *= 4
