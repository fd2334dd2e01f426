"""Last-token pooling that refuses a sequence whose last token is not the one the embedding is read at."""

from __future__ import annotations

from typing import Any

import torch
from sentence_transformers.sentence_transformer.modules import Pooling

from st_llm_embed.errors import InputError


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
                    "the embedding is read. The tokenizer was changed, or EOS was cut off: let the tokenizer's "
                    "post-processor add it (st_llm_embed.modules.append_eos)."
                )
        return super().forward(features, **kwargs)
