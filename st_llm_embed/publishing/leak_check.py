"""Refuse to publish secrets, local paths, user or host names; and which files are never published."""

from __future__ import annotations

import getpass
import os
import re
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub.utils import filter_repo_objects

from st_llm_embed.errors import InputError, explained

NEVER_SENT = ("*.lock", "*.partial", "*.partial/*", "manifests/*", ".env*", "*/.env*", ".git/*", "*/.git/*")
"""What a run writes for itself, and what people keep beside their files for themselves."""

BINARY = frozenset(
    {".safetensors", ".parquet", ".onnx", ".onnx_data", ".bin", ".gguf", ".arrow", ".png", ".jpg", ".model"}
)
"""Suffixes of files that are not text."""

CONTENT = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "probe.json", ".jsonl", ".csv", ".tsv")
"""Ends of names of files of other people's words, where only this machine's own folders count as paths of it."""

TOKENS = re.compile(
    r"\b(hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|AKIA[0-9A-Z]{16}"
    r"|xox[abp]-[\w-]{10,}|glpat-[\w-]{20,}|AIza[\w-]{30,})"
)
SECRET_VARIABLES = re.compile(r"TOKEN|SECRET|PASSWORD|_KEY$|APIKEY")

FOLDERS = (
    "home|Users|root|mnt|tmp|var|opt|data|scratch|workspace|work|media|Volumes|private|srv|usr|etc|gpfs|lustre|nfs"
    "|fsx|content|kaggle|dev|proc|run"
)
PATHS = re.compile(
    rf"(?<![\w.:/~}})\]-])(?:file://)?/(?:{FOLDERS})/[\w.~+@-]+|\b[A-Za-z]:\\+[\w.~+ -]+|(?<![\w/])~/[\w.]+"
)

NOBODY = frozenset({"root", "user", "ubuntu", "admin", "runner", "vscode", "jovyan", "coder", "nobody"})
"""Names of users that say nothing about anyone."""


def check_nothing_private(folder: Path, namespace: str, token: str) -> None:
    """Read every text file of a folder and refuse secrets, paths, and names of this machine and its user.

    `namespace` is the user or organisation published under, whose name is allowed; `token` is that for the Hub.

    Raises:
        InputError: something was found; the message names each file and line, and shows no secret.
    """
    secrets = {value for name, value in os.environ.items() if SECRET_VARIABLES.search(name) and len(value) >= 8}
    found = list(_read(folder, secrets | {token}, _own_places(folder), _names(namespace)))
    if found:
        more = f"; and {len(found) - 5} more places" if len(found) > 5 else ""
        raise InputError(
            f"{'; '.join(found[:5])}{more}. Correct these lines, or change the recipe they come from and run it "
            "again. Nothing was sent."
        )


def looks_private(text: str) -> bool:
    """Whether a text holds what looks like a path or a key; a card with it would not be published."""
    return PATHS.search(text) is not None or TOKENS.search(text) is not None


def published_files(folder: Path) -> list[str]:
    """Return the paths in a folder of all files that are published, sorted."""
    files = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(filter_repo_objects(files, ignore_patterns=list(NEVER_SENT)))


def _read(folder: Path, secrets: set[str], own: re.Pattern[str], names: re.Pattern[str] | None) -> Iterator[str]:
    """Yield each finding: file, line and what it holds."""
    for path in (folder / name for name in published_files(folder)):
        if path.suffix in BINARY:
            continue
        with explained(f"{path} cannot be read", "Make it readable."):
            content = path.read_bytes()
        patterns = [own] if path.name.endswith(CONTENT) else [own, PATHS, *([names] if names else [])]
        if b"\0" in content:
            # UTF-16 is text with a zero beside each letter; anything else is searched for keys alone.
            content, patterns = content.replace(b"\0", b""), []
        for number, line in enumerate(content.decode(errors="replace").splitlines(), 1):
            if TOKENS.search(line) or any(secret in line for secret in secrets):
                yield f"{path} line {number} holds what looks like a token or key (not shown)"
            hit = next((hit for hit in (pattern.search(line) for pattern in patterns) if hit), None)
            if hit is not None:
                yield f"{path} line {number} holds {hit[0].strip()[:80]!r}"


def _own_places(folder: Path) -> re.Pattern[str]:
    """Match this machine's folders: home, the current one, that of temporary files and the one to publish."""
    places = {Path.home(), Path.cwd(), Path(tempfile.gettempdir()), folder.resolve().parent}
    known = sorted((str(place) for place in places if len(place.parts) > 1), key=len, reverse=True)
    return re.compile(rf"(?<![\w.])(?:{'|'.join(map(re.escape, known))})[/\\][\w.-]+" if known else r"(?!)")


def _names(namespace: str) -> re.Pattern[str] | None:
    """Match the user's name where it is one, as in an address or a path, and the machine's name."""
    parts = []
    host = socket.gethostname()
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container may run under a number that has no name
        user = "nobody"
    if user not in NOBODY and user != namespace:
        name = re.escape(user)
        parts.append(rf"(?<![\w.-]){name}@|[/\\~]{name}(?=[/\\\s\"']|$)|[:=]\s*[\"']?{name}[\"']?\s*,?$")
    if re.search(r"[\d.-]", host):
        # A name that is one plain word, such as "spark", would be found everywhere.
        parts.append(rf"(?<![\w.-]){re.escape(host)}(?![\w-])")
    elif host != "localhost":
        parts.append(rf"(?:@|//){re.escape(host)}(?![\w.-])")
    return re.compile("|".join(parts)) if parts else None
