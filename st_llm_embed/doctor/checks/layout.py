"""Layout, padding, pooling, length and rotary positions: what the readers understand, compared."""

from __future__ import annotations

from st_llm_embed.doctor.readers import POOLING_FILE
from st_llm_embed.doctor.repository import PROMPTS_FILE, SETTINGS_FILE, Repository
from st_llm_embed.doctor.traps import Finding, NotCheckedError, Reading
from st_llm_embed.modules.layout import POOLING_FLAGS, pooling_dimension, pooling_modes

ORDER = ("Transformer", "Pooling", "Dense", "Normalize")
"""Modules of a decoder in the order in which they work."""

POOLING_KEYS = {"word_embedding_dimension", "embedding_dimension", "pooling_mode", "include_prompt"}
"""Keys of a pooling's configuration, besides the booleans."""

OPTIONS = ("model_args", "model_kwargs", "tokenizer_args", "processor_kwargs", "config_args", "config_kwargs")
"""What sentence-transformers hands to transformers when it loads a model, under its older and newer names."""

HARMLESS_OPTIONS = ("attn_implementation", "device_map", "low_cpu_mem_usage", "trust_remote_code", "use_safetensors")
"""Options that change no vector, but for rounding."""

ABSOLUTE = ("gpt2", "gpt_neo", "gpt_bigcode", "openai-gpt", "ctrl")
"""Model types whose positions are counted from the first column of a batch."""


def refused(repository: Repository, readings: list[Reading]) -> list[Finding]:
    """Name the libraries that stop with an error, and weights that are pickles alone."""
    by_reason: dict[str, list[str]] = {}
    for one in readings:
        if one.refuses is not None and not _stops_at_pooling(one):
            by_reason.setdefault(one.refuses, []).append(one.reader)
    found = [Finding("pickles", repository.pickles[0])] if repository.pickles and not repository.weight_files else []
    for reason, readers in by_reason.items():
        file, _, error = reason.partition(": ")
        # There is no older spelling for what it says, so it is there on purpose.
        trap = "newer settings" if "'processing_kwargs'" in error else "unreadable files"
        found.append(Finding(trap, file, f"{', '.join(readers)}: {error}.", tuple(readers)))
    return found


def pooling(repository: Repository, readings: list[Reading]) -> list[Finding]:
    """Compare the pooling that the readers understand."""
    if not repository.modules:
        return [Finding("no modules.json", "modules.json")]
    file = repository.file_of("Pooling")
    if (wrong := _ill_stated(repository, file)) is not None:
        return [wrong]
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
    return [Finding("pooling", file, detail, tuple(others))]


def _ill_stated(repository: Repository, file: str) -> Finding | None:
    """Return what is wrong with the pooling's configuration whoever reads it."""
    config = repository.pooling_config
    if config is None:
        return Finding("pooling", "modules.json", "It lists no Pooling, so that a text has a vector for each token.")
    modes, stated, size = pooling_modes(config), pooling_dimension(config), repository.text_config.get("hidden_size")
    if stated is None or set(modes) - POOLING_FLAGS.keys():
        detail = f"It names {'+'.join(modes)} of {stated} dimensions, and sentence-transformers stops."
        return Finding("pooling", file, detail)
    if len(modes) > 1:
        detail = f"They are {' and '.join(modes)}, so that a vector has {len(modes)} times {stated} numbers."
        return Finding("two poolings", file, detail)
    detail = None
    if unknown := sorted(config.keys() - set(POOLING_FLAGS.values()) - POOLING_KEYS):
        detail = f"It has the key {unknown[0]!r}, at which sentence-transformers stops."
    elif size is not None and stated != size:
        detail = f"It is of {stated} dimensions, and a token has {size}."
    elif modes == ("cls",) and not _sees_both_sides(repository):
        detail = "It reads the first token, which in a decoder sees no other, so that all texts have one vector."
    if detail is not None:
        return Finding("pooling", file, detail)
    if config.get("include_prompt") is False and modes != ("lasttoken",):
        detail = "Without include_prompt sentence-transformers omits the tokens of the prompt, and others do not."
        return Finding("pooling", file, detail, ("TEI", "vLLM", "llama.cpp"))
    return None


def _sees_both_sides(repository: Repository) -> bool:
    config = repository.text_config
    return config.get("is_causal") is False or bool(
        config.get("use_bidirectional_attention") or config.get("auto_map") or not config
    )


