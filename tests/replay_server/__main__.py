"""The server as a process: ``PYTHONPATH=tests python -m replay_server``; SIGTERM or SIGINT ends it.

Once it listens, it writes its base_url to standard output.
"""

from __future__ import annotations

import argparse
import json
import signal
from pathlib import Path

from replay_server.faults import Faults
from replay_server.made_up import made_up_answer
from replay_server.server import ReplayServer


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m replay_server", description=__doc__)
    parser.add_argument("--log", type=Path, help="JSONL file; every billed request is appended")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds from request to answer")
    parser.add_argument("--faults", type=json.loads, default={}, help="JSON object with the fields of Faults")
    options = parser.parse_args()
    # Blocked before the server's threads start, so that the signal waits for sigwait in this one.
    ends = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    faults = Faults(**options.faults)
    with ReplayServer(made_up_answer, latency=options.latency, faults=faults, log=options.log) as server:
        print(server.base_url, flush=True)  # noqa: T201
        signal.sigwait(ends)


if __name__ == "__main__":
    main()
