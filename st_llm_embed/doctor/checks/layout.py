"""Layout, padding, pooling, length and rotary positions: what the readers understand, compared."""

from __future__ import annotations

from pathlib import Path

from st_llm_embed.doctor.readers import POOLING_FILE
from st_llm_embed.doctor.repository import SETTINGS_FILE, Repository
from st_llm_embed.doctor.traps import Finding, NotCheckedError, Reading

ABSOLUTE = ("gpt2", "gpt_neo", "opt", "gpt_bigcode", "xglm")
"""Model types whose positions are counted from the first column of a batch."""

PICKLES = ("pytorch_model", "adapter_model.bin")


def refused(repository: Repository, readings: list[Reading]) -> list[Finding]:
    """Name the libraries that stop with an error, and weights that are pickles alone."""
    by_reason: dict[str, list[str]] = {}
    for one in readings:
        if one.refuses is not None and not _stops_at_pooling(one):
            by_reason.setdefault(one.refuses, []).append(one.reader)
    pickles = sorted(file for file in repository.files if Path(file).name.startswith(PICKLES))
    has_weights = any(file.endswith(".safetensors") for file in repository.files)
    found = [Finding("pickles", pickles[0])] if pickles and not has_weights else []
    for reason, readers in by_reason.items():
        file, _, error = reason.partition(": ")
        found.append(Finding("unreadable files", file, f"{', '.join(readers)}: {error}.", tuple(readers)))
    return found


def pooling(repository: Repository, readings: list[Reading]) -> list[Finding]:
    """Compare the pooling that the readers understand."""
    if not repository.modules:
        return [Finding("no modules.json", "modules.json")]
    if repository.pooling_config is None:
        raise NotCheckedError("modules.json has no Pooling")
    # One that refuses the pooling's file is affected as well.
    others = {
        one.reader: one.pooling or one.refuses
        for one in readings
        if one.not_for is None
        and (_stops_at_pooling(one) or (one.reads and one.pooling not in (None, repository.pooling)))
    }
    if not others:
        return []
    read = ", ".join(f"{reader} ({pooling})" for reader, pooling in others.items())
    detail = f"sentence-transformers 6 reads {repository.pooling}, others do not: {read}."
    return [Finding("pooling", repository.file_of("Pooling"), detail, tuple(others))]


def normalisation(repository: Repository, _: list[Reading]) -> list[Finding]:
    """Look for the module Normalize, and for the dimensions that vectors may be cut to."""
    found = []
    if repository.modules and not repository.normalized:
        detail = "There is no module Normalize, which TEI and llama.cpp do not need."
        found.append(Finding("not normalised", "modules.json", detail, ("sentence-transformers", "vLLM")))
    stated = repository.matryoshka_dimensions
    trained = list((repository.recipe.get("loss") or {}).get("matryoshka_dims") or [])
    size = repository.dimension if stated else 0
    if stated is not None and (
        not isinstance(stated, list) or not all(isinstance(one, int) and 0 < one <= size for one in stated)
    ):
        detail = f"There are {stated}, and vectors have {size} dimensions."
        found.append(Finding("matryoshka dimensions", "config.json", detail, ("vLLM",)))
    elif not set(trained) <= set(stated or []):
        found.append(Finding("unstated dimensions", "config.json", f"It was trained for {trained}.", ("vLLM",)))
    return found


def lengths(repository: Repository, readings: list[Reading]) -> list[Finding]:
    """Compare where the readers cut a text."""
    stated = {one.reader: one.max_length for one in readings if one.not_for is None}
    stated.pop("llama.cpp", None)  # its context is the user's choice, not the repository's
    truncation = repository.tokenizer_json.get("truncation") or {}
    if "max_length" in truncation:
        stated["tokenizers"] = truncation["max_length"]
    limit = repository.max_seq_length
    if limit is None:
        return [Finding("no max length", SETTINGS_FILE)]
    other = {reader: length for reader, length in stated.items() if length != limit}
    if not other:
        return []
    read = ", ".join(f"{reader} {'never' if length is None else f'at {length}'}" for reader, length in other.items())
    unstated = all(length is None for length in other.values())
    file = "tokenizer_config.json" if unstated or "tokenizers" in other else SETTINGS_FILE
    detail = f"sentence-transformers 6 cuts texts at {limit} tokens, others elsewhere: {read}."
    return [Finding("unstated length" if unstated else "max length", file, detail, tuple(other))]


def padding(repository: Repository, _: list[Reading]) -> list[Finding]:
    """Look for what makes padding part of the text."""
    file = "tokenizer_config.json"
    names = repository.tokenizer_config.get("model_input_names")
    side = repository.tokenizer_config.get("padding_side", "right")
    stored = (repository.tokenizer_json.get("padding") or {}).get("direction")
    found = []
    if isinstance(names, list) and "attention_mask" not in names:
        found.append(Finding("no attention mask", file, f"model_input_names is {names}."))
    if side == "left" and repository.model_type in ABSOLUTE:
        found.append(Finding("left padding of absolute positions", file, f"It is a {repository.model_type}."))
    if stored is not None and stored.lower() != side:
        found.append(Finding("two padding sides", file, f"They are {side} and {stored.lower()}."))
    if repository.tokenizer is not None and repository.token_id("pad") is None:
        found.append(Finding("no pad token", file))
    return found


def rope(repository: Repository, _: list[Reading]) -> list[Finding]:
    """Compare the base of the rotary positions that transformers 4 and 5 take."""
    config = repository.text_config
    parameters = config.get("rope_parameters") or {}
    if any(isinstance(value, dict) for value in parameters.values()):
        raise NotCheckedError("each type of layer has a rotary base of its own")
    if not parameters and "rope_theta" not in config:
        raise NotCheckedError("config.json names no rotary base")
    scaling = config.get("rope_scaling") or {}
    old = float(config.get("rope_theta", 10_000.0)), scaling.get("rope_type", scaling.get("type", "default"))
    new = float(parameters.get("rope_theta", old[0])), parameters.get("rope_type", old[1])
    if old == new:
        return []
    detail = f"transformers 4 reads the base {old[0]:g} ({old[1]}), transformers 5 {new[0]:g} ({new[1]})."
    return [Finding("rotary base", "config.json", detail, ("transformers 4", "sentence-transformers 5"))]


def _stops_at_pooling(reading: Reading) -> bool:
    """Return whether a reader refuses the pooling's file, which is a matter of pooling."""
    return (reading.refuses or "").startswith(POOLING_FILE)
