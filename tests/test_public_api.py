from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import tomllib
from pathlib import Path

import pytest

import st_llm_embed

ROOT = Path(__file__).parents[1]
MODULES = [
    importlib.import_module(found.name) for found in pkgutil.walk_packages(st_llm_embed.__path__, "st_llm_embed.")
]


def test_every_public_name_can_be_imported_and_no_other() -> None:
    assert st_llm_embed.__all__ == sorted(st_llm_embed.__all__)
    for name in st_llm_embed.__all__:
        assert getattr(st_llm_embed, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'train_everything'"):
        st_llm_embed.train_everything  # noqa: B018


def test_the_changelog_begins_with_the_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## (.+)$", changelog, flags=re.MULTILINE)
    assert next(version for version in versions if version != "Unreleased") == st_llm_embed.__version__


def test_the_tested_versions_satisfy_the_declared_bounds() -> None:
    """constraints.txt and constraints-lowest.txt name every dependency, the latter at its lower bound."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    bounds = dict(re.match(r"([\w-]+)>=([\d.]+)", one).groups() for one in declared)
    lowest = pins(ROOT / "constraints-lowest.txt")
    assert {name: lowest[name] for name in bounds} == bounds
    assert set(bounds) <= set(pins(ROOT / "constraints.txt"))


def pins(path: Path) -> dict[str, str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_public_function_and_class_is_described(module: object) -> None:
    assert inspect.getdoc(module)
    for name, member in vars(module).items():
        if name.startswith("_") or getattr(member, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(member) or inspect.isclass(member):
            assert member.__doc__, f"{module.__name__}.{name}"


def test_nothing_evaluates_code_or_unpickles() -> None:
    for path in (ROOT / "st_llm_embed").rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        assert not re.search(
            r"(?<![\w.])(eval|exec)\(|\bpickle\.|import pickle|trust_remote_code\s*=\s*True", source
        ), path
