"""The stock modules with the EOS contract, and with keys and values shared by texts under one instruction."""

from __future__ import annotations

import inspect
import logging
import threading
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from peft import PeftConfig
from sentence_transformers.base.modules.transformer import ProcessingKwargs
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import CONFIG_NAME, DynamicCache, PreTrainedModel, PreTrainedTokenizerBase
from transformers.cache_utils import Cache, DynamicLayer
from transformers.tokenization_utils_base import LARGE_INTEGER

from st_llm_embed.errors import InputError
from st_llm_embed.modules.base import is_decoder_only
from st_llm_embed.modules.eos import append_eos, end_token_id
from st_llm_embed.modules.layout import sentencepiece_file
from st_llm_embed.modules.loading import check_finite, check_weights, load_trained_adapter
from st_llm_embed.modules.rotary import length_of_change

logger = logging.getLogger(__name__)

SHORTEST_PREFIX = 8
"""Tokens below which sharing a prefix costs more than it saves."""

HUB_OPTIONS = ("revision", "subfolder", "token", "cache_dir", "local_files_only")

TOKENIZED_AT_ONCE = 4096
"""Texts. The tokenizer's own records take many times the memory of the token ids, which alone are kept."""


class CheckedTransformer(Transformer):
    """The stock class, except that it loads every weight that it asks for, or raises an error."""

    # The private hook of sentence-transformers; tests/modules/test_hooks.py fails when it changes.

    def _load_model(
        self,
        model_name_or_path: str,
        transformer_task: Any,
        config: Any,
        backend: str,
        is_peft_model: bool,
        **model_kwargs: Any,
    ) -> PreTrainedModel:
        """Load the weights, all of them; an adapter after its base, so that the keys of both are compared.

        Raises:
            InputError: weights are missing, have another shape, or are not finite.
        """
        if backend != "torch":
            return super()._load_model(
                model_name_or_path, transformer_task, config, backend, is_peft_model, **model_kwargs
            )
        name, hub = model_name_or_path, {key: model_kwargs[key] for key in HUB_OPTIONS if key in model_kwargs}
        if is_peft_model and not Path(name, hub.get("subfolder") or "", CONFIG_NAME).is_file():
            name = PeftConfig.from_pretrained(name, **hub).base_model_name_or_path
            model_kwargs = {key: value for key, value in model_kwargs.items() if key not in ("revision", "subfolder")}
        loaded: Any = super()._load_model(
            name,
            transformer_task,
            config,
            backend,
            is_peft_model and name == model_name_or_path,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **model_kwargs,
        )
        model, report = loaded
        check_weights(name, model, report)
        if name != model_name_or_path:
            load_trained_adapter(model, model_name_or_path, **hub)
        check_finite(model_name_or_path, model)
        return model


