"""TensorBoard and W&B beside the log: whether they can be used, and where they write."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

from sentence_transformers import SentenceTransformerTrainingArguments
from transformers.integrations import is_tensorboard_available, is_wandb_available

from st_llm_embed.errors import InputError

PACKAGES = {"tensorboard": is_tensorboard_available, "wandb": is_wandb_available}

FOLDERS = {"tensorboard": "TENSORBOARD_LOGGING_DIR", "wandb": "WANDB_DIR"}
"""The variables that say where the two write."""


def check_reporting(arguments: SentenceTransformerTrainingArguments, section: str) -> None:
    """Check that what `report_to` names is installed and, with W&B, that there is a key; else raise an InputError.

    Args:
        arguments: the trainer's.
        section: of the recipe that they are from, for messages.
    """
    for name in arguments.report_to or ():
        if name in PACKAGES and not PACKAGES[name]():
            raise InputError(
                f"{section}.report_to names {name}, which is not installed. Install it (pip install {name}), or set "
                "report_to to none: log.json in the training's folder has its losses and scores anyhow."
            )
    if "wandb" not in (arguments.report_to or ()) or os.environ.get("WANDB_MODE", "online") != "online":
        return
    if not import_module("wandb").login(prompt=False, verify=False):
        raise InputError(
            f"{section}.report_to names wandb, and there is no key for it. Run wandb login, set the variable "
            "WANDB_API_KEY, or set WANDB_MODE=offline to keep the records in logs/ of the training's folder."
        )


@contextmanager
def reporting_into(folder: Path, arguments: SentenceTransformerTrainingArguments) -> Generator[None]:
    """Have TensorBoard and W&B write into a folder while the block runs, unless the user's variables say where."""
    reported = [name for name in FOLDERS if name in (arguments.report_to or ())]
    ours = [FOLDERS[name] for name in reported if FOLDERS[name] not in os.environ]
    if "WANDB_DIR" in ours:
        # W&B writes elsewhere if this folder is missing.
        folder.mkdir(parents=True, exist_ok=True)
    os.environ.update(dict.fromkeys(ours, str(folder.absolute())))
    try:
        yield
    finally:
        for variable in ours:
            del os.environ[variable]
        if "wandb" in reported:
            # Otherwise the next training of this process would continue this one's record.
            import_module("wandb").finish()
