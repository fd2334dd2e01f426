"""Cards of models, rendered from what is on disk: a fact that is not there is omitted."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from st_llm_embed.distillation import distillation_of
from st_llm_embed.distillation.report import cost_rows, kept, quality_rows
from st_llm_embed.doctor.repository import Repository
from st_llm_embed.evaluation.report import HEADLINES, headline_rows
from st_llm_embed.export.readme import render
from st_llm_embed.instructions import instruction_prompt
from st_llm_embed.modules.layout import read_json
from st_llm_embed.publishing.card_parts import UNNAMED, updated_card
from st_llm_embed.publishing.counts import (
    Example,
    authors,
    base_model,
    counted,
    examples,
    held_out_by,
    language_codes,
    language_names,
    languages,
    percent,
)
from st_llm_embed.recipe import TASK_TYPES, TRAINED, Recipe, TaskType

TAGS = ["sentence-transformers", "feature-extraction", "text-embeddings", "st_llm_embed"]

PICTURE = "examples.png"
"""Held-out queries with the documents nearest to them, in the folder of the evaluation and in the release."""

PURPOSES: dict[TaskType, str] = {
    "short-long": "the passages that answer a query",
    "long-short": "the label of a text",
    "short-short": "the short text that belongs to another",
    "long-long": "the long text that belongs to another",
    "sts": "text of the same meaning",
    "bitext": "the translation of a text",
}
"""What each task type trains a model to find."""


def model_card(recipe: Recipe, model_dir: Path, data: Sequence[Path], evaluation_dir: Path) -> str:
    """Render the card of a trained model; `updated_card` puts the published name, links and results into it.

    `model_dir` is the saved model, `data` are the folders that were trained on, the first of which holds the rows,
    with statistics.json where an LLM wrote them; `evaluation_dir` has report.json.
    """
    report = json.loads((evaluation_dir / "report.json").read_text(encoding="utf-8"))
    model, dataset_dir, on_hub = Repository(str(model_dir)), data[0], _sources_on_the_hub(recipe)
    base, spoken, shown = base_model(recipe), languages(dataset_dir), examples(recipe, dataset_dir, _prompt(model))
    another = _another_task(recipe, data, shown)
    front_matter = {
        "language": language_codes(spoken),
        "license": recipe.publishing.license,
        "tags": TAGS,
        "base_model": base,
        "base_model_relation": None if base is None else "finetune",
        "datasets": list(on_hub.values()) or None,
        "model_name": recipe.name,
        "eval_results": _eval_results(recipe, report),
        "widget": _widget(shown),
    }
    card = _rendered(
        "model_card.md",
        front_matter,
        name=recipe.name,
        description=recipe.description,
        model=model,
        end_token=_end_token(model),
        base_model=base,
        instructions=recipe.base.instructions,
        query_prompt=_prompt(model),
        another=another,
        another_prompt=instruction_prompt(another.instruction) if another else None,
        pooling_mode=recipe.base.pooling_mode,
        rows=f"{counted([dataset_dir], ['task_type'], 'train').total():,}",
        authors=authors(dataset_dir, "train"),
        purposes=_purposes(data),
        languages=language_names(spoken),
        temperature=recipe.loss.temperature,
        stages=", ".join(stage.name for stage in recipe.stages),
        weights=_trained_weights(recipe),
        steps=f"{report['training']['steps']:,}",
        held_out_by=held_out_by(dataset_dir),
        results=headline_rows(report),
        cosines=report.get("cosines"),
        picture=PICTURE if PICTURE in model.files else None,
        limitations=recipe.publishing.limitations,
        sources=[
            {
                "name": name,
                "hub_id": on_hub.get(name),
                "file": Path(source.path).name,
                "share": f"{source.ratio:g}",
                "license": source.license,
            }
            for name, source in recipe.data.sources.items()
        ],
        costs=_costs(report, dataset_dir),
    )
    return updated_card(card, model_dir, recipe.publishing.repo_id or UNNAMED)


def student_card(recipe: Recipe, model_dir: Path, dataset_dir: Path, report_dir: Path) -> str:
    """Render the card of a student; arguments as for `model_card`, with the report of the distillation."""
    distillation = distillation_of(recipe)
    report = json.loads((report_dir / "report.json").read_text(encoding="utf-8"))
    teacher, start = distillation.teacher.name_or_path, distillation.student.name_or_path
    named = recipe.publishing.repo_id if teacher == TRAINED else teacher
    model = Repository(str(model_dir))
    front_matter = {
        "language": language_codes(languages(dataset_dir)),
        "license": recipe.publishing.license,
        "tags": [*TAGS[:-1], "distillation", TAGS[-1]],
        "base_model": None if start is None or Path(start).exists() else start,
        "widget": _widget(examples(recipe, dataset_dir, _prompt(model))),
    }
    card = _rendered(
        "student_card.md",
        front_matter,
        name=recipe.name,
        kind=distillation.student.kind,
        teacher="a model that is not on the Hub" if named is None or Path(named).exists() else named,
        lengths=distillation.loss.matryoshka_dims or (model.dimension,),
        rows=distillation.rows,
        authors=authors(dataset_dir, "train"),
        texts=bool(distillation.texts),
        query_prompt=_prompt(model),
        held_out_by=held_out_by(dataset_dir),
        models=list(report["scores"]),
        quality=quality_rows(report),
        costed=list(report["costs"]),
        costs=cost_rows(report),
        hardware=report["hardware"],
        kept=kept(report),
        limitations=recipe.publishing.limitations if teacher == TRAINED else (),
    )
    return updated_card(card, model_dir, UNNAMED)


def folder_card(model_dir: Path, name: str) -> str:
    """Render the card of a saved model of which nothing is known but its files."""
    values = {"name": name.rpartition("/")[2], "model": Repository(str(model_dir))}
    return updated_card(_rendered("folder_card.md", {"tags": TAGS[:-1]}, **values), model_dir, name)


def adapter_card(recipe: Recipe, adapter_dir: Path, name: str, merged: str) -> str:
    """Render the card of a LoRA adapter, called `name` on the Hub, whose merged model is called `merged` there."""
    config = json.loads((adapter_dir / "adapter_config.json").read_text(encoding="utf-8"))
    front_matter = {
        "license": recipe.publishing.license,
        "tags": [*TAGS, "lora", "peft"],
        "base_model": config["base_model_name_or_path"],
        "base_model_relation": "adapter",
    }
    return _rendered(
        "adapter_card.md",
        front_matter,
        name=name.rpartition("/")[2],
        repo_id=name,
        merged=merged,
        base=config["base_model_name_or_path"],
        revision=config["revision"],
        lora=_lora(recipe.lora),
    )


def _rendered(file: str, front_matter: dict[str, Any], **values: Any) -> str:
    data = ModelCardData(library_name="sentence-transformers", pipeline_tag="sentence-similarity", **front_matter)
    return render(file, card_data=data.to_yaml(), **values) + "\n"


def _prompt(model: Repository) -> str:
    return model.prompts.get("query", "")


def _widget(shown: Sequence[Example]) -> list[dict[str, Any]] | None:
    """Return examples in the Hub's form for sentence similarity; the usage on the card takes its texts from there."""
    return [{"source_sentence": one.query, "sentences": list(one.documents)} for one in shown] or None


