"""Any OpenAI-compatible embeddings server as a model that mteb evaluates: commercial APIs, vLLM, TEI, llama.cpp."""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
from mteb.models.abs_encoder import AbsEncoder
from mteb.models.model_meta import ModelMeta, ScoringFunction
from mteb.types import PromptType
from numpy.typing import NDArray

from st_llm_embed.api.budget import Cost
from st_llm_embed.api.exchange import read_api_key
from st_llm_embed.errors import InputError, explained
from st_llm_embed.evaluation.benchmark.models import Usage
from st_llm_embed.evaluation.benchmark.prompts import PromptMode, TaskPrompt, instructed_prompt
from st_llm_embed.evaluation.server.client import WORDING, EmbeddingClient, Server
from st_llm_embed.evaluation.server.cost import EmbeddingBudget, Estimate, Limits, estimate
from st_llm_embed.evaluation.server.journal import VectorJournal

if TYPE_CHECKING:
    from mteb import AbsTask, TaskMetadata
    from mteb.types import BatchedInput
    from torch.utils.data import DataLoader
    from transformers import PreTrainedTokenizerBase

TEXTS_AT_ONCE = 4_096
"""Tokenized together."""

JOURNAL = "served"
"""Folder of the journal in the output folder."""


class EndpointModel(AbsEncoder):
    """A served model under mteb's encoder protocol; its vectors come from the journal or, once, from the server."""

    mteb_model_meta: ModelMeta  # ty: ignore[incompatible-mutable-override]

    def __init__(
        self,
        client: EmbeddingClient,
        journal: VectorJournal,
        meta: ModelMeta,
        prompt_mode: PromptMode,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        max_seq_length: int | None = None,
    ) -> None:
        """Take what is open.

        Args:
            client: asks the server.
            journal: of the vectors; the client's.
            meta: name, revision and the rest of what mteb records.
            prompt_mode: whose instructions are given.
            tokenizer: of the served model; needed to cut texts.
            max_seq_length: most tokens of a text, its prompt and special tokens included; longer texts are cut.
        """
        self.mteb_model_meta, self.prompt_mode = meta, prompt_mode
        self._client, self._journal = client, journal
        self._tokenizer, self._max_seq_length = tokenizer, max_seq_length
        self.usage: dict[str, Usage] = {}
        """By task name, of this process."""

    def task_prompt(self, metadata: TaskMetadata) -> TaskPrompt:
        """Give what stands before the texts of a task."""
        return instructed_prompt(self.prompt_mode, metadata)

    def settings(self) -> dict[str, Any]:
        """Give address, parameters, length and what was spent so far."""
        spent = self._journal.spent()
        return {
            "base_url": self._client.server.base_url,
            "request_parameters": dict(self._client.server.parameters),
            "max_seq_length": self._max_seq_length,
            "spent": {"tokens": spent.tokens, "usd": round(spent.usd, 6)},
        }

    def estimate(self, tasks: Sequence[AbsTask]) -> Estimate:
        """Estimate what the texts of tasks will cost; nothing is sent."""
        prompts = {task.metadata.name: self.task_prompt(task.metadata).query for task in tasks}
        return estimate(tasks, prompts, self._client.budget.price, self._journal.tokens_per_character())

    def encode(
        self,
        inputs: DataLoader[BatchedInput],
        *,
        task_metadata: TaskMetadata,
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        **_: Any,
    ) -> NDArray[np.float32]:
        """Give the vectors of texts, shape (number of texts, dimension).

        An empty text gets a vector of zeros, as in mteb's own wrapper of OpenAI's models: servers refuse it.

        Args:
            inputs: batches with the key `text`.
            task_metadata: whose prompt to use.
            hf_split: for the progress bar.
            hf_subset: likewise.
            prompt_type: documents get no instruction, unless the prompts say so.

        Raises:
            InputError: the vectors cannot be had; see `EmbeddingClient.embed`.
        """
        prompts = self.task_prompt(task_metadata)
        prompt = prompts.document if prompt_type == PromptType.document else prompts.query
        texts = [prompt + text if text.strip() else "" for batch in inputs for text in batch["text"]]
        usage = self.usage.setdefault(task_metadata.name, Usage())
        usage.texts += len(texts)
        if self._tokenizer is not None:
            texts = self._cut(texts, self._tokenizer, usage)
        sent = [text for text in texts if text]
        self._client.embed(sent, f"{task_metadata.name} {hf_subset} {hf_split}")
        dimension = self._journal.dimension()
        if dimension is None:
            raise InputError(f"{task_metadata.name} has nothing but empty texts. Take it out of --tasks.")
        vectors = np.zeros((len(texts), dimension), dtype=np.float32)
        if sent:
            vectors[[bool(text) for text in texts]] = self._journal.vectors(sent)
        return vectors

    def _cut(self, texts: list[str], tokenizer: PreTrainedTokenizerBase, usage: Usage) -> list[str]:
        """Cut texts so that the server's tokenizer makes no more tokens of them than allowed."""
        special = tokenizer.num_special_tokens_to_add()
        longest = None if self._max_seq_length is None else self._max_seq_length - special
        kept = []
        for start in range(0, len(texts), TEXTS_AT_ONCE):
            some = texts[start : start + TEXTS_AT_ONCE]
            ends = tokenizer(some, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
            for text, offsets in zip(some, ends["offset_mapping"], strict=True):
                if longest is None or len(offsets) <= longest:
                    usage.tokens += len(offsets) + special
                    kept.append(text)
                    continue
                tokens = longest
                # A word that is cut within can have more tokens than it had before.
                while len(tokenizer.tokenize(text[: offsets[tokens - 1][1]])) > longest:
                    tokens -= 1
                usage.tokens += tokens + special
                usage.truncated += 1
                kept.append(text[: offsets[tokens - 1][1]])
        return kept


def endpoint_meta(server: Server, prompt_mode: PromptMode, max_seq_length: int | None) -> ModelMeta:
    """Give what mteb records of a served model: named by host and model, versioned by all that shapes its vectors.

    Args:
        server: address, model and parameters.
        prompt_mode: in `experiment_kwargs`, as for any other model, so that results of two modes never mix.
        max_seq_length: where texts are cut; likewise.
    """
    apart: dict[str, Any] = {} if prompt_mode == "mteb" else {"prompts": prompt_mode}
    if max_seq_length is not None:
        apart["max_seq_length"] = max_seq_length
    url = urlsplit(server.base_url)
    host = f"{url.hostname}-{url.port}" if url.port else str(url.hostname)
    return ModelMeta.create_empty(
        {
            "name": f"{host}/{server.model.replace('/', '__')}",
            "revision": f"served-{blake2b(served(server).encode(), digest_size=8).hexdigest()}",
            "similarity_fn_name": ScoringFunction.COSINE,
            "max_tokens": max_seq_length,
            "framework": ["API"],
            "reference": server.base_url,
            "experiment_kwargs": apart or None,
        }
    )


def served(server: Server) -> str:
    """Identify what the vectors of a server depend on."""
    return json.dumps([server.base_url.rstrip("/"), server.model, dict(server.parameters)], sort_keys=True)


@contextmanager
def open_endpoint(
    server: Server,
    prompt_mode: PromptMode,
    output_dir: Path,
    *,
    api_key_env: str = "OPENAI_API_KEY",
    limits: Limits | None = None,
    tokenizer: str | None = None,
    max_seq_length: int | None = None,
) -> Generator[EndpointModel]:
    """Open a served model for evaluation; nothing is sent before the first text is encoded.

    Args:
        server: address, model and how to ask.
        prompt_mode: whose instructions are given.
        output_dir: that of the evaluation; the journal goes into its folder `served`.
        api_key_env: name of the environment variable that holds the key; the key itself is never written anywhere.
        limits: what may be spent.
        tokenizer: name or path of the served model's tokenizer, to cut texts with.
        max_seq_length: most tokens of a text.

    Raises:
        InputError: no key, no price and no limit, a length without a tokenizer, or a journal that cannot be opened.
    """
    if max_seq_length is not None and tokenizer is None:
        raise InputError(
            "--max-seq-length needs --tokenizer for a served model: the tokenizer's name on the Hub or its folder. "
            "Without both, texts are sent whole, and the server cuts or refuses what is too long."
        )
    loaded = None if tokenizer is None else _load_tokenizer(tokenizer)
    api_key = read_api_key(server.base_url, api_key_env, WORDING)
    # Before a folder is made; again with what the journal says was spent.
    EmbeddingBudget(server.model, limits or Limits(), Cost(0, 0.0))
    with VectorJournal(output_dir / JOURNAL, served(server)) as journal:
        budget = EmbeddingBudget(server.model, limits or Limits(), journal.spent())
        yield EndpointModel(
            EmbeddingClient(server, api_key, journal, budget),
            journal,
            endpoint_meta(server, prompt_mode, max_seq_length),
            prompt_mode,
            tokenizer=loaded,
            max_seq_length=max_seq_length,
        )


def _load_tokenizer(name_or_path: str) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    with explained(
        f"--tokenizer {name_or_path} cannot be loaded", "Give a tokenizer's name on the Hub or its folder."
    ):
        loaded = AutoTokenizer.from_pretrained(name_or_path)
        if isinstance(loaded, PreTrainedTokenizerFast):
            return loaded
        raise InputError(f"--tokenizer {name_or_path} has no tokenizer.json, which is needed to cut texts.")
