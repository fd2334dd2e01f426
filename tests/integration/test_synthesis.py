"""Whole runs of the synthesis client in processes that are killed, interrupted and cut off."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from synthesis.asking import process

pytestmark = pytest.mark.integration

TESTS = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}


def stats(url: str) -> dict[str, int]:
    with urllib.request.urlopen(url.removesuffix("/v1") + "/stats") as answer:
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
