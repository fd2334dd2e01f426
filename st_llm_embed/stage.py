"""One stage of a run: built once, resumed or rebuilt, and never at the cost of what the user put there.

A stage's inputs (its part of the recipe, the fingerprint of the stage before, the content of files it reads) are
hashed into a fingerprint. ``manifests/<stage>.json`` holds it; a stage runs again when, and only when, it changed.
Training resumes from its last checkpoint; every other stage writes beside its folder and is renamed at the end, so a
kill leaves no half-written folder.

The folder of a stage that runs again is deleted only if it holds exactly the files that the run wrote. A training, and
a folder in which anything was added or changed, is kept as ``<stage>.<first digits of its fingerprint>``. recipe.yaml
is the one file that each run writes again: the recipe as it was resolved.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import shutil
from collections.abc import Callable, Collection, Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from st_llm_embed.errors import InputError, disk_is_full, explained
from st_llm_embed.processes import held_alone, is_first_process, wait_for_all_processes, written_beside

logger = logging.getLogger(__name__)

STAGES = ("dataset", "sources", "training", "evaluation", "release", "student", "student-report", "student-release")
"""The stages in order; each has a folder and a manifest of its name."""

TRAINING_STAGE = "training-"
"""Beginning of the names of the folders and manifests of a recipe's several trainings, in place of training."""

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


class Manifest(BaseModel):
    """What a stage's folder was made from, and what was written into it."""

    stage: str
    finished: bool
    fingerprint: str
    """Hash of `inputs`."""
    inputs: dict[str, Any]
    versions: dict[str, str]
    files: dict[str, tuple[int, int]] = {}
    """Size in bytes and time of the last change in nanoseconds of each file, by its path in the folder."""
    finished_at: str | None = None


def build_stage(
    folder: Path,
    inputs: dict[str, Any],
    build: Callable[[Path], None],
    *,
    resumable: bool = False,
    again: bool = False,
) -> str:
    """Build a stage's folder unless a finished one has the same inputs; return the fingerprint of the inputs.

    Args:
        folder: the stage's folder; its name is the stage's.
        inputs: everything the result depends on, as JSON.
        build: writes into the folder it is given.
        resumable: `build` resumes from what an interrupted call with the same inputs left in the folder.
        again: build even where a finished one has the same inputs.
    """
    fingerprint = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()
    if is_first_process():
        _start(folder, fingerprint, inputs, None if resumable else build, again=again)
    wait_for_all_processes()
    if resumable and not _read_manifest(folder).finished:
        build(folder)
        wait_for_all_processes()
        if is_first_process():
            _finish(folder, _read_manifest(folder))
    return fingerprint


def _start(
    folder: Path, fingerprint: str, inputs: dict[str, Any], build: Callable[[Path], None] | None, *, again: bool
) -> None:
    """Build a stage's folder, or, without `build`, prepare it to be built; nothing happens where it is finished."""
    earlier = _read_manifest(folder) if _manifest_path(folder).exists() else None
    unchanged = earlier is not None and earlier.fingerprint == fingerprint
    versions = {name: version(name) for name in VERSIONS_RECORDED}
    if earlier is not None and unchanged and earlier.finished and folder.is_dir() and not again:
        logger.info("%s: finished before, kept", folder.name)
        if others := [f"{name} {made}" for name, made in earlier.versions.items() if versions.get(name) != made]:
            advice = "To make it with what is installed now, choose another --output-dir."
            logger.warning("%s: made with %s. %s", folder.name, ", ".join(others), advice)
        return
    logger.info("%s: %s", folder.name, "resuming" if unchanged and build is None and folder.exists() else "starting")
    record = Manifest(stage=folder.name, finished=False, fingerprint=fingerprint, inputs=inputs, versions=versions)
    if build is None:
        if earlier is not None and not unchanged:
            _set_aside(folder, earlier, keep=True)
        _write_manifest(folder, record)
        folder.mkdir(exist_ok=True)
        return
    with written_beside(folder) as partial:
        partial.mkdir()
        build(partial)
        _write_manifest(folder, record)
        if earlier is not None:
            _set_aside(folder, earlier, keep=False)
    _finish(folder, record)


