"""Traps 4, 5, 12 and 15, and files that a library cannot read: what the readers understand, compared."""

from __future__ import annotations

from pathlib import Path

from st_llm_embed.doctor.finding import Finding, NotCheckedError, Reading
from st_llm_embed.doctor.readers import rope_of_transformers_4, rope_of_transformers_5
from st_llm_embed.doctor.repository import Repository

ABSOLUTE = ("gpt2", "gpt_neo", "opt", "gpt_bigcode", "xglm")
"""Model types whose positions are counted from the first column of a batch."""


PICKLES = ("pytorch_model", "adapter_model.bin")


def refused(repository: Repository, readings: list[Reading]) -> list[Finding]:
    """Name the libraries that stop with an error, and weights that are pickles alone."""
    files = {"tokenizer": "tokenizer_config.json", "extra_special": "tokenizer_config.json", "params": "params.json"}
    files |= {"Transformer.__init__": "sentence_bert_config.json", "sentence_bert": "sentence_bert_config.json"}
    files |= {"`config.json`": "config.json"}
    by_reason: dict[str, list[str]] = {}
    for one in readings:
        if one.refuses is not None and not _stops_at_pooling(one):
            by_reason.setdefault(one.refuses, []).append(one.reader)
    pickles = sorted(file for file in repository.files if Path(file).name.startswith(PICKLES))
    found = []
    if pickles and not any(file.endswith(".safetensors") for file in repository.files):
        found.append(
            Finding(
                "layout",
                "error",
                pickles[0],
                "The weights are pickles, which can run code when they are loaded; doctor does not load them.",
                "Save the model with safetensors: model.save_pretrained(folder).",
            )
        )
    for reason, readers in by_reason.items():
        found.append(
            Finding(
                "layout",
                "error",
                next((file for word, file in files.items() if word.lower() in reason.lower()), "modules.json"),
                f"{', '.join(readers)} cannot read the repository: {reason}.",
                "Write the legacy layout, which all of them read (doctor --fix does).",
                tuple(readers),
            )
        )
    return found


def pooling(repository: Repository, readings: list[Reading]) -> list[Finding]:
    """Compare the pooling that the readers understand (trap 5)."""
    reference, *others = readings
    module = repository.module("Pooling")
    file = repository.file_of(module) if module else "modules.json"
    if repository.modules and module is None:
        raise NotCheckedError("modules.json has no Pooling")
    if not repository.modules:
        return [
            Finding(
                5,
                "error",
                "modules.json",
                "There is no modules.json: sentence-transformers takes mean pooling without normalisation, vLLM the "
                "last token, and TEI asks for --pooling.",
                "Save the model with sentence-transformers, or with LLMSentenceTransformer.from_base.",
            )
        ]
    # One that refuses the pooling's file is hit as well.
    hit = tuple(
        f"{one.reader} ({one.pooling or one.refuses})"
        for one in others
        if one.not_for is None
        and (_stops_at_pooling(one) or (one.reads and one.pooling is not None and one.pooling != reference.pooling))
    )
    if not hit:
        return []
    return [
        Finding(
            5,
            "error",
            file,
            f"sentence-transformers 6 reads the pooling as {reference.pooling}, others do not: {', '.join(hit)}.",
            "Write the booleans pooling_mode_*, all of them, with the one that the model was trained with true.",
            tuple(one.split(" (")[0] for one in hit),
        )
    ]


def normalisation(repository: Repository, readings: list[Reading]) -> list[Finding]:
    """Look for the module Normalize, and for the lengths that vectors may be cut to (trap 12)."""
    found = []
    if repository.modules and not readings[0].normalize:
        found.append(
            Finding(
                12,
                "error",
                "modules.json",
                "There is no module Normalize: sentence-transformers and vLLM give vectors of any length, TEI and "
                "llama.cpp of length 1, and scores by dot product differ.",
                "Add sentence_transformers.models.Normalize as the last module.",
                ("sentence-transformers", "vLLM"),
            )
        )
    module = repository.module("Pooling")
    sizes = repository.table(repository.file_of(module)) if module else {}
    size = sizes.get("word_embedding_dimension", sizes.get("embedding_dimension"))
    given = repository.config.get("matryoshka_dimensions")
    trained = list((repository.recipe.get("loss") or {}).get("matryoshka_dims") or [])
    if given is not None and (
        not isinstance(given, list) or not all(isinstance(one, int) and 0 < one <= (size or one) for one in given)
    ):
        found.append(
            Finding(
                12,
                "error",
                "config.json",
                f"matryoshka_dimensions is {given}, and the vectors have {size} dimensions.",
                f"List whole numbers from 1 to {size}, or remove the key.",
                ("vLLM",),
            )
        )
    elif trained and not set(trained) <= set(given or []):
        found.append(
            Finding(
                12,
                "warning",
                "config.json",
                f"The model was trained for the lengths {trained} and config.json lists {given}: vLLM refuses "
                "`dimensions`, and who cuts vectors by hand gets a length below 1.",
                f"Set matryoshka_dimensions to {trained} in config.json.",
                ("vLLM",),
            )
        )
    return found


