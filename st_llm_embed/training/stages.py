"""Several trainings of one run: which rows each has, and what it goes on from (NV-Embed, arXiv 2405.17428)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from st_llm_embed.data import read_rows, rows_file, split_of
from st_llm_embed.data.dataset import config_of
from st_llm_embed.errors import InputError
from st_llm_embed.recipe import SYNTHESIS, Recipe, TrainingStage


def going_on_from(recipe: Recipe, trained: Path) -> Recipe:
    """Give a recipe whose training starts from what another one ended with.

    Args:
        recipe: of the later training.
        trained: the folder that `train` wrote for the earlier one, which had the same base.

    Returns:
        The recipe with that adapter on the same base; where all weights are trained, with those weights as base.
    """
    if recipe.lora is None and recipe.base.adapter is None:
        start = {"name_or_path": str(trained / "model"), "revision": None, "random_init": False}
    else:
        start = {"adapter": str(trained / "adapter")}
    return recipe.model_copy(update={"base": recipe.base.model_copy(update=start), "lora": None})


def check_configurations(recipe: Recipe) -> None:
    """Check what the stages of a recipe are to train on, where that is known before anything is built.

    Raises:
        InputError: a stage names a configuration that is not there, or the file of rows cannot be read.
    """
    data = recipe.data
    if not recipe.stages or data.rows == SYNTHESIS or data.sources or data.mining is not None:
        return
    rows = read_rows(rows_file(data.rows))
    names = {config_of(row) for row in rows if split_of(row, data.validation_fraction) == "train"}
    for stage in recipe.stages:
        configurations_of(stage, names)


def configurations_of(stage: TrainingStage, names: Iterable[str]) -> list[str]:
    """Give those of a dataset's configurations that a stage trains on.

    Raises:
        InputError: the stage names one that is not there.
    """
    names = sorted(set(names))
    if unknown := [begin for begin in stage.configurations if not any(name.startswith(begin) for name in names)]:
        raise InputError(
            f"Stage {stage.name} names the configurations {', '.join(unknown)}, and there are no such rows to train "
            f"on: there are {', '.join(names)}. Give beginnings of these names in the stage's configurations, or "
            "leave that key out for all."
        )
    return [name for name in names if takes(stage, name)]


def takes(stage: TrainingStage, configuration: str) -> bool:
    """Whether a stage trains on a configuration of that name."""
    return not stage.configurations or configuration.startswith(stage.configurations)