def _another_task(recipe: Recipe, data: Sequence[Path], shown: Sequence[Example]) -> Example | None:
    """Return an example of an instruction besides the default one; None for a model that was trained with one."""
    if recipe.base.instructions != "natural" or len(counted(data, ["instruction"], "train")) < 2:
        return None
    if len(shown) > 1:
        return shown[1]
    return Example("Given a claim, retrieve documents that support or refute it", "Bats are blind.", ())


def _purposes(data: Sequence[Path]) -> list[tuple[str, str]]:
    """Return what a model was trained to find, and the share of the rows; the most frequent first."""
    rows = counted(data, ["task_type"], "train")
    found = [(PURPOSES[name], rows[(name,)] / rows.total()) for name in TASK_TYPES if (name,) in rows]
    return [(purpose, percent(share)) for purpose, share in sorted(found, key=lambda one: -one[1])]


def _end_token(model: Repository) -> str | None:
    """Return the token at the end of a text, which tokenizer.json puts there; it need not be called EOS."""
    _, behind = model.around
    return model.token(behind[-1]) if behind else model.special_token("eos")


def _sources_on_the_hub(recipe: Recipe) -> dict[str, str]:
    hub_id = re.compile(r"[\w-][\w.-]*/[\w.-]+")
    paths = {name: source.path for name, source in recipe.data.sources.items()}
    return {name: path for name, path in paths.items() if hub_id.fullmatch(path) and not Path(path).exists()}


def _trained_weights(recipe: Recipe) -> str:
    if recipe.lora is not None:
        return f"LoRA ({_lora(recipe.lora)}), merged"
    return "all weights" if recipe.base.adapter is None else "an adapter that was trained before, merged"


def _lora(lora: dict[str, Any] | None) -> str | None:
    if lora is None:
        return None
    return ", ".join(f"{key} {value}" for key, value in lora.items()) or "peft's defaults"


def _eval_results(recipe: Recipe, report: dict[str, Any]) -> list[EvalResult]:
    """Return the scores on held-out rows for the front matter."""
    return [
        EvalResult(
            task_type="sentence-similarity",
            dataset_type=recipe.publishing.dataset_repo_id or recipe.name,
            dataset_name=f"held-out rows of {recipe.name}",
            dataset_split="validation",
            metric_type=key,
            metric_name=label,
            metric_value=round(score, 5),
        )
        for key, label in HEADLINES.items()
        if (score := report["after"][key]) is not None
    ]


def _costs(report: dict[str, Any], dataset_dir: Path) -> list[tuple[str, str]]:
    """Return what is on record of money, time and machine."""
    training, statistics = report["training"], read_json(dataset_dir / "statistics.json")
    return [
        *([] if statistics is None else [("Rows by an LLM", f"${statistics['cost']['usd']:,.2f}")]),
        ("Training", f"{training['steps']:,} steps, {training['seconds']:,.0f} s since the last resume"),
        ("Hardware", report["hardware"]),
    ]
