"""A folder on disk becomes a repository on the Hub: checked before anything is sent, each failure in plain words."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from datasets.data_files import resolve_pattern, sanitize_patterns
from huggingface_hub import HfApi, RepoCard, RepoFile, get_token
from huggingface_hub.errors import HFValidationError, HTTPError, RepositoryNotFoundError
from huggingface_hub.utils import filter_repo_objects, validate_repo_id

from st_llm_embed.doctor.repository import Repository
from st_llm_embed.errors import InputError, explained, hub_reason
from st_llm_embed.publishing.leak_check import NEVER_SENT, check_nothing_private, published_files

logger = logging.getLogger(__name__)

RepoType = Literal["model", "dataset"]

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz", ".h5", ".dill")
"""Suffixes of files that are, or may hold, pickles."""

PLACEHOLDERS = {"", "unknown", "todo", "tbd", "none", "license", "licence", "unlicensed", "more information needed"}
"""What people write where they name no licence."""


class Destination(NamedTuple):
    """Where a push goes, and with which token."""

    repo_id: str
    repo_type: RepoType
    private: bool
    token: str


class Pushed(NamedTuple):
    """The address of the repository or of the pull request, and the commit at its head."""

    address: str
    commit: str


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

    Everything that can be checked is checked before the repository is created. `upload_folder` commits hundreds of
    files in parts and resumes by itself; a folder that the Hub has already makes no second commit. With `create_pr`
    this user's pull request of the same title is continued, if one is still open; none is opened for a folder that
    the main branch has already.

    Args:
        folder: a dataset whose `README.md` names the data files, or a saved sentence-transformers model.
        repo_id: name on the Hub, `organisation-or-user/name`.
        repo_type: what the folder is.
        private: create the repository as private; one that exists must already be so.
        create_pr: propose the change in a pull request instead of committing to the main branch.
        commit_message: title of the commit, and of the pull request.
        replaced: patterns of files that are removed from the repository, in the same commit, if the folder lacks them.

    Raises:
        InputError: the folder, the name, the token or its rights are not enough, or the network failed.
    """
    to = destination(repo_id, repo_type, private=private)
    exists = check_push(folder, to)
    api = HfApi(token=to.token)
    if not exists:
        with _hub_explained(to, "nothing was sent yet"):
            api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True)
    address, revision = f"{api.endpoint}/{'datasets/' if repo_type == 'dataset' else ''}{repo_id}", None
    if create_pr and _differs(folder, to, replaced):
        with _hub_explained(to, "nothing was sent yet"):
            number = _pull_request(api, to, commit_message)
        address, revision = f"{address}/discussions/{number}", f"refs/pr/{number}"
    elif create_pr:
        logger.warning("%s has all of this on its main branch already; there is nothing to propose.", repo_id)
    with _hub_explained(to, "what was uploaded is kept and is not sent twice"):
        commit = api.upload_folder(
            repo_id=repo_id,
            repo_type=repo_type,
            folder_path=folder,
            commit_message=commit_message,
            revision=revision,
            ignore_patterns=list(NEVER_SENT),
            delete_patterns=list(replaced) or None,
        )
    return Pushed(address, commit.oid)


def _pull_request(api: HfApi, to: Destination, title: str) -> int:
    """Return the number of this user's open pull request of a title, that of an earlier push or a new one.

    It is opened before the upload and not by it: the client opens one at another moment with Xet than without, and
    reports none where it resumes.
    """
    proposed = api.get_repo_discussions(
        to.repo_id, repo_type=to.repo_type, author=api.whoami()["name"], discussion_type="pull_request"
    )
    ours = (one.num for one in proposed if one.title == title and one.status in ("open", "draft"))
    return next(ours, None) or api.create_pull_request(to.repo_id, title=title, repo_type=to.repo_type).num


def _differs(folder: Path, to: Destination, replaced: Sequence[str]) -> bool:
    """Whether a push of a folder would change the main branch of a repository."""
    with _hub_explained(to, "nothing was sent yet"):
        try:
            tree = HfApi(token=to.token).list_repo_tree(to.repo_id, repo_type=to.repo_type, recursive=True)
            there = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
        except RepositoryNotFoundError:
            return True
    here = published_files(folder)
    removed = filter_repo_objects(there.keys() - set(here), allow_patterns=list(replaced))
    return any(removed) or any(name not in there or not _is_same(folder / name, there[name]) for name in here)


