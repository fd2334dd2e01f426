"""LLMSentenceTransformer: a SentenceTransformer that knows decoders and instructions, and is saved as a stock one."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Self, cast

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from torch import Tensor
from tqdm.auto import trange
from transformers import AutoModel

from st_llm_embed.errors import InputError
from st_llm_embed.instructions import PUBLISHED_PROMPTS, instruction_prompt
from st_llm_embed.modules.base import base_path, load_tokenizer
from st_llm_embed.modules.eos import check_eos, end_token_id
from st_llm_embed.modules.pooling import LastTokenPooling
from st_llm_embed.modules.portable import make_portable
from st_llm_embed.modules.transformer import DecoderTransformer
from st_llm_embed.recipe import Dtype

# Text only: without it, a base with a chat template renders every text as a chat message, without BOS and EOS.
TEXT_ONLY = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}

# The shared prefix belongs to the module for the time of a call; another thread's texts must not meet it.
_ONE_CALL_AT_A_TIME = threading.Lock()

RUNTIME_CLASSES: dict[type, type] = {Transformer: DecoderTransformer, Pooling: LastTokenPooling}
"""Stock module classes and what they are loaded into."""


class LLMSentenceTransformer(SentenceTransformer):
    """A sentence-transformers model made of a decoder-only language model.

    Loads any stock repository, merged or adapter only, and saves stock modules, so that `SentenceTransformer` loads
    what it saves, with equal vectors and nothing else installed. At run time it ensures that every text ends in EOS,
    takes an instruction per call or per query, sorts texts by their exact length in tokens, and computes the tokens
    that all texts of a call begin with once.

    Example::

        model = LLMSentenceTransformer("org/e5-mistral")
        queries = model.encode_query(["why is the sky blue"], instruction="Given a question, retrieve the answer")
        documents = model.encode_document(["Air scatters blue light more than red."])
    """

    def __init__(self, model_name_or_path: str | None = None, **kwargs: Any) -> None:
        """Load a stock repository, or build from `modules`; the keyword arguments are those of SentenceTransformer."""
        super().__init__(model_name_or_path, **kwargs)
        pooling = self._last_token_pooling()
        if pooling is not None:
            transformer = cast(DecoderTransformer, self._first_module())
            transformer.repair_eos()
            pooling.end_token_id = end_token_id(transformer.tokenizer)

    @classmethod
    def from_base(
        cls,
        name_or_path: str,
        *,
        max_seq_length: int,
        revision: str | None = None,
        random_init: bool = False,
        dtype: Dtype = "float32",
        attention: Literal["causal", "bidirectional"] = "causal",
        split_special_tokens: bool = False,
        device: str | None = None,
    ) -> Self:
        """Build an embedder from a decoder-only base: EOS appended, last-token pooling, unit length.

        Args:
            name_or_path: Hub id or local folder of the base, or ``embedded`` for the one inside the package.
            max_seq_length: longest text in tokens, special tokens included.
            revision: branch, tag or commit of a Hub model.
            random_init: draw fresh weights from torch's current random state instead of the pretrained ones.
            dtype: data type of the weights.
            attention: whether a token sees those to its right.
            split_special_tokens: keep a literal ``</s>`` in a text from becoming the EOS token.
            device: where the model is put; None for the best there is.

        Returns:
            A model whose embeddings have shape (number of texts, hidden size) and norm 1.

        Raises:
            InputError: there is no such base, or it cannot be made to end texts with EOS.
        """
        tokenizer = load_tokenizer(name_or_path, revision=revision)
        transformer = DecoderTransformer(
            base_path(name_or_path),
            model_kwargs={"dtype": getattr(torch, dtype), "revision": revision},
            config_kwargs={"revision": revision},
            processor_kwargs={"revision": revision},
            processing_kwargs={"text": {"split_special_tokens": True}} if split_special_tokens else None,
            modality_config=TEXT_ONLY,
            module_output_name="token_embeddings",
        )
        if tokenizer.pad_token_id >= transformer.model.get_input_embeddings().num_embeddings:
            # Qwen's tokenizer class adds a pad token of its own to a vocabulary that lacks it.
            tokenizer.pad_token = tokenizer.eos_token
        transformer.processor = tokenizer
        if attention == "bidirectional":
            transformer.config.is_causal = False
        if random_init:
            transformer.model = AutoModel.from_config(transformer.config, dtype=getattr(torch, dtype))
        transformer.max_seq_length = max_seq_length
        transformer.config.pad_token_id = tokenizer.pad_token_id
        pooling = LastTokenPooling(transformer.get_embedding_dimension(), pooling_mode="lasttoken")
        model = cls(modules=[transformer, pooling, Normalize()], device=device, prompts=dict(PUBLISHED_PROMPTS))
        check_eos(model)
        return model

    def encode(  # type: ignore[override]
        self, inputs: Any, *args: Any, instruction: str | Sequence[str] | None = None, **kwargs: Any
    ) -> Any:
        """Encode texts, under an instruction if one is given; other arguments as in SentenceTransformer.encode.

        Args:
            inputs: a text or a list of texts.
            *args: as in SentenceTransformer.encode.
            instruction: one for all texts, or a list with one per text. Equal to the prompt that
                `instructions.instruction_prompt` makes of it.
            **kwargs: as in SentenceTransformer.encode. Also ``batch_num_tokens``: a batch then holds as many texts as
                fit into this many padded tokens, instead of `batch_size` texts.

        Returns:
            Embeddings of shape (number of texts, hidden size).

        Raises:
            InputError: instruction and prompt are both given, or there is not one instruction per text.
        """
        if instruction is None:
            return super().encode(inputs, *args, **kwargs)
        if args or kwargs.get("prompt") is not None or kwargs.get("prompt_name") is not None:
            raise InputError("Give either an instruction or a prompt, the latter by name; an instruction becomes one.")
        if isinstance(instruction, str):
            return super().encode(inputs, prompt=instruction_prompt(instruction), **kwargs)
        texts = [inputs] if isinstance(inputs, str) else list(inputs)
        if isinstance(inputs, str) or len(instruction) != len(texts):
            raise InputError(
                f"{len(instruction)} instructions are given for {len(texts)} texts. Give one instruction as a str for "
                "all, or a list with one per text of a list."
            )
        prompted = [instruction_prompt(one) + text for one, text in zip(instruction, texts, strict=True)]
        # An empty prompt, so that no default one is put before the instructions.
        return super().encode(prompted, prompt="", **kwargs)

    def encode_query(  # type: ignore[override]
        self, inputs: Any, *args: Any, instruction: str | Sequence[str] | None = None, **kwargs: Any
    ) -> Any:
        """Encode queries, under the saved query prompt or under an instruction; as in `encode`."""
        if instruction is None:
            return super().encode_query(inputs, *args, **kwargs)
        return self.encode(inputs, *args, instruction=instruction, task="query", **kwargs)

    def save(self, path: str, *args: Any, **kwargs: Any) -> None:
        """Save stock modules in the portable layout; arguments as in SentenceTransformer.save."""
        ours = {module: type(module) for module in self if type(module) in RUNTIME_CLASSES.values()}
        stock = {runtime: stock for stock, runtime in RUNTIME_CLASSES.items()}
        try:
            for module, runtime in ours.items():
                module.__class__ = stock[runtime]
            super().save(path, *args, **kwargs)
        finally:
            for module, runtime in ours.items():
                module.__class__ = runtime
        if path is not None and self._last_token_pooling() is not None:
            make_portable(Path(path), self.tokenizer)

    # The two private hooks of sentence-transformers; tests/modules/test_hooks.py says when they change.

    def _load_module_class_from_ref(self, class_ref: str, *args: Any, **kwargs: Any) -> type:
        loaded = super()._load_module_class_from_ref(class_ref, *args, **kwargs)
        return RUNTIME_CLASSES.get(loaded, loaded)

    @torch.inference_mode()
    def _inference(
        self,
        inputs: list[Any],
        *,
        prompt: str | None,
        batch_size: int,
        show_progress_bar: bool,
        output_value: str | None,
        batch_num_tokens: int | None = None,
        **options: Any,
    ) -> Any:
        if batch_num_tokens is not None and batch_num_tokens < 1:
            raise InputError(f"batch_num_tokens is {batch_num_tokens}; a batch has to have room for at least 1 token.")
        options |= {"output_value": output_value}
        transformer = self._first_module()
        if (
            self._last_token_pooling() is None
            or not isinstance(transformer, DecoderTransformer)
            or not inputs
            or not all(isinstance(text, str) for text in inputs)
            or output_value != "sentence_embedding"
            or options.get("processing_kwargs")
            or transformer.query_length is not None
            or transformer.document_length is not None
            or self._can_flatten_inputs()
        ):
            return super()._inference(
                inputs, prompt=prompt, batch_size=batch_size, show_progress_bar=show_progress_bar, **options
            )
        if prompt:
            transformer.warn_without_room(prompt, inputs)
        texts = [(prompt or "") + text for text in inputs]
        ids = transformer.token_ids(texts)
        order = sorted(range(len(texts)), key=lambda place: -len(ids[place]))
        lengths = [len(ids[place]) for place in order]
        device = self._resolve_inference_device(options.get("device"))
        self.eval()
        parts: list[Tensor] = []
        progress = trange(len(texts), desc="Texts", disable=not show_progress_bar)
        with _ONE_CALL_AT_A_TIME, progress, transformer.sharing_prefix(ids, device):
            for start, stop in _batches(lengths, batch_size, batch_num_tokens):
                batch = [texts[place] for place in order[start:stop]]
                part = super()._inference(
                    batch, prompt=None, batch_size=len(batch), show_progress_bar=False, **options
                )
                parts.append(cast(Tensor, part))
                progress.update(len(batch))
        embeddings = torch.cat(parts)
        return embeddings[torch.tensor(order, device=embeddings.device).argsort()]

    def _last_token_pooling(self) -> LastTokenPooling | None:
        """Give the pooling of a decoder whose embedding is the hidden state of the last token alone."""
        poolings = [module for module in self if isinstance(module, Pooling)]
        first = self._first_module()
        # A chat template ("message") renders texts in a way of its own; such a repository stays as stock has it.
        if isinstance(first, DecoderTransformer) and "message" not in first.modality_config and len(poolings) == 1:
            [pooling] = poolings
            if isinstance(pooling, LastTokenPooling) and pooling.pooling_mode == "lasttoken":
                return pooling
        return None


def _batches(lengths: Sequence[int], batch_size: int, batch_num_tokens: int | None) -> Iterator[tuple[int, int]]:
    """Cut texts that are sorted by falling length into batches (start, stop)."""
    start = 0
    while start < len(lengths):
        size = batch_size if batch_num_tokens is None else max(1, batch_num_tokens // lengths[start])
        yield start, min(start + size, len(lengths))
        start += size
