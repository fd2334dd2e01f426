"""A batch run in a process that is killed at every step: python batch_run.py URL FOLDER.

For each number n from 0 a run with a plan of its own, killed at step n and then run to its end. A step lies before and
after every call of the server and every record of the journal. Prints a JSON line for each: the keys that are planned,
and the records of the journal.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from itertools import count
from pathlib import Path

import httpx2
from synthesis.running import answered, batch_answer_all, planned, synthesis, without_probes

from st_llm_embed.synthesis.journal import Journal


def main() -> None:
    url, folder = sys.argv[1], Path(sys.argv[2])
    for number in count():
        parameters = {"max_completion_tokens": 300, "seed": number}  # other keys than those of the other runs
        recipe = synthesis(url, 5, models={"a": 1, "b": 1}, mode="batch", parameters=parameters)
        run = folder / str(number)
        without_probes(recipe, run)
        child = os.fork()
        if not child:
            die_at(number)
            batch_answer_all(recipe, run)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        survived = os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0
        assert survived or os.WTERMSIG(status) == signal.SIGKILL, status
        batch_answer_all(recipe, run)
        keys = [request.key for request in planned(recipe)]
        left = [path.name for path in (run / "batches").iterdir()]
        print(json.dumps({"planned": keys, "answered": answered(run), "survived": survived, "left": left}), flush=True)  # noqa: T201
        if survived:
            return


def die_at(step: int) -> None:
    """Kill this process at one of its steps."""
    steps = count()

    def stepping(original):  # noqa: ANN001, ANN202
        def call(*arguments, **options):  # noqa: ANN002, ANN003, ANN202
            if next(steps) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            result = original(*arguments, **options)
            if next(steps) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call

    Journal.append = stepping(Journal.append)
    httpx2.Client.send = stepping(httpx2.Client.send)


if __name__ == "__main__":
    main()
