"""What a local Hugging Face Hub keeps, as files: repositories with commits and refs, and the objects they name."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

Kind = Literal["models", "datasets"]

MAIN = "refs/heads/main"
LFS_SUFFIXES = {".safetensors", ".parquet", ".bin", ".onnx", ".gguf", ".arrow", ".png"}
LFS_BYTES = 1 << 20


class HubError(Exception):
    """An answer that is not a success: status, message, and the X-Error-Code that clients look at."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


@dataclass
class File:
    """One file of a commit: its object is named by the sha256 of LFS content, else by git's sha1 of the blob."""

    oid: str
    size: int
    lfs: bool


@dataclass
class Commit:
    """A complete tree of files with a message."""

    files: dict[str, File]
    title: str
    message: str
    author: str
    date: str
    parent: str | None

    @property
    def sha(self) -> str:
        return hashlib.sha1(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()  # noqa: S324


@dataclass
class Discussion:
    """A pull request."""

    num: int
    title: str
    author: str
    created_at: str
    status: str = "draft"


@dataclass
class Repo:
    kind: Kind
    repo_id: str
    private: bool
    refs: dict[str, str] = field(default_factory=dict)
    """Full name of a ref (refs/heads/main, refs/pr/1, refs/tags/v1) -> sha of its commit."""
    discussions: list[Discussion] = field(default_factory=list)

    def full_ref(self, revision: str) -> str | None:
        names = (revision, f"refs/heads/{revision}", f"refs/tags/{revision}")
        return next((name for name in names if name in self.refs), None)


class Storage:
    """Repositories under ``<root>/<kind>/<namespace>/<name>`` and objects under ``<root>/objects``."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.objects = root / "objects"
        self.objects.mkdir(parents=True, exist_ok=True)
        self.lock = threading.RLock()

    def create(self, kind: Kind, repo_id: str, *, private: bool, author: str) -> Repo:
        with self.lock:
            if self.find(kind, repo_id) is not None:
                raise HubError(409, f"You already created this {kind[:-1]} repo")
            repo = Repo(kind, repo_id, private)
            attributes = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in sorted(LFS_SUFFIXES))
            files = {".gitattributes": self.add_blob(attributes.encode())}
            self._add_commit(repo, MAIN, Commit(files, "initial commit", "", author, _now(), None))
            return repo

    def find(self, kind: Kind, repo_id: str) -> Repo | None:
        path = self._folder(kind, repo_id) / "repo.json"
        if not path.is_file():
            return None
        content = json.loads(path.read_text(encoding="utf-8"))
        content["discussions"] = [Discussion(**discussion) for discussion in content["discussions"]]
        return Repo(**content)

    def resolve(self, repo: Repo, revision: str) -> tuple[str, Commit]:
        """Return sha and commit of a branch, tag, pull request or commit."""
        name = repo.full_ref(revision)
        sha = revision if name is None else repo.refs[name]
        path = self._folder(repo.kind, repo.repo_id) / "commits" / f"{sha}.json"
        if not path.is_file():
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        content = json.loads(path.read_text(encoding="utf-8"))
        content["files"] = {name: File(**file) for name, file in content["files"].items()}
        return sha, Commit(**content)

    def history(self, repo: Repo, revision: str) -> Iterable[tuple[str, Commit]]:
        sha: str | None = revision
        while sha is not None:
            sha, commit = self.resolve(repo, sha)
            yield sha, commit
            sha = commit.parent

    def commit(self, repo: Repo, ref: str, operations: list[dict[str, Any]], author: str) -> str:
        """Apply the lines of a commit request to a ref.

        Returns:
            The sha of the new commit.
        """
        header = operations[0]["value"]
        with self.lock:
            head, parent = self.resolve(repo, ref)
            files = dict(parent.files)
            for operation in operations[1:]:
                self._apply(operation["key"], operation["value"], files)
            commit = Commit(files, header["summary"], header.get("description", ""), author, _now(), head)
            return self._add_commit(repo, ref, commit)

    def open_pull_request(self, repo: Repo, title: str, author: str) -> Discussion:
        with self.lock:
            discussion = Discussion(len(repo.discussions) + 1, title, author, _now())
            repo.discussions.append(discussion)
            repo.refs[f"refs/pr/{discussion.num}"] = repo.refs[MAIN]
            self.save(repo)
            return discussion

    def save(self, repo: Repo) -> None:
        _write(self._folder(repo.kind, repo.repo_id) / "repo.json", asdict(repo))

    def add_blob(self, content: bytes) -> File:
        oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()  # noqa: S324
        (self.objects / oid).write_bytes(content)
        return File(oid, len(content), lfs=False)

    def add_lfs(self, oid: str, partial: Path) -> None:
        """Take an uploaded object over if its content is what its name says."""
        with partial.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != oid:
            raise HubError(400, f"the content has the sha256 {digest}, not {oid}")
        partial.replace(self.objects / oid)

    def has(self, oid: str, size: int) -> bool:
        path = self.objects / oid
        return path.is_file() and path.stat().st_size == size

    def _apply(self, key: str, value: dict[str, Any], files: dict[str, File]) -> None:
        path = value["path"]
        if key == "file":
            files[path] = self.add_blob(base64.b64decode(value["content"]))
        elif key == "lfsFile":
            if not self.has(value["oid"], value["size"]):
                raise HubError(400, f"the LFS object of {path} was not uploaded")
            files[path] = File(value["oid"], value["size"], lfs=True)
        elif key == "deletedFile":
            if files.pop(path, None) is None:
                raise HubError(404, "A file with this name doesn't exist", "EntryNotFound")
        else:
            raise HubError(400, f"unknown operation {key}")

    def _add_commit(self, repo: Repo, ref: str, commit: Commit) -> str:
        _write(self._folder(repo.kind, repo.repo_id) / "commits" / f"{commit.sha}.json", asdict(commit))
        repo.refs[ref] = commit.sha
        self.save(repo)
        return commit.sha

    def _folder(self, kind: Kind, repo_id: str) -> Path:
        return self.root / kind / repo_id


def upload_mode(path: str, size: int) -> Literal["lfs", "regular"]:
    return "lfs" if Path(path).suffix in LFS_SUFFIXES or size > LFS_BYTES else "regular"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content), encoding="utf-8")
    partial.replace(path)
