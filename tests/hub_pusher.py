"""Calls `push_folder` for each line of JSON on stdin, and answers with a line of JSON: the address or the message."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from st_llm_embed.errors import InputError
from st_llm_embed.publishing.push import push_folder

# huggingface_hub waits up to 23 seconds between its tries; tests need not.
time.sleep = lambda _: None
answers = sys.stdout
sys.stdout = sys.stderr
for line in sys.stdin:
    asked = json.loads(line)
    os.environ.pop("HF_TOKEN", None)
    token = asked.pop("token")
    if token is not None:
        os.environ["HF_TOKEN"] = token
    try:
        answer = push_folder(Path(asked.pop("folder")), asked.pop("repo_id"), **asked)
    except InputError as error:
        answer = str(error)
    print(json.dumps(answer), file=answers, flush=True)
