"""Whether the weights that the architecture needs are in the files, each in its shape."""

from __future__ import annotations

import re

from st_llm_embed.doctor.loading import load_model
from st_llm_embed.doctor.repository import WEIGHTS, WEIGHTS_INDEX, Repository
from st_llm_embed.doctor.traps import Finding, NotCheckedError, Reading

IN_LAYER = re.compile(r"\b(?:layers?|h|blocks?)\.\d+\.")
"""A weight of one layer of a decoder; others, such as a head for the next token, an embedder has no use for."""


def complete(repository: Repository, _: list[Reading]) -> list[Finding]:
    """Compare names and shapes in the headers with the model that config.json describes; no weights are read."""
    if repository.adapter:
        raise NotCheckedError("the repository is an adapter, which has no weights of its own")
    file = repository.file_of("Transformer", WEIGHTS)
    if not repository.shards:
        if repository.pickles:
            raise NotCheckedError("the weights are pickles, whose headers are not read")
        return [Finding("no weights", file)]
    gone = [name for name in repository.shards if name not in repository.files]
    if gone:
        detail = f"{repository.file_of('Transformer', WEIGHTS_INDEX)} names {gone[0]}, which is not there."
        return [Finding("weights missing", gone[0], detail)]
    dense = [f"{folder}/{WEIGHTS}" for kind in ("Dense", "LayerNorm") for folder in repository.folders(kind)]
    found = [
        Finding("weights missing", name, f"{name} is not there.")
        for name in dense
        if not {name, name.replace(WEIGHTS, "pytorch_model.bin")} & repository.files
    ]
    loading = load_model(repository)
    if loading.missing:
        detail = f"{len(loading.missing)} are missing, such as {loading.missing[0]}."
        if loading.unexpected:
            detail += f" Others are there that it has not, such as {loading.unexpected[0]}."
        found.append(Finding("weights missing", file, detail))
    elif left := [name for name in loading.unexpected if IN_LAYER.search(name)]:
        detail = f"{len(left)} are left over, such as {left[0]}."
        found.append(Finding("weights left over", file, detail))
    if loading.mismatched:
        detail = f"{len(loading.mismatched)} have another shape, such as {loading.mismatched[0]}."
        found.append(Finding("weights of another shape", file, detail))
    return found
