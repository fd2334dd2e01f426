"""The scripts of docs/reproduction.md: what can be run of them without a GPU and without the Hub."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import example_rows, write_rows
from transformers import MistralConfig

from st_llm_embed.ablation import Grid
from st_llm_embed.data import read_rows, write_dataset

pytestmark = pytest.mark.integration

SCRIPTS = Path(__file__).parents[2] / "scripts" / "reproduce"
DOCUMENT = SCRIPTS.parents[1] / "docs" / "reproduction.md"
ABLATIONS = ("instruction", "pooling", "lora_rank", "contrastive_pretraining", "main_table")


def run(script: str, *options: str | Path, cwd: Path, scripts: Path = SCRIPTS) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, scripts / f"{script}.py", *map(str, options)]
    environment = os.environ | {"PYTHONPATH": str(SCRIPTS.parents[1]), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, check=False, capture_output=True, text=True, cwd=cwd, env=environment)


@pytest.fixture(scope="module")
def seven_billion(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shape of Mistral-7B and a small tokenizer, without weights."""
    folder = tmp_path_factory.mktemp("shape")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_base / name, folder / name)
    MistralConfig(sliding_window=4096, max_position_embeddings=32768).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("script", ABLATIONS)
def test_every_setting_of_a_full_scale_script_goes_through_its_first_step(
    script: str, seven_billion: Path, tmp_path: Path
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", example_rows(240))
    overrides = (f"base.name_or_path={seven_billion}", "training.per_device_train_batch_size=16", "data.mining=null")
    options = [part for override in overrides for part in ("--set", override)]
    done = run(script, "--scale", "full", "--rows", rows, *options, "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    settings = [line for line in done.stdout.splitlines() if "hours of one device" in line]
    assert len(settings) >= 3
    assert all(re.search(r" \d+ steps, .* tokens, .* USD, .* GiB on each of 8, ", line) for line in settings), settings
    assert not (tmp_path / "runs").exists()


def test_a_command_that_is_refused_leaves_an_earlier_table_as_it_is(tmp_path: Path) -> None:
    table = tmp_path / "runs" / "reproduce" / "contamination-tiny" / "table.md"
    table.parent.mkdir(parents=True)
    table.write_text("an earlier one", encoding="utf-8")
    done = run("contamination", "--rows", "nowhere.jsonl", cwd=tmp_path)
    assert done.returncode == 1
    assert "ended with code 2, so there is no table" in done.stderr
    assert table.read_text(encoding="utf-8") == "an earlier one"


@pytest.mark.parametrize(
    ("options", "jobs"), [((), os.cpu_count()), (("--scale", "small"), 1), (("--scale", "full", "--jobs", "3"), 3)]
)
def test_runs_at_a_time_are_as_many_as_cores_where_they_are_tiny(
    options: tuple[str, ...], jobs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["pooling.py", *options])
    assert runpy.run_path(str(SCRIPTS / "scales.py"))["arguments"]("").jobs == jobs


def test_full_scale_without_rows_is_refused(tmp_path: Path) -> None:
    done = run("pooling", "--scale", "full", cwd=tmp_path)
    assert done.returncode == 1
    assert "needs --rows FILE.jsonl" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("script", [*ABLATIONS, "base_model"])
def test_a_tiny_script_runs_from_the_package_alone(script: str, tmp_path: Path) -> None:
    done = run(script, "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    text = done.stdout[done.stdout.index("name: ") :]
    (tmp_path / "grid.yaml").write_text(text, encoding="utf-8")
    assert Grid.load(tmp_path / "grid.yaml").seeds == (1, 2, 3)


def test_a_tiny_script_ends_with_a_table_that_the_document_is_filled_from(tiny_base: Path, tmp_path: Path) -> None:
    small = (f"base.name_or_path={tiny_base}", "training.max_steps=2", "training.per_device_train_batch_size=4")
    options = [part for override in (*small, "base.max_seq_length=48") for part in ("--set", override)]
    done = run("base_model", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "6 of 6 runs" in done.stdout
    repository = copy_of_the_document(tmp_path / "repository")
    document = repository / "docs" / "reproduction.md"
    for _ in range(2):
        filled = run("report", "--commit", "abc1234", cwd=tmp_path, scripts=repository / "scripts" / "reproduce")
        assert filled.returncode == 0, filled.stderr
        text = document.read_text(encoding="utf-8")
        assert text.startswith("before\n<!-- base-model -->\nThe paper")
        assert text.endswith("commit abc1234.\n<!-- end -->\nafter\n")
        assert "what stood here" not in text
        assert "| synthetic + MS MARCO, LLaMA-2 7B as the base (paper) | 76.2 |" in text
    assert (repository / "docs" / "reproduction" / "base-model-tiny.png").is_file()


def test_the_document_is_filled_from_any_folder(tmp_path: Path) -> None:
    repository = copy_of_the_document(tmp_path / "repository")
    table = tmp_path / "elsewhere" / "runs" / "reproduce" / "base-model-tiny" / "table.md"
    table.parent.mkdir(parents=True)
    table.write_text("# base-model\n\n| ours |\n", encoding="utf-8")
    filled = run("report", cwd=tmp_path / "elsewhere", scripts=repository / "scripts" / "reproduce")
    assert filled.returncode == 0, filled.stderr
    assert "Ours:\n\n| ours |\n" in (repository / "docs" / "reproduction.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("script", "options", "told"),
    [
        ("lora_rank", ("--set", "foo", "--dry-run"), "Error: --set is 'foo'; it has to look like"),
        ("lora_rank", ("--set", "=foo"), "Error: --set is '=foo'; it has to look like"),
        ("pooling", ("--jobs", "0"), "Error: --jobs is 0; give 1 or more."),
        ("pooling", ("--devices", "0"), "Error: --devices is 0; give 1 or more."),
        (
            "synthetic_statistics",
            ("--rows", "nowhere.jsonl"),
            "Error: data.rows is 'nowhere.jsonl', and there is no such file",
        ),
        ("multilingual", ("--runs", "nowhere", "--open-sets", "."), "Error: nowhere is not the folder of a finished"),
        ("multilingual", (), "Error: give --open-sets FOLDER"),
    ],
)
def test_a_slip_is_told_in_one_line_and_nothing_is_written(
    script: str, options: tuple[str, ...], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "xquad" / "en").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(SCRIPTS))
    monkeypatch.setattr(sys, "argv", [f"{script}.py", *options])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(SCRIPTS / f"{script}.py"), run_name="__main__")
    assert told in str(stop.value.code)
    assert len(str(stop.value.code).splitlines()) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"xquad"}


def copy_of_the_document(repository: Path) -> Path:
    """Make a repository of the script that fills the document and a document with one mark; ours is left alone."""
    for folder in ("docs", "scripts/reproduce"):
        (repository / folder).mkdir(parents=True)
    shutil.copy(SCRIPTS / "report.py", repository / "scripts" / "reproduce")
    text = "before\n<!-- base-model -->\nwhat stood here\n<!-- end -->\nafter\n"
    (repository / "docs" / "reproduction.md").write_text(text, encoding="utf-8")
    return repository


def test_rows_of_a_dataset_are_made_into_a_file_as_the_document_says(tmp_path: Path) -> None:
    given = list(read_rows(write_rows(tmp_path / "given.jsonl", example_rows(48))))
    write_dataset(given, tmp_path / "runs" / "e5-mistral-7b" / "dataset", 0.4)
    blocks = re.findall(r"```sh\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), flags=re.DOTALL)
    [block] = [block for block in blocks if "rows.jsonl" in block and "load_split" in block]
    asking, commands = block.split("\n", 1)
    assert asking == "st-llm-embed synthesize e5-mistral-7b"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(SCRIPTS.parents[1])}
    subprocess.run(["bash", "-e", "-c", commands], check=True, cwd=tmp_path, env=environment)
    again = read_rows(tmp_path / "rows.jsonl")
    assert sorted(again, key=lambda row: row.key) == sorted(given, key=lambda row: row.key)
