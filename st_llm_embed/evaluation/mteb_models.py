"""The models that mteb evaluates: its own wrappers, under a name that no other model has, prompted as asked."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import mteb
from mteb.abstasks.abstask import get_abstask_prompt
from mteb.models import ModelMeta, SentenceTransformerEncoderWrapper
from mteb.models.abs_encoder import get_prompt_name
from mteb.models.model_meta import ScoringFunction
from mteb.types import Array, PromptType

from st_llm_embed.errors import InputError
from st_llm_embed.evaluation.embedders import embedder_loader, takes_instructions
from st_llm_embed.instructions import (
    ASYMMETRIC_TYPES,
    PromptMode,
    TaskPrompt,
    mteb_task_prompt,
    saved_mteb_prompts,
)
from st_llm_embed.modules.layout import model_identity
from st_llm_embed.modules.lengths import Lengths, longest_text, text_lengths
from st_llm_embed.modules.model import LLMSentenceTransformer

if TYPE_CHECKING:
    from mteb import TaskMetadata
    from mteb.types import BatchedInput
    from torch.utils.data import DataLoader

BENCHMARKS = ("MTEB(eng, v1)", "MTEB(eng, v2)", "MTEB(Multilingual, v2)")
"""Whose tasks get a prompt of their own in a saved model where mteb's metadata has an instruction."""

POOL_FROM = 1_000
"""Texts in one call from which several devices share them; fewer are encoded on the first."""


@cache
def metadata_instructions() -> dict[str, str]:
    """Return the instruction of each task in mteb's metadata that has one; takes a second."""
    found: dict[str, str] = {}
    for task in mteb.get_tasks(exclude_superseded=False):
        prompt: Any = task.metadata.prompt
        text = prompt.get("query") if isinstance(prompt, dict) else prompt
        found |= {task.metadata.name: text} if text else {}
    return found


def model_prompts() -> dict[str, str]:
    """Return the prompts to save with a model for all text task types and for the tasks of `BENCHMARKS`."""
    tasks = [task.metadata for name in BENCHMARKS for task in mteb.get_benchmark(name).tasks]
    return saved_mteb_prompts([(task.name, str(task.type)) for task in tasks], metadata_instructions())


def task_prompt(mode: PromptMode, metadata: TaskMetadata) -> TaskPrompt:
    """Return what precedes the texts of an official task, or of one's own, for a model that takes instructions."""
    prompt: Any = metadata.prompt
    return mteb_task_prompt(
        mode,
        metadata.name,
        str(metadata.type),
        own=prompt.get("query", "") if isinstance(prompt, dict) else prompt or None,
        published=metadata_instructions(),
        default=get_abstask_prompt(metadata.name),
    )


def prompts_by_key(metadata: TaskMetadata, prompt: TaskPrompt) -> dict[str, str]:
    """Return the prompts of one task under the keys that mteb's wrappers look up."""
    return {metadata.name: prompt.query, f"{metadata.name}-document": prompt.document}


