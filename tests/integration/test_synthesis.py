"""Whole runs of the synthesis client in processes that are killed, interrupted and cut off."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from synthesis.running import PRICE, process

pytestmark = pytest.mark.integration

TESTS = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}


def kill(how: str, folder: Path, *options: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Have `killed.py` kill runs; return what it says of each, and what the server billed."""
    log = folder / "ledger.jsonl"
    with process("--log", str(log), *options) as url:
        command = [sys.executable, str(TESTS / "synthesis" / "killed.py"), how, url, str(folder / "runs")]
        done = subprocess.run(command, check=False, capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    runs, billed = ([json.loads(line) for line in lines.splitlines()] for lines in (done.stdout, log.read_text()))
    assert all(sorted(run["answered"]) == sorted(run["planned"]) for run in runs)
    return runs, billed


def test_kills_lose_no_answer_and_pay_only_what_was_in_flight_twice(tmp_path: Path) -> None:
    [run], billed = kill("live", tmp_path)
    assert run["lost"] == 0
    assert run["torn"] > 0
    assert len(billed) <= 200 + 12 * 8 + 1
    usd = sum(line["prompt_tokens"] * PRICE["input"] + line["completion_tokens"] * PRICE["output"] for line in billed)
    assert usd / 1e6 <= run["counted"] + 1e-9, "what was in flight at a kill counts as spent"


def test_a_kill_between_any_two_steps_of_a_batch_pays_nothing_twice(tmp_path: Path) -> None:
    runs, billed = kill("batch", tmp_path, "--faults", '{"batch_polls": 1}')
    assert len(runs) > 20
    assert [run["survived"] for run in runs] == [False] * (len(runs) - 1) + [True]
    assert [run["left"] for run in runs] == [[]] * len(runs)
    assert sorted(line["custom_id"] for line in billed) == sorted(key for run in runs for key in run["planned"])


PROGRAM = """
import sys
from pathlib import Path
from typing import Any
from synthesis.running import synthesis
from st_llm_embed.synthesis.generate import generate

generate(synthesis(sys.argv[1], 60, budget={"usd": 5}), Path(sys.argv[2]))
"""


def test_progress_is_shown_in_place_on_a_terminal(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    with process("--latency", "0.2") as url:
        command = [sys.executable, "-c", PROGRAM, url, str(tmp_path)]
        terminal = {"TERM": "xterm", "COLUMNS": "400"}
        with subprocess.Popen(command, stderr=theirs, stdout=theirs, env=ENVIRONMENT | terminal) as running:
            os.close(theirs)
            shown = b""
            with suppress(OSError):  # the terminal is closed when the process ends
                while part := os.read(ours, 65536):
                    shown += part
        os.close(ours)
    assert running.returncode == 0
    text = shown.decode()
    assert re.search(r"examples 60/60 \([\d.]+/s, .* left\); answers: .*; \$0\.\d\d of 5\.00, [\d,]+ tokens", text)
    assert re.search(r"examples \d\d?/60 ", text.partition("examples 60/60")[0])
    assert "\x1b[" in text, "the line is written over"
