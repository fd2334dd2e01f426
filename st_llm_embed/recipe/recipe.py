"""The whole recipe: how it is read, changed by --set, checked and written."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, Self, get_args

import yaml
from pydantic import Field, JsonValue, TypeAdapter, ValidationError, model_validator
from pydantic_core import ErrorDetails

from st_llm_embed.errors import InputError, InputErrors, did_you_mean, explained, shown
from st_llm_embed.recipe.data import Data
from st_llm_embed.recipe.distillation import Distillation
from st_llm_embed.recipe.section import NAME_PATTERN, SYNTHESIS, Section, reworded
from st_llm_embed.recipe.synthesis import Synthesis
from st_llm_embed.recipe.training import Base, Batches, Evaluation, Loss, TrainingStage

EXAMPLE = "demo-real"
"""The shipped recipe that shows what is missing in another."""

RECIPE_SUFFIXES = (".yaml", ".yml")


class Publishing(Section):
    """What the released folder and its cards say."""

    repo_id: str | None = None
    """Hub name in the card's examples, such as `org/e5-mistral`; None: the folder's path."""
    license: str
    """Licence of the released weights, as the Hub spells it (`apache-2.0`, `cc-by-nc-4.0`, ...)."""
    base_model: str | None = Field(default=None, pattern=r"^[\w-][\w.-]*(/[\w.-]+)?$")
    """Hub id of the base, for the card, where `base.name_or_path` is a folder; nothing is trained again for it."""
    query_instruction: str | None = None
    """Instruction of `encode_query` of the released model, if `base.instructions` is natural; null: the most
    frequent one of the rows, or a general one where none is frequent."""
    limitations: tuple[str, ...] = ()
    """What users have to know before relying on the model; printed in the card and the report."""
    dataset_repo_id: str | None = None
    """Hub name in the dataset card's example."""
    dataset_license: str | None = None
    """Licence of the rows, needed to push them and to show some on a card; check the terms of the LLM that wrote
    them."""


