"""InputError, for mistakes that the user can fix, and helpers for its messages."""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 120


class InputError(ValueError):
    """Something that the user provided cannot be used.

    The message is one paragraph: what was got, what is allowed, what to do. The command line prints it without a
    traceback and exits with code 2.
    """

    def __init__(self, message: str) -> None:
        # It may contain another library's message of several lines, and names of files that no terminal can show.
        shown_text = message.encode(errors="backslashreplace").decode()
        super().__init__(" ".join(line.strip() for line in shown_text.splitlines() if line.strip()))


class InputErrors(InputError):  # noqa: N818 - several
    """Several mistakes, each a paragraph of its own in `problems`."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__(problems[0])
        self.problems = tuple(problems)
        self.args = ("\n".join(problems),)


class Problems:
    """Collects the user's mistakes, so that all of them are reported at once."""

    def __init__(self) -> None:
        self.found: list[str] = []

    @contextmanager
    def collected(self) -> Generator[None]:
        """Keep an InputError of the block, and continue after it."""
        try:
            yield
        except InputErrors as error:
            self.found += error.problems
        except InputError as error:
            self.found.append(str(error))

    def report(self) -> None:
        """Raise what was found as one InputError, each mistake once; do nothing if there is none."""
        if found := list(dict.fromkeys(self.found)):
            raise InputErrors(found) if len(found) > 1 else InputError(found[0])


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


def hub_reason(error: BaseException, repo_id: str, *, writing: bool = False) -> str:
    """Return in plain words why the Hub did not do what was asked, and what to do about it.

    Args:
        error: what huggingface_hub raised: HfHubHTTPError; RuntimeError around one (git LFS); ConnectionError and
            other OSErrors (Xet, sockets); ValueError (responses that it cannot read).
        repo_id: the repository.
        writing: whether something was to be written to it.
    """
    from huggingface_hub import constants, is_offline_mode
    from huggingface_hub import errors as hub

    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(cause)
    words = _one_line(causes[-1])
    refusal = next((cause for cause in causes if isinstance(cause, hub.HfHubHTTPError)), None)
    xet_status = re.search(r"HTTP status \w+ error \((\d{3}) .*xet-write-token", words)
    local = next((cause for cause in causes if isinstance(cause, OSError) and cause.filename is not None), None)
    if isinstance(refusal, hub.RepositoryNotFoundError) and not writing:
        reason = (
            f"The Hub shows no repository {repo_id}. Check the name; a private or gated one needs `hf auth login`."
        )
    elif isinstance(refusal, hub.RevisionNotFoundError) and not writing:
        reason = f"{repo_id} has no such branch, tag or commit. Its page on the Hub lists them."
    elif refusal is not None:
        # A repository that a good token may not see is a 401, too.
        status = 403 if isinstance(refusal, hub.RepositoryNotFoundError) else refusal.response.status_code
        reason = _refusal_reason(status, _one_line(refusal.server_message), repo_id, writing=writing)
    elif xet_status is not None and xet_status[1] == "404":
        reason = f"The Hub at {constants.ENDPOINT} has no Xet storage. Set HF_HUB_DISABLE_XET=1 in the environment."
    elif xet_status is not None:
        reason = _refusal_reason(int(xet_status[1]), words, repo_id, writing=writing)
    elif any(isinstance(cause, hub.OfflineModeIsEnabled) for cause in causes) or (
        is_offline_mode() and isinstance(error, hub.LocalEntryNotFoundError)
    ):
        reason = "The environment variable HF_HUB_OFFLINE forbids asking the Hub. Unset it."
    elif isinstance(error, hub.HFValidationError):
        reason = f"{repo_id!r} is not a name of a repository on the Hub, such as my-organisation/my-embedder."
    elif local is not None:
        reason = f"{Path(local.filename).resolve()} cannot be read: {local.strerror}. Make it readable."
    elif any(isinstance(cause, (hub.HTTPError, OSError)) for cause in causes):
        reason = f"The connection to the Hub at {constants.ENDPOINT} failed or was cut ({words}). Check the network."
    else:
        reason = f"The Hub's client gave up: {words}."
    return reason


def _refusal_reason(status: int, words: str, repo_id: str, *, writing: bool) -> str:
    said = f"{status}: {words}" if words else str(status)
    if status in (402, 413, 507) or (status == 403 and "storage" in words.casefold()):
        return f"The storage of {repo_id} is full, or a file is too large for it ({said}). Make room."
    if status == 401:
        return (
            f"The Hub does not know the token ({said}). Make a new one at https://huggingface.co/settings/tokens, "
            "then run `hf auth login` or set HF_TOKEN, which comes before the stored login."
        )
    if status in (403, 404) and writing:
        return (
            f"The token may not write to {repo_id} ({said}). The name before the '/' has to be your own or that of "
            "your organisation, and the token needs the right to write; to others' repositories open a pull request."
        )
    if status == 429 or status >= 500:
        return f"The Hub cannot serve {repo_id} for now ({said}). Wait some minutes."
    return f"The Hub refused {repo_id} ({said}). Correct what it names."


def _one_line(words: object) -> str:
    return " ".join(str(words or "").split()).rstrip(".")
