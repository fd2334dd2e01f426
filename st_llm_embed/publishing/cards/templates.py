"""Where the templates of cards lie, and a part of a card rendered from one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2


def template(name: str) -> Path:
    """Find a template in hub_cards/."""
    package = Path(__file__).parents[2]
    # In a wheel hub_cards lies inside the package, in a checkout beside it.
    return next(folder for folder in (package / "hub_cards", package.parent / "hub_cards") if folder.is_dir()) / name


def render(file: str, /, **values: Any) -> str:
    """Render a template that is part of a card; `quoted` in it writes a text as Python and JSON both read it."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False)  # noqa: S701  # Markdown
    environment.filters["quoted"] = lambda text: json.dumps(text, ensure_ascii=False)
    return environment.from_string(template(file).read_text(encoding="utf-8")).render(**values).strip()