class DecoderTransformer(CheckedTransformer):
    """A decoder-only language model that returns the hidden state of every token; saved as the stock class.

    At run time it repairs a tokenizer that does not end texts with EOS, warns of an instruction that leaves no room
    for its query, and computes the tokens that many texts begin with once (`shared_prefix`).
    """

    def __init__(self, model_name_or_path: str, *args: Any, **kwargs: Any) -> None:
        super().__init__(model_name_or_path, *args, **kwargs)
        # The tokenizer keeps padding and truncation of its last call, which threads share.
        self._tokenizing = threading.RLock()
        self._origin = model_name_or_path, (kwargs.get("processor_kwargs") or {}).get("revision")
        # Some files write no limit as a float.
        if super().tokenizer is not None and cast(int, self.max_seq_length) < LARGE_INTEGER:
            self._check_length(self.max_seq_length)
        # Lets `encode(..., batch_num_tokens=...)` through; the model removes it before any forward pass.
        self.forward_kwargs = {*self.forward_kwargs, "batch_num_tokens"}

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer; a text model always has one."""
        return cast(PreTrainedTokenizerBase, super().tokenizer)

    @property
    def max_seq_length(self) -> int | None:
        """The longest text in tokens, special ones included."""
        return super().max_seq_length

    @max_seq_length.setter
    def max_seq_length(self, value: int | None) -> None:
        self._check_length(value)
        self.tokenizer.model_max_length = value

    def _check_length(self, value: Any) -> None:
        least = self.tokenizer.num_special_tokens_to_add() + 1
        # Upstream reads less as no limit at all.
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(f"max_seq_length is {value!r}. Allowed is a whole number of tokens from {least} on.")

    @property
    def text_options(self) -> dict[str, Any]:
        """The tokenizer's options that are saved with the module."""
        return self.processing_kwargs.get("text", {}) | self.processing_kwargs.get("common", {})

    @property
    def splits_special_tokens(self) -> bool:
        """Whether a literal ``</s>`` in a text stays text."""
        return bool(self.text_options.get("split_special_tokens", self.tokenizer.split_special_tokens))

    def repair_eos(self) -> None:
        """Make the tokenizer end texts with EOS if it ends them with nothing."""
        if end_token_id(self.tokenizer) is None:
            append_eos(self.tokenizer)
            name, end = self.config.name_or_path or "the model", self.tokenizer.eos_token
            logger.warning(
                "The tokenizer of %s did not end texts with %r, where they are read; it does now.", name, end
            )

    def sentencepiece_file(self) -> Path | None:
        """Find the file tokenizer.model that belongs to the tokenizer, with the base where an adapter lacks it."""
        adapters = getattr(self.model, "peft_config", {}).values()
        bases = [(adapter.base_model_name_or_path, adapter.revision) for adapter in adapters]
        found = (sentencepiece_file(name, revision) for name, revision in (self._origin, *bases) if name)
        return next((path for path in found if path is not None), None)

    def preprocess(
        self,
        inputs: Sequence[Any],
        prompt: str | None = None,
        processing_kwargs: ProcessingKwargs | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Tokenize texts as stock does, with a warning if the prompt leaves them no room."""
        if prompt:
            self.warn_without_room(prompt, inputs)
        with self._tokenizing:
            return super().preprocess(inputs, prompt=prompt, processing_kwargs=processing_kwargs, **kwargs)

    def warn_without_room(self, prompt: str, inputs: Sequence[Any]) -> None:
        """Warn if a prompt fills all of `max_seq_length`, so that every query under it gets the same vector."""
        [ids] = self.token_ids([prompt])
        if self.max_seq_length is not None and len(ids) >= self.max_seq_length:
            problem = (
                "The instruction %r fills all %d tokens of max_seq_length; nothing is left of %r and other texts."
            )
            logger.warning(problem, prompt, self.max_seq_length, inputs[0])

    def token_ids(self, texts: Sequence[str]) -> list[array[int]]:
        """Tokenize texts as `preprocess` does, special tokens and truncation included, without padding."""
        options = {"truncation": True, **self.text_options} | {"padding": False, "return_tensors": None}
        ids: list[array[int]] = []
        for start in range(0, len(texts), TOKENIZED_AT_ONCE):
            some = list(texts[start : start + TOKENIZED_AT_ONCE])
            with self._tokenizing:
                rows = self.tokenizer(some, return_attention_mask=False, **options)["input_ids"]
            ids.extend(array("i", row) for row in rows)
        return ids

    def shared_prefix(self, ids: Sequence[array[int]], device: torch.device) -> Cache | None:
        """Compute the tokens that all texts begin with.

        A causal model's hidden states depend on nothing to their right, so the keys and values of a common beginning
        are the same for every text. Nothing of them is kept in the model, so weights, dtype or adapter may change
        between two calls.

        Args:
            ids: the full token ids of every text.
            device: where the model runs.

        Returns:
            Keys and values for `padded`; None where there is too little to share or sharing would be wrong.
        """
        length = self._shareable_length(ids)
        if length < SHORTEST_PREFIX:
            return None
        filled = DynamicCache()
        prefix_ids = torch.tensor([ids[0][:length]], device=device)
        self.model(input_ids=prefix_ids, past_key_values=filled, use_cache=True)
        layers = [_SharedLayer(keys, values) for keys, values, _ in filled]
        # Some models let layers use the keys of others, or keep a state of another kind.
        if [layer.get_seq_length() for layer in layers] != [length] * self.config.get_text_config().num_hidden_layers:
            return None
        return Cache(layers=[*layers])

    def padded(self, ids: Sequence[array[int]], prefix: Cache | None) -> dict[str, Any]:
        """Make a batch of token ids as `preprocess` would, without the tokens of a shared prefix.

        Returns:
            input_ids and attention_mask of shape (batch_size, seq_len), and shared_prefix where there is one.
        """
        shared = prefix.get_seq_length() if prefix is not None else 0
        rows = [torch.from_numpy(np.frombuffer(row, dtype=np.int32)[shared:].astype(np.int64)) for row in ids]
        side = self.tokenizer.padding_side
        # Padding is masked out: a tokenizer without a pad token can have any.
        pad = self.tokenizer.pad_token_id or 0
        features = {
            "input_ids": pad_sequence(rows, True, pad, side),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in rows], True, 0, side),
        }
        if "token_type_ids" in self.tokenizer.model_input_names:
            features["token_type_ids"] = torch.zeros_like(features["input_ids"])
        return features if prefix is None else features | {"shared_prefix": prefix}

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Add token_embeddings of shape (batch_size, seq_len, hidden_size) to the features."""
        prefix: Cache | None = features.pop("shared_prefix", None)
        if prefix is None:
            return super().forward(features, **kwargs)
        own_mask: Tensor = features["attention_mask"]
        shared_mask = own_mask.new_ones(own_mask.shape[0], prefix.get_seq_length())
        whole = features | {
            "attention_mask": torch.cat([shared_mask, own_mask], dim=1),
            "past_key_values": prefix,
        }
        features[self.module_output_name] = super().forward(whole, **kwargs)[self.module_output_name]
        return features

    def __getstate__(self) -> dict[str, Any]:
        # A lock stays in its process.
        return {key: value for key, value in self.__dict__.items() if key != "_tokenizing"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._tokenizing = threading.RLock()

    def _shareable_length(self, ids: Sequence[array[int]]) -> int:
        """Return the number of leading tokens that all texts share and that may be computed once; 0 for none."""
        if len(ids) < 2 or self.tokenizer.padding_side != "right" or not self._is_plain_causal():
            return 0
        config = self.config.get_text_config()
        longest = max(map(len, ids))
        windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
        # Above its change of positions a text has other keys for the same tokens.
        if any(limit is not None and longest > limit for limit in (*windows, length_of_change(self.config))):
            return 0
        low, high = min(ids), max(ids)
        common = next(
            (place for place, pair in enumerate(zip(low, high, strict=False)) if pair[0] != pair[1]), len(low)
        )
        # Every text keeps a token of its own, whose hidden state is asked for.
        return min(common, min(map(len, ids)) - 1)

    def _is_plain_causal(self) -> bool:
        config = self.config.get_text_config()
        layer_types = set(getattr(config, "layer_types", None) or ["full_attention"])
        return (
            is_decoder_only(self.config)
            and getattr(config, "is_causal", True)
            and not getattr(config, "use_bidirectional_attention", False)
            and config._attn_implementation in ("sdpa", "eager")
            and layer_types <= {"full_attention", "sliding_attention"}
            and "past_key_values" in inspect.signature(self.model.forward).parameters
        )


class _SharedLayer(DynamicLayer):
    """One layer's keys and values of the shared tokens, (1, heads, length, head_dim), broadcast into each batch."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        keys, values = cast(Tensor, self.keys), cast(Tensor, self.values)
        texts = key_states.shape[0]
        return (
            torch.cat([keys.expand(texts, -1, -1, -1), key_states], dim=-2),
            torch.cat([values.expand(texts, -1, -1, -1), value_states], dim=-2),
        )


class LastTokenPooling(Pooling):
    """Stock pooling with a check of the last token; saved as the stock class."""

    end_token_id: int | None = None
    """The token that every sequence has to end in; None, as for the other pooling modes, checks nothing."""

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Add sentence_embedding of shape (batch_size, hidden_size), the hidden state of each last attended token.

        Raises:
            InputError: a sequence ends in another token.
        """
        ids, mask = features.get("input_ids"), features.get("attention_mask")
        if self.end_token_id is not None and ids is not None and mask is not None and ids.shape == mask.shape:
            positions = torch.arange(mask.shape[1], device=mask.device)
            last = (mask * positions).argmax(dim=1)
            ends = ids.gather(1, last[:, None])[:, 0]
            if not bool((ends == self.end_token_id).all()):
                wrong = int((ends != self.end_token_id).nonzero()[0])
                raise InputError(
                    f"Text {wrong} of the batch ends in token {int(ends[wrong])}, not in {self.end_token_id}, where "
                    "the embedding is read. Let the tokenizer's post-processor add it (modules.append_eos)."
                )
        return super().forward(features, **kwargs)
