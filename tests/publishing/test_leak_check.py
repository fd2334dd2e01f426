from __future__ import annotations

import getpass
import socket
from pathlib import Path

import pytest

from st_llm_embed import InputError
from st_llm_embed.publishing.leak_check import check_nothing_private

TOKEN = "hf_token-of-a-user"  # noqa: S105


@pytest.fixture(autouse=True)
def adas_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(getpass, "getuser", lambda: "ada")
    monkeypatch.setattr(socket, "gethostname", lambda: "gpu-17")
    monkeypatch.setenv("SOME_API_KEY", "a-key-of-no-known-form")


def check(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"first line\n{text}\n", encoding="utf-8")
    check_nothing_private(folder, "lab", TOKEN)


@pytest.mark.parametrize(
    ("name", "text", "what"),
    [
        ("config.json", '"_name_or_path": "/home/ada/models/base"', "'/home/ada'"),
        ("README.md", "trained on /mnt/disk/rows.jsonl", "'/mnt/disk'"),
        ("recipe.yaml", r"rows: C:\Users\ada\rows.jsonl", r"'C:\\Users"),
        ("recipe.yaml", "rows: ~/rows.jsonl", "'~/rows.jsonl'"),
        ("recipe.yaml", f"rows: {Path.cwd()}/rows.jsonl", "'" + str(Path.cwd())),
        ("tokenizer.json", f'"{Path.home()}/base"', "'" + str(Path.home())),
        ("notes.txt", "ask ada@example.org", "'ada@'"),
        ("notes.txt", 'author: "ada"', "ada"),
        ("notes.txt", "made on gpu-17", "'gpu-17'"),
        ("a.json", "hf_abcdefghijklmnopqrstuvwxyz", "a token or key (not shown)"),
        ("a.json", "sk-proj-abcdefghijklmnopqrstuvwxyz", "a token or key (not shown)"),
        ("rows.jsonl", "AKIAABCDEFGHIJKLMNOP", "a token or key (not shown)"),
        ("tokenizer.json", f'"{TOKEN}"', "a token or key (not shown)"),
        (".hidden", "a-key-of-no-known-form", "a token or key (not shown)"),
    ],
)
def test_what_is_private_is_named_by_file_and_line(tmp_path: Path, name: str, text: str, what: str) -> None:
    with pytest.raises(InputError) as error:
        check(tmp_path, name, text)
    message = str(error.value)
    assert f"{tmp_path / name} line 2 holds " in message
    assert what in message
    assert "\n" not in message
    assert not any(secret in message for secret in (TOKEN, "abcdefghijkl", "a-key-of-no-known-form"))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("README.md", "https://huggingface.co/lab/home/x and http://localhost:8000/v1/embeddings and /v1/embeddings"),
        ("README.md", "and/or, 1/2, src/data/rows.jsonl, ./tmp/x, lab/data-set"),
        ("README.md", "Adaptation by Ada, granada, ada-002, ada"),
        ("tokenizer.json", '"/usr/local", "/home/user", "C:\\\\Windows"'),
        ("rows.jsonl", '{"anchor": "what lies in /etc/passwd", "positive": "users of /home/pi"}'),
        ("README.md", "ratio a:b, time 12:30, Note: A:\u00a0x"),
    ],
)
def test_what_only_looks_like_it_may_be_said(tmp_path: Path, name: str, text: str) -> None:
    check(tmp_path, name, text)


def test_the_namespace_published_under_may_be_the_users_name(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("https://huggingface.co/ada/tiny", encoding="utf-8")
    check_nothing_private(tmp_path, "ada", TOKEN)
    with pytest.raises(InputError, match="line 1 holds '/ada'"):
        check_nothing_private(tmp_path, "lab", TOKEN)


def test_five_places_are_shown_and_the_others_counted(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("/home/ada/x\n" * 8, encoding="utf-8")
    with pytest.raises(InputError, match=r"line 5 holds '/home/ada'; and 3 more places\."):
        check_nothing_private(tmp_path, "lab", TOKEN)


def test_what_is_not_sent_and_what_is_no_text_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "manifests").mkdir()
    (tmp_path / "manifests" / "release.json").write_text("/home/ada/x", encoding="utf-8")
    (tmp_path / "model.safetensors").write_bytes(b"/home/ada/x")
    (tmp_path / ".env").write_text("KEY=hf_abcdefghijklmnopqrstuvwxyz")
    (tmp_path / "blob").write_bytes(b"\0 /home/ada/x")
    check_nothing_private(tmp_path, "lab", TOKEN)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le"])
def test_a_key_in_utf_16_is_found(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("key: hf_abcdefghijklmnopqrstuvwxyz", encoding=encoding)
    with pytest.raises(InputError, match=r"notes\.txt line 1 holds what looks like a token"):
        check_nothing_private(tmp_path, "lab", TOKEN)