def modules(repository: Repository, readings: list[Reading]) -> list[Finding]:
    """Look at the order of the modules, and for Dense ones, which llama.cpp's converter omits."""
    kinds = [one["type"].rpartition(".")[2] for one in repository.modules]
    ranks = [ORDER.index(kind) for kind in kinds if kind in ORDER]
    names = {one.get("name") for one in repository.modules} - {None}
    found = []
    numbers = [one.get("idx") for one in repository.modules]
    numbered = None in numbers or numbers == list(range(len(kinds)))
    once = all(kinds.count(kind) <= 1 for kind in ("Transformer", "Pooling"))
    begins_late = bool(kinds) and kinds[0] in ORDER[1:]
    if ranks != sorted(ranks) or begins_late or not once or not numbered or len(names) < len(kinds):
        detail = ", ".join(
            f"{kind} named {one.get('name')!r} with idx {one.get('idx')}"
            for kind, one in zip(kinds, repository.modules, strict=True)
        )
        found.append(Finding("module order", "modules.json", f"They are: {detail}."))
    if "Dense" in kinds and any(one.reader == "llama.cpp" and one.reads for one in readings):
        detail = f"There are {kinds.count('Dense')}, which llama.cpp's converter omits."
        found.append(Finding("dense layers", "modules.json", detail, ("llama.cpp",)))
    return found


def own_settings(repository: Repository, _: list[Reading]) -> list[Finding]:
    """Look for options in sentence_bert_config.json that change what config.json and tokenizer_config.json say."""
    similarity = repository.table(PROMPTS_FILE).get("similarity_fn_name")
    if similarity not in (None, "cosine", "dot", "euclidean", "manhattan"):
        detail = f"sentence-transformers: similarity_fn_name is {similarity!r}, which is not a similarity."
        return [Finding("unreadable files", PROMPTS_FILE, detail, ("sentence-transformers",))]
    options = {
        f"{key}.{name}": value
        for key in OPTIONS
        for name, value in (repository.settings.get(key) or {}).items()
        if name not in HARMLESS_OPTIONS
    }
    if not options:
        return []
    readers = ("TEI", "vLLM", "llama.cpp", "transformers")
    detail = f"They are {', '.join(f'{name} = {value!r}' for name, value in options.items())}."
    return [Finding("settings of one library", SETTINGS_FILE, detail, readers)]


def own_code(repository: Repository, _: list[Reading]) -> list[Finding]:
    """Look for a model or a tokenizer whose code is in the repository."""
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    kind = repository.model_type
    if repository.config.get("auto_map"):
        what = f"takes its own {kind!r}" if kind in CONFIG_MAPPING_NAMES else f"does not know {kind!r}, and stops"
        detail = f"auto_map names it. Without trust_remote_code transformers {what}."
        return [Finding("custom code", repository.file_of("Transformer"), detail)]
    if repository.config and kind not in CONFIG_MAPPING_NAMES:
        detail = f"transformers {transformers.__version__} does not know model_type {kind!r}."
        return [Finding("not loaded", repository.file_of("Transformer"), detail, ("sentence-transformers",))]
    if repository.tokenizer_config.get("auto_map"):
        detail = "auto_map names that of the tokenizer."
        return [Finding("custom code", repository.file_of("Transformer", "tokenizer_config.json"), detail)]
    return []


def architecture(repository: Repository, _: list[Reading]) -> list[Finding]:
    """Compare the two names of the architecture: transformers goes by model_type, vLLM and llama.cpp by the other."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_MAPPING_NAMES

    kind, named = repository.model_type, next(iter(repository.config.get("architectures") or []), None)
    both = (*MODEL_MAPPING_NAMES.items(), *MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items())
    kinds = sorted({one for one, names in both if named == names or (isinstance(names, tuple) and named in names)})
    if not kinds or kind in kinds:
        return []
    detail = f"model_type is {kind!r}, and {named} is of type {kinds[0]!r}."
    return [Finding("two architectures", repository.file_of("Transformer"), detail, ("vLLM", "llama.cpp"))]


def attention(repository: Repository, readings: list[Reading]) -> list[Finding]:
    """Name the readers that let tokens attend to the left alone, where config.json has them see both sides.

    transformers 5, vLLM and llama.cpp's converter read is_causal, and TEI does of Qwen 2; of other decoders than
    Gemma only TEI reads use_bidirectional_attention.
    """
    config, kind = repository.text_config, str(repository.model_type)
    marked = config.get("use_bidirectional_attention") is True
    if config.get("is_causal") is False:
        key, blind = "is_causal is false", {"transformers 4", "sentence-transformers 5"}
        blind |= set() if marked or kind == "qwen2" else {"TEI"}
    elif marked and not kind.startswith(("gemma", "t5gemma")):
        key, blind = "use_bidirectional_attention is true", {one.reader for one in readings} - {"TEI"}
    else:
        return []
    readers = tuple(one.reader for one in readings if one.reader in blind and one.not_for is None)
    detail = f"{key}, which {', '.join(readers)} do not read."
    return [Finding("attention", repository.file_of("Transformer"), detail, readers)] if readers else []


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
    positions = repository.text_config.get("max_position_embeddings")
    if positions is not None and limit > positions:
        detail = f"Texts are cut at {limit} tokens, and the model has positions for {positions}."
        return [Finding("max length", SETTINGS_FILE, detail)]
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
    if side not in ("left", "right"):
        found.append(Finding("two padding sides", file, f"padding_side is {side!r}, which is neither left nor right."))
    elif stored is not None and stored.lower() != side:
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
