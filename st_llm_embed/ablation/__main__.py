"""One run of a grid in a process of its own: python -m st_llm_embed.ablation RECIPE.yaml FOLDER [OPEN_SETS]."""

from __future__ import annotations

import sys
from pathlib import Path

from st_llm_embed.ablation.scores import score_run
from st_llm_embed.errors import InputError
from st_llm_embed.pipeline import run_pipeline
from st_llm_embed.recipe import Recipe


def main() -> None:
    """Run every stage that has not run yet, and score the result."""
    recipe, folder, *open_sets = sys.argv[1:]
    try:
        report = run_pipeline(Recipe.load(recipe), Path(folder))
        score_run(Path(folder), report, Path(open_sets[0]) if open_sets else None)
    except InputError as error:
        sys.stderr.write(f"Error: {error}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
