"""The sections of a recipe: every key typed and described.

Sections that belong to an upstream library (``lora``, ``training``) hold that library's own keyword arguments. They
are checked against it where they are used (``st_llm_embed.training.arguments``), because importing it takes seconds.
"""

from __future__ import annotations

from st_llm_embed.sections.data import Data, Mining, Source
from st_llm_embed.sections.distillation import Distillation, DistillationLoss, Student, Teacher
from st_llm_embed.sections.publishing import Publishing
from st_llm_embed.sections.section import (
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
from st_llm_embed.sections.synthesis import (
    Budget,
    Endpoint,
    Filters,
    Plan,
    Price,
    Synthesis,
    is_plain_address,
)
from st_llm_embed.sections.training import Base, Batches, Evaluation, Loss, TrainingStage

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
    "Section",
    "Source",
    "Student",
    "Synthesis",
    "TaskType",
    "Teacher",
    "TrainingStage",
    "is_plain_address",
]
