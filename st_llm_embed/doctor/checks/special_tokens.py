"""Traps 1 to 3: EOS behind every text, once, also where the text is cut off."""

from __future__ import annotations

from tokenizers import Tokenizer

from st_llm_embed.doctor.finding import Finding, NotCheckedError, Reading
from st_llm_embed.doctor.readers import around
from st_llm_embed.doctor.repository import Repository

CUT_AT = 16
"""Tokens. A text need not fill thousands of tokens to be cut off like one that does."""


def eos_missing(repository: Repository, readings: list[Reading]) -> list[Finding]:
    """Compare which special token each reader puts behind a text (trap 1)."""
    _need_last_token(repository, readings)
    ends = [one for one in readings if one.reads and one.ends_with is not None]
    hit = tuple(one.reader for one in ends if not one.ends_with)
    named = {one.ends_with for one in ends if one.ends_with}
    if hit:
        flag = repository.tokenizer_config.get("add_eos_token")
        return [
            Finding(
                1,
                "error",
                "tokenizer.json",
                f"The post-processor ends a text with {_shown(around(repository)[1], repository)} and "
                f"tokenizer_config.json (class {repository.tokenizer_config.get('tokenizer_class')}) has "
                f"add_eos_token {flag}: {', '.join(hit)} read the embedding at a token of the text instead of EOS.",
                "Put EOS into the post-processor of tokenizer.json, and set add_eos_token in tokenizer_config.json.",
                hit,
            )
        ]
    if len(named) > 1:
        told = ", ".join(f"{one.reader}: {one.ends_with}" for one in ends)
        return [
            Finding(
                1,
                "error",
                "tokenizer.json",
                f"The libraries end a text in different tokens ({told}).",
                "Let post-processor and eos_token name the same token.",
            )
        ]
    return []


def specials_doubled(repository: Repository, readings: list[Reading]) -> list[Finding]:
    """Count the special tokens around a text and around one under each prompt (trap 2)."""
    del readings
    tokenizer = _tokenizer(repository)
    before, after = around(repository)
    found = []
    for where, ids in (("before", before), ("behind", after)):
        if twice := next((number for number in ids if ids.count(number) > 1), None):
            found.append(
                Finding(
                    2,
                    "error",
                    "tokenizer.json",
                    f"The post-processor puts {repository.token(twice)} {ids.count(twice)} times {where} a text.",
                    "Let the template of the post-processor name each special token once.",
                )
            )
    special = {repository.token_id("bos"), repository.token_id("eos"), *before, *after} - {None}
    for name, prompt in repository.prompts.items():
        inside = [number for number in tokenizer.encode(prompt, add_special_tokens=False).ids if number in special]
        if inside:
            found.append(
                Finding(
                    2,
                    "error",
                    "config_sentence_transformers.json",
                    f"The prompt {name!r} holds {repository.token(inside[0])} itself, and the tokenizer adds its own.",
                    f"Remove {repository.token(inside[0])} from the prompt.",
                )
            )
    return found


def eos_cut(repository: Repository, readings: list[Reading]) -> list[Finding]:
    """Cut an over-long text off and look at its last token (trap 3)."""
    _need_last_token(repository, readings)
    tokenizer = _tokenizer(repository)
    end = tokenizer.encode("a").ids[-1]
    tokenizer.enable_truncation(CUT_AT)
    try:
        long = tokenizer.encode("word " * 8 * CUT_AT).ids
    finally:
        tokenizer.no_truncation()
    found = []
    # Where a text of one letter has no EOS either, trap 1 says so.
    if end == repository.token_id("eos") and long[-1] != end:
        found.append(
            Finding(
                3,
                "error",
                "tokenizer.json",
                f"A short text ends in {repository.token(end)}, one that is cut off in "
                f"{repository.token(long[-1])!r}: EOS is part of the text, and not of the post-processor.",
                "Let the post-processor add EOS; truncation leaves room for what it adds.",
            )
        )
    direction = (repository.tokenizer_json.get("truncation") or {}).get("direction", "Right")
    side = repository.tokenizer_config.get("truncation_side", "right")
    if "left" in (direction.lower(), side):
        found.append(
            Finding(
                3,
                "error",
                "tokenizer_config.json" if side == "left" else "tokenizer.json",
                "Long texts lose their beginning, the instruction included (truncation_side left), and other "
                "libraries cut the end.",
                "Set truncation_side to right, and truncation.direction in tokenizer.json to Right.",
            )
        )
    return found


def _need_last_token(repository: Repository, readings: list[Reading]) -> None:
    _tokenizer(repository)
    if readings[0].pooling != "lasttoken":
        raise NotCheckedError(f"pooling is {readings[0].pooling}, so that no embedding is read at EOS")


def _tokenizer(repository: Repository) -> Tokenizer:
    if repository.tokenizer is None:
        raise NotCheckedError("there is no tokenizer.json")
    return repository.tokenizer


def _shown(ids: list[int], repository: Repository) -> str:
    return " ".join(repository.token(number) for number in ids) or "nothing"
