"""Traps 13 and 14: texts changed before they are tokens, and tokenizers that are rebuilt from other files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from st_llm_embed.doctor.finding import Finding, NotCheckedError, Reading
from st_llm_embed.doctor.readers import LLAMA_CPP_READS, chat_rendered
from st_llm_embed.doctor.repository import Repository
from st_llm_embed.doctor.sentencepiece import read_pieces

EDGES = ("Strip", "StripAccents", "Lowercase", "BertNormalizer")
"""Normalizers that take something away from a text, and that llama.cpp does not know."""


def texts_changed(repository: Repository, readings: list[Reading]) -> list[Finding]:
    """Look for lower case and stripped edges that only some readers have (trap 13)."""
    found = []
    lower = {one.reader: one.lower_case for one in readings if one.reads and one.lower_case is not None}
    if len(set(lower.values())) > 1:
        do = tuple(reader for reader, value in lower.items() if value)
        found.append(
            Finding(
                13,
                "error",
                "sentence_bert_config.json",
                f"do_lower_case is true: {', '.join(do)} lower every text, the others do not.",
                "Set do_lower_case to false if the model was trained on texts as they are; else put Lowercase into "
                "the normalizer of tokenizer.json.",
                tuple(reader for reader, value in lower.items() if not value),
            )
        )
    kinds = [kind for kind in _kinds(repository.tokenizer_json.get("normalizer")) if kind in EDGES]
    if kinds:
        found.append(
            Finding(
                13,
                "warning",
                "tokenizer.json",
                f"The normalizer has {', '.join(kinds)}, which llama.cpp does not know: there a text with edge "
                "whitespace, accents or capitals has other tokens.",
                "Train with a tokenizer that takes texts as they are, and strip texts before they are encoded.",
                ("llama.cpp",),
            )
        )
    return found


def rebuilt(repository: Repository, readings: list[Reading]) -> list[Finding]:
    """Compare tokenizer.json with what other files say about the tokenizer (trap 14)."""
    del readings
    if repository.tokenizer is None:
        return [
            Finding(
                14,
                "error",
                "tokenizer.json",
                "There is no tokenizer.json: each library builds the tokenizer from other files, and TEI refuses.",
                "Save the tokenizer with transformers 5, or AutoTokenizer(...).save_pretrained in transformers 4.",
            )
        ]
    found = []
    if chat_rendered(repository):
        found.append(
            Finding(
                14,
                "error",
                "sentence_bert_config.json",
                "modality_config has 'message': sentence-transformers 6 renders each text by the chat template, and "
                "the other libraries tokenize it as it is.",
                "Remove modality_config, unless the model was trained on rendered texts.",
                ("sentence-transformers 6",),
            )
        )
    vocabulary = _vocabulary(repository.tokenizer_json)
    size = repository.text_config.get("vocab_size")
    if size is not None and max(vocabulary.values()) >= size:
        found.append(
            Finding(
                14,
                "error",
                "tokenizer.json",
                f"The tokenizer gives ids up to {max(vocabulary.values())}, and the model has {size} embeddings.",
                "Take the tokenizer of the model's own base.",
            )
        )
    if "tokenizer.model" in repository.files:
        return [*found, *_other_pieces(repository, vocabulary)]
    if _llama_cpp_guesses(repository) and "probe.json" not in repository.files:
        found.append(
            Finding(
                14,
                "warning",
                "tokenizer.model",
                "There is no tokenizer.model: llama.cpp's converter gives all pieces one score and so cuts texts into "
                "other tokens, without an error; and no probe.json shows it.",
                "Copy tokenizer.model from the base, convert with `st-llm-embed export --to gguf`, or add probe.json.",
                ("llama.cpp",),
            )
        )
    return found


def probe_tokens(repository: Repository, readings: list[Reading]) -> list[Finding]:
    """Tokenize the texts of probe.json anew and compare (traps 6, 13, 14 and 15)."""
    probe = repository.probe
    if probe is None:
        raise NotCheckedError("there is no probe.json")
    if repository.tokenizer is None:
        raise NotCheckedError("there is no tokenizer.json")
    found = []
    if probe.max_seq_length != readings[0].max_length:
        found.append(
            Finding(
                15,
                "error",
                "sentence_bert_config.json",
                f"Texts are cut off at {readings[0].max_length} tokens, and probe.json was made at "
                f"{probe.max_seq_length}.",
                f"Set max_seq_length to {probe.max_seq_length}, or make probe.json anew.",
            )
        )
    saved = {name: repository.prompts.get(name) or "" for name in probe.prompts}
    if saved != probe.prompts:
        name = next(name for name, prompt in probe.prompts.items() if saved[name] != prompt)
        found.append(
            Finding(
                6,
                "error",
                "config_sentence_transformers.json",
                f"The prompt {name!r} is {saved[name]!r}, and probe.json was made with {probe.prompts[name]!r}.",
                "Save the prompts that the model was published with, or make probe.json anew.",
            )
        )
    if probe.max_seq_length is not None:
        repository.tokenizer.enable_truncation(probe.max_seq_length)
    try:
        other = [one for one in probe.texts if repository.tokenizer.encode(one.prompt + one.text).ids != list(one.ids)]
    finally:
        repository.tokenizer.no_truncation()
    if other:
        special = [token["content"] for token in repository.tokenizer_json.get("added_tokens", [])]
        # Around a special token within a text is an edge, too.
        edges = any(one.text != one.text.strip() for one in other) and all(
            one.text != one.text.strip() or any(token in one.text for token in special) for one in other
        )
        found.append(
            Finding(
                13 if edges else 14,
                "error",
                "tokenizer.json",
                f"{len(other)} of {len(probe.texts)} texts of probe.json have other tokens than when it was made, "
                f"such as {other[0].name!r}" + (": all of them have whitespace at an edge." if edges else "."),
                "Take the tokenizer that the model was trained with, or make probe.json anew.",
            )
        )
    return found


def _kinds(normalizer: Any) -> Iterator[str]:
    if isinstance(normalizer, dict):
        yield normalizer.get("type", "")
        for part in normalizer.get("normalizers", []):
            yield from _kinds(part)


def _llama_cpp_guesses(repository: Repository) -> bool:
    """Say whether the converter's class LlamaHfVocab takes this tokenizer, whose pieces then all have one score."""
    model, decoder = repository.tokenizer_json.get("model", {}), repository.tokenizer_json.get("decoder") or {}
    named = (repository.config.get("architectures") or [""])[0].removesuffix("ForCausalLM").removesuffix("Model")
    return (
        named in LLAMA_CPP_READS
        and model.get("type") == "BPE"
        and bool(model.get("byte_fallback"))
        and decoder.get("type") == "Sequence"
    )


def _vocabulary(tokenizer: dict[str, Any]) -> dict[str, int]:
    """Give the ids of all pieces, read from the JSON: the library takes longer to hand them over."""
    pieces = tokenizer["model"]["vocab"]
    if isinstance(pieces, list):
        pieces = {piece: number for number, (piece, _) in enumerate(pieces)}
    return pieces | {token["content"]: token["id"] for token in tokenizer.get("added_tokens", [])}


def _other_pieces(repository: Repository, vocabulary: dict[str, int]) -> list[Finding]:
    pieces = read_pieces(repository.folder / "tokenizer.model")
    if pieces is None:
        raise NotCheckedError("tokenizer.model is no SentencePiece file")
    other = [piece for number, piece in enumerate(pieces) if vocabulary.get(piece) != number]
    if not other:
        return []
    return [
        Finding(
            14,
            "error",
            "tokenizer.model",
            f"{len(other)} of its {len(pieces)} pieces have another id in tokenizer.json, or none, such as "
            f"{other[0]!r}: llama.cpp and slow tokenizers read the one file, the others the other.",
            "Copy tokenizer.model from the base that tokenizer.json is of, or remove it.",
            ("llama.cpp",),
        )
    ]
