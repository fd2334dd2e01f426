"""A folder on disk becomes a repository on the Hub: checked before anything is sent, each failure in plain words."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple

from huggingface_hub import HfApi, RepoCard, constants, get_token
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from st_llm_embed.errors import InputError
from st_llm_embed.publishing.leak_check import check_nothing_private
from st_llm_embed.publishing.publishable import NEVER_SENT, check_dataset, check_model

RepoType = Literal["model", "dataset"]


class Destination(NamedTuple):
    """Where a push goes, and by what right."""

    repo_id: str
    repo_type: RepoType
    private: bool
    token: str


class Pushed(NamedTuple):
    """What became of a push."""

    address: str
    """Of the repository, or of the pull request."""
    commit: str
    """The head of the main branch, or of the pull request; an unchanged folder makes no new one."""


def push_folder(
    folder: Path,
    repo_id: str,
    *,
    repo_type: RepoType,
    private: bool,
    create_pr: bool,
    commit_message: str,
    replaced: Sequence[str] = (),
) -> Pushed:
    """Upload a dataset or a saved model to the Hub.

    Everything that can be checked is checked before the repository is created. Small and large folders both go by
    huggingface_hub's `upload_folder`: `upload_large_folder` is gone from 2.4, where `upload_folder` itself commits
    hundreds of files in parts and resumes. A folder that the Hub has already makes no second commit. With `create_pr`
    the push goes on in this user's pull request of the same title, if one is still open.

    Args:
        folder: a dataset whose `README.md` names the data files, or a saved sentence-transformers model.
        repo_id: name on the Hub, `organisation-or-user/name`.
        repo_type: what the folder is.
        private: create the repository as private; one that exists must already be so.
        create_pr: propose the change in a pull request instead of committing to the main branch.
        commit_message: title of the commit, and of the pull request.
        replaced: patterns of files that are removed from the repository, in the same commit, if the folder has none
            of their names.

    Raises:
        InputError: the folder, the name, the token or the rights do not do, or the network failed.
    """
    to = destination(repo_id, repo_type, private=private)
    exists = check_push(folder, to)
    api = HfApi(token=to.token)
    with _explained(to, "nothing was sent yet"):
        if not exists:
            api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True)
    with _explained(to, "what was uploaded is kept and is not sent twice"):
        pull_request = _open_pull_request(api, to, commit_message) if create_pr else None
        commit = api.upload_folder(
            repo_id=repo_id,
            repo_type=repo_type,
            folder_path=folder,
            commit_message=commit_message,
            revision=None if pull_request is None else f"refs/pr/{pull_request}",
            create_pr=create_pr and pull_request is None,
            ignore_patterns=list(NEVER_SENT),
            delete_patterns=list(replaced) or None,
        )
    address = f"{api.endpoint}/{'datasets/' if repo_type == 'dataset' else ''}{repo_id}"
    address = commit.pr_url or (address if pull_request is None else f"{address}/discussions/{pull_request}")
    return Pushed(address, commit.oid)


def destination(repo_id: str, repo_type: RepoType, *, private: bool) -> Destination:
    """Name a repository, with the token of this machine's user.

    Raises:
        InputError: the name is none, or there is no token.
    """
    _check_repo_id(repo_id)
    return Destination(repo_id, repo_type, private, _token())


def check_push(folder: Path, to: Destination) -> bool:
    """Check all that can be checked before anything is sent.

    Returns:
        Whether the repository exists.

    Raises:
        InputError: as `push_folder`.
    """
    card = check_dataset(folder) if to.repo_type == "dataset" else check_model(folder)
    check_nothing_private(folder, to.repo_id.partition("/")[0], to.token)
    with _explained(to, "nothing was sent yet"):
        exists = _check_existing(HfApi(token=to.token), to)
        if card is not None:
            _validate(card, folder, to.repo_type)
    return exists


def check_tag(to: Destination, tag: str) -> None:
    """Check that a tag is free, or names what the repository's main branch holds now.

    Raises:
        InputError: it is no name of a tag, or names another commit.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", tag) or tag.endswith((".", ".lock")) or ".." in tag:
        raise InputError(
            f"--tag {tag!r} is no name of a tag. Allowed are letters, digits, '-', '_' and '.', a letter or digit "
            "first, such as v1."
        )
    with _explained(to, "nothing was sent yet"):
        api = HfApi(token=to.token)
        commit = _tagged(api, to, tag)
        if commit is not None and commit != api.repo_info(to.repo_id, repo_type=to.repo_type).sha:
            raise _other_commit(to, tag, commit, "Nothing was sent.")


