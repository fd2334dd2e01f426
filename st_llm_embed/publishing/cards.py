"""Cards, rendered from what is on disk: a fact that is not there is omitted.

Usage under the published name, mteb results and links to other repositories are each between two comments that
Markdown does not show. `publish` updates these parts; what is outside them is the user's to edit.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import pyarrow.parquet as pq
import yaml
from huggingface_hub import DatasetCard, DatasetCardData, EvalResult, ModelCard, ModelCardData

from st_llm_embed.data.dataset import MINING_REPORT, Split, load_split
from st_llm_embed.distillation import distillation_of
from st_llm_embed.distillation.report import cost_rows, kept, quality_rows
from st_llm_embed.doctor.repository import Repository
from st_llm_embed.errors import explained
from st_llm_embed.evaluation.report import HEADLINES, headline_rows
from st_llm_embed.export.readme import render, template
from st_llm_embed.instructions import INSTRUCTION_TEMPLATE
from st_llm_embed.modules.layout import read_json
from st_llm_embed.recipe import BASE, EMBEDDED, TRAINED, Recipe
from st_llm_embed.synthesis.prompts import PROMPT_VERSION

TAGS = ["sentence-transformers", "feature-extraction", "text-embeddings", "st_llm_embed"]

SIZE_CATEGORIES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))

EVAL_RESULTS = ".eval_results"

UNNAMED = "path/to/this/folder"
"""In the place of the model's name until it has one on the Hub."""


class Link(NamedTuple):
    """A repository that is published together with the one whose card it is on."""

    what: str
    """`dataset`, `adapter` or `model`."""
    repo_id: str


