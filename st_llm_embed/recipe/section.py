"""What all sections share: names of choices, and the way their keys are checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, LiteralString, Self, cast, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

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


def reworded(
    error: ValidationError, words: Callable[[ErrorDetails], tuple[str, str, tuple[int | str, ...]]]
) -> ValidationError:
    """Return the same errors with the type, message and place that `words` returns for each."""
    problems = []
    for details in error.errors(include_url=False):
        kind, message, place = words(details)
        custom = PydanticCustomError(cast(LiteralString, kind), "{text}", {"text": message})
        problems.append(InitErrorDetails(type=custom, loc=place, input=details["input"]))
    return ValidationError.from_exception_data(error.title, problems, hide_input=True)


class Section(BaseModel):
    """Common to all parts of a recipe: immutable, unknown keys refused, docstrings as help."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @model_validator(mode="wrap")
    @classmethod
    def _unknown_keys_are_explained(cls, values: Any, check: ModelWrapValidatorHandler[Self]) -> Self:
        allowed = list(cls.model_fields)

        def explained(details: ErrorDetails) -> tuple[str, str, tuple[int | str, ...]]:
            if details["type"] != "extra_forbidden" or len(details["loc"]) > 1:
                return details["type"], details["msg"], details["loc"]
            key = str(details["loc"][0])
            message = f"unknown key {key}{did_you_mean(key, allowed)} (allowed here: {', '.join(allowed)})"
            return "unknown_key", message, ()

        try:
            return check(values)
        except ValidationError as error:
            raise reworded(error, explained) from error

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_not_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        # Python, and pydantic with it, takes true for 1.
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise ValueError("true and false are allowed for switches only")
        return value
