"""probe.json as doctor needs it: canary texts with the ids and vectors that the model was published with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from st_llm_embed.errors import InputError
from st_llm_embed.publishing.doctor.finding import NotCheckedError
from st_llm_embed.publishing.doctor.repository import Repository


@dataclass(frozen=True)
class TinyProbeText:
    """One canary text."""

    name: str
    text: str
    prompt: str
    ids: tuple[int, ...]
    vector: NDArray[np.float32]


@dataclass(frozen=True)
class TinyProbe:
    """All canary texts of a repository."""

    max_seq_length: int
    prompts: dict[str, str]
    cosine: float
    texts: tuple[TinyProbeText, ...]


def read_tiny_probe(repository: Repository) -> TinyProbe:
    """Read a repository's probe.json.

    Raises:
        NotCheckedError: there is none.
        InputError: it is not of the format.
    """
    content = repository.table("probe.json")
    if not content:
        raise NotCheckedError("there is no probe.json")
    try:
        return TinyProbe(
            content["max_seq_length"],
            {name: prompt or "" for name, prompt in content["prompts"].items()},
            content.get("tolerance", {}).get("cosine", 0.9999),
            tuple(
                TinyProbeText(
                    one["name"], one["text"], one["prompt"], tuple(one["ids"]), np.asarray(one["vector"], np.float32)
                )
                for one in content["texts"]
            ),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{repository.name}: probe.json is not of the format of version 1 ({type(error).__name__}: {error}). Make "
            "it anew, or remove it."
        ) from error
