"""The cards of a trained model, of its adapter, and of a saved model that no run of this package made."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from st_llm_embed.data import load_split
from st_llm_embed.evaluation import headline_rows
from st_llm_embed.evaluation.report import HEADLINES
from st_llm_embed.publishing.cards.dataset import languages
from st_llm_embed.publishing.cards.renewed import UNNAMED, renewed_card
from st_llm_embed.publishing.cards.saved_model import read_saved_model
from st_llm_embed.publishing.cards.templates import template
from st_llm_embed.recipe import EMBEDDED, Recipe, Source

TAGS = ["sentence-transformers", "feature-extraction", "text-embeddings", "st_llm_embed"]


def model_card(recipe: Recipe, model_dir: Path, dataset_dir: Path, evaluation_dir: Path) -> str:
    """Render the card of a trained model.

    Args:
        recipe: what made it.
        model_dir: the saved model, whose files say how it is used.
        dataset_dir: the rows, with statistics.json where an LLM wrote them.
        evaluation_dir: holds report.json.

    Returns:
        The card with front matter; `renewed_card` puts the published name, links and mteb results into it.
    """
    report = json.loads((evaluation_dir / "report.json").read_text(encoding="utf-8"))
    training_rows = load_split(dataset_dir, "train")
    generators = sorted(
        {name for dataset in training_rows.values() for name in dataset.unique("generator")} - {"unknown"}
    )
    base_model = hub_base_model(recipe)
    data = ModelCardData(
        language=languages(dataset_dir),
        license=recipe.publishing.license,
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=TAGS,
        base_model=base_model,
        base_model_relation=None if base_model is None else "finetune",
        datasets=[source.path for source in recipe.data.sources.values() if on_the_hub(source)] or None,
        model_name=recipe.name,
        eval_results=_eval_results(recipe, report),
    )
    card = ModelCard.from_template(
        data,
        template_path=str(template("model_card.md")),
        name=recipe.name,
        description=recipe.description,
        model=read_saved_model(model_dir),
        base_model=base_model,
        instructions=recipe.base.instructions,
        pooling_mode=recipe.base.pooling_mode,
        rows=f"{sum(len(dataset) for dataset in training_rows.values()):,}",
        task_types=", ".join(training_rows),
        generators=", ".join(generators),
        temperature=recipe.loss.temperature,
        stages=", ".join(stage.name for stage in recipe.stages),
        lora=_lora(recipe),
        steps=f"{report['training']['steps']:,}",
        results=headline_rows(report),
        cosines=report.get("cosines"),
        limitations=recipe.publishing.limitations,
        sources=[_shown_source(name, source) for name, source in recipe.data.sources.items()],
        costs=_costs(report, dataset_dir),
    )
    return renewed_card(str(card), model_dir, recipe.publishing.repo_id or UNNAMED)


def folder_card(model_dir: Path, name: str) -> str:
    """Render the card of a saved model of which nothing is known but its files."""
    data = ModelCardData(library_name="sentence-transformers", pipeline_tag="sentence-similarity", tags=TAGS[:-1])
    card = ModelCard.from_template(
        data,
        template_path=str(template("folder_card.md")),
        name=name.rpartition("/")[2],
        model=read_saved_model(model_dir),
    )
    return renewed_card(str(card), model_dir, name)


def adapter_card(recipe: Recipe, adapter_dir: Path, name: str, merged: str) -> str:
    """Render the card of a LoRA adapter that is published beside the merged model.

    Args:
        recipe: what made it.
        adapter_dir: the saved adapter, whose adapter_config.json names base and commit.
        name: what the adapter is called on the Hub.
        merged: what the merged model is called on the Hub.
    """
    config = json.loads((adapter_dir / "adapter_config.json").read_text(encoding="utf-8"))
    data = ModelCardData(
        license=recipe.publishing.license,
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=[*TAGS, "lora", "peft"],
        base_model=config["base_model_name_or_path"],
        base_model_relation="adapter",
    )
    card = ModelCard.from_template(
        data,
        template_path=str(template("adapter_card.md")),
        name=name.rpartition("/")[2],
        repo_id=name,
        merged=merged,
        base=config["base_model_name_or_path"],
        revision=config["revision"],
        lora=_lora(recipe),
    )
    return str(card)


def hub_base_model(recipe: Recipe) -> str | None:
    """Give the base's Hub id; the packaged base and local folders have none that a reader could follow."""
    name = recipe.base.name_or_path
    return None if name == EMBEDDED or recipe.base.random_init or Path(name).exists() else name


def on_the_hub(source: Source) -> bool:
    """Whether a set is named by an id on the Hub, and no file here."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source.path) is not None and not Path(source.path).exists()


def _shown_source(name: str, source: Source) -> dict[str, str]:
    """Give the row of the table of sets by others; of a file here the name alone."""
    hub = f"[{source.path}](https://huggingface.co/datasets/{source.path})"
    return {
        "name": name,
        "from": hub if on_the_hub(source) else Path(source.path).name,
        "share": f"{source.ratio:g}",
        "license": source.license,
    }


def _lora(recipe: Recipe) -> str | None:
    if recipe.lora is None:
        return None
    return ", ".join(f"{key} {value}" for key, value in recipe.lora.items()) or "peft's defaults"


def _eval_results(recipe: Recipe, report: dict[str, Any]) -> list[EvalResult]:
    """Give the scores on held-out rows for the front matter."""
    return [
        EvalResult(
            task_type="sentence-similarity",
            dataset_type=recipe.publishing.dataset_repo_id or recipe.name,
            dataset_name=f"held-out rows of {recipe.name}",
            dataset_split="validation",
            metric_type=key,
            metric_name=label,
            metric_value=round(report["after"][key], 5),
        )
        for key, label in HEADLINES.items()
        if report["after"][key] is not None
    ]


def _costs(report: dict[str, Any], dataset_dir: Path) -> list[tuple[str, str]]:
    """Give what is on record of money, time and machine."""
    training = report["training"]
    costs = []
    statistics = dataset_dir / "statistics.json"
    if statistics.is_file():
        usd = json.loads(statistics.read_text(encoding="utf-8"))["cost"]["usd"]
        costs.append(("Rows by an LLM", f"${usd:,.2f}"))
    costs.append(("Training", f"{training['steps']:,} steps, {training['seconds']:,.0f} s since the last resume"))
    costs.append(("Hardware", report["hardware"]))
    return costs
