"""The released folder: a complete Hub repository as files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
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
    if recipe.base.instructions == "natural":
        trained.prompts |= mteb_prompts()
    trained.save_pretrained(str(output_dir), create_model_card=False)
    released = SentenceTransformer(str(output_dir))
    check_eos(released)
    stock = SentenceTransformer(str(training_dir / "model"))
    if not np.array_equal(released.encode(list(PROBES)), stock.encode(list(PROBES))):
        raise RuntimeError(
            f"{output_dir} gives other vectors than {training_dir / 'model'}; it must not be published."
        )
    recipe.save(output_dir / "recipe.yaml")
    card = model_card(recipe, released, dataset_dir, evaluation_dir)
    (output_dir / "README.md").write_text(card, encoding="utf-8")
