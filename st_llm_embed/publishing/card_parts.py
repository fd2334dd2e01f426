"""The generated parts of a card: usage under the published name, results, invariance, links to other repositories.

Each is between two comments that Markdown does not show. `publish` updates these parts; what is outside them is the
user's to edit.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import yaml
from huggingface_hub import DatasetCard, ModelCard, ModelCardData

from st_llm_embed.doctor.repository import ENCODERS, Repository
from st_llm_embed.errors import explained
from st_llm_embed.export.readme import DOCUMENTS, QUERY, render
from st_llm_embed.modules.layout import read_json

EVAL_RESULTS = ".eval_results"

INVARIANCE_FILE = "invariance.json"
"""How far a text's vector depends on what it is encoded with, measured when a model is released."""

UNNAMED = "path/to/this/folder"
"""In the place of the model's name until it has one on the Hub."""


class Link(NamedTuple):
    """A repository that is published together with the one whose card it is on."""

    what: str
    """`dataset`, `adapter` or `model`."""
    repo_id: str


def updated_card(card: str, folder: Path, name: str, links: Sequence[Link] = ()) -> str:
    """Rewrite the generated parts of a card for a published name; a part without a place in the card is omitted.

    `folder` is the saved model, with exports and `.eval_results` if there are any; `links` is what is published with
    it: datasets go into the front matter, too. The texts in the usage are those of the front matter's `widget`.
    """
    card = card.replace(UNNAMED, name)
    parsed = ModelCard(card)
    front_matter = cast(ModelCardData, parsed.data)
    for part, text in {
        "usage": _usage(Repository(str(folder)), name, front_matter.to_dict().get("widget")),
        "mteb": _mteb_results(folder),
        "invariance": _invariance(folder),
        "links": render("links.md", links=links),
    }.items():
        card = _replaced(card, part, text)
    known = front_matter.datasets or []
    new = [link.repo_id for link in links if link.what == "dataset" and link.repo_id not in known]
    if not new:
        return card
    parsed = ModelCard(card)
    cast(ModelCardData, parsed.data).datasets = [*known, *new]
    return str(parsed)


def updated_dataset_card(card: str, name: str, links: Sequence[Link] = ()) -> str:
    """Rewrite the generated parts of a dataset's card; arguments as for `updated_card`."""
    configs = DatasetCard(card).data.to_dict().get("configs") or [{}]
    card = _replaced(card, "load", render("load.md", name=name, config=configs[0].get("config_name")))
    return _replaced(card, "links", render("links.md", links=links))


def _usage(model: Repository, name: str, widget: Any) -> str:
    """Render how a model is used by each library and server."""
    ggufs = sorted(model.folder.glob("**/*.gguf"), key=lambda path: path.stat().st_size)
    query, documents = _example(widget)
    return render(
        "usage.md",
        name=name,
        model=model,
        query=query,
        documents=documents,
        query_prompt=model.prompts.get("query", ""),
        document_prompt=model.prompts.get("document", ""),
        is_encoder=model.model_type in ENCODERS,
        onnx={"onnx/model.onnx", "onnx/tokenizer.json"} <= model.files,
        # The largest, which is the most exact.
        gguf=ggufs[-1].relative_to(model.folder).as_posix() if ggufs else None,
    )


def _example(widget: Any) -> tuple[str, Sequence[str]]:
    """Return the first example of a card in the Hub's form for sentence similarity, or a neutral one."""
    first = widget[0] if isinstance(widget, list) and widget and isinstance(widget[0], dict) else {}
    query, documents = first.get("source_sentence"), first.get("sentences")
    if isinstance(query, str) and isinstance(documents, list) and all(isinstance(text, str) for text in documents):
        return (query, documents) if documents else (QUERY, DOCUMENTS)
    return QUERY, DOCUMENTS


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


def _invariance(folder: Path) -> str:
    """Render what was measured of a model's vectors elsewhere; nothing where nothing was."""
    rows: list[tuple[str, float | None]] = []
    with explained(f"What was measured of {folder} cannot be read", "Make the release and its exports again."):
        if (own := read_json(folder / INVARIANCE_FILE)) is not None:
            rows.append((f"a batch of {own['batch_size']}, sentence-transformers", own["lowest_cosine"]))
        for path in sorted(folder.glob("*/export.json")):
            export = json.loads(path.read_text(encoding="utf-8"))
            compared = export["verification"]
            rows.append((f"`{path.parent.name}/{export['file']}`", compared and compared["worst_cosine"]))
            rows += [(f"the same in {kind}", cosine) for kind, cosine in export["quantized"].items()]
    return render("invariance.md", rows=rows) if rows else ""


def _replaced(card: str, part: str, text: str) -> str:
    start, end = f"<!-- {part} -->", f"<!-- end of {part} -->"
    pattern = re.escape(start) + r"\n.*?" + re.escape(end)
    return re.sub(pattern, lambda _: f"{start}\n{text}\n{end}" if text else f"{start}\n{end}", card, flags=re.DOTALL)
