"""What transformers would report of weights that it loads, from their names and shapes alone.

transformers itself matches them with a model on the meta device, which has no memory, so that what it renames or
converts on loading is not a difference here either.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

from st_llm_embed.doctor.repository import ADAPTER_WEIGHTS, Repository
from st_llm_embed.doctor.traps import NotCheckedError
from st_llm_embed.errors import InputError, explained

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


class Loading(NamedTuple):
    """How names and shapes in files fit a model; all sorted."""

    missing: list[str]
    """Weights of the model that no file has, so that they are drawn at random."""
    unexpected: list[str]
    """Weights in the files that the model has not."""
    mismatched: list[str]
    """Weights whose shape is another one, so that loading stops."""


def load_model(repository: Repository) -> Loading:
    """Match the weights of a repository with the model that its config.json describes.

    Raises:
        NotCheckedError: the architecture cannot be built here.
    """
    shapes: dict[str, list[int]] = {}
    for name in repository.shards:
        if name in repository.files:
            shapes |= shapes_of(repository, name)
    return _loading(_model(repository, shapes)[1])


def shapes_of(repository: Repository, name: str) -> dict[str, list[int]]:
    """Return names and shapes of the tensors in a safetensors file.

    Raises:
        NotCheckedError: its header cannot be had. Damage of a local file is found before; the Hub may not answer.
    """
    try:
        return repository.tensors(name)
    except InputError as error:
        raise NotCheckedError(str(error)) from error


def load_adapter(repository: Repository) -> Loading:
    """Match the weights of an adapter with what peft adds to its base.

    Raises:
        NotCheckedError: the architecture of the base cannot be built here, or is not known.
        InputError: transformers refuses the adapter.
    """
    import torch
    from peft import PeftConfig

    base = repository if "config.json" in repository.files else repository.base
    if base is None:
        raise NotCheckedError("the base cannot be reached, so its modules are not known")
    with explained("peft cannot read adapter_config.json", "Save the adapter again."):
        config = PeftConfig.from_pretrained(str(repository.folder))
    tensors = _on_meta(shapes_of(repository, ADAPTER_WEIGHTS))
    model, _ = _model(base, {})
    with _quiet():
        try:
            with torch.device("meta"):
                report = model.load_adapter(peft_config=config, adapter_state_dict=tensors)
        except (ValueError, TypeError) as error:
            raise InputError(f"transformers refuses the adapter: {error}") from error
        except Exception as error:
            raise NotCheckedError(f"it cannot be put on a model without memory: {error}") from error
    return _loading(vars(report))


def _model(repository: Repository, shapes: dict[str, list[int]]) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Load weights that have no memory into a model that has none; return it and the report."""
    from transformers import CONFIG_MAPPING, MODEL_MAPPING, AutoConfig

    if repository.config.get("quantization_config"):
        raise NotCheckedError("the weights are quantised, so their names are not those of the architecture")
    name = repository.file_of("Transformer")
    if name not in repository.files:
        raise NotCheckedError(f"{repository.name} has no {name}")
    # Newer than this transformers, or code of the repository's own.
    model_type = repository.model_type
    if model_type is None or model_type not in CONFIG_MAPPING or CONFIG_MAPPING[model_type] not in MODEL_MAPPING:
        raise NotCheckedError("its architecture is not one of the stock ones")
    with _quiet():
        config = AutoConfig.from_pretrained(str((repository.folder / name).parent), trust_remote_code=False)
        kind: Any = MODEL_MAPPING[type(config)]
        # A few types have two classes, of which the first is the usual one.
        model = kind[0] if isinstance(kind, tuple) else kind
        return model.from_pretrained(
            None,
            config=config,
            state_dict=_on_meta(shapes),
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            device_map={"": "meta"},
        )


def _loading(report: dict[str, Any]) -> Loading:
    # Imports torch.
    from st_llm_embed.modules.loading import weights_read

    missing, unexpected = (weights_read(report[key]) for key in ("missing_keys", "unexpected_keys"))
    mismatched = sorted(
        f"{name} ({tuple(found)} in the file, {tuple(wanted)} in the model)"
        for name, found, wanted in report["mismatched_keys"]
    )
    return Loading(missing, unexpected, mismatched)


def _on_meta(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    import torch

    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


@contextmanager
def _quiet() -> Generator[None]:
    """Keep transformers from showing progress, and its own table of what is missing."""
    from transformers.utils import logging

    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
