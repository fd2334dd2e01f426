"""Model and dataset cards, rendered from what lies on disk."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from huggingface_hub import DatasetCard, DatasetCardData, ModelCard, ModelCardData
from sentence_transformers import SentenceTransformer

from st_llm_embed.data import Split, load_split
from st_llm_embed.data.dataset import MINING_REPORT
from st_llm_embed.evaluation import headline_rows
from st_llm_embed.instructions import INSTRUCTION_TEMPLATE
from st_llm_embed.recipe import Recipe
from st_llm_embed.sections import BASE, EMBEDDED
from st_llm_embed.synthesis.prompts import PROMPT_VERSION

SIZE_CATEGORIES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def dataset_card(recipe: Recipe, dataset_dir: Path, counts: Counter[tuple[str, Split]]) -> str:
    """Render the card of a written dataset; its front matter tells the Hub where each configuration's files are.

    Args:
        recipe: what made it.
        dataset_dir: the dataset; its statistics.json, if an LLM wrote the rows, tells how.
        counts: rows by (configuration, split).
    """
    configs = sorted({config for config, _ in counts})
    files = {
        config: [(split, f"{config}/{split}.parquet") for split in ("train", "validation") if counts[config, split]]
        for config in configs
    }
    files |= {
        name: [("train", f"{name}/{name}.parquet")] for name in ("tasks", "rejected") if (dataset_dir / name).is_dir()
    }
    data = DatasetCardData(
        language=_languages(dataset_dir),
        license=recipe.publishing.dataset_license,
        tags=["sentence-transformers", "synthetic"],
        task_categories=["sentence-similarity", "feature-extraction", "text-retrieval"],
        size_categories=next((name for limit, name in SIZE_CATEGORIES if counts.total() < limit), "n>1M"),
        configs=[
            {"config_name": config, "data_files": [{"split": split, "path": path} for split, path in parts]}
            for config, parts in files.items()
        ],
    )
    card = DatasetCard.from_template(
        data,
        template_path=str(_template("dataset_card.md")),
        name=recipe.name,
        dataset_name=recipe.publishing.dataset_repo_id or "path/to/this/folder",
        template=INSTRUCTION_TEMPLATE.replace("\n", "\\n"),
        counts=[(config, counts[config, "train"], counts[config, "validation"]) for config in configs],
        mining=_mining(recipe, dataset_dir),
        **_origin(recipe, dataset_dir),
    )
    return str(card)


def _mining(recipe: Recipe, dataset_dir: Path) -> dict[str, Any] | None:
    """Give what the card says of mined negatives; None where there are none."""
    path = dataset_dir / MINING_REPORT
    if not path.is_file():
        return None
    report = json.loads(path.read_text(encoding="utf-8"))
    rows = [
        outcome
        | {"config": config, "split": split, "positive_not_in_range": outcome["positive_not_in_range"] or 0}
        | {"suspected": outcome["dropped"]["relative margin"] + outcome["dropped"]["absolute margin"]}
        for config, splits in report["configurations"].items()
        for split, outcome in splits.items()
    ]
    model = report["settings"]["model"]
    shown = f"the base, {recipe.base.name_or_path}, before training" if model == BASE else Path(model).name
    return {"model": shown, "settings": report["settings"], "rows": rows} if rows else None


def _origin(recipe: Recipe, dataset_dir: Path) -> dict[str, Any]:
    """Give what the card says of rows that an LLM wrote for this recipe; nothing of others."""
    path = dataset_dir / "statistics.json"
    if recipe.synthesis is None or not path.is_file():
        return {}
    statistics = json.loads(path.read_text(encoding="utf-8"))
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


def model_card(recipe: Recipe, model: SentenceTransformer, dataset_dir: Path, evaluation_dir: Path) -> str:
    """Render the card of a trained model from its recipe, its dataset and its report."""
    report = json.loads((evaluation_dir / "report.json").read_text(encoding="utf-8"))
    training_rows = load_split(dataset_dir, "train")
    base_model = _hub_base_model(recipe)
    data = ModelCardData(
        language=_languages(dataset_dir),
        license=recipe.publishing.license,
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=["sentence-transformers", "feature-extraction", "text-embeddings", "st_llm_embed"],
        base_model=base_model,
        datasets=[source.path for source in recipe.data.sources.values() if not Path(source.path).exists()] or None,
    )
    generators = sorted(
        {name for dataset in training_rows.values() for name in dataset.unique("generator")} - {"unknown"}
    )
    card = ModelCard.from_template(
        data,
        template_path=str(_template("model_card.md")),
        name=recipe.name,
        description=recipe.description,
        model_name=recipe.publishing.repo_id or "path/to/this/folder",
        dimension=model.get_embedding_dimension(),
        max_seq_length=model.max_seq_length,
        eos_token=model.tokenizer.eos_token,
        query_prompt=(model.prompts["query"] or "").replace("\n", "\\n"),
        instructions=recipe.base.instructions,
        pooling_mode=recipe.base.pooling_mode,
        rows=f"{sum(len(dataset) for dataset in training_rows.values()):,}",
        task_types=", ".join(training_rows),
        generators=", ".join(generators),
        temperature=recipe.loss.temperature,
        stages=", ".join(stage.name for stage in recipe.stages),
        lora=recipe.lora and ", ".join(f"{key} {value}" for key, value in recipe.lora.items()),
        steps=f"{report['training']['steps']:,}",
        results=headline_rows(report),
        limitations=recipe.publishing.limitations,
        sources=recipe.data.sources,
    )
    return str(card)


def _hub_base_model(recipe: Recipe) -> str | None:
    """Give the base's Hub id; the packaged base and local folders have none that a reader could follow."""
    name = recipe.base.name_or_path
    return None if name == EMBEDDED or recipe.base.random_init or Path(name).exists() else name


def _languages(dataset_dir: Path) -> list[str] | None:
    """Give the codes of the languages of a dataset's rows, without that for an unknown one."""
    columns = ["language", "target_language"]
    codes = {
        code
        for path in dataset_dir.glob("*/*.parquet")
        if path.stem in ("train", "validation")
        for column in pq.read_table(path, columns=columns).itercolumns()
        for code in column.unique().to_pylist()
    }
    return sorted(codes - {"und"}) or None


def _template(name: str) -> Path:
    package = Path(__file__).parents[1]
    # In a wheel hub_cards lies inside the package, in a checkout beside it.
    return next(folder for folder in (package / "hub_cards", package.parent / "hub_cards") if folder.is_dir()) / name
