"""A recipe: every choice of one run, typed, in one YAML file.

Sections that belong to an upstream library (``lora``, ``training``) hold that library's own keyword arguments. They
are checked against it where they are used (``st_llm_embed.training.arguments``), because importing it takes seconds.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, ValidationInfo, field_validator
from pydantic_core import ErrorDetails

from st_llm_embed.errors import InputError, explained, shown

TaskType = Literal["short-long", "long-short", "short-short", "long-long", "sts", "bitext"]
"""The paper's six task types (section 3.1): four asymmetric, by the length of query and document, two symmetric."""

TASK_TYPES: tuple[TaskType, ...] = get_args(TaskType)

Dtype = Literal["float32", "bfloat16", "float16"]

EMBEDDED = "embedded"
"""Value of ``base.name_or_path`` and ``data.rows`` for the base model and the rows that ship with the package."""

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"

RECIPE_SUFFIXES = (".yaml", ".yml")


class Section(BaseModel):
    """Common to all parts of a recipe: immutable, unknown keys refused, docstrings as help."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        # Python, and pydantic with it, takes true for 1.
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise ValueError("true and false are allowed for switches only")
        return value


class Base(Section):
    """The decoder-only language model that becomes an embedder."""

    name_or_path: str = Field(min_length=1)
    """Hub id or local folder of a decoder-only model, or `embedded`, the small one inside the package."""
    revision: str | None = None
    """Branch, tag or commit of a Hub model."""
    random_init: bool = False
    """Keep architecture and tokenizer but draw fresh weights: shows what pretraining is worth."""
    dtype: Dtype = "float32"
    """Data type the weights are loaded in."""
    max_seq_length: int = Field(ge=8)
    """Longest text in tokens, instruction and special tokens included; the rest is cut off before the EOS token."""


class Data(Section):
    """The rows to train on and to hold out."""

    rows: str
    """A .jsonl file of rows or of LLM answers, or `embedded`, the rows inside the package."""
    validation_fraction: float = Field(gt=0, lt=1)
    """Share of instructions held out, by hash: no instruction of a task type is in both parts. sts and bitext have
    twelve instructions each; bitext rows are held out from 0.07 on, sts rows from 0.12 (docs/decisions.md)."""


class Loss(Section):
    """InfoNCE over the positives and negatives of the batch (paper, equation 2)."""

    temperature: float = Field(gt=0)
    """Cosine similarities are divided by this before the softmax."""
    hardness_strength: dict[TaskType, Annotated[float, Field(ge=0)]] = {}
    """By task type, extra weight of a row's own hard negative, the higher the more similar it still is
    (sentence-transformers' hardness_mode "hard_negatives"; EmbeddingGemma uses 5). Empty is the paper's loss."""
    mini_batch_size: int | None = Field(default=None, ge=1)
    """Texts per forward pass with GradCache: any batch size in the memory of this many texts. None: no GradCache."""


class Evaluation(Section):
    """Retrieval, STS and bitext on the held-out rows, before and after training."""

    batch_size: int = Field(ge=1)
    """Texts per forward pass."""


class Publishing(Section):
    """What the released folder says about itself."""

    repo_id: str | None = None
    """The Hub name that the card's examples load, such as `org/e5-mistral`; None: the folder's path."""
    license: str
    """Licence of the released weights, as the Hub spells it (`apache-2.0`, `cc-by-nc-4.0`, ...)."""
    limitations: tuple[str, ...] = ()
    """What a user has to know before relying on the model; goes into the card and the report."""


class Recipe(Section):
    """Every choice of one run."""

    name: str = Field(pattern=NAME_PATTERN)
    """Name of the run and of its default output folder."""
    description: str
    """One sentence on what it makes, for `recipes list` and the card."""
    seed: int = Field(ge=0, lt=2**32)
    """Seeds fresh weights, data order and dropout."""
    base: Base
    data: Data
    lora: dict[str, JsonValue] | None
    """Keyword arguments of peft.LoraConfig, `{}` for its defaults; null trains all weights."""
    loss: Loss
    training: dict[str, JsonValue]
    """Keyword arguments of SentenceTransformerTrainingArguments. Three are set by the run and refused here:
    output_dir, seed, and prompts, because each row carries its own instruction."""
    evaluation: Evaluation
    publishing: Publishing

    @classmethod
    def load(cls, name_or_path: str, overrides: Sequence[str] = ()) -> Recipe:
        """Read a shipped recipe by name, or any recipe by the path of its YAML file.

        Args:
            name_or_path: `demo`, ..., or a path that ends in .yaml or .yml.
            overrides: `section.key=value` each, with the value in YAML, set over what the file says.

        Raises:
            InputError: there is no such recipe, the file is no recipe, or a key or value is not allowed.
        """
        source, text = recipe_file(name_or_path), recipe_text(name_or_path)
        with explained(f"{source} is not a YAML file", "Mend the line it names and run again."):
            content = yaml.safe_load(text)
        if not isinstance(content, dict):
            raise InputError(
                f"{source} holds {type(content).__name__} at its top level, a recipe is a mapping of sections "
                f"({', '.join(cls.model_fields)}). Start from a shipped one: st-llm-embed recipes copy qwen3-0.6b."
            )
        for override in overrides:
            _set(content, override)
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise InputError(_explain(error, source)) from error

    def to_yaml(self) -> str:
        """Give the recipe as YAML with every default written out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100)

    def save(self, path: Path) -> None:
        """Write the resolved recipe to a YAML file that `load` reads back as an equal recipe."""
        path.write_text(self.to_yaml(), encoding="utf-8")


