"""The decoder: stock Transformer with the EOS contract and keys and values shared by texts under one instruction."""

from __future__ import annotations

import logging
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from sentence_transformers.base.modules.transformer import ProcessingKwargs
from sentence_transformers.sentence_transformer.modules import Transformer
from torch import Tensor
from transformers import DynamicCache, PreTrainedTokenizerBase
from transformers.cache_utils import Cache, DynamicLayer

from st_llm_embed.modules.eos import append_eos, end_token_id

logger = logging.getLogger(__name__)

SHORTEST_PREFIX = 8
"""Tokens below which sharing a prefix costs more than it saves."""


class DecoderTransformer(Transformer):
    """A decoder-only language model that gives the hidden state of every token.

    Saved as the stock class. What it adds holds at run time only: it repairs a tokenizer that does not end texts with
    EOS, warns of an instruction that leaves no room for its query, and inside `sharing_prefix` computes the tokens
    that all texts begin with once.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Lets `encode(..., batch_num_tokens=...)` through; the model takes it out before any forward pass.
        self.forward_kwargs = {*self.forward_kwargs, "batch_num_tokens"}
        self._prefix: Cache | None = None

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer; a text model always has one."""
        return cast(PreTrainedTokenizerBase, super().tokenizer)

    def repair_eos(self) -> None:
        """Make the tokenizer end texts with EOS if it ends them with nothing.

        Raises:
            InputError: the tokenizer has no EOS token, or is not a fast one.
        """
        if end_token_id(self.tokenizer) is None:
            append_eos(self.tokenizer)
            logger.warning(
                "The tokenizer of %s did not end texts with %r, where the embedding is read; it does now.",
                self.config.name_or_path or "the model",
                self.tokenizer.eos_token,
            )

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenize texts as `preprocess` does, special tokens and truncation included, without padding."""
        text_options = self.processing_kwargs.get("text", {}) | self.processing_kwargs.get("common", {})
        options = {"truncation": True, **text_options} | {"padding": False, "return_tensors": None}
        return self.tokenizer(list(texts), return_attention_mask=False, **options)["input_ids"]

    def preprocess(
        self,
        inputs: Sequence[Any],
        prompt: str | None = None,
        processing_kwargs: ProcessingKwargs | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Tokenize texts; inside `sharing_prefix` only what follows the shared tokens.

        Returns:
            input_ids and attention_mask of shape (batch_size, seq_len), right-padded, among others.
        """
        if prompt:
            self.warn_without_room(prompt, inputs)
        features = super().preprocess(inputs, prompt=prompt, processing_kwargs=processing_kwargs, **kwargs)
        if self._prefix is not None:
            shared, shape = self._prefix.get_seq_length(), features["input_ids"].shape
            for name, value in features.items():
                if isinstance(value, Tensor) and value.shape == shape:
                    features[name] = value[:, shared:]
        return features

    def warn_without_room(self, prompt: str, inputs: Sequence[Any]) -> None:
        """Warn if a prompt fills all of `max_seq_length`, so that every query under it gets the same vector."""
        [ids] = self.token_ids([prompt])
        if self.max_seq_length is not None and len(ids) >= self.max_seq_length:
            logger.warning(
                "The instruction %r fills all %d tokens of max_seq_length; nothing is left of %r and the other texts.",
                prompt,
                self.max_seq_length,
                inputs[0],
            )

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Add token_embeddings of shape (batch_size, seq_len, hidden_size) to the features."""
        if self._prefix is None:
            return super().forward(features, **kwargs)
        own_mask: Tensor = features["attention_mask"]
        shared_mask = own_mask.new_ones(own_mask.shape[0], self._prefix.get_seq_length())
        whole = features | {
            "attention_mask": torch.cat([shared_mask, own_mask], dim=1),
            "past_key_values": self._prefix,
        }
        features[self.module_output_name] = super().forward(whole, **kwargs)[self.module_output_name]
        return features

    @contextmanager
    def sharing_prefix(self, ids: list[list[int]], device: torch.device) -> Generator[None]:
        """Compute the tokens that all texts begin with once, for the forward passes inside the block.

        A causal model's hidden states depend on nothing to their right, so the keys and values of a common beginning
        are the same for every text. They are broadcast into each layer's attention and not stored per text. Nothing
        outlives the block, so weights, dtype or adapter may change between two.

        Args:
            ids: the full token ids of every text that will be encoded in the block.
            device: where the model runs.
        """
        length = self._shareable_length(ids)
        if length < SHORTEST_PREFIX:
            yield
            return
        filled = DynamicCache()
        prefix_ids = torch.tensor([ids[0][:length]], device=device)
        self.model(input_ids=prefix_ids, past_key_values=filled, use_cache=True)
        self._prefix = Cache(layers=[_SharedLayer(keys, values) for keys, values, _ in filled])
        try:
            yield
        finally:
            self._prefix = None

    def _shareable_length(self, ids: list[list[int]]) -> int:
        """Give the number of leading tokens that all texts share and that may be computed once; 0 for none."""
        if len(ids) < 2 or self.training or self.tokenizer.padding_side != "right" or not self._is_plain_causal():
            return 0
        longest = max(map(len, ids))
        windows = [getattr(self.config, name, None) for name in ("sliding_window", "attention_chunk_size")]
        if any(window is not None and longest > window for window in windows):
            return 0
        low, high = min(ids), max(ids)
        common = next(
            (place for place, pair in enumerate(zip(low, high, strict=False)) if pair[0] != pair[1]), len(low)
        )
        # Every text keeps a token of its own, for its hidden state is what is asked for.
        return min(common, min(map(len, ids)) - 1)

    def _is_plain_causal(self) -> bool:
        config = self.config
        layer_types = set(getattr(config, "layer_types", None) or ["full_attention"])
        return (
            getattr(config, "is_causal", True)
            and not getattr(config, "use_bidirectional_attention", False)
            and not getattr(config, "is_encoder_decoder", False)
            and config._attn_implementation in ("sdpa", "eager")
            and layer_types <= {"full_attention", "sliding_attention"}
            and "past_key_values" in self._declared_forward_params
        )


class _SharedLayer(DynamicLayer):
    """One layer's keys and values of the shared tokens, of shape (1, heads, length, head_dim); never grows."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values
        self._shared_keys, self._shared_values = keys, values

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        texts = key_states.shape[0]
        return (
            torch.cat([self._shared_keys.expand(texts, -1, -1, -1), key_states], dim=-2),
            torch.cat([self._shared_values.expand(texts, -1, -1, -1), value_states], dim=-2),
        )
