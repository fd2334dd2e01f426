"""The scripts of docs/reproduction.md: what can be run of them without a GPU and without the Hub."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from ablate import Grid
from conftest import example_rows, write_rows
from transformers import MistralConfig

from st_llm_embed.data.dataset import write_dataset
from st_llm_embed.data.rows import read_rows

pytestmark = pytest.mark.integration

SCRIPTS = Path(__file__).parents[2] / "scripts" / "reproduce"
DOCUMENT = SCRIPTS.parents[1] / "docs" / "reproduction.md"
ABLATIONS = ("instruction", "pooling", "lora_rank", "contrastive_pretraining", "main_table")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a script in this process, in tmp_path, and return what it printed."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    monkeypatch.chdir(tmp_path)

    def call(script: str, *options: str | Path, folder: Path = SCRIPTS) -> str:
        monkeypatch.setattr(sys, "argv", [f"{script}.py", *map(str, options)])
        capsys.readouterr()
        runpy.run_path(str(folder / f"{script}.py"), run_name="__main__")
        return capsys.readouterr().out

    return call


def as_options(*overrides: str) -> list[str]:
    return [part for override in overrides for part in ("--set", override)]


@pytest.fixture(scope="module")
def seven_billion(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shape of Mistral-7B and a small tokenizer, without weights."""
    folder = tmp_path_factory.mktemp("shape")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_base / name, folder / name)
    MistralConfig(sliding_window=4096, max_position_embeddings=32768).save_pretrained(folder)
    return folder


@pytest.mark.full_scale
@pytest.mark.parametrize("script", ABLATIONS)
def test_every_setting_of_a_full_scale_script_runs_its_first_step(
    script: str, seven_billion: Path, tmp_path: Path, run: Callable[..., str]
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", example_rows(240))
    overrides = (f"base.name_or_path={seven_billion}", "training.per_device_train_batch_size=16", "data.mining=null")
    printed = run(script, "--scale", "full", "--rows", rows, *as_options(*overrides), "--dry-run")
    settings = [line for line in printed.splitlines() if "hours of one device" in line]
    assert len(settings) >= 3
    assert all(re.search(r" \d+ steps, .* tokens, .* USD, .* GiB on each of 8, ", line) for line in settings), settings
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("script", [*ABLATIONS, "base_model"])
def test_a_tiny_script_runs_from_the_package_alone(script: str, tmp_path: Path, run: Callable[..., str]) -> None:
    printed = run(script, "--dry-run")
    (tmp_path / "grid.yaml").write_text(printed[printed.index("name: ") :], encoding="utf-8")
    assert Grid.load(tmp_path / "grid.yaml").seeds == (1, 2, 3)
    assert not (tmp_path / "runs").exists()


def test_a_table_is_copied_into_the_document_between_its_marks(
    tiny_base: Path, tmp_path: Path, run: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import scales

    monkeypatch.setitem(scales.SCALES, "tiny", replace(scales.SCALES["tiny"], seeds=(1,)))
    small = (f"base.name_or_path={tiny_base}", "training.max_steps=2", "training.per_device_train_batch_size=4")
    assert "2 of 2 runs" in run("base_model", *as_options(*small, "base.max_seq_length=48"))
    repository = tmp_path / "repository"
    for folder in ("docs", "scripts/reproduce"):
        (repository / folder).mkdir(parents=True)
    shutil.copy(SCRIPTS / "report.py", repository / "scripts" / "reproduce")
    document = repository / "docs" / "reproduction.md"
    document.write_text("before\n<!-- base-model -->\nan earlier one\n<!-- end -->\nafter\n", encoding="utf-8")
    for _ in range(2):
        run("report", "--commit", "abc1234", folder=repository / "scripts" / "reproduce")
        text = document.read_text(encoding="utf-8")
        assert text.startswith("before\n<!-- base-model -->\nThe paper")
        assert text.endswith("commit abc1234.\n<!-- end -->\nafter\n")
        assert "an earlier one" not in text
        assert "| synthetic + MS MARCO, LLaMA-2 7B as the base (paper) | 76.2 |" in text
    assert (repository / "docs" / "reproduction" / "base-model-tiny.png").is_file()


def test_a_command_that_is_refused_leaves_an_earlier_table_unchanged(tmp_path: Path, run: Callable[..., str]) -> None:
    table = tmp_path / "runs" / "reproduce" / "contamination-tiny" / "table.md"
    table.parent.mkdir(parents=True)
    table.write_text("an earlier one", encoding="utf-8")
    with pytest.raises(SystemExit, match="ended with code 2, so there is no table"):
        run("contamination", "--rows", "nowhere.jsonl")
    assert table.read_text(encoding="utf-8") == "an earlier one"


@pytest.mark.parametrize(
    ("options", "jobs"), [((), os.cpu_count()), (("--scale", "small"), 1), (("--scale", "full", "--jobs", "3"), 3)]
)
def test_only_tiny_scripts_have_a_run_on_each_core(
    options: tuple[str, ...], jobs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["pooling.py", *options])
    assert runpy.run_path(str(SCRIPTS / "scales.py"))["arguments"]("").jobs == jobs


@pytest.mark.parametrize(
    ("script", "options", "said"),
    [
        ("pooling", ("--scale", "full"), "--scale full needs --rows FILE.jsonl"),
        ("lora_rank", ("--set", "foo", "--dry-run"), "Error: --set is 'foo'; it has to look like"),
        ("lora_rank", ("--set", "=foo"), "Error: --set is '=foo'; it has to look like"),
        ("pooling", ("--jobs", "0"), "Error: --jobs is 0; it has to be at least 1."),
        ("pooling", ("--devices", "0"), "Error: --devices is 0; it has to be at least 1."),
        (
            "synthetic_statistics",
            ("--rows", "nowhere.jsonl"),
            "Error: data.rows is 'nowhere.jsonl', and there is no such file",
        ),
        ("multilingual", ("--runs", "nowhere", "--open-sets", "."), "Error: nowhere has no release/modules.json"),
        ("multilingual", (), "Error: --open-sets FOLDER"),
    ],
)
def test_a_slip_is_reported_in_one_line_and_nothing_is_written(
    script: str, options: tuple[str, ...], said: str, tmp_path: Path, run: Callable[..., str]
) -> None:
    (tmp_path / "xquad" / "en").mkdir(parents=True)
    with pytest.raises(SystemExit) as stop:
        run(script, *options)
    assert said in str(stop.value.code)
    assert len(str(stop.value.code).splitlines()) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"xquad"}


def test_rows_are_exported_to_a_file_as_the_document_says(tmp_path: Path) -> None:
    given = list(read_rows(write_rows(tmp_path / "given.jsonl", example_rows(48))))
    write_dataset(given, tmp_path / "runs" / "e5-mistral-7b" / "dataset", 0.4)
    blocks = re.findall(r"```sh\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), flags=re.DOTALL)
    [block] = [block for block in blocks if "rows.jsonl" in block and "load_split" in block]
    synthesize, commands = block.split("\n", 1)
    assert synthesize == "st-llm-embed synthesize e5-mistral-7b"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(SCRIPTS.parents[1])}
    subprocess.run(["bash", "-e", "-c", commands], check=True, cwd=tmp_path, env=environment)
    again = read_rows(tmp_path / "rows.jsonl")
    assert sorted(again, key=lambda row: row.key) == sorted(given, key=lambda row: row.key)
