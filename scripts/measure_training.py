"""Measure what our loss and batches gain over sentence-transformers' own settings, at equal steps, rows and seeds.

    python scripts/measure_training.py --data FOLDER --output-dir runs/training [--settings stock ours ...]

Trains the recipe's base with each setting and seed and scores it on open sets (scripts/open_sets.py)
and on the recipe's held-out rows. `ours` is the recipe with batches and loss as below; the others differ from it in
what their name says; `stock` is sentence-transformers' trainer, samplers and MultipleNegativesRankingLoss, on the same
rows with the instruction folded into the anchor. FOLDER holds the evaluation sets and, as train_<source>.jsonl, the
recipe's sources (scripts/training_pairs.py writes them). Each run is kept as <setting>-<seed>.json, so it can be
stopped and started again.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean

from ablate import spread
from datasets import DatasetDict
from open_sets import score_open_sets
from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from st_llm_embed import LLMSentenceTransformer, Recipe
from st_llm_embed.data.dataset import write_dataset, write_source
from st_llm_embed.data.rows import read_rows, rows_file
from st_llm_embed.data.sources import read_source
from st_llm_embed.evaluation.held_out import evaluate_held_out, load_held_out
from st_llm_embed.instructions import format_query
from st_llm_embed.training.adapter import starting_model
from st_llm_embed.training.arguments import training_arguments
from st_llm_embed.training.train import training_set
from st_llm_embed.training.trainer import build_trainer

OURS = ("batches={}", "loss={temperature: 0.02, mini_batch_num_tokens: 4096}")

SETTINGS: dict[str, tuple[str, ...]] = {
    "stock": ("batches=null", *OURS[1:]),
    "stock, temperature 0.05": ("batches=null", *OURS[1:], "loss.temperature=0.05"),
    "stock, no_duplicates": ("batches=null", *OURS[1:], "training.batch_sampler=no_duplicates"),
    "ours": OURS,
    "ours, temperature 0.05": (*OURS, "loss.temperature=0.05"),
    "repeats not masked": (*OURS, "loss.mask_duplicates=false"),
    "margin 0.1": (*OURS, "loss.false_negative_margin=0.1"),
    "query_to_query": (*OURS, "loss.directions=[query_to_doc, query_to_query]"),
    "hardness 3 on sts": (*OURS, "loss.hardness_strength={sts: 3}"),
    "mixed batches": (*OURS, "batches.mixed=true"),
    "our batches, stock's loss": (*OURS, "loss.mask_duplicates=false", "loss.mini_batch_num_tokens=null"),
}
"""What is set over the recipe, by the name that the tables have."""

GROUPS = ("STS", "retrieval", "bitext", "held-out retrieval", "held-out triplets")


def main() -> None:
    """Train and score what has not run yet, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--recipe", default="demo-real")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=["stock", "ours"], metavar="SETTING")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--table", action="store_true", help="print what there is and run nothing")
    arguments = parser.parse_args()
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    runs: dict[str, list[dict]] = {}
    for seed in arguments.seeds:
        for setting in arguments.settings:
            path = arguments.output_dir / f"{setting.replace(' ', '_')}-{seed}.json"
            if arguments.table and not path.exists():
                continue
            overrides = [*arguments.overrides, *SETTINGS[setting], f"seed={seed}", "training.save_strategy='no'"]
            recipe = with_sources(Recipe.load(arguments.recipe, overrides), arguments.data)
            run = kept(path, recipe, lambda r=recipe, s=setting: train(r, arguments, stock=s.startswith("stock")))
            runs.setdefault(setting, []).append(run)
    start = with_sources(Recipe.load(arguments.recipe, arguments.overrides), arguments.data)
    before = kept(arguments.output_dir / "before.json", start, lambda: score(starting_model(start), start, arguments))
    print(summary({"before training": [before], **runs}), by_set({"before training": [before], **runs}), sep="\n\n")


def with_sources(recipe: Recipe, data: Path) -> Recipe:
    """Take the recipe's sources from the folder."""
    sources = {
        name: source.model_copy(update={"path": str(data / f"train_{name}.jsonl")})
        for name, source in recipe.data.sources.items()
    }
    return recipe.model_copy(update={"data": recipe.data.model_copy(update={"sources": sources})})


