"""What the server counted and billed, whether or not the client got it."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from hashlib import blake2b
from pathlib import Path
from typing import Any

SORTED = json.JSONEncoder(sort_keys=True)


def messages_hash(messages: list[dict[str, Any]]) -> str:
    """Name the messages of a request by 32 hexadecimal digits."""
    return blake2b(SORTED.encode(messages).encode(), digest_size=16).hexdigest()


class Ledger:
    """Counts of one server, and a line in a file for each billed request.

    Args:
        log: JSONL file that lines are appended to; None keeps counts only.
    """

    def __init__(self, log: Path | None) -> None:
        self.received = 0
        self.answered = 0
        self.billed_requests = 0
        self.billed_prompt_tokens = 0
        self.billed_completion_tokens = 0
        self.faults: Counter[str] = Counter()
        self.in_flight = 0
        self.peak_in_flight = 0
        self._log = None if log is None else os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def bill(self, body: dict[str, Any], usage: dict[str, Any], fault: str | None, custom_id: str | None) -> None:
        """Count a computed answer and append its line by one write, so that a kill leaves no half line."""
        self.billed_requests += 1
        self.billed_prompt_tokens += usage["prompt_tokens"]
        self.billed_completion_tokens += usage["completion_tokens"]
        if self._log is not None:
            line = {
                "time": time.time(),
                "messages": messages_hash(body["messages"]),
                "model": body["model"],
                "prompt_tokens": usage["prompt_tokens"],
                "completion_tokens": usage["completion_tokens"],
                "fault": fault,
                "custom_id": custom_id,
            }
            os.write(self._log, json.dumps(line).encode() + b"\n")

    def stats(self) -> dict[str, Any]:
        """All counts, as GET /stats gives them."""
        return {
            "received": self.received,
            "answered": self.answered,
            "billed": {
                "requests": self.billed_requests,
                "prompt_tokens": self.billed_prompt_tokens,
                "completion_tokens": self.billed_completion_tokens,
            },
            "faults": dict(self.faults),
            "in_flight": self.in_flight,
            "peak_in_flight": self.peak_in_flight,
        }

    def close(self) -> None:
        """Close the file."""
        if self._log is not None:
            os.close(self._log)
            self._log = None