def tag_commit(to: Destination, tag: str, commit: str) -> None:
    """Name a commit; the same commit by the same name again is no error.

    Raises:
        InputError: the tag names another commit, or the Hub does not take it.
    """
    with _explained(to, "what was uploaded is kept and is not sent twice"):
        api = HfApi(token=to.token)
        known = _tagged(api, to, tag)
        if known is None:
            api.create_tag(to.repo_id, tag=tag, revision=commit, repo_type=to.repo_type, exist_ok=True)
        elif known != commit:
            raise _other_commit(to, tag, known, "The files are on the main branch, without a tag.")


def _tagged(api: HfApi, to: Destination, tag: str) -> str | None:
    try:
        refs = api.list_repo_refs(to.repo_id, repo_type=to.repo_type)
    except RepositoryNotFoundError:
        return None
    return next((ref.target_commit for ref in refs.tags if ref.name == tag), None)


def _other_commit(to: Destination, tag: str, commit: str, outcome: str) -> InputError:
    return InputError(
        f"{to.repo_id} has a tag {tag} already, which names commit {commit[:12]} with other files. What is tagged is "
        f"not changed: choose another tag, or delete this one on the Hub. {outcome}"
    )


def _check_repo_id(repo_id: str) -> None:
    try:
        validate_repo_id(repo_id)
        allowed = repo_id.count("/") == 1
    except HFValidationError:
        allowed = False
    if not allowed:
        raise InputError(
            f"{repo_id!r} is no name of a repository on the Hub. Allowed is organisation-or-user/name, of letters, "
            "digits, '-', '_' and '.', at most 96 characters in all, such as my-organisation/my-embedder."
        )


def _token() -> str:
    token = get_token()
    if not token:
        raise InputError(
            "There is no token for the Hub. Make one that may write at https://huggingface.co/settings/tokens, then "
            "run `hf auth login` or set the environment variable HF_TOKEN. Nothing was sent."
        )
    if not (token.isascii() and token.isprintable() and " " not in token):
        raise InputError(
            "The token for the Hub holds characters that no token has (blanks, line ends or letters beyond ASCII). "
            "Copy it again from https://huggingface.co/settings/tokens into the environment variable HF_TOKEN, or run "
            "`hf auth login`. Nothing was sent."
        )
    return token


def _check_existing(api: HfApi, to: Destination) -> bool:
    """Say whether the repository exists.

    Raises:
        InputError: it, or one of the same name, is not what this push would make.
    """
    try:
        info = api.repo_info(to.repo_id, repo_type=to.repo_type)
    except RepositoryNotFoundError:
        other: RepoType = "model" if to.repo_type == "dataset" else "dataset"
        # The Hub would allow both under one name; here it is nearly always a slip, and a repository is soon public.
        if api.repo_exists(to.repo_id, repo_type=other):
            raise InputError(
                f"{to.repo_id} is a {other} on the Hub, and this push is of a {to.repo_type}. Choose another name, "
                f"such as {to.repo_id}-{to.repo_type}, or push the folder of the {other}. Nothing was sent."
            ) from None
        return False
    if bool(info.private) != to.private:
        is_, wanted = ("private", "public") if info.private else ("public", "private")
        raise InputError(
            f"{to.repo_id} exists and is {is_}, and this push is to a {wanted} repository. Push it as {is_}, choose "
            f"another name, or make the repository {wanted} in its settings. Nothing was sent."
        )
    return True


