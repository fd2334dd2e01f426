"""Evaluate a served model on the two small tasks, as a process of its own: base address, output folder."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import mteb
from things_tasks import ThingsRetrieval, ThingsSTS

from st_llm_embed.evaluation.server.client import Server
from st_llm_embed.evaluation.server.cost import Limits
from st_llm_embed.evaluation.server.endpoint import open_endpoint


def evaluate_endpoint(server: Server, output_dir: Path, **options: Any) -> dict[str, float]:
    with open_endpoint(server, "paper", output_dir, limits=Limits(price=0), **options) as model:
        results = mteb.evaluate(
            model,
            [ThingsRetrieval(), ThingsSTS()],
            cache=mteb.ResultCache(output_dir),
            co2_tracker=False,
            show_progress_bar=False,
        )
    return {one.task_name: one.get_score() for one in results.task_results}


if __name__ == "__main__":
    evaluate_endpoint(Server(sys.argv[1], "tiny", texts_per_request=4, concurrency=1), Path(sys.argv[2]))