def shipped_recipes() -> list[str]:
    """Names of the recipes inside the package, sorted."""
    folder = files("st_llm_embed") / "recipes"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def recipe_file(name_or_path: str) -> Path:
    """Find the YAML file of a recipe given by shipped name or by path.

    Raises:
        InputError: there is no recipe of that name and no file at that path, or its folder cannot be read.
    """
    if name_or_path in shipped_recipes():
        return Path(str(files("st_llm_embed") / "recipes" / f"{name_or_path}.yaml"))
    path = Path(name_or_path)
    with explained(f"The recipe {shown(name_or_path)} cannot be read", "Give a .yaml file that you may read."):
        if path.suffix in RECIPE_SUFFIXES and path.is_file():
            return path
    raise InputError(
        f"There is no recipe {shown(name_or_path)}{_suggestion(name_or_path, shipped_recipes())}. Allowed are the "
        f"shipped recipes ({', '.join(shipped_recipes())}) and the path of a .yaml file. To start one of your own: "
        "st-llm-embed recipes copy qwen3-0.6b."
    )


def recipe_text(name_or_path: str) -> str:
    """Read a recipe, given by shipped name or by path, as it is written.

    Raises:
        InputError: there is no such recipe, or its file cannot be read.
    """
    source = recipe_file(name_or_path)
    with explained(f"{source} cannot be read", "Give a text file in UTF-8 that you may read."):
        return source.read_text(encoding="utf-8")


def recipe_to_start_from(name: str, target: Path) -> str:
    """Give a shipped recipe's text for a file of the user's, without what is true of the shipped one alone.

    The copy is named after the file; its description and its limitations, which tell what was measured with the
    shipped recipe, are empty.

    Raises:
        InputError: there is no such shipped recipe, or the file's name cannot be that of a recipe.
    """
    if name not in shipped_recipes():
        raise InputError(
            f"{name!r} is no shipped recipe{_suggestion(name, shipped_recipes())}; those are "
            f"{', '.join(shipped_recipes())}. A recipe file of your own is copied as any file."
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
            f"--set {override!r} is not of the form section.key=value. Write for example --set loss.temperature=0.05."
        )
    with explained(f"--set {shown(override)}: {shown(text)} is not a YAML value", "Quote it."):
        value = yaml.safe_load(text)
    target = content
    for position, key in enumerate(keys[:-1]):
        if target.get(key) is None:
            target[key] = {}
        if not isinstance(target[key], dict):
            raise InputError(
                f"--set {override!r}: {'.'.join(keys[: position + 1])} is the value {shown(target[key])}, not a "
                "section. Give the key's full name and nothing below it."
            )
        target = target[key]
    target[keys[-1]] = value


def _explain(error: ValidationError, source: Path) -> str:
    problems = "; ".join(_explain_one(details) for details in error.errors())
    return f"Recipe {source}: {problems}. Mend the file or the --set option and run again."


def _explain_one(details: ErrorDetails) -> str:
    key = ".".join(str(part) for part in details["loc"])
    if details["type"] == "extra_forbidden":
        section: Any = Recipe
        for part in details["loc"][:-1]:
            section = section.model_fields[str(part)].annotation
        allowed = list(section.model_fields)
        hint = _suggestion(str(details["loc"][-1]), allowed)
        return f"unknown key {key}{hint} (allowed here: {', '.join(allowed)})"
    if details["type"] == "missing":
        return f"{key} is missing"
    return f"{key} is {shown(details['input'])}: {details['msg'].removeprefix('Value error, ')}"


def _suggestion(given: str, allowed: Sequence[str]) -> str:
    close = difflib.get_close_matches(given, allowed, n=1)
    return f" (did you mean {close[0]}?)" if close else ""