def _validate(card: RepoCard, folder: Path, repo_type: RepoType) -> None:
    """Let the Hub check the front matter, as it will when the files come."""
    try:
        card.validate(repo_type=repo_type)
    except ValueError as error:
        raise InputError(
            f"The Hub does not accept the front matter of {folder / 'README.md'}: {' '.join(str(error).split())}. "
            "Correct it and run the same command again. Nothing was sent."
        ) from error


def _open_pull_request(api: HfApi, to: Destination, title: str) -> int | None:
    """Find the pull request that an earlier, perhaps interrupted push opened."""
    found = api.get_repo_discussions(
        to.repo_id, repo_type=to.repo_type, author=api.whoami()["name"], discussion_type="pull_request"
    )
    ours = (one.num for one in found if one.title == title and one.status in ("open", "draft"))
    return next(ours, None)


@contextmanager
def _explained(to: Destination, outcome: str) -> Generator[None]:
    """Turn what the Hub's client raises into one message: the reason, what to do, and what became of the push.

    An upload fails by HfHubHTTPError, by RuntimeError around one (git LFS), by ConnectionError and other OSErrors
    (Xet, sockets) and by ValueError (answers that the client cannot read).
    """
    try:
        yield
    except InputError:
        raise
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        message = f"{_reason(error, to)} Then run the same command again; {outcome}."
        # `from None`, since the errors of a client may hold the headers it sent.
        raise InputError(message.replace(to.token, "***")) from None


def _reason(error: Exception, to: Destination) -> str:
    causes = list(_causes(error))
    refusal = next((cause for cause in causes if isinstance(cause, HfHubHTTPError)), None)
    if refusal is not None:
        # A repository that a good token may not see is a 401, too.
        status = 403 if isinstance(refusal, RepositoryNotFoundError) else refusal.response.status_code
        return _refusal_reason(status, _one_line(refusal.server_message), to)
    words = _one_line(causes[-1])
    xet_status = re.search(r"HTTP status \w+ error \((\d{3}) .*xet-write-token", words)
    if xet_status is not None and xet_status[1] != "404":
        return _refusal_reason(int(xet_status[1]), words, to)
    local = next((cause for cause in causes if isinstance(cause, OSError) and cause.filename is not None), None)
    if xet_status is not None:
        reason = (
            f"The Hub at {constants.ENDPOINT} has no Xet storage. Set the environment variable HF_HUB_DISABLE_XET=1."
        )
    elif local is not None:
        reason = f"{Path(local.filename).resolve()} cannot be read: {local.strerror}. Make it readable."
    elif any(isinstance(cause, OfflineModeIsEnabled) for cause in causes):
        reason = "The environment variable HF_HUB_OFFLINE forbids asking the Hub. Unset it."
    elif any(isinstance(cause, (HTTPError, OSError)) for cause in causes):
        reason = f"The connection to the Hub at {constants.ENDPOINT} failed or was cut ({words}). Check the network."
    else:
        reason = f"The Hub's client gave up: {words}."
    return reason


def _refusal_reason(status: int, words: str, to: Destination) -> str:
    said = f"{status}: {words}" if words else str(status)
    if status in (402, 413, 507) or (status == 403 and "storage" in words.casefold()):
        return f"The storage of {to.repo_id} is full, or a file is too large for it ({said}). Make room."
    if status == 401:
        return (
            f"The Hub does not know the token ({said}). Make a new one that may write at "
            "https://huggingface.co/settings/tokens and put it into the environment variable HF_TOKEN, which comes "
            "before the stored login, or run `hf auth login`."
        )
    if status in (403, 404):
        return (
            f"The token may not write to {to.repo_id} ({said}). The name before the '/' has to be your own or that "
            "of an organisation that you may write to, and the token needs the right to write; to the repository of "
            "others push a pull request."
        )
    if status == 429 or status >= 500:
        return f"The Hub cannot take {to.repo_id} for now ({said}). Wait some minutes."
    return f"The Hub refused {to.repo_id} ({said}). Correct what it names."


def _one_line(words: object) -> str:
    return " ".join(str(words or "").split()).rstrip(".")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
