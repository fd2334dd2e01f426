"""Ctrl-C and a full disk: one line, the right exit code, and nothing that has to be trained again."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import Outcome
from safetensors.torch import load_file
from torch.optim.optimizer import register_optimizer_step_post_hook

from st_llm_embed.errors import disk_is_full

RunCli = Callable[..., Outcome]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let no file grow beyond a size, as on a disk that gets full."""
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, former[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)


def test_ctrl_c_writes_a_checkpoint_from_which_the_same_command_resumes(
    run_cli: RunCli, tiny_recipe: Path, tmp_path: Path
) -> None:
    steps = 0

    def interrupt(*_: object) -> None:
        nonlocal steps
        steps += 1
        if steps == 3:
            os.kill(os.getpid(), signal.SIGINT)

    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    command = ["train", tiny_recipe, "--set", "training.save_steps=5", "--output-dir"]
    assert run_cli(*command, whole).code == 0
    handler = signal.getsignal(signal.SIGINT)
    hook = register_optimizer_step_post_hook(interrupt)
    outcome = run_cli(*command, stopped)
    hook.remove()
    assert outcome.code == 130
    assert signal.getsignal(signal.SIGINT) == handler
    assert outcome.err.splitlines()[-2:] == [
        "training: stopped with a checkpoint of step 3",
        "Interrupted. What is finished is kept; the same command resumes from there.",
    ]
    assert [path.name for path in (stopped / "training" / "checkpoints").glob("checkpoint-*")] == ["checkpoint-3"]
    assert run_cli(*command, stopped).code == 0
    models = [folder / "training" / "model" / "model.safetensors" for folder in (whole, stopped)]
    one, other = map(load_file, models)
    assert all(bool((one[name] == other[name]).all()) for name in one)


def test_a_full_disk_is_one_line_at_every_stage(run_cli: RunCli, tiny_recipe: Path, tmp_path: Path) -> None:
    """Files of 1 kB: the recipe; 6 kB: rows; 60 kB and more: tokenizer, optimizer, weights, pictures."""
    command = ["run", tiny_recipe, "--output-dir", tmp_path / "out"]
    for size in (1_000, 6_000, 60_000, 140_000):
        with largest_file(size):
            outcome = run_cli(*command)
        assert outcome.code == 2, (size, outcome.err)
        *_, last = outcome.err.strip().splitlines()
        assert last.startswith("Error: The disk that holds"), (size, outcome.err)
        assert "Traceback" not in outcome.err
    assert run_cli(*command).code == 0
    shards = tmp_path / "shards"
    with largest_file(1_000):
        outcome = run_cli(
            "encode",
            tiny_recipe.with_name("rows.jsonl"),
            "--column",
            "anchor",
            "--to",
            shards,
            "--model",
            tmp_path / "out/release",
        )
    assert (outcome.code, outcome.err.count("Error: ")) == (2, 1), outcome.err


def test_a_full_disk_behind_the_output_is_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "st_llm_embed.cli", "recipes", "show", "demo"]
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run(command, check=False, stdout=full, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "no room to write" in done.stderr


@pytest.mark.integration
def test_a_log_in_a_file_has_one_line_for_each_event(tiny_recipe: Path, tmp_path: Path) -> None:
    """No bars, no dictionaries, and nothing from the libraries beneath."""
    options = ["--set", "training.eval_strategy=steps", "--set", "training.eval_steps=3", "--output-dir", tmp_path]
    command = [sys.executable, "-m", "st_llm_embed.cli", "run", tiny_recipe, *options]
    log = tmp_path / "log.txt"
    with log.open("w", encoding="utf-8") as file:
        done = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=file, text=True, cwd=tmp_path)
    lines = log.read_bytes().decode().splitlines()
    assert done.returncode == 0, lines
    strange = [line for line in lines if not re.match(r"(dataset|training|evaluation|release): [a-z0-9 ]", line)]
    assert not strange
    assert len(lines) == len(set(lines))
    scored = [line for line in lines if line.startswith("training: step 3 of 6: ")]
    assert [line.count("loss ") for line in scored] == [1, 0]
    assert "retrieval_ndcg_at_10 " in scored[1]


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(28, "No space left on device"), True),
        (OSError(122, "Disk quota exceeded"), True),
        (RuntimeError("[enforce fail] . PytorchStreamWriter failed writing file data/0: file write failed"), True),
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), True),
        (OSError(13, "Permission denied"), False),
        (ValueError("the disk"), False),
    ],
)
def test_libraries_say_it_in_their_own_words(error: Exception, full: bool) -> None:
    outer = ValueError("a library's own")
    outer.__cause__ = error
    assert disk_is_full(outer) == full
