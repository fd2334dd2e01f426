"""InputError, for mistakes that the user can fix, and helpers for its messages."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Generator, Iterable
from contextlib import contextmanager

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 120


class InputError(ValueError):
    """Something that the user provided cannot be used.

    The message is one paragraph: what was got, what is allowed, what to do. The command line prints it without a
    traceback and exits with code 2.
    """

    def __init__(self, message: str) -> None:
        # It may contain another library's message of several lines.
        super().__init__(" ".join(line.strip() for line in message.splitlines() if line.strip()))


@contextmanager
def explained(problem: str, advice: str) -> Generator[None]:
    """Re-raise any exception in the block as an InputError; the block has to do nothing but use the user's input.

    Args:
        problem: what cannot be used; the exception's own message follows it.
        advice: what is allowed and what to do.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        # tokenizers and safetensors raise Exception itself, so no narrower class would do.
        raise InputError(f"{problem}: {str(error).rstrip('. ') or type(error).__name__}. {advice}") from error


def shown(value: object) -> str:
    """Return a value quoted for a message, shortened if it is long or deep."""
    return _SHORT.repr(value)


def did_you_mean(given: str, allowed: Iterable[str]) -> str:
    """Return " (did you mean x?)" for the closest allowed name, or nothing if none is close."""
    close = difflib.get_close_matches(given, list(allowed), n=1)
    return f" (did you mean {close[0]}?)" if close else ""
