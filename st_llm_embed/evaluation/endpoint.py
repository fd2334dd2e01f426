"""Any OpenAI-compatible embeddings server as a model that mteb evaluates: commercial APIs, vLLM, TEI, llama.cpp."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Generator
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

from st_llm_embed.errors import InputError, explained
from st_llm_embed.evaluation.embedding_client import WORDING, EmbeddingClient, Server
from st_llm_embed.evaluation.embedding_cost import EmbeddingBudget, Limits
from st_llm_embed.evaluation.vector_journal import VectorJournal
from st_llm_embed.synthesis.budget import Cost
from st_llm_embed.synthesis.exchange import read_api_key

if TYPE_CHECKING:
    from mteb import TaskMetadata
    from mteb.types import BatchedInput
    from torch.utils.data import DataLoader
    from transformers import PreTrainedTokenizerBase

JOURNAL = "vectors"
"""Folder of the journal in the output folder."""

Prompt = Callable[["TaskMetadata"], tuple[str, str]]
"""Gives what stands before a task's queries, and before its documents."""


class EndpointModel(AbsEncoder):
    """A served model under mteb's encoder protocol; its vectors come from the journal or, once, from the server."""

    def __init__(
        self,
        client: EmbeddingClient,
        journal: VectorJournal,
        meta: ModelMeta,
        prompt: Prompt,
        *,
        tokenizer: PreTrainedTokenizerBase | None = None,
        max_seq_length: int | None = None,
    ) -> None:
        """Take what is open.

        Args:
            client: asks the server.
            journal: of the vectors; the client's.
            meta: name, revision and the rest of what mteb records.
            prompt: the instructions.
            tokenizer: of the served model; needed to cut texts.
            max_seq_length: most tokens of a text, its prompt and special tokens included; longer texts are cut.
        """
        self.mteb_model_meta = meta
        self._client, self._journal, self._prompt = client, journal, prompt
        self._tokenizer, self._max_seq_length = tokenizer, max_seq_length
        self.texts: Counter[str] = Counter()
        """Texts by task, as many as mteb has asked for."""
        self.cut: Counter[str] = Counter()
        """How many of them were cut, by task."""

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
        query_prompt, document_prompt = self._prompt(task_metadata)
        prompt = document_prompt if prompt_type == PromptType.document else query_prompt
        texts = [prompt + text if text.strip() else "" for batch in inputs for text in batch["text"]]
        self.texts[task_metadata.name] += len(texts)
        if self._tokenizer is not None and self._max_seq_length is not None:
            whole = texts
            texts = self._cut(texts, self._tokenizer, self._max_seq_length)
            self.cut[task_metadata.name] += sum(len(old) > len(new) for old, new in zip(whole, texts, strict=True))
        sent = [text for text in texts if text]
        self._client.embed(sent, f"{task_metadata.name} {hf_subset} {hf_split}")
        dimension = self._journal.dimension()
        if dimension is None:
            raise InputError(f"{task_metadata.name} has nothing but empty texts. Take it out of --tasks.")
        vectors = np.zeros((len(texts), dimension), dtype=np.float32)
        if sent:
            vectors[[bool(text) for text in texts]] = self._journal.vectors(sent)
        return vectors

    @staticmethod
    def _cut(texts: list[str], tokenizer: PreTrainedTokenizerBase, max_seq_length: int) -> list[str]:
        """Cut texts after so many tokens less the special ones, where the last of them ends."""
        longest = max_seq_length - tokenizer.num_special_tokens_to_add()
        ends = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        return [
            text[: offsets[longest - 1][1]] if len(offsets) > longest else text
            for text, offsets in zip(texts, ends, strict=True)
        ]


def endpoint_meta(server: Server, *, max_seq_length: int | None, experiment: dict[str, Any] | None) -> ModelMeta:
    """Give what mteb records of a served model: named by host and model, versioned by all that shapes its vectors.

    Args:
        server: address, model and parameters.
        max_seq_length: where texts are cut.
        experiment: keeps results of different prompts apart, as for any other model.
    """
    url = urlsplit(server.base_url)
    host = f"{url.hostname}-{url.port}" if url.port else str(url.hostname)
    shape = f"{served(server)}\n{max_seq_length}"
    return ModelMeta.create_empty(
        {
            "name": f"{host}/{server.model.replace('/', '__')}",
            "revision": f"served-{blake2b(shape.encode(), digest_size=8).hexdigest()}",
            "similarity_fn_name": ScoringFunction.COSINE,
            "max_tokens": max_seq_length,
            "framework": ["API"],
            "reference": server.base_url,
            "experiment_kwargs": experiment,
        }
    )


def served(server: Server) -> str:
    """Identify what the vectors of a server depend on."""
    return json.dumps([server.base_url.rstrip("/"), server.model, dict(server.parameters)], sort_keys=True)


@contextmanager
def open_endpoint(
    server: Server,
    prompt: Prompt,
    output_dir: Path,
    *,
    api_key_env: str = "OPENAI_API_KEY",
    limits: Limits | None = None,
    tokenizer: str | None = None,
    max_seq_length: int | None = None,
    experiment: dict[str, Any] | None = None,
) -> Generator[EndpointModel]:
    """Open a served model for evaluation; nothing is sent before the first text is encoded.

    Args:
        server: address, model and how to ask.
        prompt: the instructions.
        output_dir: that of the evaluation; the journal goes into its folder `vectors`.
        api_key_env: name of the environment variable that holds the key; the key itself is never written anywhere.
        limits: what may be spent.
        tokenizer: name or path of the served model's tokenizer, to cut texts with.
        max_seq_length: most tokens of a text.
        experiment: for `ModelMeta.experiment_kwargs`.

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
        meta = endpoint_meta(server, max_seq_length=max_seq_length, experiment=experiment)
        client = EmbeddingClient(server, api_key, journal, budget)
        yield EndpointModel(client, journal, meta, prompt, tokenizer=loaded, max_seq_length=max_seq_length)


def _load_tokenizer(name_or_path: str) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    with explained(
        f"--tokenizer {name_or_path} cannot be loaded", "Give a tokenizer's name on the Hub or its folder."
    ):
        loaded = AutoTokenizer.from_pretrained(name_or_path)
        if isinstance(loaded, PreTrainedTokenizerFast):
            return loaded
        raise InputError(f"--tokenizer {name_or_path} has no tokenizer.json, which is needed to cut texts.")