def lengths(repository: Repository, readings: list[Reading]) -> list[Finding]:
    """Compare where the readers cut a text off (trap 15)."""
    reference = readings[0]
    stated = {one.reader: one.max_length for one in readings if one.not_for is None}
    stated.pop("llama.cpp", None)  # its context is the user's choice, not the repository's
    truncation = repository.tokenizer_json.get("truncation") or {}
    if "max_length" in truncation:
        stated["tokenizers"] = truncation["max_length"]
    if reference.max_length is None:
        return [
            Finding(
                15,
                "error",
                "sentence_bert_config.json",
                "No file says how long a text may be, so that each server cuts off where it likes.",
                "Write max_seq_length into sentence_bert_config.json and model_max_length into tokenizer_config.json.",
            )
        ]
    other = {reader: length for reader, length in stated.items() if length != reference.max_length}
    if not other:
        return []
    told = ", ".join(f"{reader} {'never' if length is None else f'at {length}'}" for reader, length in other.items())
    only_unsaid = all(length is None for length in other.values())
    return [
        Finding(
            15,
            "warning" if only_unsaid else "error",
            "tokenizer_config.json" if only_unsaid or "tokenizers" in other else "sentence_bert_config.json",
            f"sentence-transformers 6 cuts texts off at {reference.max_length} tokens, others elsewhere: {told}.",
            f"Write {reference.max_length} as max_seq_length (with do_lower_case) in sentence_bert_config.json, "
            "model_max_length in tokenizer_config.json, and truncation.max_length in tokenizer.json.",
            tuple(other),
        )
    ]


def padding(repository: Repository, readings: list[Reading]) -> list[Finding]:
    """Look for what makes padding part of the text (trap 4)."""
    del readings
    config = repository.tokenizer_config
    names = config.get("model_input_names")
    side = config.get("padding_side", "right")
    stored = (repository.tokenizer_json.get("padding") or {}).get("direction")
    found = []
    if isinstance(names, list) and "attention_mask" not in names:
        found.append(
            Finding(
                4,
                "error",
                "tokenizer_config.json",
                f"model_input_names is {names}: the tokenizer gives no attention mask, and padding is read as text.",
                "Add attention_mask to model_input_names, or remove the key.",
            )
        )
    if side == "left" and repository.config.get("model_type") in ABSOLUTE:
        found.append(
            Finding(
                4,
                "error",
                "tokenizer_config.json",
                f"padding_side is left, and a {repository.config['model_type']} counts positions from the first "
                "column of a batch: the vector of a text depends on the texts beside it.",
                "Set padding_side to right.",
            )
        )
    if stored is not None and stored.lower() != side:
        found.append(
            Finding(
                4,
                "warning",
                "tokenizer_config.json",
                f"padding_side is {side} in tokenizer_config.json and {stored.lower()} in tokenizer.json; a runtime "
                "that takes the last column for the last token is right with one of them only.",
                "Let both files name one side.",
            )
        )
    if repository.tokenizer is not None and repository.token_id("pad") is None:
        found.append(
            Finding(
                4,
                "error",
                "tokenizer_config.json",
                "There is no pad_token that the tokenizer knows, so that texts of different lengths make no batch.",
                "Set pad_token, to eos_token where there is no other.",
            )
        )
    return found


def rope(repository: Repository, readings: list[Reading]) -> list[Finding]:
    """Compare the base of the rotary positions that transformers 4 and 5 take."""
    del readings
    config = repository.text_config
    parameters = config.get("rope_parameters")
    if isinstance(parameters, dict) and any(isinstance(value, dict) for value in parameters.values()):
        raise NotCheckedError("each type of layer has a rotary base of its own")
    if parameters is None and "rope_theta" not in config:
        raise NotCheckedError("config.json names no rotary base")
    old, new = rope_of_transformers_4(config), rope_of_transformers_5(config)
    if old == new:
        return []
    return [
        Finding(
            "rope",
            "error",
            "config.json",
            f"transformers 4 reads the rotary base {old[0]:g} ({old[1]}), transformers 5 {new[0]:g} ({new[1]}).",
            "Write rope_theta, and rope_scaling where there is one, beside rope_parameters with the same values.",
            ("transformers 4", "sentence-transformers 5"),
        )
    ]


def _stops_at_pooling(reading: Reading) -> bool:
    """Say whether a reader refuses the pooling's file, which is trap 5."""
    return reading.refuses is not None and any(word in reading.refuses for word in ("1_Pooling", "Pooling.__init__"))
