"""A local Hub under test: starts and stops `hub_server`, and runs programs as a user with a fresh cache would."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self

TESTS = Path(__file__).parent

TOKEN = "hf_adas_token_for_tests"  # noqa: S105
"""May write to ada and lab."""
STRANGERS_TOKEN = "hf_bobs_token_for_tests"  # noqa: S105
"""May write to bob alone."""

# Read by the clients when they are imported; HF_HUB_OFFLINE is what the other tests set.
FORGOTTEN = (
    "HF_HUB_OFFLINE",
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "HF_TOKEN_PATH",
    "HF_HUB_CACHE",
    "HF_DATASETS_CACHE",
)


class Hub:
    """A Hub in a process of its own, with its storage in a folder that survives `stop` and `start`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.endpoint = ""
        self._server: subprocess.Popen[str] | None = None
        self._homes = 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the server, at the address it had before if there was one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        port = self.endpoint.rpartition(":")[2] or "0"
        command = [sys.executable, str(TESTS / "hub_server.py"), str(self.folder), port]
        with (self.folder / "server.log").open("a") as log:
            self._server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert self._server.stdout is not None
        self.endpoint = self._server.stdout.readline().strip()
        assert self.endpoint, (self.folder / "server.log").read_text(encoding="utf-8")

    def empty(self) -> None:
        """Forget every repository and object."""
        self.stop()
        shutil.rmtree(self.folder)
        self.start()

    def stop(self) -> None:
        """End the server; what it stored stays."""
        assert self._server is not None
        self._server.kill()
        self._server.communicate()

    def environment(self, token: str | None = TOKEN, *, xet: bool = False) -> dict[str, str]:
        """Return the environment of a user of this Hub who has never used it before."""
        self._homes += 1
        environment = {name: value for name, value in os.environ.items() if name not in FORGOTTEN}
        environment |= {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(self.folder.with_name(f"{self.folder.name}-home-{self._homes}")),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",
        }
        if not xet:
            environment["HF_HUB_DISABLE_XET"] = "1"
        return environment | ({} if token is None else {"HF_TOKEN": token})

    def run(self, program: str, *arguments: str | Path, token: str | None = TOKEN) -> Any:
        """Run a Python program against the Hub and return what it printed last, as JSON."""
        finished = subprocess.run(
            [sys.executable, "-c", program, *map(str, arguments)],
            env=self.environment(token),
            cwd=self.folder,
            check=False,
            capture_output=True,
            text=True,
        )
        assert finished.returncode == 0, finished.stderr
        return json.loads(finished.stdout.splitlines()[-1])

    def fail(self, *faults: dict[str, Any]) -> None:
        """Let requests fail from now on; forgets earlier faults and requests.

        A fault names `method`, `path` (a regular expression) and `times`, then either `status` (with `message` and
        `headers`) or `cut_after`, the bytes of the body that are read before the connection is cut; with `kill`, a
        file that holds the number of a process, that process is killed then. `skip` requests go well before.
        """
        self._ask("/_test/faults", list(faults))

    def requests(self, method: str, path: str = "") -> list[dict[str, Any]]:
        """Return the requests since the last call of `fail`: `method`, `path`, `received` bytes and `status`."""
        return [one for one in self._ask("/_test/requests") if one["method"] == method and path in one["path"]]

    def commits(self, repo: str, revision: str = "main") -> list[str]:
        """Return the titles of a repository's commits, the last first."""
        return [commit["title"] for commit in self.get(f"/api/{repo}/commits/{revision}")]

    def files(self, repo: str, revision: str = "main") -> set[str]:
        """Return the paths of the files that were pushed to a repository."""
        siblings = self.get(f"/api/{repo}/revision/{revision}")["siblings"]
        return {file["rfilename"] for file in siblings} - {".gitattributes"}

    def get(self, path: str, token: str | None = TOKEN) -> Any:
        """Ask the Hub's API directly."""
        return self._ask(path, token=token)

    def _ask(self, path: str, content: Any = None, token: str | None = None) -> Any:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        data = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(self.endpoint + path, data=data, headers=headers)  # noqa: S310
        with urllib.request.urlopen(request) as answer:  # noqa: S310
            return json.load(answer)


def files_in(folder: Path) -> set[str]:
    """Return the paths in a folder of all files."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


class Pusher:
    """A process that pushes one folder after the other; importing the clients for each push would take seconds."""

    def __init__(self, hub: Hub, *, xet: bool = False) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(TESTS / "hub_pusher.py")],
            env=hub.environment(None, xet=xet),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def push(self, folder: Path, repo_id: str, *, token: str | None = TOKEN, **arguments: Any) -> str:
        """Call `push_folder` and return the address, or the message of the InputError."""
        asked = {"repo_type": "dataset", "private": False, "create_pr": False, "commit_message": "Add the dataset"}
        return self._ask(asked | {"folder": str(folder), "repo_id": repo_id, "token": token} | arguments)

    def publish(self, folder: Path, to: str, *, token: str | None = TOKEN, **arguments: Any) -> Any:
        """Call `publish` in a process of its own; return the addresses, the message, or None if it was killed."""
        return self._ask({"folder": str(folder), "to": to, "token": token} | arguments)

    def _ask(self, asked: dict[str, Any]) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, self._process.communicate()[1]
        return json.loads(answer)

    def close(self) -> str:
        """End the process and return what it wrote to stderr."""
        return self._process.communicate()[1]
