"""One connection to the local Hub: requests recorded, faults, bodies read, answers sent."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, unquote, urlsplit

from hub_storage import HubError

ROUTES: list[tuple[str, re.Pattern[str], Callable[..., None]]] = []


def route(methods: str, pattern: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a method of a `HubConnection` answer the requests to a path."""

    def register(method: Callable[..., None]) -> Callable[..., None]:
        ROUTES.extend((name, re.compile(pattern), method) for name in methods.split())
        return method

    return register


class HubConnection(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    endpoint: ClassVar[str]
    faults: ClassVar[list[dict[str, Any]]] = []
    requests: ClassVar[list[dict[str, Any]]] = []
    lock: ClassVar[threading.Lock] = threading.Lock()

    def with_repo(self, parts: dict[str, Any]) -> dict[str, Any]:
        """Put the repository that a path names in the place of its kind and id."""
        raise NotImplementedError

    def handle_request(self) -> None:
        url = urlsplit(self.path)
        self.query = {key: values[0] for key, values in parse_qs(url.query).items()}
        self.record = {"method": self.command, "path": url.path, "received": 0, "status": None}
        self.body_is_read = False
        if not url.path.startswith("/_test/"):
            self.requests.append(self.record)
        try:
            if self._fails(url.path):
                return
            for method, pattern, answer in ROUTES:
                found = pattern.fullmatch(url.path)
                if method == self.command and found is not None:
                    parts = {name: unquote(part) for name, part in found.groupdict().items() if part is not None}
                    answer(self, **self.with_repo(parts))
                    return
            raise HubError(404, f"Cannot {self.command} {url.path}")  # noqa: TRY301
        except HubError as error:
            headers = {"X-Error-Message": str(error)} | ({"X-Error-Code": error.code} if error.code else {})
            self._send(error.status, {"error": str(error)}, headers)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_request  # noqa: N815

    def _fails(self, path: str) -> bool:
        """Do what a fault asks for: cut the connection after some bytes of the body, or answer with a status."""
        with self.lock:
            fault = next((one for one in self.faults if one["times"] > 0 and self._meets(one, path)), None)
            if fault is None:
                return False
            if fault.get("skip", 0) > 0:
                fault["skip"] -= 1
                return False
            fault["times"] -= 1
        if "cut_after" in fault:
            self.record["received"] = len(self.rfile.read(fault["cut_after"]))
            if "kill" in fault:
                os.kill(int(Path(fault["kill"]).read_text(encoding="utf-8")), signal.SIGKILL)
            self.close_connection = True
            self.connection.close()
        else:
            self._send(fault["status"], {"error": fault.get("message", "a fault of the Hub")}, fault.get("headers"))
        return True

    def _meets(self, fault: dict[str, Any], path: str) -> bool:
        return fault["method"] == self.command and re.search(fault["path"], path) is not None

    def _read_body(self, into: Any) -> None:
        self.body_is_read = True
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline().split(b";")[0], 16):
                self._copy(size, into)
                self.rfile.readline()
            self.rfile.readline()
        else:
            self._copy(int(self.headers.get("Content-Length") or 0), into)

    def _copy(self, size: int, into: Any) -> None:
        while size:
            part = self.rfile.read(min(size, 1 << 16))
            if not part:
                raise ConnectionResetError("the client went away")
            self.record["received"] += len(part)
            into.write(part)
            size -= len(part)

    def _body(self) -> bytes:
        with tempfile.SpooledTemporaryFile(max_size=1 << 24) as body:
            self._read_body(body)
            body.seek(0)
            return body.read()

    def _send(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        if not self.body_is_read:
            self._body()
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.record["status"] = status
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json"} | (headers or {})).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the requests are recorded."""

    def _send_file(self, path: Path, headers: dict[str, str]) -> None:
        """Send a file; its name is its ETag."""
        if not path.is_file():
            raise HubError(404, "no such object", "EntryNotFound")
        self._body()
        self.record["status"] = 200
        self.send_response(200)
        about = {"ETag": f'"{path.name}"', "Content-Length": str(path.stat().st_size)}
        for name, value in (headers | about | {"Content-Type": "application/octet-stream"}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            with path.open("rb") as file:
                shutil.copyfileobj(file, self.wfile)

    @route("POST", "/_test/faults")
    def set_faults(self) -> None:
        self.faults[:] = json.loads(self._body())
        self.requests.clear()
        self._send(200, {})

    @route("GET", "/_test/requests")
    def get_requests(self) -> None:
        self._send(200, self.requests)
