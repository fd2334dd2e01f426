"""Measure the synthesis client against the tests' replay server: a process of its own that answers after one second.

    python scripts/bench_synthesis.py [--rounds 3] [--requests-per-worker 20]

Prints, for 16 and 64 requests in flight, the throughput as a share of the ideal (requests in flight / latency) and the
processor time per request of the client, beside that of a bare loop: as many workers that call chat.completions.create
of AsyncOpenAI with the same bodies, the SDK's retries off. The two are measured in turn, each in a process of its own
on one core, the server on another. Last, with 2 % of the answers coming after 20 s, the throughput as a share of
requests in flight / mean latency, up to the moment that the last request is taken up.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from openai import AsyncOpenAI, DefaultAsyncHttpxClient

from st_llm_embed.api.client import Client
from st_llm_embed.recipe import Synthesis
from st_llm_embed.synthesis.chat import ChatService, Progress, request_body
from st_llm_embed.synthesis.journal import Journal
from st_llm_embed.synthesis.plan import Request, RequestPlan
from st_llm_embed.synthesis.tasks import TaskFile, tasks_path

STRAGGLERS, STRAGGLER_FACTOR = 0.02, 20.0


def main() -> None:
    """Print a line for each round and the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests-per-worker", type=int, default=20)
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS, metavar=("KIND", "URL", "CONCURRENCY", "COUNT"))
    arguments = parser.parse_args()
    if arguments.measure:
        kind, url, concurrency, count = arguments.measure
        print(json.dumps(measure(kind, url, int(concurrency), int(count))))
        return
    cores = sorted(os.sched_getaffinity(0))
    print(f"{len(cores)} cores, load average {os.getloadavg()[0]:.1f}")
    with server(cores[0]) as url:
        for concurrency in (16, 64):
            compare(url, concurrency, arguments, cores[-1])
    with server(cores[0], {"shares": {"straggler": STRAGGLERS}, "straggler_factor": STRAGGLER_FACTOR}) as url:
        mean = 1 - STRAGGLERS + STRAGGLERS * STRAGGLER_FACTOR
        shares = []
        for _ in range(arguments.rounds):
            found = measured("client", url, 64, 64 * arguments.requests_per_worker * 2, cores[-1])
            shares.append(found["steady_per_second"] / (64 / mean))
        print(f"2 % stragglers of 20 s, 64 in flight: {spread(shares)} of the mean-latency ideal")


def compare(url: str, concurrency: int, arguments: argparse.Namespace, core: int) -> None:
    """Measure client and bare loop in turn."""
    found: dict[str, list[dict[str, float]]] = {"client": [], "bare": []}
    for _ in range(arguments.rounds):
        for kind, results in found.items():
            results.append(measured(kind, url, concurrency, concurrency * arguments.requests_per_worker, core))
    for kind, results in found.items():
        shares = spread([result["per_second"] / concurrency for result in results])
        milliseconds = spread([result["cpu"] * 1000 for result in results], 2)
        print(
            f"{concurrency} in flight, {kind:6}: {shares} of the ideal, {milliseconds} ms of processor time a request"
        )
    ratios = [ours["cpu"] / bare["cpu"] for ours, bare in zip(found["client"], found["bare"], strict=True)]
    print(f"{concurrency} in flight: {spread(ratios)} of the bare loop's processor time")


def measured(kind: str, url: str, concurrency: int, count: int, core: int) -> dict[str, float]:
    """Measure in a process of its own on one core."""
    command = [sys.executable, __file__, "--measure", kind, url, str(concurrency), str(count)]
    done = subprocess.run(["taskset", "-c", str(core), *command], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def measure(kind: str, url: str, concurrency: int, count: int) -> dict[str, float]:
    """Send `count` requests with the client or the bare loop."""
    endpoint = {"base_url": url, "models": {"m": 1}, "concurrency": concurrency}
    plan = {"seed": 1, "requests": count, "tasks": "embedded"}
    recipe = Synthesis.model_validate(
        {"endpoint": endpoint, "plan": plan, "budget": {"prices": {"m": {"input": 1, "output": 1}}}}
    )
    tasks = TaskFile(tasks_path("embedded"))

    all_taken: list[float] = []

    def requests() -> Iterator[Request]:
        yield from RequestPlan(recipe.plan, recipe.endpoint).examples(tasks)
        all_taken.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder, Journal(Path(folder)) as journal:
        chat = ChatService(recipe, journal)
        client = Client(chat, recipe.endpoint, url, "x")
        chat.find_format(client, "m")  # loads what is loaded late, for both
        chat.progress = Progress("examples", count)
        begun, cpu = time.perf_counter(), time.process_time()
        if kind == "client":
            client.send(chat.unanswered(requests()))
        else:
            asyncio.run(bare(url, recipe, requests(), concurrency))
        seconds, cpu = time.perf_counter() - begun, time.process_time() - cpu
    # When the last request is taken, all others but those in flight are answered.
    steady = (count - concurrency) / (all_taken[0] - begun)
    return {"per_second": count / seconds, "cpu": cpu / count, "steady_per_second": steady}


async def bare(url: str, recipe: Synthesis, requests: Iterator[Request], concurrency: int) -> None:
    """The least that can be written with the SDK."""
    async with AsyncOpenAI(
        base_url=url, api_key="x", max_retries=0, http_client=DefaultAsyncHttpxClient(timeout=600)
    ) as openai:

        async def work() -> None:
            for request in requests:
                body = request_body(request, recipe.endpoint.parameters, "json_schema")
                await openai.chat.completions.create(**body)

        await asyncio.gather(*(work() for _ in range(concurrency)))


@contextmanager
def server(core: int, faults: dict[str, object] | None = None) -> Iterator[str]:
    """The replay server on one core; yields its address."""
    command = [sys.executable, "-m", "replay_server", "--latency", "1", "--faults", json.dumps(faults or {})]
    tests = Path(__file__).parents[1] / "tests"
    with subprocess.Popen(
        ["taskset", "-c", str(core), *command], stdout=subprocess.PIPE, text=True, cwd=tests
    ) as running:
        try:
            yield running.stdout.readline().strip() if running.stdout else ""
        finally:
            running.terminate()


def spread(values: list[float], digits: int = 3) -> str:
    """Median and range."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


if __name__ == "__main__":
    main()
