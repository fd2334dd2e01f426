"""The server as a process: ``python -m st_llm_embed.synthesis.replay --port-file PORT``; SIGTERM or SIGINT ends it.

Once it listens, it writes its base_url to standard output.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

from st_llm_embed.errors import InputError
from st_llm_embed.synthesis.replay.faults import Faults
from st_llm_embed.synthesis.replay.made_up import made_up_answer
from st_llm_embed.synthesis.replay.server import ReplayServer


def main() -> None:
    """Serve made-up answers until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m st_llm_embed.synthesis.replay", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--port-file", type=Path, help="gets the port once the server listens")
    parser.add_argument("--log", type=Path, help="JSONL file; every billed request is appended")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds from request to answer")
    parser.add_argument("--faults", type=Path, help="JSON object with the fields of Faults")
    parser.add_argument("--state", type=Path, help="folder that keeps files and batches for the next start")
    parser.add_argument("--require-key", help="the only API key that is let in")
    parser.add_argument("--requests-per-minute", type=int, help="announced in x-ratelimit headers, not enforced")
    parser.add_argument("--tokens-per-minute", type=int, help="announced in x-ratelimit headers, not enforced")
    options = parser.parse_args()

    # Blocked before the server's thread starts, so that the signal waits for sigwait in this one.
    ends = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    try:
        server = ReplayServer(
            made_up_answer,
            port=options.port,
            latency=options.latency,
            faults=Faults.from_json(options.faults) if options.faults else Faults(),
            log=options.log,
            state=options.state,
            require_key=options.require_key,
            requests_per_minute=options.requests_per_minute,
            tokens_per_minute=options.tokens_per_minute,
        )
        with server:
            if options.port_file:
                unfinished = options.port_file.with_name(options.port_file.name + ".part")
                unfinished.write_text(f"{server.port}\n", encoding="ascii")
                unfinished.replace(options.port_file)
            sys.stdout.write(f"{server.base_url}\n")
            sys.stdout.flush()
            signal.sigwait(ends)
    except (InputError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
