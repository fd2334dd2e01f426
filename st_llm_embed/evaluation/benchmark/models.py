"""The models that are evaluated: named so that two never share a score, prompted as asked, their tokens counted."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
from mteb.models import EncoderProtocol, ModelMeta
from mteb.models.abs_encoder import AbsEncoder, get_prompt_name
from mteb.models.model_meta import ScoringFunction
from mteb.types import Array, PromptType
from transformers import PreTrainedTokenizerBase

from st_llm_embed.data.vectors import VectorFolder
from st_llm_embed.errors import InputError, explained
from st_llm_embed.evaluation.benchmark.prompts import PromptMode, TaskPrompt, instructed_prompt
from st_llm_embed.evaluation.benchmark.saved_prompts import ASYMMETRIC_TYPES
from st_llm_embed.instructions import INSTRUCTION_TEMPLATE
from st_llm_embed.modules import LLMSentenceTransformer
from st_llm_embed.modules.layout import model_identity

if TYPE_CHECKING:
    from mteb import TaskMetadata
    from torch.utils.data import DataLoader

INSTRUCTED = re.compile(".+".join(map(re.escape, INSTRUCTION_TEMPLATE.split("{instruction}"))))
"""A saved prompt that shows a model to take instructions in our template."""

POOL_FROM = 1_000
"""Texts in one call from which on several devices share them; fewer are encoded on the first."""

TOKENIZED_AT_ONCE = 4_096


@dataclass
class Usage:
    """What one task asked a model for, also where its vectors were kept."""

    texts: int = 0
    tokens: int = 0
    """Up to max_seq_length of each text, prompts and special tokens included."""
    truncated: int = 0
    """Texts that are longer than max_seq_length."""


class EvaluatedModel(EncoderProtocol, Protocol):
    """What `evaluate` takes: a model for mteb that knows its name, its prompts, and what it was asked for."""

    mteb_model_meta: ModelMeta
    """Name and revision identify vectors; what else changes them is in `experiment_kwargs`."""
    prompt_mode: PromptMode
    usage: dict[str, Usage]
    """By task name, of this process."""

    def task_prompt(self, metadata: TaskMetadata) -> TaskPrompt:
        """Give what this model puts before the texts of a task."""
        ...

    def settings(self) -> dict[str, Any]:
        """Give what run.json says of the model beside its name: length, devices and the like."""
        ...


class LocalModel(AbsEncoder):
    """A sentence-transformers model that lies on this machine or comes from the Hub."""

    model: LLMSentenceTransformer
    mteb_model_meta: ModelMeta  # ty: ignore[incompatible-mutable-override]

    def __init__(
        self,
        model: LLMSentenceTransformer,
        meta: ModelMeta,
        prompt_mode: PromptMode,
        *,
        devices: Sequence[str] = (),
        vectors_dir: Path | None = None,
    ) -> None:
        """Wrap a loaded model; `load_model` loads one and finds its name.

        Args:
            model: any embedder.
            meta: its name and revision, and what else changes its vectors.
            prompt_mode: whose instructions a model gets that takes any. Under ``mteb`` all others keep the prompts
                saved with them, as plain mteb has it; under ``none`` nobody gets any.
            devices: where it runs; on several, each gets a part of long lists of texts.
            vectors_dir: keeps the vectors of documents in float16; None keeps nothing.
        """
        self.model, self.mteb_model_meta, self.prompt_mode = model, meta, prompt_mode
        self.usage: dict[str, Usage] = {}
        self._devices, self._vectors_dir = list(devices), vectors_dir
        self._instructed = takes_instructions(model)
        self._pool: Any = None

    def task_prompt(self, metadata: TaskMetadata) -> TaskPrompt:
        """Give what stands before the texts of a task."""
        if self._instructed or self.prompt_mode == "none":
            return instructed_prompt(self.prompt_mode, metadata)
        if metadata.type in ASYMMETRIC_TYPES:
            query, document = (self._saved_prompt(metadata, side) for side in (PromptType.query, PromptType.document))
        else:
            query, document = self._saved_prompt(metadata, None), ""
        return TaskPrompt(query, document, "saved" if query or document else "none")

    def settings(self) -> dict[str, Any]:
        """Give length, devices and data type."""
        return {
            "max_seq_length": self.model.max_seq_length,
            "devices": self._devices or [str(self.model.device)],
            "dtype": str(next(self.model.parameters()).dtype).removeprefix("torch."),
            "keeps_vectors": self._vectors_dir is not None,
        }

    def close(self) -> None:
        """Stop the processes on several devices; the next long list of texts starts them anew."""
        if self._pool is not None:
            self.model.stop_multi_process_pool(self._pool)
            self._pool = None

    def encode(
        self,
        inputs: DataLoader[Any],
        *,
        task_metadata: TaskMetadata,
        hf_split: str,  # noqa: ARG002
        hf_subset: str,  # noqa: ARG002
        prompt_type: PromptType | None = None,
        **kwargs: Any,
    ) -> Array:
        """Encode the texts of a task as mteb asks for it; shape (number of texts, dimension)."""
        texts = [text for batch in inputs for text in batch["text"]]
        prompt = self._prompt(task_metadata, prompt_type)
        self._count(task_metadata.name, texts, prompt)
        if prompt_type != PromptType.document or self._vectors_dir is None:
            return self._encoded(texts, prompt, prompt_type, kwargs)

        def encode(texts: list[str], instructions: list[str] | None) -> Any:  # noqa: ARG001
            return self._encoded(texts, prompt, prompt_type, kwargs)

        meta = self.mteb_model_meta
        encoder = json.dumps([meta.name, meta.revision, self.settings()["dtype"], self.model.max_seq_length, prompt])
        vectors = VectorFolder(self._vectors_dir, encode, encoder)
        kept = vectors.encoded(len(texts), texts.__getitem__, None, f"{task_metadata.name}: documents")
        return cast(Array, np.asarray(kept, dtype=np.float32))

    def _prompt(self, metadata: TaskMetadata, side: PromptType | None) -> str:
        if not self._instructed and self.prompt_mode != "none":
            return self._saved_prompt(metadata, side)
        # Some symmetric tasks of mteb have a document side, too.
        return "" if side == PromptType.document else self.task_prompt(metadata).query

    def _saved_prompt(self, metadata: TaskMetadata, side: PromptType | None) -> str:
        saved = self.model.prompts
        # `encode` has a default that `encode_query` and `encode_document` have not.
        default = self.model.default_prompt_name if side is None else None
        name = get_prompt_name(cast(dict[str, str], saved), metadata, side) or default
        return (saved[name] or "") if name else ""

    def _encoded(self, texts: list[str], prompt: str, side: PromptType | None, options: dict[str, Any]) -> Any:
        if len(self._devices) > 1 and len(texts) >= POOL_FROM:
            # Kept open: every process loads the model, and a task can ask hundreds of times.
            self._pool = self._pool or self.model.start_multi_process_pool(self._devices)
            options = {**options, "pool": self._pool}
        if side is None:
            return self.model.encode(texts, prompt=prompt, **options)
        encode = self.model.encode_query if side == PromptType.query else self.model.encode_document
        return encode(texts, prompt=prompt, **options)

    def _count(self, task: str, texts: list[str], prompt: str) -> None:
        usage = self.usage.setdefault(task, Usage())
        usage.texts += len(texts)
        tokenizer, longest = self.model.tokenizer, self.model.max_seq_length
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            return
        for start in range(0, len(texts), TOKENIZED_AT_ONCE):
            some = [prompt + text for text in texts[start : start + TOKENIZED_AT_ONCE]]
            rows = tokenizer(some, return_attention_mask=False, return_token_type_ids=False, verbose=False)[
                "input_ids"
            ]
            usage.tokens += sum(min(len(row), longest or len(row)) for row in rows)
            usage.truncated += sum(longest is not None and len(row) > longest for row in rows)


def load_model(
    name_or_path: str,
    *,
    prompts: PromptMode,
    revision: str | None = None,
    name: str | None = None,
    max_seq_length: int | None = None,
    devices: Sequence[str] = (),
    vectors_dir: Path | None = None,
) -> LocalModel:
    """Load a model and find the name under which its scores are kept.

    That is Hub id and commit, or for a local folder ``local/<folder>`` and a hash of its content.

    Args:
        name_or_path: Hub id or local folder.
        prompts: whose instructions it gets.
        revision: branch, tag or commit of a Hub model.
        name: what to call a local model, ``org/name``.
        max_seq_length: longest text in tokens, special ones included; None for the model's own.
        devices: where it runs, such as ``cuda:0``; none for the best there is.
        vectors_dir: see `LocalModel`.

    Raises:
        InputError: there is no such model, it is no embedder, it cannot be made to end texts with EOS, it takes no
            instructions although the mode is ``paper``, or it has no room for texts of this length.
    """
    folder = Path(name_or_path)
    if name is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise InputError(f"--name is {name!r}; it has to look like org/name.")
    if folder.is_dir() and revision is not None:
        raise InputError(
            f"{name_or_path} is a local folder, which has no revision {revision!r}. Leave --revision away."
        )
    # A typing error in a path must not become a question to the Hub.
    if not folder.is_dir() and (name is not None or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name_or_path)):
        raise InputError(
            f"There is no model folder {name_or_path!r}. Give the folder of a saved sentence-transformers model, or a "
            "Hub id, org/name, without --name."
        )
    with explained(
        f"The model {name_or_path!r} cannot be loaded",
        "Give the Hub id of a sentence-transformers model or the folder of a saved one, and a device that is there.",
    ):
        model = LLMSentenceTransformer(name_or_path, revision=revision, device=devices[0] if devices else None)
    if max_seq_length is not None:
        _shorten(model, max_seq_length)
    if prompts == "paper" and not takes_instructions(model):
        raise InputError(
            f"The model {name_or_path!r} takes no instructions: it is no decoder with last-token pooling, and no "
            "prompt saved with it begins with 'Instruct: '. Give --prompts mteb for the prompts saved with it, or "
            "--prompts none."
        )
    known, commit = model_identity(name_or_path, revision=revision, name=name)
    return LocalModel(
        model,
        _model_meta(model, known, commit, prompts, max_seq_length),
        prompts,
        devices=devices,
        vectors_dir=vectors_dir,
    )


def takes_instructions(model: LLMSentenceTransformer) -> bool:
    """Tell whether a model reads instructions: a decoder with last-token pooling, or one saved with our template."""
    return model.reads_last_token or any(INSTRUCTED.fullmatch(prompt or "") for prompt in model.prompts.values())


def _shorten(model: LLMSentenceTransformer, max_seq_length: int) -> None:
    tokenizer = model.tokenizer
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise InputError(
            f"--max-seq-length is {max_seq_length}, and this model reads texts by a {type(tokenizer).__name__}, not "
            "by a tokenizer of transformers, so that it cannot be told where to cut them. Leave --max-seq-length away."
        )
    least = tokenizer.num_special_tokens_to_add() + 1
    most = getattr(cast(Any, model[0]).config.get_text_config(), "max_position_embeddings", None)
    if max_seq_length < least or (most is not None and max_seq_length > most):
        raise InputError(
            f"--max-seq-length is {max_seq_length}. Texts of this model need at least {least} tokens, special ones "
            f"included, and have room for {most or 'any number of'}."
        )
    model.max_seq_length = max_seq_length


def _model_meta(
    model: LLMSentenceTransformer, name: str, revision: str, prompts: PromptMode, max_seq_length: int | None
) -> ModelMeta:
    """Describe a model to mteb. What `experiment_kwargs` says keeps results in a sub-folder of their own."""
    apart: dict[str, Any] = {}
    if prompts != "mteb":
        apart["prompts"] = prompts
    if max_seq_length is not None:
        apart["max_seq_length"] = max_seq_length
    similarity = {"cosine": ScoringFunction.COSINE, "dot": ScoringFunction.DOT_PRODUCT}
    return ModelMeta.create_empty(
        overwrites={
            "name": name,
            "revision": revision,
            "n_parameters": sum(weight.numel() for weight in model.parameters()),
            "memory_usage_mb": sum(one.numel() * one.element_size() for one in model.parameters()) / 2**20,
            "max_tokens": model.max_seq_length,
            "embed_dim": model.get_embedding_dimension(),
            "framework": ["Sentence Transformers", "PyTorch"],
            # None for the others: mteb then asks the model itself.
            "similarity_fn_name": similarity.get(str(model.similarity_fn_name)),
            "use_instructions": takes_instructions(model),
            "experiment_kwargs": apart or None,
        }
    )
