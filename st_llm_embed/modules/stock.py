"""Models of stock classes, such as students, whose weights are checked as those of our own classes are."""

from __future__ import annotations

from typing import Any

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

from st_llm_embed.modules.base import is_decoder_only
from st_llm_embed.modules.layout import has_file
from st_llm_embed.modules.loading import loading
from st_llm_embed.modules.transformer import CheckedTransformer


class _Checked(SentenceTransformer):
    # The private hook of LLMSentenceTransformer.
    def _load_module_class_from_ref(self, class_ref: str, *args: Any, **kwargs: Any) -> type:
        loaded = super()._load_module_class_from_ref(class_ref, *args, **kwargs)
        return CheckedTransformer if loaded is Transformer else loaded


def load_stock(name_or_path: str, what: str, advice: str, *, revision: str | None = None) -> SentenceTransformer:
    """Load a sentence-transformers model, or a plain encoder with the mean of its tokens, into stock's own classes.

    Args:
        name_or_path: Hub id or folder.
        what: it is, for the message, which names it.
        advice: what is allowed and what to do.
        revision: branch, tag or commit of a Hub model.

    Raises:
        InputError: it cannot be loaded, or weights are missing, have another shape, or are not finite.
    """
    with loading(f"The {what} {name_or_path!r} cannot be loaded", name_or_path, advice):
        if has_file(name_or_path, ["modules.json"], revision=revision):
            model = _Checked(name_or_path, revision=revision)
        else:
            source = {"revision": revision, "trust_remote_code": False}
            first = CheckedTransformer(
                name_or_path, model_kwargs=source, config_kwargs=source, processor_kwargs=source
            )
            pooling_mode = "lasttoken" if is_decoder_only(first.config) else "mean"
            model = SentenceTransformer(modules=[first, Pooling(first.get_embedding_dimension(), pooling_mode)])
    # What is saved names its classes.
    model.__class__ = SentenceTransformer
    for module in model:
        if type(module) is CheckedTransformer:
            module.__class__ = Transformer
    return model