def _finish(folder: Path, record: Manifest) -> None:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    _write_manifest(folder, record.model_copy(update={"finished": True, "finished_at": now, "files": _files(folder)}))


def _set_aside(folder: Path, written: Manifest, *, keep: bool) -> None:
    """Make room for a new folder: rename the old one, or delete it where nothing in it is the user's."""
    if not folder.exists():
        return
    if not keep and not folder.is_symlink() and _files(folder) == written.files:
        shutil.rmtree(folder)
        return
    name = f"{folder.name}.{written.fingerprint[:8]}"
    names = (name if number == 1 else f"{name}-{number}" for number in itertools.count(1))
    kept = next(path for path in map(folder.with_name, names) if not os.path.lexists(path))
    folder.rename(kept)
    logger.info("%s: the earlier one is kept in %s", folder.name, kept)


def _files(folder: Path) -> dict[str, tuple[int, int]]:
    found = {path.relative_to(folder).as_posix(): path.lstat() for path in folder.rglob("*") if not path.is_dir()}
    return {name: (status.st_size, status.st_mtime_ns) for name, status in sorted(found.items())}


def _manifest_path(folder: Path) -> Path:
    return folder.parent / "manifests" / f"{folder.name}.json"


def _read_manifest(folder: Path) -> Manifest:
    path = _manifest_path(folder)
    with explained(f"{path} is not a manifest", f"Move it and {folder} away, or choose another --output-dir."):
        return Manifest.model_validate_json(path.read_bytes())


def _write_manifest(folder: Path, record: Manifest) -> None:
    with written_beside(_manifest_path(folder)) as path:
        path.write_text(record.model_dump_json(indent=2), encoding="utf-8")


def _check_ownership(output_dir: Path, trainings: Collection[str]) -> None:
    """Refuse a folder that holds, where a run writes, what no run wrote."""
    manifests = output_dir / "manifests"
    # A kill can leave .<name>.json.partial.
    names = [path.name.removeprefix(".").partition(".json")[0] for path in manifests.glob("*")]
    known = all(name in STAGES or name.startswith(TRAINING_STAGE) for name in names)
    ours = {manifests: manifests.is_dir() and known}
    ours[output_dir / "recipe.yaml"] = ours[manifests] and (output_dir / "recipe.yaml").is_file()
    for name in ("journal", "vectors", "teacher"):
        ours[output_dir / name] = ours[manifests] and (output_dir / name).is_dir()
    for folder in (output_dir / name for name in (*STAGES, *trainings)):
        written = _manifest_path(folder).exists() and _read_manifest(folder).stage == folder.name
        ours[folder] = written and folder.is_dir()
    for path, is_ours in ours.items():
        if os.path.lexists(path) and not is_ours:
            raise InputError(
                f"{path} was not written by a run of st-llm-embed, and this one would write there. Move it away or "
                "choose another --output-dir."
            )


@contextmanager
def owned_folder(output_dir: Path, trainings: Collection[str] = ()) -> Generator[None]:
    """Create the output folder and hold it for this run alone; `trainings`: names of the folders that it trains in."""
    if not is_first_process():
        yield
        return
    alternative = "choose another --output-dir"
    with explained(f"{output_dir} cannot be written to", f"Change its permissions, or {alternative}."):
        _check_ownership(output_dir, trainings)
        (output_dir / "manifests").mkdir(parents=True, exist_ok=True)
    with held_alone(output_dir, alternative):
        yield


@contextmanager
def full_disk_explained(output_dir: Path) -> Generator[None]:
    """Re-raise whatever a full disk leads to as an InputError that says so."""
    try:
        yield
    except Exception as error:
        if disk_is_full(error) or shutil.disk_usage(output_dir).free < NO_SPACE_BYTES:
            raise InputError(
                f"The disk that holds {output_dir} is full ({error}). Finished stages and complete checkpoints are "
                "kept: make room and run the same command again, or choose another --output-dir."
            ) from error
        raise


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
