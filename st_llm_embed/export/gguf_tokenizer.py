"""A tokenizer as llama.cpp has it: pieces, their types and scores, merges, and which of its algorithms reads them.

llama.cpp's own converter recognizes a pre-tokenizer by the hash of one encoded text, which an appended EOS changes,
and without a tokenizer.model gives every piece the same score; the ids are then wrong, and nothing warns. Here both
are read from tokenizer.json, and what llama.cpp has no algorithm for is refused.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from st_llm_embed.errors import InputError
from st_llm_embed.modules import end_token_id

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from transformers import PreTrainedTokenizerBase

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Token types of the GGUF format."""

CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

PRE_TOKENIZERS = {
    ("", False): "gpt-2",
    (CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + REST, False): "qwen2",
    (CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + REST, True): "llama-bpe",
    (CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + REST, False): "smaug-bpe",
}
"""llama.cpp's name of a pre-tokenizer (src/llama-vocab.cpp), by its pattern, empty for GPT-2's own, and by whether
whole words that are pieces are taken without merging."""


class GGUFTokenizer(NamedTuple):
    """The tokenizer's part of a GGUF file."""

    model: str
    """llama.cpp's algorithm: `llama` for SentencePiece, `gpt2` for byte-level BPE."""
    pre: str
    pieces: list[str]
    types: list[int]
    scores: list[float] | None
    merges: list[str] | None
    bos: int | None
    end: int
    unknown: int | None
    padding: int | None
    adds_bos: bool
    differences: tuple[str, ...]
    """Texts that llama.cpp reads otherwise, in words."""


def read_tokenizer(tokenizer: PreTrainedTokenizerBase, rows: int) -> GGUFTokenizer:
    """Read a tokenizer for llama.cpp.

    Args:
        tokenizer: a fast one, which ends texts with one token.
        rows: rows of the model's embedding matrix; those without a piece are filled up.

    Raises:
        InputError: llama.cpp has no algorithm that gives the same ids.
    """
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    if content["model"]["type"] != "BPE":
        raise _refusal(
            f"a {content['model']['type']} model",
            "which llama.cpp's SentencePiece algorithm, greedy merging, would cut into other pieces",
        )
    added = {token["id"]: token for token in content["added_tokens"]}
    by_id = {number: piece for piece, number in content["model"]["vocab"].items()}
    # A token that a tokenizer class has added behind the matrix, such as Qwen's pad token, has no embedding anywhere.
    by_id |= {number: token["content"] for number, token in added.items() if number < rows}
    if max(by_id) >= rows:
        raise _refusal(f"{max(by_id) + 1} tokens", f"and the model has embeddings for {rows}")
    if content["model"].get("byte_fallback"):
        model, pre, differences = "llama", "default", _sentencepiece_differences(content)
        scores, merges = _scores(content["model"], by_id, rows), None
    else:
        model, (pre, differences) = "gpt2", _byte_level(content)
        scores, merges = None, [" ".join(pair) for pair in _merges(content["model"])]
    begin = tokenizer("")["input_ids"]
    end = end_token_id(tokenizer)
    adds_bos = tokenizer.bos_token_id is not None and len(begin) == 2 and begin[0] == tokenizer.bos_token_id
    if end is None or begin != ([tokenizer.bos_token_id] if adds_bos else []) + [end]:
        raise _refusal(
            f"{tokenizer.convert_ids_to_tokens(begin)} around a text", "and llama.cpp adds BOS and EOS only"
        )
    return GGUFTokenizer(
        model=model,
        pre=pre,
        pieces=[by_id.get(number, f"[PAD{number}]") for number in range(rows)],
        types=[_type(number, by_id, added, tokenizer.unk_token_id, model) for number in range(rows)],
        scores=scores,
        merges=merges,
        bos=tokenizer.bos_token_id,
        end=end,
        unknown=tokenizer.unk_token_id,
        padding=tokenizer.pad_token_id if tokenizer.pad_token_id in by_id else None,
        adds_bos=adds_bos,
        differences=differences,
    )


def write_tokenizer(writer: GGUFWriter, tokenizer: GGUFTokenizer) -> None:
    """Add a tokenizer to a GGUF file."""
    writer.add_tokenizer_model(tokenizer.model)
    writer.add_tokenizer_pre(tokenizer.pre)
    writer.add_token_list(tokenizer.pieces)
    writer.add_token_types(tokenizer.types)
    if tokenizer.scores is not None:
        writer.add_token_scores(tokenizer.scores)
    if tokenizer.merges is not None:
        writer.add_token_merges(tokenizer.merges)
    if tokenizer.bos is not None:
        writer.add_bos_token_id(tokenizer.bos)
    # Qwen3-Embedding ends texts in its pad token; llama.cpp appends what it holds for EOS.
    writer.add_eos_token_id(tokenizer.end)
    if tokenizer.unknown is not None:
        writer.add_unk_token_id(tokenizer.unknown)
    if tokenizer.padding is not None:
        writer.add_pad_token_id(tokenizer.padding)
    writer.add_add_bos_token(tokenizer.adds_bos)
    writer.add_add_eos_token(True)
    if tokenizer.model == "llama":
        writer.add_add_space_prefix(True)


