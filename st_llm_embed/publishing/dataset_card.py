"""The card of the rows: what they are, who wrote them, and what was done to them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData

from st_llm_embed.data.dataset import MINING_REPORT, Split
from st_llm_embed.export.readme import template
from st_llm_embed.instructions import INSTRUCTION_TEMPLATE
from st_llm_embed.modules.layout import read_json
from st_llm_embed.publishing.card_parts import UNNAMED, updated_dataset_card
from st_llm_embed.publishing.counts import authors, base_name, held_out_by, language_codes, language_names, languages
from st_llm_embed.recipe import BASE, Recipe
from st_llm_embed.synthesis.prompts import PROMPT_VERSION

SIZE_CATEGORIES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def dataset_card(recipe: Recipe, dataset_dir: Path, counts: Counter[tuple[str, Split]]) -> str:
    """Render the card of a dataset; its front matter says where the files of each config are.

    `dataset_dir` may hold statistics.json, which says how an LLM wrote the rows; `counts` are rows by (config, split).
    """
    configs = sorted({config for config, _ in counts})
    files = {
        config: [(split, f"{config}/{split}.parquet") for split in ("train", "validation") if counts[config, split]]
        for config in configs
    }
    files |= {
        name: [("train", f"{name}/{name}.parquet")] for name in ("tasks", "rejected") if (dataset_dir / name).is_dir()
    }
    written_by = authors(dataset_dir, "train", "validation")
    data = DatasetCardData(
        language=language_codes(languages(dataset_dir)),
        license=recipe.publishing.dataset_license,
        tags=["sentence-transformers", *(["synthetic"] if written_by else [])],
        task_categories=["sentence-similarity", "feature-extraction", "text-retrieval"],
        size_categories=next((name for limit, name in SIZE_CATEGORIES if counts.total() < limit), "n>1M"),
        configs=[
            {"config_name": config, "data_files": [{"split": split, "path": path} for split, path in parts]}
            for config, parts in files.items()
        ],
    )
    card = DatasetCard.from_template(
        data,
        template_path=str(template("dataset_card.md")),
        name=recipe.name,
        authors=written_by,
        languages=language_names(languages(dataset_dir)),
        held_out_by=held_out_by(dataset_dir),
        template=INSTRUCTION_TEMPLATE.replace("\n", "\\n"),
        counts=[(config, counts[config, "train"], counts[config, "validation"]) for config in configs],
        mining=_mining(recipe, dataset_dir),
        **_origin(recipe, dataset_dir),
    )
    return updated_dataset_card(str(card), recipe.publishing.dataset_repo_id or UNNAMED)


def _mining(recipe: Recipe, dataset_dir: Path) -> dict[str, Any] | None:
    """Return what the card says of mined negatives; None where there are none."""
    report = read_json(dataset_dir / MINING_REPORT)
    if report is None:
        return None
    rows = [
        outcome
        | {"config": config, "split": split, "positive_not_in_range": outcome["positive_not_in_range"] or 0}
        | {"suspected": outcome["dropped"]["relative margin"]}
        for config, splits in report["configurations"].items()
        for split, outcome in splits.items()
    ]
    model = report["settings"]["model"]
    shown = f"the base, {base_name(recipe)}, before training" if model == BASE else Path(model).name
    return {"model": shown, "settings": report["settings"], "rows": rows} if rows else None


def _origin(recipe: Recipe, dataset_dir: Path) -> dict[str, Any]:
    """Return what the card says of rows that an LLM wrote for this recipe; nothing of others."""
    statistics = read_json(dataset_dir / "statistics.json")
    if recipe.synthesis is None or statistics is None:
        return {}
    plan, filters = recipe.synthesis.plan, recipe.synthesis.filters
    return {
        "statistics": statistics,
        "given_tasks": plan.tasks is not None,
        "generators": ", ".join(f"{name} ({count:,} rows)" for name, count in statistics["rows_by_generator"].items()),
        "preset": plan.preset,
        "seed": plan.seed,
        "prompt_version": PROMPT_VERSION,
        "requests": f"{plan.requests:,}",
        "overlap": statistics["overlap_with_evaluation_texts"],
        "evaluation_texts": ", ".join(Path(path).name for path in filters.evaluation_texts),
    }
