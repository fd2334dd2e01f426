"""The released folder: a complete Hub repository as files."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import numpy as np
import yaml
from sentence_transformers import SentenceTransformer

from st_llm_embed.evaluation import mteb_prompts
from st_llm_embed.modules import LLMSentenceTransformer, check_eos
from st_llm_embed.publishing.cards import model_card
from st_llm_embed.recipe import Recipe

PROBES = ("", "a short text", "one two three four five six seven eight nine ten " * 100, "Ünïcödé 文字 текст")


def write_release(
    recipe: Recipe, dataset_dir: Path, training_dir: Path, evaluation_dir: Path, output_dir: Path
) -> None:
    """Save the trained model with prompts for MTEB tasks, card and recipe, and check that it still gives its vectors.

    Raises:
        RuntimeError: the released folder, loaded anew, gives other vectors.
    """
    trained = LLMSentenceTransformer(str(training_dir / "model"))
    trained.prompts |= mteb_prompts()
    trained.save_pretrained(str(output_dir), create_model_card=False)
    released = SentenceTransformer(str(output_dir))
    check_eos(released)
    stock = SentenceTransformer(str(training_dir / "model"))
    if not np.array_equal(released.encode(list(PROBES)), stock.encode(list(PROBES))):
        raise RuntimeError(
            f"{output_dir} gives other vectors than {training_dir / 'model'}; it must not be published."
        )
    (output_dir / "recipe.yaml").write_text(_without_local_places(recipe), encoding="utf-8")
    card = model_card(recipe, output_dir, dataset_dir, evaluation_dir)
    (output_dir / "README.md").write_text(card, encoding="utf-8")


def _without_local_places(recipe: Recipe) -> str:
    """Give the recipe as YAML, with the file's name in place of each path and localhost for hosts of a local network.

    What remains says what was chosen; where it lay on this machine is nobody else's business.
    """
    content = _shared(recipe.model_dump(mode="json"))
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)


def _shared(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _shared(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_shared(one) for one in value]
    if not isinstance(value, str) or "\n" in value:
        return value
    if value.startswith(("http://", "https://")):
        return _public_address(value)
    path = PureWindowsPath(value) if PureWindowsPath(value).drive else PurePosixPath(value)
    local = path.is_absolute() or path.parts[:1] in (("~",), ("..",)) or value.startswith("~")
    return path.name if local else value


def _public_address(address: str) -> str:
    url = urlsplit(address)
    host = url.hostname or ""
    try:
        public = ip_address(host).is_global
    except ValueError:
        public = "." in host and not host.endswith((".local", ".internal", ".lan"))
    return address if public else urlunsplit(url._replace(netloc="localhost" + (f":{url.port}" if url.port else "")))
