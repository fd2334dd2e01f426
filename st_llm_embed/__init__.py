"""Turn a large language model into a text embedding model."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from st_llm_embed.doctor import diagnose
    from st_llm_embed.doctor.verify import verify
    from st_llm_embed.errors import InputError
    from st_llm_embed.export import export_model
    from st_llm_embed.modules.model import LLMSentenceTransformer
    from st_llm_embed.pipeline import run_pipeline
    from st_llm_embed.publishing.publish import publish
    from st_llm_embed.recipe import Recipe

__version__ = version("st_llm_embed")

__all__ = [
    "InputError",
    "LLMSentenceTransformer",
    "Recipe",
    "__version__",
    "diagnose",
    "export_model",
    "publish",
    "run_pipeline",
    "verify",
]

_HOMES = {
    "InputError": "st_llm_embed.errors",
    "LLMSentenceTransformer": "st_llm_embed.modules.model",
    "publish": "st_llm_embed.publishing.publish",
    "Recipe": "st_llm_embed.recipe",
    "diagnose": "st_llm_embed.doctor",
    "export_model": "st_llm_embed.export",
    "run_pipeline": "st_llm_embed.pipeline",
    "verify": "st_llm_embed.doctor.verify",
}


def __getattr__(name: str) -> Any:
    # Lazy, so that `st-llm-embed --help` need not import torch.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