def model_card(recipe: Recipe, model_dir: Path, dataset_dir: Path, evaluation_dir: Path) -> str:
    """Render the card of a trained model; `updated_card` puts the published name, links and mteb results into it.

    `model_dir` is the saved model, `dataset_dir` holds the rows, with statistics.json where an LLM wrote them, and
    `evaluation_dir` report.json.
    """
    report = json.loads((evaluation_dir / "report.json").read_text(encoding="utf-8"))
    training_rows = load_split(dataset_dir, "train")
    generators = {name for dataset in training_rows.values() for name in dataset.unique("generator")} - {"unknown"}
    on_hub = {name for name, source in recipe.data.sources.items() if _is_hub_id(source.path)}
    base = recipe.base.name_or_path
    # The packaged base and local folders have no id that a reader could follow.
    base_model = None if base == EMBEDDED or recipe.base.random_init or Path(base).exists() else base
    front_matter = {
        "language": languages(dataset_dir),
        "license": recipe.publishing.license,
        "tags": TAGS,
        "base_model": base_model,
        "base_model_relation": None if base_model is None else "finetune",
        "datasets": [source.path for name, source in recipe.data.sources.items() if name in on_hub] or None,
        "model_name": recipe.name,
        "eval_results": _eval_results(recipe, report),
    }
    card = _rendered(
        "model_card.md",
        front_matter,
        name=recipe.name,
        description=recipe.description,
        model=Repository(str(model_dir)),
        base_model=base_model,
        instructions=recipe.base.instructions,
        pooling_mode=recipe.base.pooling_mode,
        rows=f"{sum(len(dataset) for dataset in training_rows.values()):,}",
        task_types=", ".join(training_rows),
        generators=", ".join(sorted(generators)),
        temperature=recipe.loss.temperature,
        stages=", ".join(stage.name for stage in recipe.stages),
        lora=_lora(recipe),
        steps=f"{report['training']['steps']:,}",
        results=headline_rows(report),
        cosines=report.get("cosines"),
        limitations=recipe.publishing.limitations,
        sources=[
            {
                "name": name,
                "hub_id": source.path if name in on_hub else None,
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
    front_matter = {
        "language": languages(dataset_dir),
        "license": recipe.publishing.license,
        "tags": [*TAGS[:-1], "distillation", TAGS[-1]],
        "base_model": None if start is None or Path(start).exists() else start,
    }
    card = _rendered(
        "student_card.md",
        front_matter,
        name=recipe.name,
        kind=distillation.student.kind,
        teacher="a model that is not on the Hub" if named is None or Path(named).exists() else named,
        lengths=distillation.loss.matryoshka_dims or (Repository(str(model_dir)).dimension,),
        rows=distillation.rows,
        texts=bool(distillation.texts),
        instructions=distillation.student.instructions,
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
        lora=_lora(recipe),
    )


def _rendered(file: str, front_matter: dict[str, Any], **values: Any) -> str:
    data = ModelCardData(library_name="sentence-transformers", pipeline_tag="sentence-similarity", **front_matter)
    return str(ModelCard.from_template(data, template_path=str(template(file)), **values))


def _is_hub_id(path: str) -> bool:
    return re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", path) is not None and not Path(path).exists()


def _lora(recipe: Recipe) -> str | None:
    if recipe.lora is None:
        return None
    return ", ".join(f"{key} {value}" for key, value in recipe.lora.items()) or "peft's defaults"


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


def dataset_card(recipe: Recipe, dataset_dir: Path, counts: Counter[tuple[str, Split]]) -> str:
    """Render the card of a written dataset; its front matter says where the files of each config are.

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
    data = DatasetCardData(
        language=languages(dataset_dir),
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
        template_path=str(template("dataset_card.md")),
        name=recipe.name,
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
    shown = f"the base, {recipe.base.name_or_path}, before training" if model == BASE else Path(model).name
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


def languages(dataset_dir: Path) -> list[str] | None:
    """Return the codes of the languages of a dataset's rows, without that for an unknown one."""
    columns = ["language", "target_language"]
    codes = {
        code
        for path in dataset_dir.glob("*/*.parquet")
        if path.stem in ("train", "validation")
        for column in pq.read_table(path, columns=columns).itercolumns()
        for code in column.unique().to_pylist()
    }
    return sorted(codes - {"und"}) or None


def updated_card(card: str, folder: Path, name: str, links: Sequence[Link] = ()) -> str:
    """Rewrite the generated parts of a card for a published name; a part without a place in the card is omitted.

    `folder` is the saved model, with exports and `.eval_results` if there are any; `links` is what is published with
    it: datasets go into the front matter, too.
    """
    card = card.replace(UNNAMED, name)
    for part, text in {
        "usage": _usage(Repository(str(folder)), name),
        "mteb": _mteb_results(folder),
        "links": render("links.md", links=links),
    }.items():
        card = _replaced(card, part, text)
    parsed = ModelCard(card)
    front_matter = cast(ModelCardData, parsed.data)
    known = front_matter.datasets or []
    new = [link.repo_id for link in links if link.what == "dataset" and link.repo_id not in known]
    if not new:
        return card
    front_matter.datasets = [*known, *new]
    return str(parsed)


def updated_dataset_card(card: str, name: str, links: Sequence[Link] = ()) -> str:
    """Rewrite the generated parts of a dataset's card; arguments as for `updated_card`."""
    configs = DatasetCard(card).data.to_dict().get("configs") or [{}]
    card = _replaced(card, "load", render("load.md", name=name, config=configs[0].get("config_name")))
    return _replaced(card, "links", render("links.md", links=links))


def _usage(model: Repository, name: str) -> str:
    """Render how a model is used by each library and server."""
    ggufs = sorted(model.folder.glob("**/*.gguf"), key=lambda path: path.stat().st_size)
    return render(
        "usage.md",
        name=name,
        model=model,
        query_prompt=model.prompts.get("query", ""),
        document_prompt=model.prompts.get("document", ""),
        onnx={"onnx/model.onnx", "onnx/tokenizer.json"} <= model.files,
        # The largest, which is the most exact.
        gguf=ggufs[-1].relative_to(model.folder).as_posix() if ggufs else None,
    )


def _mteb_results(folder: Path) -> str:
    """Render the scores in a model's `.eval_results`; nothing where there are none."""
    rows: list[tuple[str, str, float, str]] = []
    for path in sorted((folder / EVAL_RESULTS).glob("*.yaml")):
        with explained(f"{path} cannot be read", "It has to be what `st-llm-embed evaluate` wrote, or be removed."):
            entries = yaml.safe_load(path.read_text(encoding="utf-8"))
            found = [
                (entry["dataset"]["task_id"], entry["dataset"]["id"], float(entry["value"]), entry.get("notes") or "")
                for entry in entries
            ]
        # The mean of a complete task is under the task's own name; one with parts missing has those alone.
        rows += [row for row in found if row[0] == path.stem] or found
    return render("mteb.md", rows=rows) if rows else ""


def _replaced(card: str, part: str, text: str) -> str:
    start, end = f"<!-- {part} -->", f"<!-- end of {part} -->"
    pattern = re.escape(start) + r"\n.*?" + re.escape(end)
    return re.sub(pattern, lambda _: f"{start}\n{text}\n{end}" if text else f"{start}\n{end}", card, flags=re.DOTALL)