class RecipeError(InputErrors):
    """A recipe has keys or values that are not allowed; `sections` are the others, by name."""

    def __init__(self, problems: Sequence[str], sections: Mapping[str, Any]) -> None:
        super().__init__(problems)
        self.sections = sections


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
    def _sections_fit_together(self) -> Self:
        if self.data.rows == SYNTHESIS and self.synthesis is None:
            raise ValueError("data.rows is synthesis, and the section synthesis is missing; the recipe demo has one")
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
        merged = [
            {
                "name": f"{self.name}, stage {stage.name}",  # for messages only
                "loss": self._merged(number, "loss"),
                "batches": self._merged(number, "batches"),
                "training": self.training | stage.training,
                "stages": (),
            }
            for number, stage in enumerate(self.stages)
        ]
        return [self.model_copy(update=own) for own in merged] or [self]

    def _merged(self, number: int, key: Literal["loss", "batches"]) -> Any:
        """Return a section of a stage, checked; errors name the key in the stage."""
        section, own = getattr(self, key), getattr(self.stages[number], key)
        if own is None or (section is None and not own):
            return None
        try:
            kept = {} if section is None else section.model_dump(exclude_unset=True)
            return type(section or Batches()).model_validate(kept | own)
        except ValidationError as error:
            place = ("stages", number, key)
            raise reworded(error, lambda one: (one["type"], one["msg"], (*place, *one["loc"]))) from error

    @classmethod
    def load(cls, name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
        """Read a shipped recipe by name, or any recipe by the path of its YAML file.

        Args:
            name_or_path: `demo`, ..., or a path that ends in .yaml or .yml.
            overrides: `section.key=value` each, with the value in YAML, set over what the file says.

        Raises:
            InputError: there is no such recipe, or the file is not a recipe.
            RecipeError: keys or values are not allowed; all of them are named.
        """
        text = recipe_text(name_or_path)
        with explained(f"The recipe {name_or_path} is not a YAML file", "Fix the line it names and run again."):
            content = yaml.safe_load(text)
        if not isinstance(content, dict):
            raise InputError(
                f"The recipe {name_or_path} has a {type(content).__name__} at its top level; a recipe is a mapping of "
                "sections. Start from a shipped one: st-llm-embed recipes copy qwen3-0.6b."
            )
        for override in overrides:
            _set(content, override)
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            wrong = {str(details["loc"][0]) for details in error.errors() if details["loc"]}
            problems = [
                f"Recipe {name_or_path}: {_explain(details)}. Fix the file or the --set option."
                for details in error.errors()
            ]
            raise RecipeError(problems, _right_sections(content, wrong)) from error

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


def recipe_text(name_or_path: str) -> str:
    """Return the text of a recipe given by shipped name or by path.

    Raises:
        InputError: there is no such recipe, or its file cannot be read.
    """
    if name_or_path in shipped_recipes():
        return (files("st_llm_embed") / "recipe" / f"{name_or_path}.yaml").read_text(encoding="utf-8")
    path = Path(name_or_path)
    with explained(f"The recipe {shown(name_or_path)} cannot be read", "Name a .yaml file in UTF-8."):
        if path.suffix in RECIPE_SUFFIXES and path.is_file():
            return path.read_text(encoding="utf-8")
    raise InputError(
        f"There is no recipe {shown(name_or_path)}{did_you_mean(name_or_path, shipped_recipes())}. Allowed are the "
        f"shipped recipes ({', '.join(shipped_recipes())}) and the path of a .yaml file. To start one of your own: "
        "st-llm-embed recipes copy qwen3-0.6b."
    )


def recipe_to_start_from(name: str, target: Path) -> str:
    """Return a recipe's text for a file of the user's: named after it, without description and limitations.

    Raises:
        InputError: there is no such recipe, or the file's name cannot be that of a recipe.
    """
    if target.suffix not in RECIPE_SUFFIXES or not re.fullmatch(NAME_PATTERN, target.stem):
        raise InputError(
            f"A recipe cannot be called {str(target)!r}. Choose a name of letters, digits, '.', '_' and '-' that ends "
            "in .yaml or .yml with --to."
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
        raise InputError(f"--set {override!r} is not section.key=value, such as --set loss.temperature=0.05.")
    with explained(f"--set {shown(override)}: {shown(text)} is not a YAML value", "Quote it."):
        value = yaml.safe_load(text)
    target = content
    for position, key in enumerate(keys[:-1]):
        if target.get(key) is None:
            target[key] = {}
        if not isinstance(target[key], dict):
            section = ".".join(keys[: position + 1])
            raise InputError(f"--set {override!r}: {section} is {shown(target[key])}, not a section.")
        target = target[key]
    target[keys[-1]] = value


def _right_sections(content: Mapping[str, Any], wrong: Collection[str]) -> dict[str, Any]:
    """Return the sections of a wrong recipe that are right on their own."""
    right = {}
    for name, field in Recipe.model_fields.items():
        if name in content and name not in wrong:
            right[name] = TypeAdapter(field.rebuild_annotation()).validate_python(content[name])
    return right


def _what_to_write(place: tuple[int | str, ...]) -> str:
    """Return an example of what is missing at a place, of a shipped recipe, or else what it is for."""
    example: Any = yaml.safe_load(recipe_text(EXAMPLE))
    section: Any = Recipe
    for part in map(str, place[:-1]):
        example = example.get(part) if isinstance(example, dict) else None
        if part in section.model_fields:
            section = _section_in(section.model_fields[part].annotation) or Section
    if isinstance(example, dict) and place[-1] in example:
        value = example[place[-1]]
        if isinstance(value, dict):
            value = {key: one for key, one in value.items() if not isinstance(one, dict | list)}
        written = yaml.safe_dump({place[-1]: value}, default_flow_style=True, width=10_000).strip()[1:-1]
        return f"Write it, such as {written}; whole sections: st-llm-embed recipes show {EXAMPLE}"
    field = section.model_fields.get(place[-1])
    return f"It is needed: {field.description}" if field and field.description else "It is needed"


def _section_in(annotation: Any) -> type[Section] | None:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next(filter(None, map(_section_in, get_args(annotation))), None)


def _explain(details: ErrorDetails) -> str:
    key, message = ".".join(map(str, details["loc"])), details["msg"].removeprefix("Value error, ")
    # An error of several sections has no key, and the whole recipe for its input; an address may hold a secret.
    if not key:
        return message
    match details["type"]:
        case "missing":
            return f"{key} is missing. {_what_to_write(details['loc'])}"
        case "model_type" if details["input"] is None:
            return f"{key} is null. {_what_to_write(details['loc'])}"
        case "unknown_key":
            return f"{key}: {message}"
        case "address":
            return f"{key} {message}"
    return f"{key} is {shown(details['input'])}: {message}"