def _is_same(path: Path, there: RepoFile) -> bool:
    """Compare a file with one on the Hub, of which git's hash is known, or the content's where it went by LFS."""
    size = path.stat().st_size
    if size != there.size:
        return False
    with path.open("rb") as file:
        if there.lfs is not None:
            return hashlib.file_digest(file, "sha256").hexdigest() == there.lfs.sha256
        return hashlib.sha1(b"blob %d\0" % size + file.read()).hexdigest() == there.blob_id  # noqa: S324


def destination(repo_id: str, repo_type: RepoType, *, private: bool) -> Destination:
    """Name a repository, with the token of this machine's user; refuse wrong names and a missing token."""
    try:
        validate_repo_id(repo_id)
        allowed = repo_id.count("/") == 1
    except HFValidationError:
        allowed = False
    if not allowed:
        raise InputError(
            f"{repo_id!r} is not a name of a repository on the Hub. Allowed are letters, digits, '-', '_' and '.', at "
            "most 96 in all, such as my-organisation/my-embedder."
        )
    token = get_token()
    if not token:
        raise InputError(
            "There is no token for the Hub. Make one that may write at https://huggingface.co/settings/tokens, then "
            "run `hf auth login` or set the environment variable HF_TOKEN. Nothing was sent."
        )
    return Destination(repo_id, repo_type, private, token)


def check_push(folder: Path, to: Destination) -> bool:
    """Check all that can be checked before anything is sent, and return whether the repository exists.

    Raises:
        InputError: as `push_folder`.
    """
    card = check_dataset(folder) if to.repo_type == "dataset" else check_model(folder)
    check_nothing_private(folder, to.repo_id.partition("/")[0], to.token)
    with _hub_explained(to, "nothing was sent yet"):
        exists = _check_existing(HfApi(token=to.token), to)
        try:
            if card is not None:
                card.validate(repo_type=to.repo_type)
        except ValueError as error:
            raise InputError(
                f"The Hub does not accept the front matter of {folder / 'README.md'}: {error}. Correct it and run the "
                "same command again. Nothing was sent."
            ) from error
    return exists


def check_dataset(folder: Path) -> RepoCard:
    """Check that a dataset has a card with a licence, and that every data file named there exists; return the card.

    Raises:
        InputError: something is missing.
    """
    card = _read_card(folder)
    if card is None:
        raise InputError(
            f"{folder} is not a dataset: it has no README.md whose front matter names its configs. Give the dataset "
            "folder of a run."
        )
    front_matter = card.data.to_dict()
    licence = front_matter.get("license")
    names = licence if isinstance(licence, list) else [licence]
    words = [str(name or "").strip("[]<>{} ").casefold() for name in names]
    if not words or not PLACEHOLDERS.isdisjoint(words):
        raise InputError(
            f"{folder / 'README.md'} names no license ({licence!r}). Write `license:` with the Hub's name of it, such "
            "as cc-by-4.0, into the front matter; see https://huggingface.co/docs/hub/repositories-licenses."
        )
    with explained(
        f"{folder / 'README.md'} does not name its data files, or they are gone", "Build the dataset again."
    ):
        for config in front_matter["configs"]:
            for patterns in sanitize_patterns(config["data_files"]).values():
                for pattern in patterns:
                    resolve_pattern(pattern, str(folder))
    return card


def check_model(folder: Path) -> RepoCard | None:
    """Check that a folder is a saved model, or an adapter of one, without pickled weights; return its card, if any.

    Raises:
        InputError: it is something else.
    """
    # A static model has no transformer, and so no config.json.
    configurations = ("config.json", "adapter_config.json", "config_sentence_transformers.json")
    missing = [] if (folder / "modules.json").is_file() else ["modules.json"]
    if not any((folder / name).is_file() for name in configurations):
        missing.append("config.json")
    if missing:
        raise InputError(
            f"{folder} is not a saved sentence-transformers model: it lacks {' and '.join(missing)}. Give the release "
            "folder of a run, or one that `model.save_pretrained` wrote."
        )
    # The .bin of OpenVINO, beside its .xml, holds plain numbers.
    pickled = sorted(
        path.name
        for path in folder.rglob("*")
        if path.suffix.lower() in PICKLES and not path.with_suffix(".xml").is_file()
    )
    if pickled:
        raise InputError(
            f"{folder} holds {', '.join(pickled)}: files that can run code when they are loaded. Only safetensors "
            "are published; save the model again and remove them."
        )
    _check_weights(folder)
    return _read_card(folder)


