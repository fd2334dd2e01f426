"""Kill a run of the synthesis client at random moments, resume it each time, and count what was lost or paid too much.

    python scripts/kill_synthesis.py [SERVER ...] [--kills 30] [--requests 20000] [--cap 8]

The replay server of the tests runs in a process of its own, answers after 0.2 s, and keeps a ledger of what it bills;
64 requests are in flight. The run is a process that is killed with SIGKILL at a moment drawn from its first seconds,
after its first request, and then is left to end. The servers:

- honest: bills what it reports, and keeps to max_completion_tokens
- zeros: reports a usage of zeros
- thoughts: bills 150 tokens of thoughts beside the answer, in total_tokens alone, within the limit
- unlimited: bills 3,000 tokens of thoughts, six times the limit
- gateway: answers a third of the requests with status 504 though it bills them
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from st_llm_embed.errors import InputError
from st_llm_embed.recipe import Synthesis
from st_llm_embed.synthesis.generate import generate
from st_llm_embed.synthesis.plan import RequestPlan
from st_llm_embed.synthesis.tasks import TaskFile, tasks_path

CONCURRENCY = 64
SERVERS = {
    "honest": {},
    "zeros": {"zero_usage": True},
    "thoughts": {"thoughts": 150},
    "unlimited": {"thoughts": 3000},
    "gateway": {"shares": {"gateway_timeout": 0.33}},
}


def main() -> None:
    """Print, for each kind of server, what the journal and the ledger say after all kills."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("servers", nargs="*", default=list(SERVERS), metavar="SERVER", help=", ".join(SERVERS))
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--requests", type=int, default=20000)
    parser.add_argument("--cap", type=float, default=8.0, help="USD, of synthesis.budget.usd")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run", nargs=2, metavar=("URL", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        run(arguments.run[0], Path(arguments.run[1]), arguments)
        return
    tests = Path(__file__).parents[1] / "tests"
    for name in arguments.servers:
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder, "ledger.jsonl")
            options = ["--latency", "0.2", "--log", str(log), "--faults", json.dumps(SERVERS[name])]
            command = [sys.executable, "-m", "replay_server", *options]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tests) as server:
                url = server.stdout.readline().strip() if server.stdout else ""
                try:
                    kill_and_count(name, url, Path(folder, "journal"), log, arguments)
                finally:
                    server.terminate()


def run(url: str, folder: Path, arguments: argparse.Namespace) -> None:
    """Run once, in the process that is killed."""
    try:
        generate(recipe(url, arguments), folder)
    except InputError as error:
        print(error)


def kill_and_count(name: str, url: str, folder: Path, log: Path, arguments: argparse.Namespace) -> None:
    """Run, kill, compare; then run to the end."""
    options = ["--requests", str(arguments.requests), "--cap", str(arguments.cap)]
    command = [sys.executable, __file__, *options, "--run", url, str(folder)]
    generator = random.Random(arguments.seed)  # noqa: S311
    path = folder / "answers.jsonl"
    lost = torn = killed = 0
    in_flight: list[int] = []
    before = b""
    for _ in range(arguments.kills):
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
            while child.poll() is None and b'"sent"' not in added(path, len(before)):
                time.sleep(0.02)
            time.sleep(generator.uniform(0.0, 2.0))
            killed += child.poll() is None
            child.kill()
        now = path.read_bytes() if path.exists() else b""
        lost += not now.startswith(before)
        torn += not now.endswith(b"\n") and bool(now)
        before = now[: now.rfind(b"\n") + 1]
        in_flight.append(unsettled(before))
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    lost += not path.read_bytes().startswith(before)
    records = [json.loads(line) for line in path.read_bytes().splitlines()]
    got = [one["key"] for one in records if one["status"] == "answered" and one["step"] == "example"]
    asked = recipe(url, arguments)
    plan = RequestPlan(asked.plan, asked.endpoint)
    planned = {request.key for request in plan.examples(TaskFile(tasks_path("embedded")))}
    bills = [sum(json.loads(line)[f"{kind}_tokens"] for kind in ("prompt", "completion")) / 1e6 for line in log.open()]
    counted = sum(one.get("usd", 0.0) for one in records)
    mean = sum(in_flight) / len(in_flight)
    print(f"{name}: {killed} of {arguments.kills} kills hit a running process, {mean:.0f} in flight on average")
    print(f"  {lost} journals lost a record, {torn} had a torn last line, {len(got) - len(set(got))} answered twice")
    print(
        f"  billed ${sum(bills):.4f}, counted ${counted:.4f}, cap ${arguments.cap:g}, dearest answer ${max(bills):.4f}"
    )
    print(f"  {len(set(got) & planned):,} of {len(planned):,} answered; the last run: {done.stdout.strip()}")
    if sum(bills) > arguments.cap + (max(bills) if name == "unlimited" else 0.0):
        sys.exit("the cap was passed")
    if lost or len(got) > len(set(got)) or not set(got) <= planned:
        sys.exit("answers were lost, or asked for more than once")


def added(path: Path, size: int) -> bytes:
    """Return what a journal has beyond a size."""
    if not path.exists():
        return b""
    with path.open("rb") as file:
        file.seek(size)
        return file.read()


def unsettled(journal: bytes) -> int:
    """Return how many requests were in flight when a journal ended."""
    sent = set()
    for record in map(json.loads, journal.splitlines()):
        if record["status"] == "sent":
            sent.add(record["key"])
        else:
            sent.discard(record.get("key"))
    return len(sent)


def recipe(url: str, arguments: argparse.Namespace) -> Synthesis:
    """The section of a recipe for the replay server."""
    return Synthesis.model_validate(
        {
            "endpoint": {
                "base_url": url,
                "models": {"m": 1},
                "concurrency": CONCURRENCY,
                "parameters": {"max_completion_tokens": 500},
            },
            "plan": {"seed": 1, "requests": arguments.requests, "tasks": "embedded"},
            "budget": {"usd": arguments.cap, "prices": {"m": {"input": 1, "output": 1}}},
            "filters": {"languages": False},
        }
    )


if __name__ == "__main__":
    main()
