"""Kill a run of the synthesis client at random moments, resume it each time, and count what was lost or paid twice.

    python scripts/kill_synthesis.py [--kills 50] [--requests 4000] [--seed 0]

The replay server of the tests runs in a process of its own with an answer after 0.2 s; the run is a process that is
killed with SIGKILL at a moment drawn from its first seconds, fifty times, and then is left to end.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from st_llm_embed.recipe import Synthesis
from st_llm_embed.synthesis.generate import generate
from st_llm_embed.synthesis.plan import RequestPlan
from st_llm_embed.synthesis.tasks import TaskFile, tasks_path

CONCURRENCY = 16


def main() -> None:
    """Print what the journal and the server say after all kills."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--requests", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run", nargs=2, metavar=("URL", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        url, folder = arguments.run
        import httpx2  # noqa: F401
        import openai  # noqa: F401

        print("everything is imported", flush=True)
        generate(recipe(url, arguments.requests), Path(folder))
        return
    generator = random.Random(arguments.seed)  # noqa: S311
    command = [sys.executable, "-m", "replay_server", "--latency", "0.2"]
    tests = Path(__file__).parents[1] / "tests"
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tests) as server,
    ):
        url = server.stdout.readline().strip() if server.stdout else ""
        try:
            kill_and_count(url, Path(folder), arguments, generator)
        finally:
            server.terminate()


def kill_and_count(url: str, folder: Path, arguments: argparse.Namespace, generator: random.Random) -> None:
    """Run, kill, compare; then run to the end."""
    command = [sys.executable, __file__, "--requests", str(arguments.requests), "--run", url, str(folder)]
    journal = folder / "answers.jsonl"
    lost = torn = 0
    before = b""
    for number in range(arguments.kills):
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as run:
            if run.stdout:
                run.stdout.readline()
            time.sleep(generator.uniform(0.0, 2.5))
            run.kill()
        now = journal.read_bytes() if journal.exists() else b""
        lost += not now.startswith(before)
        torn += not now.endswith(b"\n")
        before = now[: now.rfind(b"\n") + 1]
        print(f"kill {number + 1}: {before.count(b'answered'):,} answers", flush=True)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    lost += not journal.read_bytes().startswith(before)
    stats = json.loads(urllib.request.urlopen(url.removesuffix("/v1") + "/stats").read())  # noqa: S310
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    again = json.loads(urllib.request.urlopen(url.removesuffix("/v1") + "/stats").read())  # noqa: S310
    records = [json.loads(line) for line in journal.read_bytes().splitlines()]
    got = [record["key"] for record in records if record["status"] == "answered" and record["step"] == "example"]
    asked = recipe(url, arguments.requests)
    plan = RequestPlan(asked.plan, asked.endpoint)
    planned = {request.key for request in plan.examples(TaskFile(tasks_path("embedded")))}
    allowed = arguments.requests + arguments.kills * CONCURRENCY
    print(f"{arguments.kills} kills: {lost} journals that lost a record, {torn} with a torn last line")
    print(
        f"keys: {'as planned' if set(got) == planned else 'NOT AS PLANNED'}, {len(got) - len(set(got))} answered twice"
    )
    print(
        f"requests received: {stats['received']:,} of {allowed:,} allowed (planned + kills x {CONCURRENCY} in flight)"
    )
    print(f"a rerun of the finished run sends {again['received'] - stats['received']}")


def recipe(url: str, requests: int) -> Synthesis:
    """The section of a recipe for the replay server."""
    return Synthesis.model_validate(
        {
            "endpoint": {"base_url": url, "models": {"m": 1}, "concurrency": CONCURRENCY},
            "plan": {"seed": 1, "requests": requests, "tasks": "embedded"},
            "budget": {"prices": {"m": {"input": 1, "output": 1}}},
        }
    )


if __name__ == "__main__":
    main()
