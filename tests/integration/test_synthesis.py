"""Whole runs of the synthesis client in processes that are killed, interrupted and cut off."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest
from synthesis.running import process

pytestmark = pytest.mark.integration

TESTS = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}


def stats(url: str) -> dict[str, int]:
    with urllib.request.urlopen(url.removesuffix("/v1") + "/stats") as answer:  # noqa: S310
        return json.loads(answer.read())


def test_kills_lose_no_answer_and_pay_only_what_was_in_flight_twice(tmp_path: Path) -> None:
    kills = 12
    with process() as url:
        command = [sys.executable, str(TESTS / "synthesis" / "live_run.py"), url, str(tmp_path), str(kills)]
        done = subprocess.run(command, check=False, capture_output=True, text=True, env=ENVIRONMENT)
        received = stats(url)["received"]
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert outcome["lost"] == 0
    assert outcome["torn"] > 0
    assert sorted(outcome["answered"]) == sorted(outcome["planned"])
    assert received <= 200 + kills * 8 + 1


PROGRAM = """
import logging, sys
from contextlib import suppress
from pathlib import Path
from synthesis.running import synthesis
from st_llm_embed.synthesis.generate import generate

logging.basicConfig(level=logging.INFO, format="%(message)s")
logging.getLogger("httpx2").setLevel(logging.WARNING)
generate(synthesis(sys.argv[1], 60, budget={"usd": 5}), Path(sys.argv[2]))
"""


def test_progress_is_shown_in_place_on_a_terminal_and_as_lines_elsewhere(tmp_path: Path) -> None:
    with process("--latency", "0.2") as url:
        command = [sys.executable, "-c", PROGRAM, url]
        plain = subprocess.run(
            [*command, str(tmp_path / "plain")], check=True, capture_output=True, text=True, env=ENVIRONMENT
        )
        ours, theirs = pty.openpty()
        with subprocess.Popen(
            [*command, str(tmp_path / "pty")],
            stderr=theirs,
            stdout=theirs,
            env=ENVIRONMENT | {"TERM": "xterm", "COLUMNS": "400"},
        ) as running:
            os.close(theirs)
            shown = b""
            with suppress(OSError):  # the terminal is closed when the process ends
                while part := os.read(ours, 65536):
                    shown += part
        os.close(ours)
    assert running.returncode == 0
    line = r"examples 60/60 \([\d.]+/s, .* left\); answers: .*; \$0\.\d\d of 5\.00, [\d,]+ tokens"
    assert re.search(line, plain.stderr)
    assert "\x1b" not in plain.stderr
    text = shown.decode()
    assert re.search(line, text)
    assert re.search(r"examples \d\d?/60 ", text.partition("examples 60/60")[0])
    assert "\x1b[" in text, "the line is written over"
