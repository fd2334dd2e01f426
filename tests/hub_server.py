"""A local Hugging Face Hub for tests: real HTTP, the calls that the public clients make, storage in a folder.

``python tests/hub_server.py FOLDER [PORT]`` prints its address. Uploads go by git LFS, so a client needs
HF_HUB_DISABLE_XET=1. Tests switch faults on by ``POST /_test/faults`` and read what was asked at
``GET /_test/requests``.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs

from hub_http import HubConnection, route
from hub_storage import Discussion, File, HubError, Kind, Repo, Storage, upload_mode

NAMESPACES = {"hf_adas_token_for_tests": ("ada", "lab"), "hf_bobs_token_for_tests": ("bob",)}
"""Token -> the user and the organisations that it may write to."""
LICENSES = {"apache-2.0", "mit", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc0-1.0", "other", "unknown"}

REPO = r"/api/(?P<kind>models|datasets)/(?P<repo_id>[^/]+/[^/]+)"
FILES = r"/(?:(?P<kind>datasets)/)?(?P<repo_id>[^/]+/[^/]+)"
REVISION = r"(?P<revision>[^/]+)"


class Hub(HubConnection):
    storage: ClassVar[Storage]

    def with_repo(self, parts: dict[str, Any]) -> dict[str, Any]:
        if "repo_id" in parts:
            kind: Kind = "datasets" if parts.pop("kind", None) == "datasets" else "models"
            parts["repo"] = self._visible_repo(kind, parts.pop("repo_id"))
        return parts

    # --- who asks, and for what ---

    def _namespaces(self) -> tuple[str, ...]:
        """Return the user who asks and its organisations; nothing for a request without a token."""
        authorization = self.headers.get("Authorization")
        if authorization is None:
            return ()
        token = authorization.removeprefix("Bearer ")
        if token not in NAMESPACES:
            raise HubError(401, "Invalid credentials in Authorization header")
        return NAMESPACES[token]

    def _visible_repo(self, kind: Kind, repo_id: str) -> Repo:
        namespaces = self._namespaces()
        repo = self.storage.find(kind, repo_id)
        if repo is None or (repo.private and repo_id.split("/", maxsplit=1)[0] not in namespaces):
            raise HubError(404 if namespaces else 401, "Repository not found", "RepoNotFound")
        return repo

    def _writer(self, namespace: str) -> str:
        user, *_ = self._namespaces() or (None,)
        if user is None:
            raise HubError(401, "Invalid username or password.")
        if namespace not in self._namespaces():
            raise HubError(403, f"You don't have the rights to write to the namespace {namespace}")
        return user

    # --- accounts and repositories ---

    @route("GET", "/api/whoami-v2")
    def whoami(self) -> None:
        if not self._namespaces():
            raise HubError(401, "Invalid username or password.")
        user, *orgs = self._namespaces()
        self._send(200, {"type": "user", "id": user, "name": user, "orgs": [{"name": name} for name in orgs]})

    @route("POST", "/api/repos/create")
    def create(self) -> None:
        asked = json.loads(self._body())
        namespace = asked.get("organization") or (self._namespaces() or ("",))[0]
        author = self._writer(namespace)
        kind: Kind = "datasets" if asked.get("type") == "dataset" else "models"
        repo_id = f"{namespace}/{asked['name']}"
        self.storage.create(kind, repo_id, private=asked.get("visibility") == "private", author=author)
        self._send(200, {"url": self._url(kind, repo_id), "name": repo_id, "id": repo_id})

    @route("POST", "/api/validate-yaml")
    def validate_yaml(self) -> None:
        content = json.loads(self._body())["content"]
        front_matter = re.match(r"---\n(.*?\n)---\s*\n", content, flags=re.DOTALL)
        found = re.search(r"^license: *(\S+) *$", front_matter[1] if front_matter else "", flags=re.MULTILINE)
        if found is None or found[1] in LICENSES:
            self._send(200, {"errors": [], "warnings": []})
        else:
            message = f'"license" must be one of {sorted(LICENSES)}'
            self._send(400, {"errors": [{"message": message}], "warnings": []})

    # --- reading ---

    @route("GET", rf"{REPO}(?:/revision/{REVISION})?")
    def info(self, repo: Repo, revision: str = "main") -> None:
        sha, commit = self.storage.resolve(repo, revision)
        siblings = [{"rfilename": path, **self._sizes(file)} for path, file in sorted(commit.files.items())]
        content = {"_id": repo.repo_id, "id": repo.repo_id, "author": repo.repo_id.split("/")[0], "sha": sha}
        state = {"private": repo.private, "gated": False, "disabled": False, "tags": [], "downloads": 0, "likes": 0}
        dates = {"lastModified": commit.date, "createdAt": commit.date}
        self._send(200, content | state | dates | {"siblings": siblings})

    @route("GET", rf"{REPO}/tree/{REVISION}(?:/(?P<path>.+))?")
    def tree(self, repo: Repo, revision: str, path: str = "") -> None:
        _, commit = self.storage.resolve(repo, revision)
        prefix = f"{path.rstrip('/')}/" if path else ""
        recursive = self.query.get("recursive", "").lower() in ("true", "1")
        entries: dict[str, dict[str, Any]] = {}
        for name, file in sorted(commit.files.items()):
            if not name.startswith(prefix):
                continue
            parts = name.removeprefix(prefix).split("/")
            for depth in range(1, len(parts) if recursive else min(len(parts), 2)):
                folder = prefix + "/".join(parts[:depth])
                entries[folder] = {"type": "directory", "path": folder, "oid": commit.sha, "size": 0}
            if len(parts) == 1 or recursive:
                entries[name] = self._entry(name, file)
        if path and not entries:
            raise HubError(404, f"{path} does not exist on {revision}", "EntryNotFound")
        self._send(200, list(entries.values()))

    @route("POST", rf"{REPO}/paths-info/{REVISION}")
    def paths_info(self, repo: Repo, revision: str) -> None:
        _, commit = self.storage.resolve(repo, revision)
        found: list[dict[str, Any]] = []
        for path in parse_qs(self._body().decode()).get("paths", []):
            if path in commit.files:
                found.append(self._entry(path, commit.files[path]))
            elif any(name.startswith(path.rstrip("/") + "/") for name in commit.files):
                found.append({"type": "directory", "path": path, "oid": commit.sha, "size": 0})
        self._send(200, found)

    @route("GET", rf"{REPO}/refs")
    def refs(self, repo: Repo) -> None:
        def under(prefix: str) -> list[dict[str, str]]:
            found = {name.removeprefix(prefix): name for name in sorted(repo.refs) if name.startswith(prefix)}
            return [{"name": name, "ref": ref, "targetCommit": repo.refs[ref]} for name, ref in found.items()]

        pulls = {"pullRequests": under("refs/pr/")} if "include_prs" in self.query else {}
        self._send(200, {"branches": under("refs/heads/"), "tags": under("refs/tags/"), "converts": []} | pulls)

    @route("GET", rf"{REPO}/commits/{REVISION}")
    def commits(self, repo: Repo, revision: str) -> None:
        history = self.storage.history(repo, revision)
        entries = [
            {"id": sha, "authors": [{"user": commit.author}]}
            | {key: getattr(commit, key) for key in ("title", "message", "date")}
            for sha, commit in history
        ]
        self._send(200, entries)

    @route("GET HEAD", rf"{FILES}/resolve/{REVISION}/(?P<path>.+)")
    def resolve(self, repo: Repo, revision: str, path: str) -> None:
        sha, commit = self.storage.resolve(repo, revision)
        headers = {"X-Repo-Commit": sha}
        file = commit.files.get(path)
        if file is None:
            error = {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
            self._send(404, {"error": "Entry not found"}, headers | error)
        elif file.lfs:
            linked = {"X-Linked-Etag": f'"{file.oid}"', "X-Linked-Size": str(file.size)}
            # Of another host, as on the Hub: within a host clients follow at once and lose these headers.
            elsewhere = self.endpoint.replace("127.0.0.1", "localhost")
            self._send(302, b"", headers | linked | {"Location": f"{elsewhere}/_objects/{file.oid}"})
        else:
            self._send_file(self.storage.objects / file.oid, headers)

    @route("GET HEAD", "/_objects/(?P<oid>[0-9a-f]{64})")
    def download(self, oid: str) -> None:
        self._send_file(self.storage.objects / oid, {})

    # --- writing ---

    @route("POST", rf"{REPO}/preupload/{REVISION}")
    def preupload(self, repo: Repo, revision: str) -> None:
        self._writer(repo.repo_id.split("/")[0])
        _, commit = self.storage.resolve(repo, revision)
        files = json.loads(self._body())["files"]
        answers = [
            {
                "path": file["path"],
                "uploadMode": upload_mode(file["path"], file["size"]),
                "shouldIgnore": False,
                "oid": commit.files[file["path"]].oid if file["path"] in commit.files else None,
            }
            for file in files
        ]
        self._send(200, {"files": answers, "commitOid": commit.sha})

    @route("POST", rf"{FILES}\.git/info/lfs/objects/batch")
    def lfs_batch(self, repo: Repo) -> None:  # noqa: ARG002
        self._writer((self._namespaces() or ("",))[0])
        objects = json.loads(self._body())["objects"]
        for item in objects:
            if not self.storage.has(item["oid"], item["size"]):
                item["actions"] = {"upload": {"href": f"{self.endpoint}/_objects/{item['oid']}"}}
        self._send(200, {"transfer": "basic", "objects": objects})

    @route("PUT", "/_objects/(?P<oid>[0-9a-f]{64})")
    def upload(self, oid: str) -> None:
        with tempfile.TemporaryDirectory(dir=self.storage.root) as folder:
            partial = Path(folder) / oid
            with partial.open("wb") as file:
                self._read_body(file)
            self.storage.add_lfs(oid, partial)
        self._send(200, b"", {"ETag": f'"{oid}"'})

    @route("POST", rf"{REPO}/commit/{REVISION}")
    def commit(self, repo: Repo, revision: str) -> None:
        author = self._writer(repo.repo_id.split("/")[0])
        operations = [json.loads(line) for line in self._body().splitlines() if line.strip()]
        ref = repo.full_ref(revision)
        if ref is None:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        opened: dict[str, str] = {}
        if self.query.get("create_pr"):
            header = operations[0]["value"]
            discussion = self.storage.open_pull_request(repo, header["summary"], author)
            ref = f"refs/pr/{discussion.num}"
            opened = {"pullRequestUrl": f"{self._url(repo.kind, repo.repo_id)}/discussions/{discussion.num}"}
        sha = self.storage.commit(repo, ref, operations, author)
        url = f"{self._url(repo.kind, repo.repo_id)}/commit/{sha}"
        self._send(200, {"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""} | opened)

    @route("POST", rf"{REPO}/tag/{REVISION}")
    def tag(self, repo: Repo, revision: str) -> None:
        self._writer(repo.repo_id.split("/")[0])
        sha, _ = self.storage.resolve(repo, revision)
        name = f"refs/tags/{json.loads(self._body())['tag']}"
        if name in repo.refs:
            raise HubError(409, "Tag reference exists already")
        repo.refs[name] = sha
        self.storage.save(repo)
        self._send(200, {})

    # --- discussions ---

    @route("GET", rf"{REPO}/discussions")
    def discussions(self, repo: Repo) -> None:
        found = [
            self._discussion(repo, discussion)
            for discussion in repo.discussions
            if self.query.get("author") in (None, discussion.author)
            and (self.query.get("status") != "open" or discussion.status in ("open", "draft"))
        ]
        self._send(200, {"count": len(found), "start": 0, "discussions": found})

    @route("POST", rf"{REPO}/discussions")
    def open_discussion(self, repo: Repo) -> None:
        asked = json.loads(self._body())
        discussion = self.storage.open_pull_request(repo, asked["title"], self._namespaces()[0])
        self._send(200, {"num": discussion.num})

    @route("GET", rf"{REPO}/discussions/(?P<num>\d+)")
    def discussion(self, repo: Repo, num: str) -> None:
        discussion = repo.discussions[int(num) - 1]
        details = {"events": [], "changes": {"base": "refs/heads/main"}, "filesWithConflicts": []}
        self._send(200, self._discussion(repo, discussion) | details)

    # --- forms of answers ---

    def _url(self, kind: Kind, repo_id: str) -> str:
        return f"{self.endpoint}/{'datasets/' if kind == 'datasets' else ''}{repo_id}"

    def _sizes(self, file: File) -> dict[str, Any]:
        lfs = {"lfs": {"sha256": file.oid, "size": file.size, "pointerSize": 134}} if file.lfs else {}
        return {"size": file.size, "blobId": file.oid[:40]} | lfs

    def _entry(self, path: str, file: File) -> dict[str, Any]:
        lfs = {"lfs": {"oid": file.oid, "size": file.size, "pointerSize": 134}} if file.lfs else {}
        return {"type": "file", "path": path, "oid": file.oid[:40], "size": file.size} | lfs

    def _discussion(self, repo: Repo, discussion: Discussion) -> dict[str, Any]:
        return {
            "num": discussion.num,
            "title": discussion.title,
            "status": discussion.status,
            "author": {"name": discussion.author},
            "createdAt": discussion.created_at,
            "isPullRequest": True,
            "repo": {"name": repo.repo_id, "type": repo.kind[:-1]},
        }


def main(folder: str, port: str = "0") -> None:
    server = ThreadingHTTPServer(("127.0.0.1", int(port)), Hub)
    Hub.storage = Storage(Path(folder))
    Hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    print(Hub.endpoint, flush=True)  # noqa: T201
    server.serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
