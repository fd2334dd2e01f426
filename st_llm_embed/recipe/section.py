"""What all sections share: names of choices, and the way their keys are checked."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from st_llm_embed.errors import did_you_mean

TaskType = Literal["short-long", "long-short", "short-short", "long-long", "sts", "bitext"]
"""The paper's six task types (section 3.1): four asymmetric, by the length of query and document, two symmetric."""

TASK_TYPES: tuple[TaskType, ...] = get_args(TaskType)

Direction = Literal["query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc"]

Dtype = Literal["float32", "bfloat16", "float16"]

PoolingMode = Literal["lasttoken", "mean", "weightedmean"]

Instructions = Literal["natural", "task_type", "none"]

EMBEDDED = "embedded"
"""Value of ``base.name_or_path``, ``data.rows`` and ``synthesis.plan.tasks`` for what ships with the package."""

SYNTHESIS = "synthesis"
"""Value of ``data.rows`` for the rows that an LLM writes by the recipe's ``synthesis`` section."""

BASE = "base"
"""Value of ``data.mining.model`` for the recipe's own base before training."""

TRAINED = "trained"
"""Value of ``distillation.teacher.name_or_path`` for the model that the recipe itself trains."""

REPLAY = "replay"
"""Value of ``synthesis.endpoint.base_url`` for the recorded answers that ship with the package."""

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


def _as_text(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("YAML reads yes, no, on, off, true and false as switches; put quotes around the word")  # noqa: TRY004 - pydantic's
    return f"{value:g}" if isinstance(value, int | float) else value


Label = Annotated[str, BeforeValidator(_as_text)]
"""A word for a prompt or a table; YAML reads some as numbers."""


class Section(BaseModel):
    """Common to all parts of a recipe: immutable, unknown keys refused, docstrings as help."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _keys_are_known(cls, values: Any) -> Any:
        allowed = list(cls.model_fields)
        if isinstance(values, dict) and (unknown := [str(key) for key in values if key not in allowed]):
            keys = ", ".join(key + did_you_mean(key, allowed) for key in unknown)
            message = f"unknown key {keys} (allowed here: {', '.join(allowed)})"
            raise PydanticCustomError("unknown_key", "{message}", {"message": message})
        return values

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_not_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        # Python, and pydantic with it, takes true for 1.
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise ValueError("true and false are allowed for switches only")
        return value
