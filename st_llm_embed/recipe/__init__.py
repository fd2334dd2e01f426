"""A recipe: every choice of one run, typed, in one YAML file.

The sections ``lora`` and ``training`` hold keyword arguments of peft and sentence-transformers (``recipe.upstream``).
"""

from __future__ import annotations

from st_llm_embed.recipe.data import Data, HoldOut, Mining, Source
from st_llm_embed.recipe.distillation import Distillation, DistillationLoss, Student, Teacher
from st_llm_embed.recipe.recipe import Recipe, RecipeError, recipe_text, recipe_to_start_from, shipped_recipes
from st_llm_embed.recipe.section import (
    BASE,
    EMBEDDED,
    REPLAY,
    SYNTHESIS,
    TASK_TYPES,
    TRAINED,
    Direction,
    Dtype,
    Instructions,
    PoolingMode,
    TaskType,
)
from st_llm_embed.recipe.synthesis import Endpoint, Plan, Price, Synthesis, is_plain_address
from st_llm_embed.recipe.training import Base, Batches, Loss, TrainingStage

__all__ = [
    "BASE",
    "EMBEDDED",
    "REPLAY",
    "SYNTHESIS",
    "TASK_TYPES",
    "TRAINED",
    "Base",
    "Batches",
    "Data",
    "Direction",
    "Distillation",
    "DistillationLoss",
    "Dtype",
    "Endpoint",
    "HoldOut",
    "Instructions",
    "Loss",
    "Mining",
    "Plan",
    "PoolingMode",
    "Price",
    "Recipe",
    "RecipeError",
    "Source",
    "Student",
    "Synthesis",
    "TaskType",
    "Teacher",
    "TrainingStage",
    "is_plain_address",
    "recipe_text",
    "recipe_to_start_from",
    "shipped_recipes",
]
