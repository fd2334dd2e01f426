"""The README, executed: its Python, its command lines, its row and its recipe."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import example_rows, write_rows

from st_llm_embed import LLMSentenceTransformer
from st_llm_embed.data import Row
from st_llm_embed.recipe import Recipe

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_row_is_a_row() -> None:
    [row] = blocks("json")
    assert Row.model_validate(json.loads(row)).negative


def test_the_recipe_excerpt_has_keys_of_a_recipe() -> None:
    [excerpt] = blocks("yaml")
    recipe = Recipe.load("e5-mistral-7b").model_dump()
    for section, values in yaml.safe_load(excerpt).items():
        assert {key: recipe[section][key] for key in values} == values


@pytest.mark.integration
def test_the_python_runs(tmp_path: Path) -> None:
    model = LLMSentenceTransformer.from_base("embedded", max_seq_length=64, device="cpu")
    model.save_pretrained(str(tmp_path / "runs" / "demo" / "release"))
    program = "\n".join(blocks("python"))
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path, capture_output=True)
    assert (tmp_path / "runs" / "short" / "release" / "model.safetensors").is_file()


@pytest.mark.integration
def test_the_commands_run(tmp_path: Path, tiny_base: Path) -> None:
    write_rows(tmp_path / "rows.jsonl", example_rows(64))
    lines = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("st-llm-embed")]
    assert len(lines) >= 4
    # Two steps, and for the README's base and GPU a tiny one and the CPU.
    replaced = ["training.max_steps=2", "training.use_cpu=true"]
    for line in lines:
        arguments = shlex.split(line)[1:]
        if arguments[0] == "run":
            own_base = [] if "demo" in arguments else [f"base.name_or_path={tiny_base}"]
            arguments += [part for override in (*replaced, *own_base) for part in ("--set", override)]
        command = [sys.executable, "-m", "st_llm_embed.cli", *arguments]
        done = subprocess.run(command, check=False, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, (line, done.stderr)
    assert (tmp_path / "runs" / "mine" / "release").is_dir()
