"""Calls `push_folder` or `publish` for each line of JSON on stdin, and answers with a line of JSON.

That line is the address, the addresses, or the message of the InputError. A call of `publish` has a process of its
own, forked from this one so that nothing is imported again; its number goes into the file `pid`, and the answer is
null if it was killed.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from st_llm_embed.errors import InputError
from st_llm_embed.publishing.publish import publish
from st_llm_embed.publishing.push import push_folder


def answer(asked: dict[str, Any]) -> Any:
    os.environ.pop("HF_TOKEN", None)
    token = asked.pop("token")
    if token is not None:
        os.environ["HF_TOKEN"] = token
    folder = Path(asked.pop("folder"))
    try:
        if "to" in asked:
            return [one.address for one in publish(folder, asked.pop("to"), **asked)]
        return push_folder(folder, asked.pop("repo_id"), **asked).address
    except InputError as error:
        return str(error)


def answer_of_a_fork(asked: dict[str, Any]) -> Any:
    pid_file = asked.pop("pid", None)
    receiving, sending = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(receiving)
        if pid_file is not None:
            Path(pid_file).write_text(str(os.getpid()), encoding="utf-8")
        with os.fdopen(sending, "w") as pipe:
            json.dump(answer(asked), pipe)
        os._exit(0)
    os.close(sending)
    with os.fdopen(receiving) as pipe:
        written = pipe.read()
    os.waitpid(child, 0)
    return json.loads(written) if written else None


# huggingface_hub waits up to 23 seconds between its tries; tests need not.
time.sleep = lambda _: None
answers = sys.stdout
sys.stdout = sys.stderr
for line in sys.stdin:
    asked = json.loads(line)
    print(json.dumps((answer_of_a_fork if "to" in asked else answer)(asked)), file=answers, flush=True)