class LocalModel(SentenceTransformerEncoderWrapper):
    """mteb's wrapper of a sentence-transformers model, which also counts tokens and uses several devices."""

    model: LLMSentenceTransformer

    def __init__(
        self, model: LLMSentenceTransformer, meta: ModelMeta, prompt_mode: PromptMode, *, devices: Sequence[str] = ()
    ) -> None:
        """Wrap a loaded model; `load_model` loads one and finds its name.

        `prompt_mode` says whose instructions a model gets that takes any. Under ``mteb`` all others keep the prompts
        saved with them, as in plain mteb; under ``none`` no model gets any. Several devices share long lists of texts.
        """
        super().__init__(model)
        self.mteb_model_meta, self.prompt_mode = meta, prompt_mode
        self.usage: dict[str, Lengths] = {}
        self._devices = list(devices)
        self._keeps_its_prompts = prompt_mode == "mteb" and not takes_instructions(model)
        self._pool: Any = None

    def task_prompt(self, metadata: TaskMetadata) -> TaskPrompt:
        """Return what precedes the texts of a task."""
        if not self._keeps_its_prompts:
            return task_prompt(self.prompt_mode, metadata)
        if metadata.type in ASYMMETRIC_TYPES:
            query, document = (self._saved_prompt(metadata, side) for side in (PromptType.query, PromptType.document))
        else:
            query, document = self._saved_prompt(metadata, None), ""
        return TaskPrompt(query, document, "saved" if query or document else "none")

    def settings(self) -> dict[str, Any]:
        """Return length, devices and data type."""
        return {
            "max_seq_length": longest_text(self.model),
            "devices": self._devices or [str(self.model.device)],
            "dtype": str(next(self.model.parameters()).dtype).removeprefix("torch."),
        }

    def close(self) -> None:
        """Stop the processes on several devices."""
        if self._pool is not None:
            self.model.stop_multi_process_pool(self._pool)
            self._pool = None

    def encode(
        self,
        inputs: DataLoader[BatchedInput],
        *,
        task_metadata: TaskMetadata,
        prompt_type: PromptType | None = None,
        **kwargs: Any,
    ) -> Array:
        """Encode the texts of a task as mteb asks for it; shape (number of texts, dimension)."""
        prompt = self.task_prompt(task_metadata)
        if not self._keeps_its_prompts:
            self.model_prompts = prompts_by_key(task_metadata, prompt)
        texts = [text for batch in inputs for text in batch["text"]]
        before = prompt.document if prompt_type == PromptType.document else prompt.query
        counted = text_lengths(self.model, texts, before)
        self.usage[task_metadata.name] = self.usage.get(task_metadata.name, Lengths()) + counted
        if len(self._devices) > 1 and len(texts) >= POOL_FROM:
            # Kept open: every process loads the model, and a task can ask hundreds of times.
            self._pool = self._pool or self.model.start_multi_process_pool(self._devices)
            kwargs["pool"] = self._pool
        return super().encode(inputs, task_metadata=task_metadata, prompt_type=prompt_type, **kwargs)

    def _saved_prompt(self, metadata: TaskMetadata, side: PromptType | None) -> str:
        """Return the prompt that mteb looks up, or else sentence-transformers' default."""
        saved = self.model.prompts
        defaults = ("document", "passage", "corpus") if side == PromptType.document else ()
        own = self.model.default_prompt_name if side is None else None
        name = get_prompt_name(self.model_prompts, metadata, side) or next(
            (one for one in defaults if one in saved), own
        )
        return saved.get(name or "") or ""


def load_model(
    name_or_path: str,
    *,
    prompts: PromptMode,
    revision: str | None = None,
    max_seq_length: int | None = None,
    devices: Sequence[str] = (),
) -> LocalModel:
    """Load a model by Hub id or from a local folder, and find the name under which its scores are kept.

    That is Hub id and commit, or for a local folder ``local/<folder>`` and a hash of its content.

    Args:
        name_or_path: Hub id or local folder.
        prompts: whose instructions it gets.
        revision: branch, tag or commit of a Hub model.
        max_seq_length: longest text in tokens, special ones included; None for the model's own.
        devices: where it runs; none for the best there is.

    Raises:
        InputError: as `embedder_loader`; or it takes no instructions although the mode is ``paper``.
    """
    device = devices[0] if devices else None
    model = embedder_loader(name_or_path, revision=revision, max_seq_length=max_seq_length, device=device)()
    if prompts == "paper" and not takes_instructions(model):
        raise InputError(
            f"The model {name_or_path!r} takes no instructions: it is not a decoder with last-token pooling, and no "
            "saved prompt begins with 'Instruct: '. Give --prompts mteb for its own prompts, or --prompts none."
        )
    name, commit = model_identity(name_or_path, revision=revision)
    similarity = {"cosine": ScoringFunction.COSINE, "dot": ScoringFunction.DOT_PRODUCT}
    meta = ModelMeta.create_empty(
        {
            "name": name,
            "revision": commit,
            "n_parameters": sum(weight.numel() for weight in model.parameters()),
            "memory_usage_mb": sum(one.numel() * one.element_size() for one in model.parameters()) / 2**20,
            "max_tokens": longest_text(model),
            "embed_dim": model.get_embedding_dimension(),
            "framework": ["Sentence Transformers", "PyTorch"],
            # None for the others: mteb then asks the model itself.
            "similarity_fn_name": similarity.get(str(model.similarity_fn_name)),
            "use_instructions": takes_instructions(model),
            "experiment_kwargs": experiment(prompts, max_seq_length),
        }
    )
    return LocalModel(model, meta, prompts, devices=devices)


def experiment(prompts: PromptMode, max_seq_length: int | None) -> dict[str, Any] | None:
    """Return what sets results apart from the leaderboard's; mteb keeps them in a sub-folder of their own."""
    apart: dict[str, Any] = {} if prompts == "mteb" else {"prompts": prompts}
    if max_seq_length is not None:
        apart["max_seq_length"] = max_seq_length
    return apart or None