def _refusal(what: str, why: str) -> InputError:
    return InputError(
        f"The tokenizer has {what}, {why}: the vectors would be silently wrong. Exported to gguf are byte-level "
        "BPE with the pre-tokenizers of GPT-2, Qwen 2 and Llama 3, and BPE with byte fallback as Mistral and Llama 2 "
        "have it. Export to onnx instead, which uses tokenizer.json itself."
    )


def _parts(part: dict[str, Any] | None, inside: str) -> list[dict[str, Any]]:
    """Take a sequence of normalizers or pre-tokenizers apart."""
    if part is None:
        return []
    return [one for nested in part[inside] for one in _parts(nested, inside)] if part["type"] == "Sequence" else [part]


def _byte_level(content: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
    """Return llama.cpp's name of the pre-tokenizer of byte-level BPE, and what it reads otherwise."""
    normalizers = [one["type"] for one in _parts(content["normalizer"], "normalizers")]
    steps = _parts(content["pre_tokenizer"], "pretokenizers")
    if normalizers not in ([], ["NFC"]):
        raise _refusal(f"the normalizers {', '.join(normalizers)}", "and llama.cpp has none")
    last = steps[-1] if steps else {"type": "nothing"}
    name = None
    if last["type"] == "ByteLevel" and not last["add_prefix_space"]:
        whole = bool(content["model"].get("ignore_merges"))
        if len(steps) == 1 and last["use_regex"]:
            name = PRE_TOKENIZERS.get(("", whole))
        elif len(steps) == 2 and steps[0]["type"] == "Split" and not last["use_regex"]:
            isolated = steps[0]["behavior"] == "Isolated" and not steps[0]["invert"]
            name = PRE_TOKENIZERS.get((steps[0]["pattern"].get("Regex", ""), whole)) if isolated else None
    if name is None:
        raise _refusal(f"the pre-tokenizer {json.dumps(content['pre_tokenizer'])[:200]}", "which llama.cpp lacks")
    return name, _normalizer_differences(normalizers)


def _sentencepiece_differences(content: dict[str, Any]) -> tuple[str, ...]:
    """Check that llama.cpp's SentencePiece algorithm fits, and say what it reads otherwise."""
    names = [one["type"] for one in _parts(content["normalizer"], "normalizers")]
    steps = _parts(content["pre_tokenizer"], "pretokenizers")
    differences: list[str] = []
    if names in (["Prepend", "Replace"], ["NFC", "Prepend", "Replace"]) and not steps:
        pass
    elif (
        names in ([], ["NFC"]) and steps and steps[0]["type"] == "Metaspace" and steps[0]["prepend_scheme"] != "never"
    ):
        differences.append("texts that begin with a space, and what follows a special token inside a text")
        others = {one["type"] for one in steps[1:]}
        if not others <= {"Punctuation", "Digits"}:
            raise _refusal(f"the pre-tokenizers {', '.join(sorted(others))}", "which llama.cpp's algorithm lacks")
        if others:
            differences.append("rare words whose pieces can be merged in several ways")
    else:
        raise _refusal(
            f"the normalizers {names} and the pre-tokenizers {[one['type'] for one in steps]}",
            "which llama.cpp's SentencePiece algorithm does not have",
        )
    return (*differences, *_normalizer_differences(names))


def _normalizer_differences(normalizers: list[str]) -> tuple[str, ...]:
    return ("letters and accents that are separate characters (not in NFC)",) if "NFC" in normalizers else ()


def _merges(model: dict[str, Any]) -> list[list[str]]:
    return [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]


def _scores(model: dict[str, Any], by_id: dict[int, str], rows: int) -> list[float]:
    """Return each piece the rank of the first merge that makes it, so that llama.cpp merges in the same order."""
    rank: dict[str, int] = {}
    for place, pair in enumerate(_merges(model)):
        rank.setdefault("".join(pair), place)
    return [float(-rank.get(by_id.get(number, ""), len(rank))) for number in range(rows)]


def _type(number: int, by_id: dict[int, str], added: dict[int, Any], unknown: int | None, model: str) -> int:
    if number not in by_id:
        return UNUSED
    piece = by_id[number]
    if model == "llama" and len(piece) == 6 and piece.startswith("<0x"):
        return BYTE
    if number == unknown and model == "llama":
        return UNKNOWN
    if number in added:
        return CONTROL if added[number]["special"] else USER_DEFINED
    return NORMAL
