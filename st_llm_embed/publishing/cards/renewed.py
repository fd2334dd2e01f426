"""The parts of a model card that publishing writes anew: usage under the published name, mteb results, links.

Each stands between two comments that Markdown does not show. What is outside them is the user's to edit.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple, cast

import yaml
from huggingface_hub import DatasetCard, ModelCard, ModelCardData

from st_llm_embed.errors import explained
from st_llm_embed.publishing.cards.saved_model import SavedModel, read_saved_model
from st_llm_embed.publishing.cards.templates import render

EVAL_RESULTS = ".eval_results"

UNNAMED = "path/to/this/folder"
"""Stands on a card where the model's name on the Hub will."""


class Link(NamedTuple):
    """A repository that is published together with the one whose card it is on."""

    what: str
    """`dataset`, `adapter`, `model`: rows trained on, LoRA alone, merged weights."""
    repo_id: str


def renewed_card(card: str, folder: Path, name: str, links: Sequence[Link] = ()) -> str:
    """Write the renewed parts of a card for a published name; where a part has no place in the card, it is left out.

    Args:
        card: the card as it lies on disk, front matter included.
        folder: the saved model, with exports and `.eval_results` if there are any.
        name: what the model is called on the Hub.
        links: what is published with it; datasets go into the front matter, too.
    """
    card = card.replace(UNNAMED, name)
    for part, text in {
        "usage": usage(read_saved_model(folder), name),
        "mteb": mteb_results(folder),
        "links": render("links.md", links=links),
    }.items():
        card = _replaced(card, part, text)
    datasets = [link.repo_id for link in links if link.what == "dataset"]
    parsed = ModelCard(card)
    front_matter = cast(ModelCardData, parsed.data)
    known = front_matter.datasets or []
    new = [name for name in datasets if name not in known]
    if not new:
        return card
    front_matter.datasets = [*known, *new]
    return str(parsed)


def renewed_dataset_card(card: str, name: str, links: Sequence[Link] = ()) -> str:
    """Write the renewed parts of a dataset's card for a published name; arguments as for `renewed_card`."""
    configs = DatasetCard(card).data.to_dict().get("configs") or [{}]
    load = render("load.md", name=name, config=configs[0].get("config_name"))
    card = _replaced(card, "load", load)
    return _replaced(card, "links", render("links.md", links=links))


def usage(model: SavedModel, name: str) -> str:
    """Render how a model is used by each library and server, with its prompt where each of them needs it."""
    return render("usage.md", name=name, **asdict(model))


def mteb_results(folder: Path) -> str:
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
