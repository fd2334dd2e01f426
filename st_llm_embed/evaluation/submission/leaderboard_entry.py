"""A model's entry for the MTEB leaderboard: mteb's ModelMeta, and the Python file that a pull request to mteb adds."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
)
from mteb.models import ModelMeta
from mteb.models.instruct_wrapper import InstructSentenceTransformerModel

from st_llm_embed.errors import InputError, explained
from st_llm_embed.instructions import INSTRUCTION_TEMPLATE
from st_llm_embed.recipe import Recipe

FILE_HEADER = """from mteb.models.instruct_wrapper import InstructSentenceTransformerModel
from mteb.models.model_meta import ModelMeta, ScoringFunction

"""

REQUIRED_FIELDS = {
    "languages": "name them in the front matter of the model card (`language:`)",
    "release_date": "mteb reads it from the repository's first commit",
    "n_parameters": "mteb counts them in safetensors files; save the model as such",
    "memory_usage_mb": "mteb reads it from safetensors files; save the model as such",
    "embed_dim": "mteb reads `hidden_size` of config.json",
    "license": "name it in the front matter of the model card (`license:`)",
    "max_tokens": "save `max_seq_length` in sentence_bert_config.json",
    "training_datasets": "name the tasks with --trained-on, or --trained-on none",
}
"""Fields that reviewers ask for and that can be empty, each with what fills it."""


def check_on_hub(name: str, revision: str) -> None:
    """Check that a commit of a model is public on the Hub.

    Raises:
        InputError: it is not there, it is private or gated, or the Hub cannot be asked.
    """
    try:
        info = HfApi().model_info(name, revision=revision, token=False)
    except OfflineModeIsEnabled as error:
        raise InputError(
            "The environment variable HF_HUB_OFFLINE forbids asking the Hub, and a submission needs what the Hub says "
            "of the model. Unset it."
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403, 404):
            raise InputError(
                f"{name} has no public commit {revision} on the Hub ({status}). Only a model that everybody can load "
                "goes onto the leaderboard: make the repository public, or evaluate the commit that is there: "
                f"st-llm-embed evaluate {name}."
            ) from error
        raise InputError(f"The Hub cannot tell of {name} for now ({status}). Try again later.") from error
    except (HTTPError, OSError) as error:
        raise InputError(f"The Hub cannot be asked for {name} ({error}). Check the network.") from error
    if info.gated:
        raise InputError(
            f"{name} is gated on the Hub, and a model on the leaderboard has to load without asking. Open it in the "
            "settings of the repository."
        )


def recipe_on_hub(name: str, revision: str) -> Recipe | None:
    """Read the recipe that a released model carries; None where it has none.

    Raises:
        InputError: the Hub cannot be asked, or it is no recipe.
    """
    path = _file(name, revision, "recipe.yaml")
    return None if path is None else Recipe.load(str(path))


def leaderboard_entry(
    name: str, revision: str, recipe: Recipe | None, training_datasets: frozenset[str] | None
) -> ModelMeta:
    """Make the ModelMeta of a model on the Hub, as far as Hub and recipe tell.

    Instructions are put before queries only, by the template of mteb's e5-mistral entry; mteb gives each task its own.

    Raises:
        InputError: the card names what mteb does not take, such as an unknown licence.
    """
    with explained(f"mteb cannot read {name} from the Hub", "Mend what it names in the repository or the model card."):
        found = ModelMeta.from_hub(name, revision)
        fields = {field: getattr(found, field) for field in ModelMeta.model_fields}
        fields |= {
            "loader": InstructSentenceTransformerModel,
            "loader_kwargs": {
                "instruction_template": INSTRUCTION_TEMPLATE,
                "apply_instruction_to_passages": False,
            },
            "framework": found.framework or ["Sentence Transformers", "PyTorch"],
            "languages": sorted(found.languages) if found.languages else None,  # mteb's order changes
            "use_instructions": True,
            "open_weights": True,
            "max_tokens": _max_seq_length(name, revision) or found.max_tokens,
            "training_datasets": None if training_datasets is None else set(training_datasets),
            "public_training_code": None,
            "public_training_data": None,
        }
        if recipe is not None:
            # The recipe holds every choice of the run.
            fields["public_training_code"] = f"https://huggingface.co/{name}/blob/{revision}/recipe.yaml"
            fields["public_training_data"] = _public_dataset(recipe.publishing.dataset_repo_id)
        # from_hub copies fields unchecked, and what mteb refuses must not first show in the pull request.
        return ModelMeta(**fields)


def missing_fields(entry: ModelMeta) -> dict[str, str]:
    """Give the fields that reviewers ask for and that are empty, each with what to do."""
    return {field: advice for field, advice in REQUIRED_FIELDS.items() if getattr(entry, field) in (None, [])}


def entry_as_python(entry: ModelMeta) -> str:
    """Give the content of the file that defines the entry in mteb."""
    return f"{FILE_HEADER}{_variable(entry)} = {entry.to_python()}\n"


def entry_file_name(entry: ModelMeta) -> str:
    """Give the name of that file, in mteb's folder mteb/models/model_implementations."""
    return f"{_variable(entry)}_models.py"


def entry_as_json(entry: ModelMeta) -> str:
    """Give the entry as the model_meta.json that mteb keeps beside results."""
    content: dict[str, Any] = entry.to_dict()
    if content["training_datasets"] is not None:
        content["training_datasets"].sort()
    return json.dumps(content, default=str, indent=4)


def _variable(entry: ModelMeta) -> str:
    variable = re.sub(r"\W+", "_", str(entry.name).casefold(), flags=re.ASCII).strip("_")
    return variable if variable.isidentifier() else f"model_{variable}"


def _max_seq_length(name: str, revision: str) -> int | None:
    path = _file(name, revision, "sentence_bert_config.json")
    return None if path is None else json.loads(path.read_text(encoding="utf-8")).get("max_seq_length")


def _file(name: str, revision: str, file: str) -> Path | None:
    """Download a file of a commit; None where the commit has none of this name."""
    with explained(f"The Hub cannot tell of {file} in {name}", "Try again later."):
        try:
            return Path(hf_hub_download(name, file, revision=revision))
        except RemoteEntryNotFoundError:
            return None


def _public_dataset(repo_id: str | None) -> str | None:
    if repo_id is None:
        return None
    with explained(f"The Hub cannot tell of the dataset {repo_id}", "Try again later."):
        try:
            HfApi().dataset_info(repo_id, token=False)
        except RepositoryNotFoundError:
            return None
    return f"https://huggingface.co/datasets/{repo_id}"
