"""Encode 200,000 short texts with two processes, stop two runs in part, and count what was repeated.

    python scripts/measure_encode.py --output-dir runs/encode [--texts 200000] [--model FOLDER]

The first run is killed with SIGKILL when a quarter of the shards are there; the second one loses one of its two
processes, also by SIGKILL, when half are there, and has to say so; the third one encodes the rest. Then 2,000 of the
texts are encoded by one process, by two, by two with batches of another size, and, where Ray is installed, by two
actors. Without --model the base in the package is taken, untrained.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

SHARD_SIZE = 10_000
FEW = 2_000


def main() -> None:
    """Print what was lost, repeated and measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--texts", type=int, default=200_000)
    parser.add_argument("--model", type=Path)
    given = parser.parse_args()
    folder = given.output_dir.resolve()
    folder.mkdir(parents=True)
    model = given.model.resolve() if given.model else save_base(folder / "model")
    all_texts, few = write_texts(folder / "texts.jsonl", given.texts), write_texts(folder / "few.jsonl", FEW)
    to, count = folder / "vectors", -(-given.texts // SHARD_SIZE)

    first = start(all_texts, model, to, "--processes", "2")
    wait_for(to, count // 4, first)
    first.kill()
    first.wait()
    before = finished(to)
    print(f"killed: {len(before)} of {count} shards are there", flush=True)

    second = start(all_texts, model, to, "--processes", "2")
    wait_for(to, count // 2, second)
    workers = [pid for pid in children(second.pid) if "spawn_main" in command_of(pid)]
    os.kill(workers[0], signal.SIGKILL)
    if second.wait() != 2:
        sys.exit("the second run did not say that a process died")
    kept = finished(to)
    print(f"a process killed: {len(kept)} of {count} shards are there", flush=True)

    begun = time.perf_counter()
    third = start(all_texts, model, to, "--processes", "2")
    memory = wait_for(to, count, third)
    if third.wait() != 0:
        sys.exit("the third run failed")
    seconds = time.perf_counter() - begun
    after = finished(to)
    repeated = sum(after[name] != shards[name] for shards in (before, kept) for name in shards)
    rows = sum(pq.read_metadata(to / name).num_rows for name in after)
    texts = given.texts - len(kept) * SHARD_SIZE
    print(f"finished shards that were encoded again: {repeated}; vectors in the end: {rows:,} of {given.texts:,}")
    print(f"third run: {texts:,} texts in {seconds:.0f} s, start included: {texts / seconds:,.0f} texts/s")
    print("peak memory, MiB: " + ", ".join(f"{name} {peak / 2**10:,.0f}" for name, peak in memory.items()))

    runs = {
        "one process": ("--processes", "1"),
        "two processes": ("--processes", "2"),
        "two processes, batches of 7": ("--processes", "2", "--batch-size", "7"),
    }
    if importlib.util.find_spec("ray"):
        runs["two actors of Ray"] = ("--processes", "2", "--ray")
    vectors: dict[str, np.ndarray] = {}
    for number, (name, options) in enumerate(runs.items()):
        to = folder / f"few-{number}"
        done = start(few, model, to, *options, "--shard-size", str(FEW // 4)).wait()
        if done != 0:
            sys.exit(f"{name} failed")
        table = pq.read_table(to, columns=["vector"])
        vectors[name] = table["vector"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)
    reference = vectors.pop("two processes")
    for name, other in vectors.items():
        print(f"two processes and {name}: greatest difference of a number {np.abs(reference - other).max():.1e}")


def save_base(folder: Path) -> Path:
    """Save the packaged base as an embedder, untrained."""
    from st_llm_embed import LLMSentenceTransformer

    LLMSentenceTransformer.from_base("embedded", max_seq_length=64, device="cpu").save(str(folder))
    return folder


def write_texts(path: Path, count: int) -> Path:
    """Write sentences of 4 to 16 words."""
    draw = random.Random(0)  # noqa: S311
    words = ("pump", "gauge", "checked", "before", "started", "again", "morning", "with", "the", "a", "is", "it")
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            file.write(json.dumps({"text": " ".join(draw.choices(words, k=draw.randint(4, 16)))}) + "\n")
    return path


def start(texts: Path, model: Path, to: Path, *options: str) -> subprocess.Popen[bytes]:
    """Start to encode."""
    command = [sys.executable, "-m", "st_llm_embed.cli", "encode", texts, "--model", model, "--to", to]
    return subprocess.Popen([*map(str, command), "--shard-size", str(SHARD_SIZE), *options])


def finished(folder: Path) -> dict[str, tuple[int, int]]:
    """Return inode and time of the last change of each finished shard."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.glob("shard-*.parquet")}


def wait_for(folder: Path, shards: int, run: subprocess.Popen[bytes]) -> dict[str, int]:
    """Wait until this many shards are there; return the peak memory in KiB of the command and of its processes."""
    peaks: dict[int, int] = {}
    while len(finished(folder)) < shards and run.poll() is None:
        for pid in [run.pid, *children(run.pid)]:
            peaks[pid] = max(peaks.get(pid, 0), peak_memory(pid))
        time.sleep(0.2)
    return {"command": peaks.pop(run.pid, 0), "largest process": max(peaks.values(), default=0)}


def children(pid: int) -> list[int]:
    """Return the processes that a process began."""
    try:
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()]
    except FileNotFoundError:
        return []


def command_of(pid: int) -> str:
    """Return the command line of a process."""
    return Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8")


def peak_memory(pid: int) -> int:
    """Return the largest resident memory that a process has had, in KiB."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except FileNotFoundError:
        return 0
    return next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")), 0)


if __name__ == "__main__":
    main()