def kept(path: Path, recipe: Recipe, run: Callable[[], dict]) -> dict:
    """Return a run's result from its file, or run and write the file."""
    made_with = recipe.model_dump(
        mode="json", exclude={"name", "description", "synthesis", "evaluation", "publishing"}
    )
    if not path.exists():
        content = json.dumps({**run(), "recipe": made_with}, indent=1)
        path.with_suffix(".partial").write_text(content, encoding="utf-8")
        path.with_suffix(".partial").replace(path)
    result = json.loads(path.read_text(encoding="utf-8"))
    if result["recipe"] != made_with:
        raise SystemExit(f"{path} was made with other settings. Choose another --output-dir, or move it away.")
    return result


def train(recipe: Recipe, arguments: argparse.Namespace, *, stock: bool) -> dict:
    """Train from the recipe's start and score the result."""
    folders = datasets(recipe, arguments.output_dir)
    model, rows = starting_model(recipe), training_set(folders)
    settings = training_arguments(recipe, arguments.output_dir / "trainer")
    trainer = (stock_trainer if stock else build_trainer)(recipe, model, rows, settings)
    started = time.process_time()
    trainer.train()
    seconds = time.process_time() - started
    return {"seconds": seconds, **score(model, recipe, arguments)}


def datasets(recipe: Recipe, output_dir: Path) -> list[Path]:
    """Write the recipe's rows and sources as a run does, unless they are there."""
    folder, partial = output_dir / "data", output_dir / f"data.{os.getpid()}"
    if not folder.exists():
        data = recipe.data
        rows = read_rows(rows_file(data.rows), data.instruction)
        write_dataset(rows, partial / "dataset", data.validation_fraction, data.hold_out)
        for name, source in recipe.data.sources.items():
            rows = read_source(name, source)
            write_source(rows, partial / "sources", name, with_negatives="negative" in source.columns)
        partial.rename(folder)
    return [folder / "dataset", folder / "sources"]


def stock_trainer(
    recipe: Recipe, model: LLMSentenceTransformer, rows: DatasetDict, settings: SentenceTransformerTrainingArguments
) -> SentenceTransformerTrainer:
    """Build sentence-transformers' trainer with its own loss and samplers on the same texts."""
    folded = rows.map(lambda row: {"anchor": format_query(row["instruction"], row["anchor"])})
    loss = MultipleNegativesRankingLoss(model, scale=1 / recipe.loss.temperature)
    return SentenceTransformerTrainer(
        model=model, args=settings, train_dataset=folded.remove_columns("instruction"), loss=loss
    )


def score(model: LLMSentenceTransformer, recipe: Recipe, arguments: argparse.Namespace) -> dict:
    """Score a model on the open sets and the held-out rows."""
    held_out = load_held_out(datasets(recipe, arguments.output_dir)[0])
    own = evaluate_held_out(model, held_out, batch_size=recipe.evaluation.batch_size).summary
    return {
        "scores": score_open_sets(model, arguments.data)
        | {
            "held-out retrieval: rows": own["retrieval_ndcg_at_10"],
            "held-out triplets: sts": own["sts_triplet_accuracy"],
        }
    }


def summary(runs: dict[str, list[dict]]) -> str:
    """One row for each setting: the mean over the sets of a group, and over the seeds (lowest to highest)."""
    lines = [f"| | {' | '.join(GROUPS)} | CPU seconds |", "|---" * (len(GROUPS) + 2) + "|"]
    for setting, results in runs.items():
        cells = [spread([mean(of_group(result, group)) for result in results]) for group in GROUPS]
        seconds = [f"{result['seconds']:.0f}" for result in results if "seconds" in result]
        lines.append(f"| {setting} | {' | '.join(cells)} | {', '.join(seconds)} |")
    return "\n".join(lines)


def by_set(runs: dict[str, list[dict]]) -> str:
    """One row for each set."""
    lines = [f"| | {' | '.join(runs)} |", "|---" * (len(runs) + 1) + "|"]
    for name in next(iter(runs.values()))[0]["scores"]:
        cells = [spread([result["scores"][name] for result in results]) for results in runs.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def of_group(result: dict, group: str) -> list[float]:
    """Return a result's scores of the sets of a group."""
    return [score for name, score in result["scores"].items() if name.startswith(f"{group}:")]


if __name__ == "__main__":
    main()
