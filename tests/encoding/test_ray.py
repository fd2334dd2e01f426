"""Ray Data on this machine, against processes."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import Outcome

HAS_RAY = importlib.util.find_spec("ray") is not None


def encode(texts: Path, model: Path, to: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "st_llm_embed.cli", "encode", texts, "--model", model, "--to", to]
    return subprocess.run(
        [*map(str, command), "--shard-size", "50", "--processes", "2", *options],
        check=False,
        capture_output=True,
        text=True,
        # One thread in both engines; Ray gives an actor as many as it has cores, which is one.
        env=os.environ | {"OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"},
    )


@pytest.mark.integration
@pytest.mark.skipif(not HAS_RAY, reason="needs the extra ray: pip install 'ray[data]'")
def test_ray_makes_the_same_vectors_and_resumes_where_processes_stopped(tiny_model: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts.jsonl"
    lines = [json.dumps({"text": f"text {number} " + "and more " * (number % 5)}) + "\n" for number in range(240)]
    texts.write_text("".join(lines))
    by_processes, by_ray = tmp_path / "processes", tmp_path / "ray"
    done = encode(texts, tiny_model, by_processes)
    assert done.returncode == 0, done.stderr
    done = encode(texts, tiny_model, by_ray, "--ray")
    assert done.returncode == 0, done.stderr
    names = sorted(path.name for path in by_processes.glob("*.parquet"))
    assert len(names) == 5
    assert sorted(path.name for path in by_ray.glob("*.parquet")) == names
    for name in names:
        assert pq.read_table(by_ray / name).equals(pq.read_table(by_processes / name))

    kept = by_processes / names[0]
    before = kept.stat().st_mtime_ns
    (by_processes / names[3]).unlink()
    done = encode(texts, tiny_model, by_processes, "--ray")
    assert "1 encoded now, 4 kept" in " ".join(done.stdout.split()), done.stderr
    assert kept.stat().st_mtime_ns == before
    assert pq.read_table(by_ray / names[3]).equals(pq.read_table(by_processes / names[3]))


@pytest.mark.skipif(HAS_RAY, reason="Ray is installed")
def test_without_ray_the_message_says_how_to_install_it(
    tiny_model: Path, tmp_path: Path, run_cli: Callable[..., Outcome]
) -> None:
    refused = run_cli("encode", tmp_path, "--model", tiny_model, "--to", tmp_path / "to", "--ray")
    assert (refused.code, "pip install 'st_llm_embed[ray]'" in refused.err) == (2, True)
    assert not (tmp_path / "to").exists()
