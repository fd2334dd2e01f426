"""The whole recipe: how it is read, changed by --set, checked and written."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, LiteralString, Self, cast

import yaml
from pydantic import Field, JsonValue, ValidationError, model_validator
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from st_llm_embed.errors import InputError, did_you_mean, explained, shown
from st_llm_embed.recipe.data import Data
from st_llm_embed.recipe.distillation import Distillation
from st_llm_embed.recipe.publishing import Publishing
from st_llm_embed.recipe.section import NAME_PATTERN, SYNTHESIS, Section
from st_llm_embed.recipe.synthesis import Synthesis
from st_llm_embed.recipe.training import Base, Batches, Evaluation, Loss, TrainingStage

RECIPE_SUFFIXES = (".yaml", ".yml")


class Recipe(Section):
    """Every choice of one run."""

    name: str = Field(pattern=NAME_PATTERN)
    """Name of the run and of its default output folder."""
    description: str
    """What it makes, in one sentence, for `recipes list` and the card."""
    seed: int = Field(ge=0, lt=2**32)
    """Seeds fresh weights, data order and dropout."""
    base: Base
    synthesis: Synthesis | None = None
    """Needed if `data.rows` is `synthesis`; not used otherwise."""
    data: Data
    lora: dict[str, JsonValue] | None
    """Keyword arguments of peft.LoraConfig, `{}` for its defaults; null trains all weights, or `base.adapter`."""
    loss: Loss
    batches: Batches | None = None
    """None: batches are made by `batch_sampler` and `multi_dataset_batch_sampler` of the training section."""
    training: dict[str, JsonValue]
    """Keyword arguments of SentenceTransformerTrainingArguments. Not allowed are those that the run sets: output_dir,
    seed, and prompts, because each row has its own instruction."""
    stages: tuple[TrainingStage, ...] = ()
    """Several trainings, in this order; empty: one, with the sections above (docs/training.md)."""
    evaluation: Evaluation
    distillation: Distillation | None = None
    """A small student of the model trained here, or of another teacher; needed by `st-llm-embed distill`."""
    publishing: Publishing

    @model_validator(mode="after")
    def _synthesis_is_given(self) -> Self:
        if self.data.rows == SYNTHESIS and self.synthesis is None:
            raise ValueError("data.rows is synthesis, and the section synthesis is missing; the recipe demo has one")
        return self

    @model_validator(mode="after")
    def _adapter_fits_the_base(self) -> Self:
        adapted = self.lora is not None or self.base.adapter is not None
        if self.lora is not None and self.base.adapter is not None:
            raise ValueError("base.adapter continues a trained adapter and lora creates a new one; omit one of them")
        if self.base.quantization is not None and not adapted:
            raise ValueError("base.quantization is for training an adapter; set lora or base.adapter, or omit it")
        if self.base.random_init and adapted:
            raise ValueError("an adapter needs a base that others can load; set base.random_init to false")
        return self

    @model_validator(mode="after")
    def _stages_are_whole(self) -> Self:
        names = [stage.name for stage in self.stages]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two stages have the name {', '.join(repeated)}; each needs a folder of its own")
        for number, stage in enumerate(self.stages):
            own_only = self._merged(number, "loss").own_negatives_only
            self._merged(number, "batches")
            if own_only and not stage.hard_negatives:
                raise ValueError(
                    f"stage {stage.name} has hard_negatives false, but by loss.own_negatives_only rows of "
                    f"{own_only[0]} have no other negatives; set own_negatives_only to [] in the stage's loss"
                )
        return self

    def trainings(self) -> list[Recipe]:
        """Return the recipe of each stage, or only this one if it has none."""
        return [self._of_stage(number) for number in range(len(self.stages))] or [self]

    def _of_stage(self, number: int) -> Recipe:
        """Return this recipe with a stage's sections merged over its own."""
        stage = self.stages[number]
        return self.model_copy(
            update={
                # For messages only.
                "name": f"{self.name}, stage {stage.name}",
                "loss": self._merged(number, "loss"),
                "batches": self._merged(number, "batches"),
                "training": self.training | stage.training,
                "stages": (),
            }
        )

    def _merged(self, number: int, key: Literal["loss", "batches"]) -> Any:
        """Return a section of a stage, checked; errors name the key in the stage."""
        section, own = getattr(self, key), getattr(self.stages[number], key)
        if own is None or (section is None and not own):
            return None
        try:
            kept = {} if section is None else section.model_dump(exclude_unset=True)
            return type(section or Batches()).model_validate(kept | own)
        except ValidationError as error:
            problems = [
                InitErrorDetails(
                    type=PydanticCustomError(cast(LiteralString, details["type"]), "{text}", {"text": details["msg"]}),
                    loc=("stages", number, key, *details["loc"]),
                    input=details["input"],
                )
                for details in error.errors(include_url=False)
            ]
            raise ValidationError.from_exception_data(error.title, problems, hide_input=True) from error

    @classmethod
    def load(cls, name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
        """Read a shipped recipe by name, or any recipe by the path of its YAML file.

        Args:
            name_or_path: `demo`, ..., or a path that ends in .yaml or .yml.
            overrides: `section.key=value` each, with the value in YAML, set over what the file says.

        Raises:
            InputError: there is no such recipe, the file is not a recipe, or a key or value is not allowed.
        """
        source, text = recipe_file(name_or_path), recipe_text(name_or_path)
        with explained(f"{source} is not a YAML file", "Fix the line it names and run again."):
            content = yaml.safe_load(text)
        if not isinstance(content, dict):
            raise InputError(
                f"{source} has a {type(content).__name__} at its top level; a recipe is a mapping of sections "
                f"({', '.join(cls.model_fields)}). Start from a shipped one: st-llm-embed recipes copy qwen3-0.6b."
            )
        for override in overrides:
            _set(content, override)
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise InputError(_explain(error, source)) from error

    def to_yaml(self) -> str:
        """Return the recipe as YAML with every default written out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100)

    def save(self, path: Path) -> None:
        """Write the resolved recipe to a YAML file that `load` reads back as an equal recipe."""
        path.write_text(self.to_yaml(), encoding="utf-8")


def shipped_recipes() -> list[str]:
    """Return the names of the recipes inside the package, sorted."""
    folder = files("st_llm_embed") / "recipe"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def recipe_file(name_or_path: str) -> Path:
    """Return the YAML file of a recipe given by shipped name or by path.

    Raises:
        InputError: there is neither a recipe of that name nor a file at that path, or its folder cannot be read.
    """
    if name_or_path in shipped_recipes():
        return Path(str(files("st_llm_embed") / "recipe" / f"{name_or_path}.yaml"))
    path = Path(name_or_path)
    with explained(f"The recipe {shown(name_or_path)} cannot be read", "Name a .yaml file that you may read."):
        if path.suffix in RECIPE_SUFFIXES and path.is_file():
            return path
    raise InputError(
        f"There is no recipe {shown(name_or_path)}{did_you_mean(name_or_path, shipped_recipes())}. Allowed are the "
        f"shipped recipes ({', '.join(shipped_recipes())}) and the path of a .yaml file. To start one of your own: "
        "st-llm-embed recipes copy qwen3-0.6b."
    )


def recipe_text(name_or_path: str) -> str:
    """Return the text of a recipe given by shipped name or by path.

    Raises:
        InputError: there is no such recipe, or its file cannot be read.
    """
    source = recipe_file(name_or_path)
    with explained(f"{source} cannot be read", "It has to be a text file in UTF-8 that you may read."):
        return source.read_text(encoding="utf-8")


def recipe_to_start_from(name: str, target: Path) -> str:
    """Return a shipped recipe's text for a file of the user's.

    The copy is named after the file. Description and limitations are empty, as they are about the shipped recipe.

    Raises:
        InputError: there is no such shipped recipe, or the file's name cannot be that of a recipe.
    """
    if name not in shipped_recipes():
        raise InputError(
            f"There is no shipped recipe {name!r}{did_you_mean(name, shipped_recipes())}. Allowed are "
            f"{', '.join(shipped_recipes())}."
        )
    if target.suffix not in RECIPE_SUFFIXES or not re.fullmatch(NAME_PATTERN, target.stem):
        raise InputError(
            f"{str(target)!r} cannot be the file of a recipe: its name has to consist of letters, digits, '.', '_' "
            "and '-', begin with a letter or digit, and end in .yaml or .yml. Choose another file with --to."
        )
    text = re.sub(r"\A(#.*\n)+", "", recipe_text(name))
    text = re.sub(r"^name: .*$", f'name: "{target.stem}"', text, flags=re.MULTILINE)
    text = re.sub(r"^description: .*$", 'description: ""  # one sentence, for the card', text, flags=re.MULTILINE)
    text = re.sub(r"^  limitations:.*\n(    .*\n)*", "", text, flags=re.MULTILINE)
    return text.rstrip() + "\n  limitations: []  # what users have to know, for the card and the report\n"


def _set(content: dict[str, Any], override: str) -> None:
    """Apply one `section.key=value` to the parsed YAML in place."""
    dotted, equals, text = override.partition("=")
    keys = dotted.strip().split(".")
    if not equals or not all(keys):
        raise InputError(
            f"--set {override!r} is not of the form section.key=value, such as --set loss.temperature=0.05."
        )
    with explained(f"--set {shown(override)}: {shown(text)} is not a YAML value", "Quote it."):
        value = yaml.safe_load(text)
    target = content
    for position, key in enumerate(keys[:-1]):
        if target.get(key) is None:
            target[key] = {}
        if not isinstance(target[key], dict):
            raise InputError(
                f"--set {override!r}: {'.'.join(keys[: position + 1])} is {shown(target[key])}, not a section."
            )
        target = target[key]
    target[keys[-1]] = value


def _explain(error: ValidationError, source: Path) -> str:
    problems = "; ".join(_explain_one(details) for details in error.errors())
    return f"Recipe {source}: {problems}. Fix the file or the --set option and run again."


def _explain_one(details: ErrorDetails) -> str:
    key, message = ".".join(map(str, details["loc"])), details["msg"].removeprefix("Value error, ")
    # An error of several sections has no key, and the whole recipe for its input; an address may hold a secret.
    if not key:
        return message
    match details["type"]:
        case "missing":
            return f"{key} is missing"
        case "unknown_key":
            return f"{key}: {message}"
        case "address":
            return f"{key} {message}"
    return f"{key} is {shown(details['input'])}: {message}"