def _check_weights(folder: Path) -> None:
    """Check that a model's weights are there, in whole files; doctor compares a decoder's with its configuration."""
    repository = Repository(str(folder))
    own = sorted(name for name in repository.files if name.endswith(".safetensors"))
    shards = {
        (PurePosixPath(name).parent / shard).as_posix()
        for name in repository.files
        if name.endswith(".safetensors.index.json")
        for shard in repository.table(name).get("weight_map", {}).values()
    }
    if missing := sorted(shards - repository.files) or ([] if own else ["model.safetensors"]):
        raise InputError(
            f"{folder} has no weights to publish: it lacks {', '.join(missing)}. Save the model again, as safetensors."
        )
    for name in own:
        repository.tensors(name)


def check_tag(folder: Path, to: Destination, tag: str, replaced: Sequence[str] = ()) -> None:
    """Check that a tag is a name, and is free or that of the commit that a push of the folder leaves at the head.

    `replaced` as for `push_folder`; files are compared only where the tag exists.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", tag) or tag.endswith((".", ".lock")) or ".." in tag:
        raise InputError(
            f"--tag {tag!r} is not a name of a tag. Allowed are letters, digits, '-', '_' and '.', a letter or digit "
            "first, such as v1."
        )
    api = HfApi(token=to.token)
    with _hub_explained(to, "nothing was sent yet"), suppress(RepositoryNotFoundError):
        head = str(api.repo_info(to.repo_id, repo_type=to.repo_type).sha)
        if _is_tagged(api, to, tag, head, "Nothing was sent.") and _differs(folder, to, replaced):
            raise _taken(to, tag, head, "Nothing was sent.")


def tag_commit(to: Destination, tag: str, commit: str) -> None:
    """Name a commit; the same commit by the same name again is not an error, another is."""
    api = HfApi(token=to.token)
    with _hub_explained(to, "what was uploaded is kept and is not sent twice"):
        if not _is_tagged(api, to, tag, commit, "The files are on the main branch, without a tag."):
            api.create_tag(to.repo_id, tag=tag, revision=commit, repo_type=to.repo_type, exist_ok=True)


def _is_tagged(api: HfApi, to: Destination, tag: str, commit: str, outcome: str) -> bool:
    """Return whether a commit has a tag; refuse one that another commit has."""
    refs = api.list_repo_refs(to.repo_id, repo_type=to.repo_type)
    known = next((ref.target_commit for ref in refs.tags if ref.name == tag), commit)
    if known != commit:
        raise _taken(to, tag, known, outcome)
    return any(ref.name == tag for ref in refs.tags)


def _taken(to: Destination, tag: str, commit: str, outcome: str) -> InputError:
    return InputError(
        f"{to.repo_id} has a tag {tag} already, for commit {commit[:12]} with other files, and tags are never moved. "
        f"Choose another tag, or delete this one on the Hub. {outcome}"
    )


def _check_existing(api: HfApi, to: Destination) -> bool:
    """Return whether the repository exists; refuse one that is public where this push is private, or reversely."""
    try:
        info = api.repo_info(to.repo_id, repo_type=to.repo_type)
    except RepositoryNotFoundError:
        return False
    if bool(info.private) != to.private:
        is_, wanted = ("private", "public") if info.private else ("public", "private")
        raise InputError(
            f"{to.repo_id} exists and is {is_}, and this push is to a {wanted} repository. Push it as {is_}, or "
            "choose another name. Nothing was sent."
        )
    return True


@contextmanager
def _hub_explained(to: Destination, outcome: str) -> Generator[None]:
    """Re-raise what the Hub's client raises: the reason, what to do, and what became of the push."""
    try:
        yield
    except InputError:
        raise
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        message = f"{hub_reason(error, to.repo_id, writing=True)} Then run the same command again; {outcome}."
        # `from None`, since the errors of a client may hold the headers it sent.
        raise InputError(message.replace(to.token, "***")) from None


def _read_card(folder: Path) -> RepoCard | None:
    """Read README.md; None if there is none or it has no front matter."""
    path = folder / "README.md"
    if not path.is_file():
        return None
    with explained(
        f"The front matter of {path} cannot be read", "It has to be YAML between two lines of '---' at the top."
    ):
        card = RepoCard.load(path)
    return card if card.data.to_dict() else None
