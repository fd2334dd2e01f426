"""A saved model as encoding and search use it: by role, cut to a dimension, checked."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers.base.modules import Router
from sentence_transformers.sentence_transformer.modules import Normalize

from st_llm_embed.errors import InputError, explained
from st_llm_embed.modules import LLMSentenceTransformer

Role = Literal["query", "document"]

ROLES: tuple[Role, ...] = ("query", "document")


class Embedder:
    """A model that turns texts of one role into vectors."""

    def __init__(
        self, name_or_path: str, role: Role, *, revision: str | None, dimension: int | None, device: str | None
    ) -> None:
        """Load a model.

        Args:
            name_or_path: Hub id or folder of any sentence-transformers model.
            role: whose prompt, or whose part of an asymmetric model, texts get.
            revision: branch, tag or commit of a Hub model.
            dimension: the first so many numbers of a vector are kept, at unit length again if the model's own are
                of unit length; None for all.
            device: where it runs; None for the best there is.

        Raises:
            InputError: there is no such model, or its vectors are shorter than `dimension`.
        """
        with explained(
            f"The model {name_or_path!r} cannot be loaded",
            "Give the Hub id of a sentence-transformers model or the folder of a saved one, and a device that is "
            "there.",
        ):
            self.model = LLMSentenceTransformer(name_or_path, revision=revision, device=device)
        self.name_or_path = name_or_path
        self._encode = self.model.encode_query if role == "query" else self.model.encode_document
        modules = self.model[0].sub_modules[role] if isinstance(self.model[0], Router) else self.model
        self._normalize = any(isinstance(module, Normalize) for module in modules.children())
        # Encoded, not asked for: an asymmetric model does not know its dimension by itself.
        whole = self._encode(["text"], show_progress_bar=False).shape[1]
        if dimension is not None and not 1 <= dimension <= whole:
            raise InputError(
                f"--dimension is {dimension}; the vectors of {name_or_path!r} have {whole}. Give at most that, and "
                "one that the model was trained for (Matryoshka)."
            )
        self.dimension = dimension or whole

    def encode(self, texts: list[str], batch_size: int = 32) -> NDArray[np.float32]:
        """Give the vectors of texts, shape (number of texts, dimension).

        Raises:
            InputError: a vector is not finite.
        """
        with torch.inference_mode():
            vectors = self._encode(
                texts,
                batch_size=batch_size,
                truncate_dim=self.dimension,
                normalize_embeddings=self._normalize,
                show_progress_bar=False,
            )
        broken = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if len(broken):
            raise InputError(
                f"{self.name_or_path!r} gives {len(broken)} of {len(texts)} texts a vector that is not finite (NaN or "
                f"infinity), the first of them {texts[broken[0]][:60]!r}. Load the model in bfloat16 or float32, or "
                "take another."
            )
        return vectors.astype(np.float32, copy=False)
