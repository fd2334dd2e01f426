"""What each library would understand of a repository, by its own rules; no library is imported or needed.

Each function simulates one reader and names the upstream file whose rules it follows.
"""

from __future__ import annotations

from st_llm_embed.doctor.repository import SETTINGS_FILE, Repository
from st_llm_embed.doctor.traps import Reading
from st_llm_embed.modules.layout import LEGACY_MODULES, POOLING_FLAGS

POOLING_FILE = "1_Pooling/config.json"

FLAG_CLASSES = ("LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer", "CohereTokenizer")
"""Classes whose fast version in transformers 4 rebuilds the post-processor from add_bos_token and add_eos_token."""

FLAG_MODEL_TYPES = ("llama", "mistral", "mixtral", "gemma", "gemma2", "cohere")
"""Model types for which transformers 4 takes one of those classes where no class is named."""

ST_5_SETTINGS = {"max_seq_length", "do_lower_case", "model_args", "tokenizer_args", "config_args"}
"""Keys of sentence_bert_config.json that are parameters of its Transformer."""

TEI_MODEL_TYPES = ("mistral", "llama", "qwen2", "qwen3", "gemma3_text", "nomic_bert", "gte", "new")
LLAMA_CPP_POOLS = ("Qwen2", "Qwen3", "Gemma3Text", "Arcee")
"""Architectures whose converter class writes the pooling type."""
LLAMA_CPP_READS = ("Llama", "Mistral", "Mixtral")


def read_all(repository: Repository) -> list[Reading]:
    """Return what every library understands; the first is sentence-transformers 6, the reference of the others."""
    readers = (sentence_transformers_6, sentence_transformers_5, transformers_5, transformers_4, tei, vllm, llama_cpp)
    return [read(repository) for read in readers]


def sentence_transformers_6(repository: Repository) -> Reading:
    """sentence_transformers 6.2: base/modules/transformer.py, sentence_transformer/modules/pooling.py."""
    kinds = (one["type"] for one in repository.modules)
    custom = next((kind for kind in kinds if not kind.startswith("sentence_transformers.")), None)
    return Reading(
        "sentence-transformers 6",
        refuses=f"modules.json: it names {custom}, which needs trust_remote_code" if custom else None,
        pooling=repository.pooling,
        max_length=repository.max_seq_length,
        ends_with=_from_post_processor(repository),
        begins_with=_from_post_processor(repository, before=True),
    )


def sentence_transformers_5(repository: Repository) -> Reading:
    """sentence_transformers 5.1.2 on transformers 4.57: models/Transformer.py, models/Pooling.py."""
    settings = repository.settings
    kinds = (one["type"] for one in repository.modules if not one["type"].startswith(LEGACY_MODULES))
    new = next((kind for kind in kinds if kind.startswith("sentence_transformers.")), None)
    unknown = sorted(settings.keys() - ST_5_SETTINGS)
    refuses = _transformers_4_refuses(repository)
    if new is not None:
        refuses = f"modules.json: No module named {new.rpartition('.')[0]!r}"
    elif unknown:
        refuses = f"{SETTINGS_FILE}: Transformer.__init__() got an unexpected keyword argument {unknown[0]!r}"
    elif "embedding_dimension" in (repository.pooling_config or {}):
        refuses = f"{POOLING_FILE}: Pooling.__init__() got an unexpected keyword argument 'embedding_dimension'"
    return Reading(
        "sentence-transformers 5",
        refuses=refuses,
        pooling=_pooling_of_booleans(repository, mean_by_default=True),
        max_length=settings.get("max_seq_length") or repository.least("model_max_length", "max_position_embeddings"),
        ends_with=_of_transformers_4(repository),
        begins_with=_of_transformers_4(repository, before=True),
    )


def transformers_5(repository: Repository) -> Reading:
    """Transformers 5.23, as plain code uses it: tokenization_utils_tokenizers.py; flags have no effect there."""
    return Reading(
        "transformers 5",
        max_length=_of_tokenizer(repository),
        ends_with=_from_post_processor(repository),
        begins_with=_from_post_processor(repository, before=True),
    )


def transformers_4(repository: Repository) -> Reading:
    """Transformers 4.57, as plain code uses it: models/llama/tokenization_llama_fast.py."""
    return Reading(
        "transformers 4",
        refuses=_transformers_4_refuses(repository),
        max_length=_of_tokenizer(repository),
        ends_with=_of_transformers_4(repository),
        begins_with=_of_transformers_4(repository, before=True),
    )


def tei(repository: Repository) -> Reading:
    """text-embeddings-inference 1.9: the structs ModelConfig, PoolConfig and STConfig of router/src/lib.rs."""
    kind = repository.model_type
    if kind not in TEI_MODEL_TYPES:
        return Reading("TEI", not_for=f"it serves no models of type {kind!r}")
    if not repository.modules:
        return Reading("TEI", not_for="without modules.json the pooling has to be given by --pooling")
    settings, pooling = repository.settings, repository.pooling_config
    refuses = None
    positions = repository.text_config.get("max_position_embeddings")
    if "architectures" not in repository.config or not isinstance(positions, int) or not 0 <= positions < 2**64:
        refuses = "config.json: failed to parse"
    elif pooling is None or not all(
        # Of the others it takes false where they are not written.
        isinstance(pooling.get(key, None if mode in ("cls", "mean") else False), bool)
        for mode, key in POOLING_FLAGS.items()
    ):
        refuses = f"{POOLING_FILE}: failed to parse"
    elif SETTINGS_FILE in repository.files and not isinstance(settings.get("max_seq_length"), int):
        refuses = f"{SETTINGS_FILE}: failed to parse"
    elif "tokenizer.json" not in repository.files:
        refuses = "tokenizer.json: not found"
    return Reading(
        "TEI",
        refuses=refuses,
        pooling=_pooling_of_booleans(repository),
        max_length=settings.get("max_seq_length") or repository.least("max_position_embeddings"),
        ends_with=_from_post_processor(repository),
        begins_with=_from_post_processor(repository, before=True),
    )


