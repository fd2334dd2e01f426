"""Damage of every kind in every file: a finding that names the file, and never a traceback."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from break_repository import pieces
from conftest import Outcome

from st_llm_embed import Recipe, cli, diagnose
from st_llm_embed.doctor.fix import repair
from st_llm_embed.doctor.repository import NoDecoderError

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"

DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "blank": lambda _: b"\n \n",
    "truncated": lambda content: content[: len(content) // 2],
    "Git LFS pointer": lambda _: POINTER.encode(),
    "not UTF-8": lambda _: b"\xff\xfe\x00\x01",
    "not JSON": lambda _: b"<html>404</html>",
    "deep": lambda _: b"[" * 100_000,
    "null": lambda _: b"null",
    "number": lambda _: b"5",
    "string": lambda _: b'"config"',
    "list": lambda _: b"[1]",
}
IS_TEXT = {"README.md", "recipe.yaml"}
"""Files that may hold anything."""


@pytest.fixture(scope="module")
def whole(good: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good repository with every file that is read."""
    folder = shutil.copytree(good("mistral"), tmp_path_factory.mktemp("whole") / "model")
    vocabulary = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    pieces(folder / "tokenizer.model", sorted(vocabulary, key=lambda piece: vocabulary[piece]))
    (folder / "README.md").write_text("# A model\n", encoding="utf-8")
    (folder / "special_tokens_map.json").write_text("{}", encoding="utf-8")
    Recipe.load("demo").save(folder / "recipe.yaml")
    assert diagnose(str(folder), live=False).findings == []
    return folder


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "copy")


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damaged_file_is_found_by_name(damage: str, copy: Path) -> None:
    for path in sorted(path for path in copy.rglob("*") if path.is_file()):
        original = path.read_bytes()
        path.unlink()
        path.write_bytes(DAMAGES[damage](original))
        name = path.relative_to(copy).as_posix()
        found = {(finding.trap, finding.file) for finding in diagnose(str(copy)).findings}
        assert found == (set() if name in IS_TEXT else {("damaged file", name)}), name
        path.write_bytes(original)


@pytest.mark.parametrize("value", ["x", [1], -1, {"a": None}])
def test_a_value_of_another_kind_is_no_traceback(value: Any, copy: Path) -> None:
    names = ["config.json", "tokenizer_config.json", "1_Pooling/config.json", "sentence_bert_config.json"]
    for name in [*names, "config_sentence_transformers.json", "modules.json", "adapter_config.json"]:
        path = copy / name
        original = path.read_bytes() if path.is_file() else b'{"peft_type": 1, "base_model_name_or_path": 1}'
        content = json.loads(original)
        entry = content[1] if isinstance(content, list) else content
        for key in list(entry):
            saved, entry[key] = entry[key], value
            path.write_text(json.dumps(content), encoding="utf-8")
            # A type of model that is not a decoder's is refused.
            with suppress(NoDecoderError):
                diagnose(str(copy), live=False)
            entry[key] = saved
        path.write_bytes(original)
        if name == "adapter_config.json":
            path.unlink()


@pytest.mark.parametrize("damage", ["truncated", "Git LFS pointer"])
def test_damage_is_left_as_it_is_by_a_repair(damage: str, copy: Path, tmp_path: Path) -> None:
    (copy / "config.json").write_bytes(DAMAGES[damage]((copy / "config.json").read_bytes()))
    repaired = repair(str(copy), tmp_path / "fixed")
    assert repaired.changed == []
    assert (repaired.before.model, repaired.after.model) == (str(copy), str(tmp_path / "fixed"))
    assert (tmp_path / "fixed" / "config.json").read_bytes() == (copy / "config.json").read_bytes()


def test_a_missing_shard_and_missing_weights_are_found(copy: Path) -> None:
    index = {"metadata": {}, "weight_map": {"norm.weight": "model-00001-of-00002.safetensors"}}
    (copy / "model.safetensors").unlink()
    [finding] = diagnose(str(copy)).findings
    assert (finding.trap, finding.file) == ("no weights", "model.safetensors")
    (copy / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    [finding] = diagnose(str(copy)).findings
    assert (finding.trap, finding.file) == ("weights missing", "model-00001-of-00002.safetensors")


def test_folders_and_files_may_be_links(copy: Path, tmp_path: Path) -> None:
    (copy / "1_Pooling").rename(tmp_path / "elsewhere")
    (copy / "1_Pooling").symlink_to(tmp_path / "elsewhere")
    (copy / "config.json").rename(tmp_path / "blob")
    (copy / "config.json").symlink_to(tmp_path / "blob")
    (copy / "loop").symlink_to(copy)
    assert diagnose(str(copy), live=False).findings == []
    assert repair(str(copy), tmp_path / "fixed", live=False).changed == []
    assert (tmp_path / "fixed" / "1_Pooling" / "config.json").is_file()
    (tmp_path / "blob").unlink()
    [finding] = diagnose(str(copy), live=False).findings
    assert (finding.trap, finding.file) == ("damaged file", "config.json")


def test_findings_mistakes_of_the_user_and_crashes_have_exit_codes_of_their_own(
    run_cli: Callable[..., Outcome], copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_cli("doctor", copy, "--no-live").code == 0
    (copy / "config.json").write_text("{", encoding="utf-8")
    found = run_cli("doctor", copy)
    assert (found.code, "ERROR: damaged file (config.json)" in found.out) == (1, True)
    assert run_cli("doctor", copy / "nothing").code == 2
    assert run_cli("doctor", copy, "--no-such-option").code == 2

    def fail() -> None:
        raise RuntimeError("a fault of the program")

    monkeypatch.setattr(cli, "app", fail)
    crashed = run_cli("doctor", copy)
    assert (crashed.code, "a fault of the program" in crashed.err) == (70, True)
