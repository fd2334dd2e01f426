"""Special tokens, prompts, and tokenizers that are rebuilt from other files."""

from __future__ import annotations

import re
from typing import Any

from tokenizers import Tokenizer

from st_llm_embed.doctor.probe import PROBE_FILE, ProbeText
from st_llm_embed.doctor.readers import LLAMA_CPP_READS, chat_rendered, llama_cpp_family
from st_llm_embed.doctor.repository import PROMPTS_FILE, SETTINGS_FILE, Repository
from st_llm_embed.doctor.traps import Finding, NotCheckedError, Reading
from st_llm_embed.instructions import INSTRUCTION_TEMPLATE
from st_llm_embed.modules.layout import SENTENCEPIECE_FILE

CUT_AT = 16
"""Tokens. A text need not fill thousands of tokens to be cut like one that does."""

EDGES = ("Strip", "StripAccents", "Lowercase", "BertNormalizer")
"""Normalizers that take something away from a text, and that llama.cpp does not know."""

TRAINED = re.compile(re.escape(INSTRUCTION_TEMPLATE).replace(re.escape("{instruction}"), "[^\n]+"))
LABEL = re.compile(r"[^\n:]*:\s*")
"""What a prompt is made of besides the instruction."""
PIECES = re.compile(r"^(?:Instruct|Query|passage): ?", re.IGNORECASE | re.MULTILINE)


def eos_missing(repository: Repository, readings: list[Reading]) -> list[Finding]:
    """Compare which special token each reader puts after a text."""
    _tokenizer(repository, reads_end=True)
    ends = [one for one in readings if one.reads and one.ends_with is not None]
    without = tuple(one.reader for one in ends if not one.ends_with)
    if without:
        config = repository.tokenizer_config
        detail = (
            f"The post-processor puts {_shown(repository.around[1], repository)} after a text, add_eos_token is "
            f"{config.get('add_eos_token')}, and the tokenizer's class {config.get('tokenizer_class')}: "
            f"{', '.join(without)} add none."
        )
        return [Finding("missing EOS", "tokenizer.json", detail, without)]
    if len({one.ends_with for one in ends}) > 1:
        detail = ", ".join(f"{one.reader}: {one.ends_with}" for one in ends)
        return [Finding("different ends", "tokenizer.json", f"{detail}.")]
    return []


def bos_missing(repository: Repository, readings: list[Reading]) -> list[Finding]:
    """Compare whether each reader puts a special token before a text."""
    _tokenizer(repository)
    begins = {one.reader: one.begins_with for one in readings if one.reads and one.begins_with is not None}
    without = tuple(reader for reader, token in begins.items() if not token)
    if not without or len(without) == len(begins):
        return []
    detail = (
        f"The post-processor puts {_shown(repository.around[0], repository)} before a text, and add_bos_token is "
        f"{repository.tokenizer_config.get('add_bos_token')}: {', '.join(without)} put none."
    )
    return [Finding("missing BOS", "tokenizer_config.json", detail, without)]


def specials_doubled(repository: Repository, _: list[Reading]) -> list[Finding]:
    """Count the special tokens around a text and within each prompt."""
    tokenizer = _tokenizer(repository)
    before, after = repository.around
    found = [
        Finding(trap, "tokenizer.json", f"The post-processor puts {_shown(ids, repository)} {where} it.")
        for trap, where, ids in (("doubled BOS", "before", before), ("doubled EOS", "after", after))
        if len(set(ids)) < len(ids)
    ]
    special = {repository.token_id("bos"), repository.token_id("eos"), *before, *after} - {None}
    for name, prompt in repository.prompts.items():
        inside = [number for number in tokenizer.encode(prompt, add_special_tokens=False).ids if number in special]
        if inside:
            detail = f"The prompt {name!r} holds {repository.token(inside[0])}."
            found.append(Finding("special token in a prompt", PROMPTS_FILE, detail))
    return found


