"""The stages in order, each run once: rows -> dataset -> training -> evaluation -> release.

A stage's inputs (its part of the recipe, the fingerprint of the stage before, the content of files it reads) are
hashed into a fingerprint. ``manifests/<stage>.json`` holds it; a stage runs again when, and only when, it changed.
Training resumes from its last checkpoint; every other stage writes beside its folder and is renamed at the end, so a
kill leaves no half-written folder.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from st_llm_embed.data import check_rows, read_rows, rows_file, write_dataset
from st_llm_embed.errors import InputError
from st_llm_embed.evaluation import write_report
from st_llm_embed.modules import base_path
from st_llm_embed.publishing import dataset_card, write_release
from st_llm_embed.recipe import Recipe
from st_llm_embed.training import check_training, train

logger = logging.getLogger(__name__)

VERSIONS_RECORDED = (
    "st_llm_embed",
    "sentence-transformers",
    "transformers",
    "peft",
    "torch",
    "datasets",
    "tokenizers",
)

NO_SPACE_BYTES = 1 << 20
"""A disk with less than this left counts as full: torch and safetensors report a full disk in their own words."""


def check_inputs(recipe: Recipe) -> None:
    """Check everything a run needs that can be checked in seconds, before anything is written.

    Raises:
        InputError: rows, base model or a section of the recipe cannot be used.
    """
    check_training(recipe)
    check_rows(rows_file(recipe.data.rows), recipe.data.validation_fraction)


def run_pipeline(recipe: Recipe, output_dir: Path) -> dict[str, Any]:
    """Run every stage of a recipe that has not run yet.

    Args:
        recipe: all choices.
        output_dir: gets recipe.yaml, dataset/, training/, evaluation/, release/ and manifests/.

    Returns:
        The content of evaluation/report.json.

    Raises:
        InputError: something given cannot be used, or the disk is full; finished stages are kept.
    """
    check_inputs(recipe)
    with _owned(output_dir), _full_disk_explained(output_dir):
        recipe.save(output_dir / "recipe.yaml")
        dataset_dir, training_dir = output_dir / "dataset", output_dir / "training"
        evaluation_dir, release_dir = output_dir / "evaluation", output_dir / "release"

        rows = rows_file(recipe.data.rows)

        def build_dataset(folder: Path) -> None:
            counts = write_dataset(read_rows(rows), folder, recipe.data.validation_fraction)
            (folder / "README.md").write_text(dataset_card(recipe, counts), encoding="utf-8")

        data = _stage(
            dataset_dir,
            {"rows": _file_hash(rows), "validation_fraction": recipe.data.validation_fraction, "name": recipe.name},
            build_dataset,
        )
        trained = _stage(
            training_dir,
            {
                "dataset": data,
                "base": _base_hash(recipe),
                **recipe.model_dump(include={"lora", "loss", "training", "seed"}),
            },
            lambda folder: train(recipe, dataset_dir, folder),
            resumable=True,
        )
        shown = recipe.model_dump(include={"name", "description", "publishing"}, mode="json")
        evaluated = _stage(
            evaluation_dir,
            {"training": trained, "evaluation": recipe.evaluation.model_dump(), **shown},
            lambda folder: write_report(recipe, dataset_dir, training_dir, folder),
        )
        _stage(
            release_dir,
            {"evaluation": evaluated, **shown},
            lambda folder: write_release(recipe, dataset_dir, training_dir, evaluation_dir, folder),
        )
        return json.loads((evaluation_dir / "report.json").read_text(encoding="utf-8"))


def _stage(folder: Path, inputs: dict[str, Any], build: Callable[[Path], None], *, resumable: bool = False) -> str:
    """Build a stage's folder unless a finished one has the same inputs; return the fingerprint of the inputs.

    Args:
        folder: the stage's folder; its name is the stage's.
        inputs: everything the result depends on, as JSON.
        build: writes into the folder it is given.
        resumable: `build` goes on from what an earlier, killed call with the same inputs left in the folder.
    """
    fingerprint = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
    manifest_path = folder.parent / "manifests" / f"{folder.name}.json"
    manifest = json.loads(manifest_path.read_text(encoding="utf-8")) if manifest_path.is_file() else None
    if folder.exists() and manifest is None:
        raise InputError(
            f"{folder} exists and was not written by a run of st-llm-embed. Move it away or choose "
            "another --output-dir."
        )
    unchanged = manifest is not None and manifest["fingerprint"] == fingerprint
    if manifest is not None and unchanged and manifest["finished"] and folder.is_dir():
        logger.info("%s: finished before, kept", folder.name)
        return fingerprint

    record = {
        "stage": folder.name,
        "finished": False,
        "fingerprint": fingerprint,
        "inputs": inputs,
        "versions": {name: version(name) for name in VERSIONS_RECORDED},
    }
    if resumable:
        if folder.exists() and manifest is not None and not unchanged:
            previous = folder.with_name(f"{folder.name}.{manifest['fingerprint'][:8]}")
            logger.info("%s: the inputs changed, the earlier result is kept in %s", folder.name, previous)
            shutil.rmtree(previous, ignore_errors=True)
            folder.rename(previous)
        _write_json(manifest_path, record)
        logger.info("%s: %s", folder.name, "going on" if folder.exists() else "starting")
        folder.mkdir(exist_ok=True)
        build(folder)
    else:
        logger.info("%s: starting", folder.name)
        partial = folder.with_name(f".{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        build(partial)
        _write_json(manifest_path, record)
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    _write_json(manifest_path, record | {"finished": True, "finished_at": now})
    return fingerprint


@contextmanager
def _owned(output_dir: Path) -> Generator[None]:
    """Create the output folder and hold it for this process alone."""
    try:
        (output_dir / "manifests").mkdir(parents=True, exist_ok=True)
        lock = FileLock(output_dir / ".lock", timeout=0)
        lock.acquire()
    except Timeout as error:
        raise InputError(
            f"Another run is writing to {output_dir}. Wait for it to end, or choose another --output-dir."
        ) from error
    except OSError as error:
        raise InputError(
            f"The output folder {output_dir} cannot be written to: {error.strerror}. Choose another with "
            "--output-dir, or change its permissions."
        ) from error
    with lock:
        yield


@contextmanager
def _full_disk_explained(output_dir: Path) -> Generator[None]:
    try:
        yield
    except Exception as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or shutil.disk_usage(output_dir).free < NO_SPACE_BYTES:
            raise InputError(
                f"The disk that holds {output_dir} is full ({error}). Finished stages and complete checkpoints are "
                "kept: make room and run the same command again, or choose another --output-dir."
            ) from error
        raise


def _write_json(path: Path, content: dict[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=2), encoding="utf-8")
    partial.replace(path)


def _base_hash(recipe: Recipe) -> dict[str, Any]:
    """Identify the base: by the content of a local folder's files, by name and revision on the Hub."""
    base = recipe.base.model_dump()
    folder = Path(base_path(recipe.base.name_or_path))
    if folder.is_dir():
        base["name_or_path"] = {path.name: _file_hash(path) for path in sorted(folder.iterdir()) if path.is_file()}
    return base


def _file_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
