"""Measure what a long plan and a long journal cost: memory, and seconds until the first request would be sent.

    python scripts/measure_journal.py [--requests 10000 1000000] [--answer-bytes 2500]

For each number of requests, in a process of its own: a journal with an answer to every request but the last one is
made (not measured); then it is opened, and the plan is gone through until the request without an answer is found.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from st_llm_embed.recipe import Synthesis
from st_llm_embed.synthesis.journal import Journal, request_record
from st_llm_embed.synthesis.plan import RequestPlan
from st_llm_embed.synthesis.tasks import TaskFile, tasks_path


def main() -> None:
    """Print a line for each number of requests, and how memory grows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument("--answer-bytes", type=int, default=2500)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--make", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.folder:
        step = make if arguments.make else measure
        step(Path(arguments.folder), arguments.requests[0], arguments.answer_bytes)
        return
    peaks = []
    for requests in arguments.requests:
        with tempfile.TemporaryDirectory() as folder:
            size = ["--requests", str(requests), "--answer-bytes", str(arguments.answer_bytes)]
            command = [sys.executable, __file__, *size, "--folder", folder]
            subprocess.run([*command, "--make"], check=True)
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found = json.loads(done.stdout)
        peaks.append(found["peak"])
        print(
            f"{requests:,} requests: journal of {found['bytes'] / 1e9:.2f} GB opened in {found['open']:.1f} s, plan "
            f"gone through in {found['plan']:.1f} s of processor time; peak memory {found['peak']:.0f} MB",
            flush=True,
        )
    print(f"memory grows by {peaks[-1] - peaks[0]:.0f} MB")


def make(folder: Path, requests: int, answer_bytes: int) -> None:
    """Write the journal."""
    body = json.dumps({"choices": [{"message": {"content": "word " * (answer_bytes // 5)}}]})
    usage = {"prompt_tokens": 250, "completion_tokens": 500, "total_tokens": 750}
    with Journal(folder) as journal:
        for request in plan(requests).examples(TaskFile(tasks_path("embedded"))):
            if request.index < requests - 1:
                journal.append(request_record(request, "answered", 750, 0.001, body=body, usage=usage, seconds=1.0))


def measure(folder: Path, requests: int, _: int) -> None:
    """Open it and find what is not answered."""
    begun = time.process_time()
    with Journal(folder) as journal:
        opened = time.process_time()
        missing = [r.index for r in plan(requests).examples(TaskFile(tasks_path("embedded"))) if not journal.has(r)]
        if missing != [requests - 1]:
            sys.exit(f"the journal lacks {len(missing)} answers, not one")
        found = {
            "open": opened - begun,
            "plan": time.process_time() - opened,
            "bytes": journal.path.stat().st_size,
            "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000,
        }
    print(json.dumps(found))


def plan(requests: int) -> RequestPlan:
    """The plan of the demo's tasks, longer."""
    endpoint = {"base_url": "replay", "models": {"m": 1}}
    recipe = Synthesis.model_validate(
        {"endpoint": endpoint, "plan": {"seed": 1, "requests": requests, "tasks": "embedded"}}
    )
    return RequestPlan(recipe.plan, recipe.endpoint)


if __name__ == "__main__":
    main()
