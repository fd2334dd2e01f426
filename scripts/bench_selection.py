"""Measure what making a dataset of a journal takes: time and peak memory for N answers.

    python scripts/bench_selection.py [--answers 1000000] [--folder /tmp/bench]

Makes a journal of N answers to planned requests first: words of the sample rows in the language asked for, shuffled,
in the lengths asked for; 1 in 50 repeats an earlier answer, 1 in 20 does so with one word in fifty changed, 1 in 50 is
no JSON. Then a process of its own makes the dataset as `st-llm-embed reparse` does: parsing, filters, near duplicates,
parquet files and statistics.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from st_llm_embed.data.rows import read_rows, rows_file
from st_llm_embed.languages import LANGUAGE_CODES
from st_llm_embed.recipe import Synthesis
from st_llm_embed.synthesis.generate import tasks_file
from st_llm_embed.synthesis.journal import Journal, request_record
from st_llm_embed.synthesis.output import write_synthetic_dataset
from st_llm_embed.synthesis.plan import Request, RequestPlan
from st_llm_embed.synthesis.tasks import TaskFile

NAMES = {code: name for name, code in LANGUAGE_CODES.items()}
INSTRUCTIONS_PER_ANSWER = 0.3
RECENT = 5_000


def main() -> None:
    """Print a line for each step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, help="where journal and dataset are made and kept; default: nowhere")
    parser.add_argument("--measure", action="store_true", help="make the dataset only; the folder has the journal")
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments.answers, arguments.folder)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        journal = folder / "journal"
        if not (journal / "answers.jsonl").exists():
            start = time.perf_counter()
            make_journal(arguments.answers, journal)
            size = (journal / "answers.jsonl").stat().st_size / 2**20
            print(f"journal of {arguments.answers:,} answers, {size:,.0f} MiB: {time.perf_counter() - start:.0f} s")
        command = [sys.executable, __file__, "--measure", "--answers", str(arguments.answers), "--folder", str(folder)]
        subprocess.run(command, check=True)


def measure(answers: int, folder: Path) -> None:
    """Make the dataset and print what it took."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=folder) as dataset:
        counts = write_synthetic_dataset(synthesis(answers), folder / "journal", Path(dataset), 0.1, None)
        statistics = json.loads((Path(dataset) / "statistics.json").read_text(encoding="utf-8"))
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_SELF)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"dataset of {counts.total():,} rows: {seconds:.0f} s, {processor:.0f} processor s, ", end="")
    print(f"{1e3 * processor / answers:.2f} processor ms an answer")
    print(
        f"peak memory of the process {after.ru_maxrss / 2**10:.0f} MiB, "
        f"{before.ru_maxrss / 2**10:.0f} MiB of it imports"
    )
    print(f"rejected: {statistics['rejected_by_reason']}")


def synthesis(answers: int) -> Synthesis:
    """Return the recipe's section: the paper's plan in the languages of the sample."""
    languages = {NAMES[code]: len(words) for code, words in words_by_language().items()}
    return Synthesis.model_validate(
        {
            "endpoint": {"base_url": "http://127.0.0.1:1/v1", "models": {"bench": 1}},
            "plan": {
                "seed": 1,
                "preset": "custom",
                "requests": answers,
                "brainstorm_requests": 100,
                "languages": languages,
            },
        }
    )


def words_by_language() -> dict[str, list[str]]:
    """Return the words of the sample rows by the code of their language."""
    words: dict[str, list[str]] = defaultdict(list)
    for row in read_rows(rows_file("embedded")):
        words[row.language] += row.anchor.split()
        if row.task_type != "long-short":
            words[row.target_language] += row.positive.split()
    return {code: found for code, found in sorted(words.items()) if len(found) > 100}


def make_journal(answers: int, folder: Path) -> None:
    """Write tasks and journal."""
    section = synthesis(answers)
    plan = RequestPlan(section.plan, section.endpoint)
    generator = random.Random(1)  # noqa: S311
    with Journal(folder) as journal:
        path = tasks_file(section, plan, folder)
        write_tasks(path, plan, int(answers * INSTRUCTIONS_PER_ANSWER), generator)
        words = words_by_language()
        recent: dict[tuple[str, str], list[dict[str, str]]] = defaultdict(list)
        for request in plan.examples(TaskFile(path)):
            body = json.dumps(
                {
                    "choices": [
                        {"message": {"content": content(request, words, recent, generator)}, "finish_reason": "stop"}
                    ]
                }
            )
            journal.append(request_record(request, "answered", 800, 0.001, body=body))


def write_tasks(path: Path, plan: RequestPlan, count: int, generator: random.Random) -> None:
    """Write made-up instructions in place of brainstormed ones."""
    vocabulary = sorted({word for row in read_rows(rows_file("embedded")) for word in row.instruction.split()})
    with path.open("w", encoding="utf-8") as tasks:
        for number in range(count):
            words = " ".join(generator.choices(vocabulary, k=12))
            task_type = plan.brainstormed_types[number % len(plan.brainstormed_types)]
            tasks.write(json.dumps({"task_type": task_type, "instruction": f"{words} {number}"}) + "\n")


def content(
    request: Request,
    words: dict[str, list[str]],
    recent: dict[tuple[str, str], list[dict[str, str]]],
    generator: random.Random,
) -> str:
    """Make an answer up."""
    attributes: dict[str, Any] = request.about["attributes"]
    language = attributes.get("language") or attributes["src_lang"]
    earlier = recent[request.about["task_type"], language]
    kind = generator.random()
    if kind < 0.02:
        return "Certainly. Here is what you asked for."
    if kind < 0.09 and earlier:
        answer = dict(generator.choice(earlier))
        if kind >= 0.04:
            answer = {key: edited(text, words[LANGUAGE_CODES[language]], generator) for key, text in answer.items()}
    else:
        target = words[LANGUAGE_CODES[attributes.get("tgt_lang", language)]]
        answer = {
            key: " ".join(
                generator.choices(
                    words[LANGUAGE_CODES[language]] if key == "S1" else target, k=length(key, attributes)
                )
            )
            for key in request.schema["properties"]
        }
        if len(earlier) < RECENT // 100:
            earlier.append(answer)
    return json.dumps(answer, ensure_ascii=False)


def length(key: str, attributes: dict[str, str]) -> int:
    """Return the number of words of a text."""
    if key in ("positive_document", "hard_negative_document") and "num_words" in attributes:
        return int(attributes["num_words"])
    return {"input_text": 80, "positive_document": 100, "input": 60, "label": 3, "misleading_label": 3}.get(key, 12)


def edited(text: str, words: list[str], generator: random.Random) -> str:
    """Change one word in fifty."""
    changed = text.split(" ")
    for _ in range(len(changed) // 50):
        changed[generator.randrange(len(changed))] = generator.choice(words)
    return " ".join(changed)


if __name__ == "__main__":
    main()
