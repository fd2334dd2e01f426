"""The texts that are encoded: what can be one, its own instruction, and how texts are put into batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from st_llm_embed.errors import InputError, shown
from st_llm_embed.instructions import instruction_prompt

SMALLEST_GROUP = 16
"""Texts under one of several instructions below which batches of their own cost more than they save."""


def check_inputs(inputs: Any, *, singular: bool) -> None:
    """Check that inputs are a text or a list of texts or pairs, dictionaries of them left to stock.

    Raises:
        InputError: they are something else, or a text holds half of a surrogate pair.
    """
    if singular and not isinstance(inputs, (str, dict)):
        advice = ", such as inputs.tolist()" if hasattr(inputs, "tolist") else ""
        raise InputError(f"inputs is a {type(inputs).__name__}; it has to be a str, or a list of str{advice}.")
    for place, entry in enumerate([inputs] if singular else inputs):
        for text in entry if isinstance(entry, (list, tuple)) else [entry]:
            if isinstance(text, dict):
                continue
            if not isinstance(text, str):
                raise InputError(
                    f"Text {place} is {shown(entry)}, a {type(entry).__name__}; every text has to be a str. Convert "
                    "or omit it."
                )
            check_unicode(f"Text {place}", text)


def check_options(batch_size: Any, prompt: Any, instruction: Any) -> None:
    """Raise an InputError if an option of encode cannot be used, whatever the texts are."""
    if not isinstance(batch_size, int) or batch_size < 1:
        raise InputError(f"batch_size is {batch_size!r}; it has to be a whole number of texts, at least 1.")
    if not isinstance(prompt, str | None):
        raise InputError(f"prompt is {shown(prompt)}; it has to be a str.")
    for what, text in (("The prompt", prompt), ("The instruction", instruction)):
        if isinstance(text, str):
            check_unicode(what, text)


def check_unicode(what: str, text: str) -> None:
    """Raise an InputError if a text cannot be encoded; `what` it is begins the message."""
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(
            f"{what} is not Unicode, it holds half of a surrogate pair: {shown(text)}. Replace that."
        ) from None


class PromptedText(str):
    """A text with its own prompt in front, which says what other texts begin in the same way."""

    prompt: str


def under_instructions(texts: list[Any], instructions: Any) -> list[PromptedText]:
    """Put each text under its own instruction."""
    if not isinstance(instructions, Iterable):
        raise InputError(f"instruction is {shown(instructions)}; it has to be a str, or a list of one str per text.")
    instructions = list(instructions)
    if len(instructions) != len(texts):
        raise InputError(
            f"{len(instructions)} instructions are given for {len(texts)} texts. Give one as a str, or one per text."
        )
    prompted = []
    for place, (instruction, text) in enumerate(zip(instructions, texts, strict=True)):
        if not isinstance(instruction, str) or not isinstance(text, str):
            raise InputError(
                f"Text {place} is a {type(text).__name__} and its instruction a {type(instruction).__name__}; both "
                "have to be str."
            )
        check_unicode(f"Instruction {place}", instruction)
        one = PromptedText(instruction_prompt(instruction) + text)
        one.prompt = instruction_prompt(instruction)
        prompted.append(one)
    return prompted


def groups(texts: Sequence[str], prompt: str) -> list[tuple[str, list[int]]]:
    """Group the places of texts by their prompt; prompts of few texts make one group together."""
    by_prompt: dict[str, list[int]] = {}
    for place, text in enumerate(texts):
        by_prompt.setdefault(text.prompt if isinstance(text, PromptedText) else prompt, []).append(place)
    groups = [(own, places) for own, places in by_prompt.items() if len(places) >= SMALLEST_GROUP]
    rest = [place for places in by_prompt.values() if len(places) < SMALLEST_GROUP for place in places]
    return [*groups, (prompt, rest)] if rest else groups


def batches(
    lengths: Sequence[int], batch_size: int, batch_num_tokens: int | None, change: int | None
) -> Iterator[tuple[int, int]]:
    """Cut texts that are sorted by falling length into batches (start, stop), none on both sides of a `change`."""
    start, longer = 0, sum(length > change for length in lengths) if change is not None else 0
    while start < len(lengths):
        size = batch_size if batch_num_tokens is None else max(1, batch_num_tokens // lengths[start])
        stop = min(start + size, longer if start < longer else len(lengths))
        yield start, stop
        start = stop
