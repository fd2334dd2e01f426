"""A tokenizer as llama.cpp has it: pieces, their types and scores, merges, and which of its algorithms reads them.

llama.cpp's own converter recognizes a pre-tokenizer by the hash of one encoded text, which an appended EOS changes,
and without a tokenizer.model gives every piece the same score; the ids are then wrong, and nothing warns. Here both
are read from tokenizer.json, and what llama.cpp has no algorithm for is refused.
"""

from __future__ import annotations

import json
import re
from importlib.resources import files
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from st_llm_embed.errors import InputError
from st_llm_embed.modules.eos import end_token_id

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from transformers import PreTrainedTokenizerBase

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Token types of the GGUF format."""


class PreTokenizer(NamedTuple):
    """A way of llama.cpp to split texts before byte-level BPE; the fields are explained in pre_tokenizers.yaml."""

    name: str
    ignore_merges: bool
    capitals: bool
    patterns: list[str]


PRE_TOKENIZERS = [
    PreTokenizer(**entry)
    for entry in yaml.safe_load((files("st_llm_embed") / "export" / "pre_tokenizers.yaml").read_text(encoding="utf-8"))
]

GPT2 = PRE_TOKENIZERS[0]

CAPITALS = ("words with capitals other than A to Z inside, and letters with combining marks, as in Hindi",)
"""What llama.cpp splits otherwise where a pattern tells capitals from small letters."""

CUTTING = {"Punctuation", "Digits"}
"""Pre-tokenizers after Metaspace without which llama.cpp cuts nearly all texts alike."""

NOT_NFC = ("letters and accents that are separate characters (not in NFC)",)


class GGUFTokenizer(NamedTuple):
    """The tokenizer's part of a GGUF file."""

    model: str
    """llama.cpp's algorithm: `llama` for SentencePiece, `gpt2` for byte-level BPE."""
    pre: str
    pieces: list[str]
    types: list[int]
    scores: list[float] | None
    merges: list[str] | None
    special_ids: dict[str, int | None]
    """By role: bos, eos, unk, pad."""
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
        raise _refusal(f"a {content['model']['type']} model, which llama.cpp does not have for decoders")
    added = {token["id"]: token for token in content["added_tokens"]}
    by_id = {number: piece for piece, number in content["model"]["vocab"].items()}
    # A token that a tokenizer class has added behind the matrix, such as Qwen's pad token, has no embedding anywhere.
    by_id |= {number: token["content"] for number, token in added.items() if number < rows}
    if max(by_id) >= rows:
        raise _refusal(f"{max(by_id) + 1} tokens, and the model has embeddings for {rows}")
    types = [_type(by_id.get(number), added.get(number)) for number in range(rows)]
    ranked: list[list[str]] = content["model"]["merges"]
    scores = merges = None
    if content["model"].get("byte_fallback"):
        model, pre, differences = "llama", "default", _sentencepiece_differences(content)
        for number in by_id:
            if re.fullmatch("<0x..>", by_id[number]):
                types[number] = BYTE
            elif number == tokenizer.unk_token_id:
                types[number] = UNKNOWN
        # The rank of the first merge that makes a piece, so that llama.cpp merges in the same order.
        rank = {"".join(pair): place for place, pair in reversed([*enumerate(ranked)])}
        scores = [float(-rank.get(by_id.get(number, ""), len(rank))) for number in range(rows)]
    else:
        model, (pre, differences) = "gpt2", _byte_level(content)
        merges = [" ".join(pair) for pair in ranked]
    around, bos, end = tokenizer("")["input_ids"], tokenizer.bos_token_id, end_token_id(tokenizer)
    if end is None or around not in ([end], [bos, end]):
        raise _refusal(f"{tokenizer.convert_ids_to_tokens(around)} around a text, and llama.cpp adds BOS and EOS only")
    return GGUFTokenizer(
        model=model,
        pre=pre,
        pieces=[by_id.get(number, f"[PAD{number}]") for number in range(rows)],
        types=types,
        scores=scores,
        merges=merges,
        special_ids={
            "bos": bos,
            # Qwen3-Embedding ends texts in its pad token; llama.cpp appends what it holds for EOS.
            "eos": end,
            "unk": tokenizer.unk_token_id,
            "pad": tokenizer.pad_token_id if tokenizer.pad_token_id in by_id else None,
        },
        adds_bos=len(around) == 2,
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
    for role, number in tokenizer.special_ids.items():
        if number is not None:
            getattr(writer, f"add_{role}_token_id")(number)
    writer.add_add_bos_token(tokenizer.adds_bos)
    writer.add_add_eos_token(True)
    if tokenizer.model == "llama":
        writer.add_add_space_prefix(True)


def _refusal(what: str) -> InputError:
    return InputError(
        f"The tokenizer has {what}: the vectors would be silently wrong. Allowed for gguf are byte-level BPE with the "
        f"pre-tokenizers {', '.join(one.name for one in PRE_TOKENIZERS)}, and BPE with byte fallback as in Mistral "
        "and Llama 2. Export to onnx instead."
    )


def _parts(part: dict[str, Any] | None, inside: str) -> list[dict[str, Any]]:
    """Take a sequence of normalizers or pre-tokenizers apart."""
    if part is None:
        return []
    return [one for nested in part[inside] for one in _parts(nested, inside)] if part["type"] == "Sequence" else [part]


def _byte_level(content: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
    """Return llama.cpp's name of the pre-tokenizer of byte-level BPE, and what it reads otherwise."""
    normalizers = [one["type"] for one in _parts(content["normalizer"], "normalizers")]
    if normalizers not in ([], ["NFC"]):
        raise _refusal(f"the normalizers {', '.join(normalizers)}, and llama.cpp has none")
    steps = _parts(content["pre_tokenizer"], "pretokenizers")
    patterns = [pattern for step in steps for pattern in _split_at(step)]
    whole = bool(content["model"].get("ignore_merges"))
    known = [one for one in PRE_TOKENIZERS if one.patterns == patterns]
    if not known:
        raise _refusal(f"a pre-tokenizer that splits at {' then '.join(patterns) or 'nothing'}, which llama.cpp lacks")
    found = next((one for one in known if one.ignore_merges == whole), None)
    if found is None:
        raise _refusal(
            f"ignore_merges {str(whole).lower()}, and llama.cpp's pre-tokenizer {known[0].name} has "
            f"{str(not whole).lower()}"
        )
    return found.name, (*(CAPITALS if found.capitals else ()), *(NOT_NFC if normalizers else ()))


def _split_at(step: dict[str, Any]) -> list[str]:
    """Return the patterns that one step of a byte-level pre-tokenizer splits at."""
    match step:
        case {"type": "ByteLevel", "add_prefix_space": True}:
            raise _refusal("a space put in front of each text (add_prefix_space), which llama.cpp does not put there")
        case {"type": "ByteLevel", "use_regex": use_regex}:
            return GPT2.patterns if use_regex else []
        case {"type": "Digits", "individual_digits": True}:
            return [r"\p{N}"]
        case {"type": "Split", "behavior": "Isolated", "invert": False, "pattern": {"Regex": regex}}:
            return [regex.replace("\r", r"\r").replace("\n", r"\n")]
    raise _refusal(f"the pre-tokenizer {json.dumps(step, ensure_ascii=False)[:200]}, which llama.cpp lacks")


def _sentencepiece_differences(content: dict[str, Any]) -> tuple[str, ...]:
    """Check that llama.cpp's SentencePiece algorithm fits, and say what it reads otherwise."""
    names = [one["type"] for one in _parts(content["normalizer"], "normalizers")]
    steps = _parts(content["pre_tokenizer"], "pretokenizers")
    kinds = [one["type"] for one in steps]
    differences = NOT_NFC if names[:1] == ["NFC"] else ()
    plain = names[len(differences) :]
    if plain == ["Prepend", "Replace"] and not steps:
        return differences
    if plain or kinds[:1] != ["Metaspace"] or steps[0]["prepend_scheme"] == "never" or {*kinds[1:]} - CUTTING:
        raise _refusal(
            f"the normalizers {names} and the pre-tokenizers {kinds}, which llama.cpp's SentencePiece algorithm lacks"
        )
    cutting = ("rare words whose pieces can be merged in several ways",) if kinds[1:] else ()
    return ("texts that begin with a space, and what follows a special token inside a text", *cutting, *differences)


def _type(piece: str | None, added: dict[str, Any] | None) -> int:
    if piece is None:
        return UNUSED
    if added is None:
        return NORMAL
    return CONTROL if added["special"] else USER_DEFINED
