"""A recipe: every choice of one run, typed, in one YAML file, with one module for each of its sections.

Sections that belong to an upstream library (``lora``, ``training``) hold that library's own keyword arguments. They
are checked against it where they are used (``st_llm_embed.training.arguments``), because importing it takes seconds.
"""

from __future__ import annotations

from st_llm_embed.recipe.data import Data, Mining, Source
from st_llm_embed.recipe.distillation import Distillation, DistillationLoss, Student, Teacher
from st_llm_embed.recipe.publishing import Publishing
from st_llm_embed.recipe.recipe import (
    Recipe,
    recipe_file,
    recipe_text,
    recipe_to_start_from,
    shipped_recipes,
)
from st_llm_embed.recipe.section import (
    BASE,
    EMBEDDED,
    NAME_PATTERN,
    REPLAY,
    SYNTHESIS,
    TASK_TYPES,
    TRAINED,
    Direction,
    Dtype,
    Instructions,
    Label,
    PoolingMode,
    Section,
    TaskType,
)
from st_llm_embed.recipe.synthesis import (
    Budget,
    Endpoint,
    Filters,
    Plan,
    Price,
    Synthesis,
    is_plain_address,
)
from st_llm_embed.recipe.training import Base, Batches, Evaluation, Loss, TrainingStage

__all__ = [
    "BASE",
    "EMBEDDED",
    "NAME_PATTERN",
    "REPLAY",
    "SYNTHESIS",
    "TASK_TYPES",
    "TRAINED",
    "Base",
    "Batches",
    "Budget",
    "Data",
    "Direction",
    "Distillation",
    "DistillationLoss",
    "Dtype",
    "Endpoint",
    "Evaluation",
    "Filters",
    "Instructions",
    "Label",
    "Loss",
    "Mining",
    "Plan",
    "PoolingMode",
    "Price",
    "Publishing",
    "Recipe",
    "Section",
    "Source",
    "Student",
    "Synthesis",
    "TaskType",
    "Teacher",
    "TrainingStage",
    "is_plain_address",
    "recipe_file",
    "recipe_text",
    "recipe_to_start_from",
    "shipped_recipes",
]
