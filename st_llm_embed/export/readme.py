"""The templates in hub_cards/: the READMEs of exports here, the cards of repositories in `publishing`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2

QUERY = "how do bees make honey"
DOCUMENTS = ("Bees dry nectar in the comb until it is honey.", "The lighthouse was finished in 1889.")
"""Texts that show how a model is used whose own texts are not known; the first document answers the query."""


def template(name: str) -> Path:
    """Find a template in hub_cards/."""
    package = Path(__file__).parents[1]
    # In a wheel hub_cards is inside the package, in a checkout beside it.
    return next(folder for folder in (package / "hub_cards", package.parent / "hub_cards") if folder.is_dir()) / name


def render(file: str, /, **values: Any) -> str:
    """Render a template; `quoted` in it writes a text as Python and JSON both read it."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False)  # noqa: S701  # Markdown
    examples: dict[str, Any] = {"example_query": QUERY, "example_documents": DOCUMENTS}
    environment.filters["quoted"] = lambda text: json.dumps(text, ensure_ascii=False)
    return environment.from_string(template(file).read_text(encoding="utf-8")).render(**examples | values).strip()
