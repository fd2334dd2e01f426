"""The released folder: a complete Hub repository as files."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer

from st_llm_embed.modules import check_eos
from st_llm_embed.publishing.cards import model_card
from st_llm_embed.recipe import Recipe

PROBES = ("", "a short text", "one two three four five six seven eight nine ten " * 100, "Ünïcödé 文字 текст")


def write_release(
    recipe: Recipe, dataset_dir: Path, training_dir: Path, evaluation_dir: Path, output_dir: Path
) -> None:
    """Copy the trained model, add card and recipe, and check that the copy still gives the trained model's vectors.

    Raises:
        RuntimeError: the released folder, loaded anew, gives other vectors.
    """
    shutil.copytree(training_dir / "model", output_dir, dirs_exist_ok=True)
    released = SentenceTransformer(str(output_dir))
    check_eos(released)
    trained = SentenceTransformer(str(training_dir / "model"))
    if not np.array_equal(released.encode(list(PROBES)), trained.encode(list(PROBES))):
        raise RuntimeError(
            f"{output_dir} gives other vectors than {training_dir / 'model'}; it must not be published."
        )
    recipe.save(output_dir / "recipe.yaml")
    (output_dir / "README.md").write_text(model_card(recipe, released, dataset_dir, evaluation_dir), encoding="utf-8")
