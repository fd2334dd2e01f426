"""The shipped demo through the real command line, shortened only in steps: kill, resume, release, full disk."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

pytestmark = pytest.mark.integration

COMMAND = [sys.executable, "-m", "st_llm_embed.cli", "run", "demo"]
SHORT = ["--set", "training.max_steps=6", "--set", "training.save_steps=2", "--set", "base.max_seq_length=32"]
TEXTS = ["how to fix a slow query", "", "  edge  ", "Bonjour à tous 你好", "long " * 500]


def run_demo(output_dir: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *SHORT, "--output-dir", str(output_dir), *options], check=False, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("demo") / "out"
    finished = run_demo(folder)
    assert finished.returncode == 0, finished.stderr
    return folder


def test_the_release_needs_nothing_of_this_package(demo: Path, tmp_path: Path) -> None:
    """In a process that cannot import st_llm_embed, with the vectors of the trained model."""
    program = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "st_llm_embed":
            raise ImportError("st_llm_embed is not installed here")
sys.meta_path.insert(0, Refuse())
import json
import numpy as np
from sentence_transformers import SentenceTransformer
model = SentenceTransformer({str(demo / "release")!r}, device="cpu")
texts = json.loads({json.dumps(TEXTS)!r})
np.savez({str(tmp_path / "vectors.npz")!r}, plain=model.encode(texts), query=model.encode_query(texts))
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path)
    released = np.load(tmp_path / "vectors.npz")
    trained = SentenceTransformer(str(demo / "training" / "model"), device="cpu")
    np.testing.assert_array_equal(released["plain"], trained.encode(TEXTS))
    np.testing.assert_array_equal(released["query"], trained.encode_query(TEXTS))


def test_the_release_consists_of_stock_modules_and_safetensors(demo: Path) -> None:
    modules = json.loads((demo / "release" / "modules.json").read_text(encoding="utf-8"))
    assert [module["type"].split(".")[0] for module in modules] == ["sentence_transformers"] * 3
    assert {path.suffix for path in (demo / "release").rglob("*") if path.is_file()} == {
        ".json",
        ".safetensors",
        ".md",
        ".yaml",
    }
    config = json.loads((demo / "release" / "config_sentence_transformers.json").read_text(encoding="utf-8"))
    assert config["prompts"]["query"].startswith("Instruct: ")
    assert config["prompts"]["document"] == ""


def test_the_cards_examples_run(demo: Path) -> None:
    card = (demo / "release" / "README.md").read_text(encoding="utf-8")
    # The others need a Hub or other libraries: tests/publishing/test_usage.py.
    code = "\n".join(re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)[:3])
    assert code.count("path/to/this/folder") == 3
    program = code.replace("path/to/this/folder", str(demo / "release"))
    printed = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    assert "tensor([[" in printed


def test_a_training_killed_twice_ends_with_the_weights_of_an_uninterrupted_one(demo: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for checkpoint in ("checkpoint-2", "checkpoint-4"):
        process = subprocess.Popen(
            [*COMMAND, *SHORT, "--output-dir", str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        # A killed process is enough of a signal: no waiting by the clock, only on the file it writes.
        while (
            process.poll() is None
            and not (out / "training" / "checkpoints" / checkpoint / "trainer_state.json").exists()
        ):
            os.sched_yield()
        assert process.poll() is None, "the run ended before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (out / "release").exists()
    dataset_written = (out / "manifests" / "dataset.json").stat().st_mtime_ns
    finished = run_demo(out)
    assert finished.returncode == 0, finished.stderr
    assert "dataset: finished before, kept" in finished.stderr
    assert "training: resuming" in finished.stderr
    assert (out / "manifests" / "dataset.json").stat().st_mtime_ns == dataset_written
    expected, got = (load_file(folder / "release" / "model.safetensors") for folder in (demo, out))
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)


def test_two_processes_train_together_and_one_of_them_does_the_rest(tmp_path: Path) -> None:
    out = tmp_path / "out"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    options = ["--set", "training.max_steps=2", "--set", "base.max_seq_length=32", "--output-dir", str(out)]
    for expected in ("training: starting", "training: finished before, kept"):
        done = subprocess.run([*torchrun, *COMMAND[2:], *options], check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("before and after training") == 1
        assert done.stderr.count(expected) == 1
    last = json.loads((out / "training" / "log.json").read_text(encoding="utf-8"))[-1]
    assert last["epoch"] > 0.12, "two steps of 128 rows, 64 of each process; of 64 they would be 0.07 epochs"
    assert SentenceTransformer(str(out / "release"), device="cpu").encode(["a text"]).shape == (1, 192)
    refused = subprocess.run(
        [*torchrun, *COMMAND[2:], *options, "--set", "data.rows=nowhere.jsonl"],
        check=False,
        capture_output=True,
        text=True,
    )
    assert refused.returncode != 0
    assert "Error: data.rows is 'nowhere.jsonl'" in refused.stderr


def test_a_full_disk_ends_with_one_message_and_a_run_that_can_go_on(demo: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(small)], check=False, capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"mounting a small file system needs root: {mounted.stderr.strip()}")
    try:
        full = run_demo(small / "out")
        assert full.returncode == 2, full.stderr
        # The progress bar that was cut off may stand on the same line.
        [message] = re.findall(r"Error: .*", full.stderr)
        assert "The disk that holds" in message
        assert "make room and run the same command again" in message
        assert "Traceback" not in full.stderr
        assert not (small / "out" / "release").exists()
        subprocess.run(["mount", "-o", "remount,size=400m", str(small)], check=True)
        finished = run_demo(small / "out")
        assert finished.returncode == 0, finished.stderr
        assert "dataset: finished before, kept" in finished.stderr
        expected, got = (load_file(folder / "release" / "model.safetensors") for folder in (demo, small / "out"))
        assert all(torch.equal(expected[name], got[name]) for name in expected)
    finally:
        # Lazily, because the tensors that were compared are still mapped from it.
        subprocess.run(["umount", "--lazy", str(small)], check=True)


def test_help_needs_no_deep_learning_library() -> None:
    program = (
        "import sys; from typer.testing import CliRunner; from st_llm_embed.cli import app; "
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0; "
        "heavy = {'torch', 'transformers', 'sentence_transformers', 'datasets', 'numpy'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
