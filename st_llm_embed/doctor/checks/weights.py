"""Whether the weights that the architecture needs are in the files, each in its shape."""

from __future__ import annotations

import re

from st_llm_embed.doctor.loading import load_model, shapes_of
from st_llm_embed.doctor.repository import WEIGHTS, WEIGHTS_INDEX, Repository
from st_llm_embed.doctor.traps import Finding, NotCheckedError, Reading
from st_llm_embed.errors import InputError, explained
from st_llm_embed.modules.layout import pooling_dimension

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
    found = [*_other_modules(repository), *_dense_shapes(repository), *_index(repository)]
    config = repository.file_of("Transformer")
    try:
        with explained(f"transformers stops at {config}", "Take the one that the weights were saved with."):
            loading = load_model(repository)
    except NotCheckedError:
        if found:
            return found
        raise
    except InputError as error:
        return [*found, Finding("not loaded", config, str(error), ("sentence-transformers",))]
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


def data_types(repository: Repository, _: list[Reading]) -> list[Finding]:
    """Compare the data type that config.json states, which is the one in memory, with that of the weights."""
    if repository.adapter or not repository.local or not repository.shards:
        raise NotCheckedError("the weights of the transformer are not here")
    if not repository.files.issuperset(repository.shards):
        raise NotCheckedError("weights are missing")
    stored, stated = repository.stored_dtype, repository.dtype
    integers = [name for name, kind in repository.stored_dtypes.items() if kind[0] in "IU" and IN_LAYER.search(name)]
    if integers and not repository.config.get("quantization_config"):
        detail = (
            f"{len(integers)} hold whole numbers, such as {integers[0]}, and config.json has no quantization_config."
        )
        return [Finding("integer weights", repository.file_of("Transformer", WEIGHTS), detail)]
    if stored is None or stated is None or stated in (stored, "auto"):
        return []
    detail = f"config.json states {stated}, and the weights are {stored}."
    return [Finding("two data types", repository.file_of("Transformer"), detail)]


def _other_modules(repository: Repository) -> list[Finding]:
    names = [f"{folder}/{WEIGHTS}" for kind in ("Dense", "LayerNorm") for folder in repository.folders(kind)]
    return [
        Finding("weights missing", name, f"{name} is not there.")
        for name in names
        if not {name, name.replace(WEIGHTS, "pytorch_model.bin")} & repository.files
    ]


def _dense_shapes(repository: Repository) -> list[Finding]:
    """Compare the configuration of each Dense with the shapes in its file, and with what it is given."""
    import torch.nn

    found = []
    given = pooling_dimension(repository.pooling_config or {})
    for folder in repository.folders("Dense"):
        file, name = f"{folder}/config.json", f"{folder}/{WEIGHTS}"
        config = repository.table(file)
        activation = str(config.get("activation_function", "torch.nn.Tanh"))
        if not activation.startswith("torch.nn.") or not hasattr(torch.nn, activation.rpartition(".")[2]):
            found.append(Finding("activation", file, f"It is {activation!r}."))
        size_in, size_out = config.get("in_features"), config.get("out_features")
        wanted = {"linear.weight": [size_out, size_in]} | (
            {"linear.bias": [size_out]} if config.get("bias", True) else {}
        )
        shapes = shapes_of(repository, name) if name in repository.files else wanted
        if shapes != wanted:
            found.append(Finding("weights of another shape", name, f"They are {shapes}, and {file} states {wanted}."))
        elif given is not None and size_in != given:
            detail = f"{file} takes {size_in} numbers, and is given {given}."
            found.append(Finding("weights of another shape", file, detail))
        given = size_out
    return found


def _index(repository: Repository) -> list[Finding]:
    """Compare an index with the headers of the files that it names."""
    file = repository.file_of("Transformer", WEIGHTS_INDEX)
    if file not in repository.files or repository.file_of("Transformer", WEIGHTS) in repository.files:
        return []
    named: dict[str, set[str]] = {}
    for key, name in repository.table(file)["weight_map"].items():
        named.setdefault(repository.file_of("Transformer", str(name)), set()).add(key)
    wrong = sorted(key for name, keys in named.items() for key in keys ^ shapes_of(repository, name).keys())
    if not wrong:
        return []
    return [Finding("index", file, f"It does not say, or says wrongly, in which file {wrong[0]} is.")]