def vllm(repository: Repository) -> Reading:
    """The reader of vLLM up to 2026-08: get_pooling_config and its neighbours in transformers_utils/config.py."""
    if "params.json" in repository.files:
        return Reading("vLLM", refuses="params.json: the repository is read in Mistral's own format")
    legacy = any(one["type"] == f"{LEGACY_MODULES}.Pooling" for one in repository.modules)
    named = _pooling_of_booleans(repository) if legacy else None
    settings = repository.settings
    whole = settings.keys() >= {"max_seq_length", "do_lower_case"}
    return Reading(
        "vLLM",
        # Without a configuration that it knows, silently the default of decoders.
        pooling=named or "lasttoken",
        max_length=settings["max_seq_length"] if whole else repository.least("max_position_embeddings"),
        ends_with=_from_post_processor(repository),
        begins_with=_from_post_processor(repository, before=True),
    )


def llama_cpp(repository: Repository) -> Reading:
    """llama.cpp's converter: conversion/base.py (_try_set_pooling_type), gguf-py/gguf/vocab.py (SpecialVocab)."""
    family = llama_cpp_family(repository)
    if family not in (*LLAMA_CPP_POOLS, *LLAMA_CPP_READS):
        return Reading("llama.cpp", not_for=f"its converter writes no pooling for {family or 'this architecture'}")
    # The converter's class for Llama and Mistral writes no pooling type, whatever the repository says.
    pooling = repository.pooling if family in LLAMA_CPP_POOLS else None
    around = {}
    for role, before in (("bos", True), ("eos", False)):
        around[role] = _from_post_processor(repository, before=before)
        flag = repository.tokenizer_config.get(f"add_{role}_token")
        if isinstance(flag, bool) and repository.tokenizer is not None:
            around[role] = (around[role] or _token(repository, role)) if flag else ""
    return Reading("llama.cpp", pooling=pooling, ends_with=around["eos"], begins_with=around["bos"])


def llama_cpp_family(repository: Repository) -> str:
    """Return the architecture by which the converter of llama.cpp chooses its class."""
    named = (repository.config.get("architectures") or [""])[0]
    return named.removesuffix("ForCausalLM").removesuffix("Model")


def chat_rendered(repository: Repository) -> bool:
    """Return whether sentence-transformers 6 renders every text by the chat template."""
    modality = repository.settings.get("modality_config")
    if not isinstance(modality, dict) or not {"text", "message"} <= modality.keys():
        return False
    return "chat_template.jinja" in repository.files or bool(repository.tokenizer_config.get("chat_template"))


def _pooling_of_booleans(repository: Repository, *, mean_by_default: bool = False) -> str | None:
    config = repository.pooling_config or {}
    if mean_by_default:
        config = {POOLING_FLAGS["mean"]: True} | config
    return "+".join(name for name, key in POOLING_FLAGS.items() if config.get(key)) or None


def _of_tokenizer(repository: Repository) -> int | None:
    """Return where the tokenizer cuts a text; a limit above the model's number of positions is that number."""
    limit = repository.least("model_max_length")
    return limit and repository.least("model_max_length", "max_position_embeddings")


def _from_post_processor(repository: Repository, *, before: bool = False) -> str | None:
    """Return the token that tokenizer.json puts after a text, or before it; empty for none."""
    if repository.tokenizer is None:
        return None
    first, last = repository.around
    found = first[:1] if before else last[-1:]
    return repository.token(found[0]) if found else ""


def _transformers_4_refuses(repository: Repository) -> str | None:
    config = repository.tokenizer_config
    if config.get("tokenizer_class") == "TokenizersBackend":
        return "tokenizer_config.json: Tokenizer class TokenizersBackend does not exist"
    if isinstance(config.get("extra_special_tokens"), list):
        return "tokenizer_config.json: 'list' object has no attribute 'keys' (extra_special_tokens)"
    return None


def _of_transformers_4(repository: Repository, *, before: bool = False) -> str | None:
    if repository.tokenizer is None:
        return None
    config = repository.tokenizer_config
    named = config.get("tokenizer_class")
    by_flags = named.removesuffix("Fast") in FLAG_CLASSES if named else repository.model_type in FLAG_MODEL_TYPES
    if not by_flags:
        return _from_post_processor(repository, before=before)
    role, default = ("bos", True) if before else ("eos", False)
    return _token(repository, role) if config.get(f"add_{role}_token", default) else ""


def _token(repository: Repository, role: str) -> str:
    number = repository.token_id(role)
    return "" if number is None else repository.token(number)