def eos_cut(repository: Repository, _: list[Reading]) -> list[Finding]:
    """Cut an over-long text and look at its last token."""
    tokenizer = _tokenizer(repository, reads_end=True)
    end = tokenizer.encode("a").ids[-1]
    tokenizer.enable_truncation(CUT_AT)
    try:
        last = tokenizer.encode("word " * 8 * CUT_AT).ids[-1]
    finally:
        tokenizer.no_truncation()
    found = []
    # Where a text of one letter has no EOS either, `eos_missing` says so.
    if end in {repository.token_id("eos"), *repository.around[1]} and last != end:
        detail = f"A short text ends in {repository.token(end)}, one that is cut in {repository.token(last)!r}."
        found.append(Finding("EOS cut off", "tokenizer.json", detail))
    direction = (repository.tokenizer_json.get("truncation") or {}).get("direction", "Right")
    side = repository.tokenizer_config.get("truncation_side", "right")
    if "left" in (direction.lower(), side):
        found.append(Finding("cut on the left", "tokenizer_config.json" if side == "left" else "tokenizer.json"))
    return found


def prompts(repository: Repository, _: list[Reading]) -> list[Finding]:
    """Look for prompts that are on documents, twice, spelt in two ways, or missing."""
    saved = repository.prompts
    found = []
    default = repository.table(PROMPTS_FILE).get("default_prompt_name")
    if default and default not in saved:
        detail = f"sentence-transformers: default_prompt_name is {default!r}, which is not a prompt."
        found.append(Finding("unreadable files", PROMPTS_FILE, detail, ("sentence-transformers",)))
    if default and saved.get(default):
        detail = f"sentence-transformers puts the default prompt {default!r} before every text given to encode."
        found.append(Finding("prompt on documents", PROMPTS_FILE, detail, ("sentence-transformers",)))
    query = saved.get("query")
    if query and query == (saved.get("document") or saved.get("passage")):
        found.append(Finding("prompt on documents", PROMPTS_FILE, f"The prompt of both is {query!r}."))
    for name, prompt in saved.items():
        pieces = [piece.strip().casefold() for piece in PIECES.findall(prompt)]
        half = prompt[: len(prompt) // 2]
        if len(pieces) > len(set(pieces)) or (half and half * 2 == prompt):
            found.append(Finding("prompt doubled", PROMPTS_FILE, f"The prompt {name!r} is {prompt!r}."))
    found += _spelling(saved)
    if any(saved.values()) and "query" not in saved:
        detail = f"They are {', '.join(map(repr, saved))}."
        found.append(Finding("no query prompt", PROMPTS_FILE, detail, ("sentence-transformers",)))
    if not any(saved.values()):
        if repository.recipe:
            detail = "No prompt is saved, and recipe.yaml trained queries with an instruction."
            found.append(Finding("prompt missing", PROMPTS_FILE, detail))
        elif "instruct:" in repository.text("README.md").casefold():
            found.append(Finding("prompt missing by the card", PROMPTS_FILE))
    return found


def prompts_as_trained(repository: Repository, _: list[Reading]) -> list[Finding]:
    """Compare the saved prompts with those of the training."""
    if not repository.recipe:
        raise NotCheckedError("there is no recipe.yaml, which states the prompts of the training")
    trained = f"training put {INSTRUCTION_TEMPLATE!r} before each query."
    return [
        Finding("prompt", PROMPTS_FILE, f"The prompt {name!r} is {prompt!r}, and {trained}")
        for name, prompt in repository.prompts.items()
        if prompt and not TRAINED.fullmatch(prompt)
    ]


def _spelling(saved: dict[str, str]) -> list[Finding]:
    """Find instructions that differ from each other in anything but the words."""
    instructed = {name: prompt for name, prompt in saved.items() if "instruct" in prompt.casefold()}
    forms: dict[tuple[str, ...], list[str]] = {}
    for name, prompt in instructed.items():
        first, *rest = prompt.splitlines(keepends=True)
        label = LABEL.match(first)
        end = first[len(first.rstrip()) :]
        forms.setdefault((label.group() if label else "", end, *rest), []).append(name)
    if len(forms) < 2:
        return []
    common = max(forms.values(), key=len)
    other = sorted(set(instructed) - set(common))
    detail = f"{', '.join(other)}: {saved[other[0]]!r}, and {common[0]}: {saved[common[0]]!r}."
    return [Finding("prompt", PROMPTS_FILE, detail)]


def texts_changed(repository: Repository, _: list[Reading]) -> list[Finding]:
    """Look for lower case and stripped edges that only some readers have."""
    found = []
    if repository.settings.get("do_lower_case"):
        detail = "do_lower_case is true, which TEI, vLLM, llama.cpp and transformers do not read."
        found.append(Finding("lower case", SETTINGS_FILE, detail, ("TEI", "vLLM", "llama.cpp", "transformers")))
    if repository.tokenizer_config.get("split_special_tokens"):
        detail = "split_special_tokens is true, which TEI, llama.cpp and tokenizers do not read."
        readers = ("TEI", "llama.cpp", "tokenizers")
        found.append(Finding("special tokens in texts", "tokenizer_config.json", detail, readers))
    normalizer = repository.tokenizer_json.get("normalizer") or {}
    parts = [normalizer, *(normalizer.get("normalizers") or [])]
    if kinds := [part["type"] for part in parts if part.get("type") in EDGES]:
        found.append(Finding("normalizer", "tokenizer.json", f"It has {', '.join(kinds)}.", ("llama.cpp",)))
    return found


def named_tokens(repository: Repository, _: list[Reading]) -> list[Finding]:
    """Compare the special tokens that tokenizer_config.json names with those of tokenizer.json."""
    tokenizer, config, file = _tokenizer(repository), repository.tokenizer_config, "tokenizer_config.json"
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

    found = []
    named = config.get("tokenizer_class")
    if named is not None and not config.get("auto_map") and tokenizer_class_from_name(named) is None:
        detail = f"transformers 4: Tokenizer class {named} does not exist."
        readers = ("transformers 4", "sentence-transformers 5")
        found.append(Finding("unreadable files", file, detail, readers))
    if (dropout := repository.tokenizer_json["model"].get("dropout")) is not None:
        found.append(Finding("random tokens", "tokenizer.json", f"dropout is {dropout}."))
    numbered = {
        token["content"] if isinstance(token, dict) else token: int(number)
        for number, token in (config.get("added_tokens_decoder") or {}).items()
    }
    roles = [repository.special_token(role) for role in ("bos", "eos", "unk", "sep", "cls", "mask")]
    extra = config.get("additional_special_tokens") or config.get("extra_special_tokens") or []
    more = extra.values() if isinstance(extra, dict) else extra
    names = [token["content"] if isinstance(token, dict) else token for token in (*roles, *more) if token]
    other = [name for name, number in numbered.items() if tokenizer.token_to_id(name) != number]
    other += [name for name in names if name not in numbered and tokenizer.token_to_id(name) is None]
    if other:
        detail = f"There are {len(other)}, such as {other[0]!r}."
        found.append(Finding("tokens of two files", file, detail))
    pad, size = repository.text_config.get("pad_token_id"), repository.text_config.get("vocab_size")
    if isinstance(pad, int) and isinstance(size, int) and not -1 <= pad < size:
        detail = f"pad_token_id is {pad}, and there are {size} embeddings, so that transformers stops."
        found.append(Finding("too few embeddings", repository.file_of("Transformer"), detail))
    return found


def rebuilt(repository: Repository, _: list[Reading]) -> list[Finding]:
    """Compare tokenizer.json with what other files say about the tokenizer."""
    if repository.tokenizer is None:
        return [Finding("no tokenizer.json", "tokenizer.json")]
    found = []
    if chat_rendered(repository):
        detail = "modality_config has 'message'."
        found.append(Finding("chat template", SETTINGS_FILE, detail, ("sentence-transformers 6",)))
    vocabulary = _vocabulary(repository.tokenizer_json)
    size = repository.text_config.get("vocab_size")
    if size is not None and max(vocabulary.values()) >= size:
        detail = f"Its ids go up to {max(vocabulary.values())}, and there are {size} embeddings."
        found.append(Finding("too few embeddings", "tokenizer.json", detail))
    if (pieces := repository.pieces) is not None:
        other = [piece for number, piece in enumerate(pieces) if vocabulary.get(piece) != number]
        if other:
            detail = f"{len(other)} of {len(pieces)} pieces have another id, or none, such as {other[0]!r}."
            found.append(Finding("tokenizer.model", SENTENCEPIECE_FILE, detail, ("llama.cpp",)))
    elif _llama_cpp_guesses(repository) and repository.probe is None:
        found.append(Finding("no tokenizer.model", SENTENCEPIECE_FILE, readers=("llama.cpp",)))
    return found


def probe_tokens(repository: Repository, _: list[Reading]) -> list[Finding]:
    """Compare length, prompts and tokens with those in probe.json."""
    probe, found = repository.probe, []
    if probe is None:
        raise NotCheckedError("there is no probe.json")
    if probe.dimension != repository.dimension:
        detail = f"Its vectors have {probe.dimension} numbers, and those of the model {repository.dimension}."
        found.append(Finding("probe", PROBE_FILE, detail))
    tokenizer = _tokenizer(repository)
    if probe.max_seq_length != repository.max_seq_length:
        detail = f"It is {repository.max_seq_length} tokens, and probe.json was made at {probe.max_seq_length}."
        found.append(Finding("max length", SETTINGS_FILE, detail))
    for name, prompt in probe.prompts.items():
        saved = repository.prompts.get(name) or ""
        if saved != prompt:
            detail = f"The prompt {name!r} is {saved!r}, and probe.json was made with {prompt!r}."
            found.append(Finding("prompt", PROMPTS_FILE, detail))
            break
    if probe.max_seq_length is not None:
        tokenizer.enable_truncation(probe.max_seq_length)
    try:
        other = [one for one in probe.texts if tokenizer.encode(one.whole).ids != list(one.ids)]
    finally:
        tokenizer.no_truncation()
    if other:
        detail = f"So are {len(other)} of {len(probe.texts)} texts of probe.json, such as {other[0].name!r}."
        trap = "whitespace" if _differ_at_edges(other, repository) else "tokenizer"
        found.append(Finding(trap, "tokenizer.json", detail))
    return found


def _differ_at_edges(texts: list[ProbeText], repository: Repository) -> bool:
    """Return whether whitespace explains why texts have other tokens; a special token within makes an edge, too."""
    special = [token["content"] for token in repository.tokenizer_json.get("added_tokens", [])]
    at_edge = [text.text != text.text.strip() for text in texts]
    inside = [any(token in text.text for token in special) for text in texts]
    return any(at_edge) and all(edge or token for edge, token in zip(at_edge, inside, strict=True))


def _tokenizer(repository: Repository, *, reads_end: bool = False) -> Tokenizer:
    if repository.tokenizer is None:
        raise NotCheckedError("there is no tokenizer.json")
    if reads_end and repository.pooling != "lasttoken":
        raise NotCheckedError(f"pooling is {repository.pooling}, so no embedding is read at EOS")
    return repository.tokenizer


def _shown(ids: list[int], repository: Repository) -> str:
    return " ".join(repository.token(number) for number in ids) or "nothing"


def _llama_cpp_guesses(repository: Repository) -> bool:
    """Return whether the converter's class LlamaHfVocab takes this tokenizer, whose pieces then all have one score."""
    model, decoder = repository.tokenizer_json.get("model", {}), repository.tokenizer_json.get("decoder") or {}
    is_byte_fallback = model.get("type") == "BPE" and bool(model.get("byte_fallback"))
    return llama_cpp_family(repository) in LLAMA_CPP_READS and is_byte_fallback and decoder.get("type") == "Sequence"


def _vocabulary(tokenizer: dict[str, Any]) -> dict[str, int]:
    """Return the ids of all pieces, read from the JSON: the library takes longer to hand them over."""
    pieces = tokenizer["model"]["vocab"]
    if isinstance(pieces, list):
        pieces = {piece: number for number, (piece, _) in enumerate(pieces)}
    return pieces | {token["content"]: token["id"] for token in tokenizer.get("added_tokens", [])}
