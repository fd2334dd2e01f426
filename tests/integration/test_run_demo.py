"""Whole runs through the real command line: the demo's release, two processes, kill, resume, full disk."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import forked
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

pytestmark = pytest.mark.integration

TEXTS = ["how to fix a slow query", "", "  edge  ", "Bonjour à tous 你好", "long " * 500]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The README's Python: the demo in few steps, and how its release is used."""
    folder = tmp_path_factory.mktemp("demo")
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    use, make = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    (folder / "runs").mkdir()
    (folder / "runs" / "demo").symlink_to("short")
    for program in (make, use):
        done = forked.run("-c", program, cwd=folder)
        assert done.returncode == 0, done.stderr
    return folder / "runs" / "short"


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
    suffixes = {path.suffix for path in (demo / "release").rglob("*") if path.is_file()}
    assert suffixes - {".png"} == {".json", ".safetensors", ".md", ".yaml"}
    config = json.loads((demo / "release" / "config_sentence_transformers.json").read_text(encoding="utf-8"))
    assert config["prompts"]["query"].startswith("Instruct: ")
    assert config["prompts"]["document"] == ""


def test_the_cards_examples_run(demo: Path) -> None:
    card = (demo / "release" / "README.md").read_text(encoding="utf-8")
    # The others need a Hub or other libraries: tests/publishing/test_usage.py.
    stock, plain, *others = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    [another] = [block for block in others if block.startswith("prompt = ")]
    code = "\n".join((stock, another, plain))
    assert code.count("path/to/this/folder") == 3
    program = code.replace("path/to/this/folder", str(demo / "release"))
    printed = forked.run("-c", program)
    assert printed.returncode == 0, printed.stderr
    assert "tensor([[" in printed.stdout


@pytest.fixture
def run(tiny_recipe: Path) -> Callable[..., forked.Python]:
    """Start a run of the tiny recipe; returns at once."""
    return lambda *options: forked.Python("-m", "st_llm_embed.cli", "run", tiny_recipe, "--output-dir", *options)


def test_a_full_disk_and_a_kill_end_with_the_weights_of_an_uninterrupted_run(
    run: Callable[..., forked.Python], tmp_path: Path, small_disk: Path
) -> None:
    assert run(tmp_path / "whole").wait().returncode == 0
    out = small_disk / "out"
    full = run(out).wait()
    assert full.returncode == 2, full.stderr
    # The progress bar that was cut off may stand on the same line.
    [message] = re.findall(r"Error: .*", full.stderr)
    assert "The disk that holds" in message
    assert "make room and run the same command again" in message
    assert "Traceback" not in full.stderr
    subprocess.run(["mount", "-o", "remount,size=400m", str(small_disk)], check=True)
    dataset_written = (out / "manifests" / "dataset.json").stat().st_mtime_ns
    killed = run(out)
    # No waiting by the clock, only on the file that it writes.
    while killed.running() and not (out / "training" / "checkpoints" / "checkpoint-4" / "trainer_state.json").exists():
        os.sched_yield()
    assert killed.running(), "the run ended before it could be killed"
    killed.kill()
    assert not (out / "release").exists()
    finished = run(out).wait()
    assert finished.returncode == 0, finished.stderr
    assert "dataset: finished before, kept" in finished.stderr
    assert "training: resuming" in finished.stderr
    assert (out / "manifests" / "dataset.json").stat().st_mtime_ns == dataset_written
    expected, got = (load_file(folder / "release" / "model.safetensors") for folder in (tmp_path / "whole", out))
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system that holds the dataset and no checkpoint."""
    small = tmp_path / "small"
    small.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(small)]
    mounted = subprocess.run(command, check=False, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"mounting a small file system needs root: {mounted.stderr.strip()}")
    yield small
    # Lazily, because the tensors that were compared are still mapped from it.
    subprocess.run(["umount", "--lazy", str(small)], check=True)


def test_two_processes_train_together_and_one_of_them_does_the_rest(tiny_recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    content = yaml.safe_load(tiny_recipe.read_text(encoding="utf-8"))
    del content["training"]["batch_sampler"]
    content["training"]["per_device_train_batch_size"] = 4
    content["loss"]["hardness_strength"] = {}
    tiny_recipe.write_text(yaml.safe_dump(content | {"batches": {}}), encoding="utf-8")
    command = ["-m", "st_llm_embed.cli", "run", tiny_recipe, "--output-dir", out, "--set", "training.max_steps=2"]
    for expected in ("training: starting", "training: finished before, kept"):
        ranks = forked.run_ranks(*command)
        assert [rank.returncode for rank in ranks] == [0, 0], ranks
        assert "before and after training" in ranks[0].stdout
        assert expected in ranks[0].stderr
        assert ranks[1].stdout == ""
    last = json.loads((out / "training" / "log.json").read_text(encoding="utf-8"))[-1]
    assert last["epoch"] > 0.5, "two steps of 8 rows, 4 of each process; of 4 they would be 0.3 epochs"
    assert SentenceTransformer(str(out / "release"), device="cpu").encode(["a text"]).shape == (1, 32)
    for override, message in (
        ("data.rows=nowhere.jsonl", "Error: data.rows is 'nowhere.jsonl'"),
        # Stock hands each process another batch.
        (
            "batches=null",
            "have fewer negatives than others. Add the section `batches: {}`",
        ),
    ):
        refused = forked.run_ranks(*command, "--set", override)
        assert {rank.returncode for rank in refused} & {2}
        assert any(message in rank.stderr for rank in refused), refused


def test_help_needs_no_deep_learning_library() -> None:
    program = (
        "import sys; from typer.testing import CliRunner; from st_llm_embed.cli import app; "
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0; "
        "heavy = {'torch', 'transformers', 'sentence_transformers', 'datasets', 'numpy'} & set(sys.modules); "
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
