"""The keyword arguments of other libraries that a recipe holds, checked by their source code.

Importing sentence-transformers and peft takes seconds, and a wrong key is to be found at once.
"""

from __future__ import annotations

import ast
import builtins
import typing
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from st_llm_embed.errors import InputError, Problems, did_you_mean, shown

SET_BY_THE_RUN = ("output_dir", "seed", "prompts")

COUNTS = ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps")
"""Arguments of the trainer that have to be 1 or more."""


class Upstream(NamedTuple):
    """A dataclass of another library."""

    name: str
    classes: tuple[tuple[str, str, str], ...]
    """Package, file and name of its base classes, the first one first, and of itself."""


TRAINING_ARGUMENTS = Upstream(
    "SentenceTransformerTrainingArguments",
    (
        ("transformers", "training_args.py", "TrainingArguments"),
        ("sentence_transformers", "base/training_args.py", "BaseTrainingArguments"),
        ("sentence_transformers", "sentence_transformer/training_args.py", "SentenceTransformerTrainingArguments"),
    ),
)

LORA_CONFIG = Upstream(
    "LoraConfig",
    (
        ("peft", "config.py", "PeftConfigMixin"),
        ("peft", "config.py", "PeftConfig"),
        ("peft", "tuners/lora/config.py", "LoraConfig"),
    ),
)


@cache
def arguments_of(upstream: Upstream) -> Mapping[str, Any]:
    """Return the types of the fields that its constructor takes, `Any` for those that only importing would show."""
    found: dict[str, Any] = {}
    for package, file, name in upstream.classes:
        spec = find_spec(package)
        assert spec is not None and spec.origin is not None, package  # noqa: S101, PT018 - a dependency
        tree = ast.parse((Path(spec.origin).parent / file).read_text(encoding="utf-8"))
        [body] = [node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
        for node in body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and not _is_set_later(node.value):
                found[node.target.id] = _type(node.annotation)
    return {name: kind for name, kind in found.items() if kind is not typing.ClassVar}


def check_arguments(upstream: Upstream, given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return keyword arguments in the types of their fields; YAML's `1e-4` becomes a number.

    Raises:
        InputError: keys are unknown, or values have a wrong type; all of them are named.
    """
    problems, checked, fields = Problems(), {}, arguments_of(upstream)
    for key, value in given.items():
        with problems.collected():
            if key not in fields:
                raise InputError(
                    f"{where}.{key} is not an argument of {upstream.name}{did_you_mean(key, fields)}. Its "
                    "documentation lists what is allowed."
                )
            try:
                checked[key] = TypeAdapter(fields[key]).validate_python(value)
            except ValidationError as error:
                raise InputError(
                    f"{where}.{key} is {shown(value)}: {error.errors()[0]['msg']}. Give it the type that "
                    f"{upstream.name} documents."
                ) from error
    problems.report()
    return checked


def check_training_section(training: Mapping[str, Any], where: str, *, batches: bool) -> dict[str, Any]:
    """Check the keys and types of a training section; `batches`: the recipe has a section of that name.

    Raises:
        InputError: a key is unknown, set by the run itself, or has a value of another type.
    """
    problems, checked = Problems(), {}
    for key in sorted(training.keys() & set(SET_BY_THE_RUN)):
        problems.found.append(
            f"{where}.{key} is set by the run itself (output_dir by --output-dir, seed by the recipe's seed, prompts "
            "by each row's instruction). Remove it."
        )
    for key in ("batch_sampler", "multi_dataset_batch_sampler"):
        if batches and key in training:
            problems.found.append(
                f"{where}.{key} and the batches section both say what a batch is made of. Remove one of them."
            )
    with problems.collected():
        checked = check_arguments(TRAINING_ARGUMENTS, training, where)
        for key in COUNTS:
            if checked.get(key, 1) < 1:
                problems.found.append(f"{where}.{key} is {checked[key]}; the least is 1. Give 1 or more.")
        if checked.get("num_train_epochs", 1) <= 0 and checked.get("max_steps", -1) <= 0:
            raise InputError(f"{where}.num_train_epochs is {checked['num_train_epochs']:g}. Give more than 0.")
    problems.report()
    return checked


def half_precision_problem(training: Mapping[str, Any], where: str) -> str | None:
    """Return what to set in a training section where there is no GPU; None where it needs none."""
    keys = [key for key in ("bf16", "bf16_full_eval", "fp16", "fp16_full_eval", "tf32") if training.get(key)]
    if not keys or training.get("use_cpu"):
        return None
    named = " and ".join(f"{where}.{key}" for key in keys)
    options = " ".join(f"--set training.{key}=false" for key in keys)
    return f"{named} is true, and there is no GPU. Train in float32: {options}."


def _is_set_later(value: ast.expr | None) -> bool:
    """Whether the value of a field is `field(init=False)`."""
    keywords = value.keywords if isinstance(value, ast.Call) else []
    return any(one.arg == "init" and getattr(one.value, "value", True) is False for one in keywords)


def _type(annotation: ast.expr) -> Any:
    """Return the type that an annotation names; `Any` for one of another library, or of a form that is not read."""
    kind: Any = Any
    match annotation:
        case ast.Constant(value=None):
            kind = None
        case ast.Name(id=name):
            kind = getattr(builtins, name, getattr(typing, name, Any))
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            kind = _filled(typing.Union, [_type(left), _type(right)])
        case ast.Subscript(value=outer, slice=inner):
            generic, items = _type(outer), inner.elts if isinstance(inner, ast.Tuple) else [inner]
            is_literal = generic is typing.Literal
            kind = _filled(generic, [getattr(one, "value", None) if is_literal else _type(one) for one in items])
    return kind


def _filled(generic: Any, arguments: Sequence[Any]) -> Any:
    """Return a generic type with its arguments."""
    try:
        return generic[arguments[0] if len(arguments) == 1 else tuple(arguments)]
    except TypeError:
        return Any
