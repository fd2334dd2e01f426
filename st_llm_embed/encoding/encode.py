"""Encode texts into a folder of shards, and go on after a stop without encoding a finished shard again."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import torch
from filelock import FileLock, Timeout
from tqdm.auto import tqdm

from st_llm_embed.encoding.embedder import Embedder
from st_llm_embed.encoding.processes import encode_in_processes
from st_llm_embed.encoding.ray_actors import encode_with_ray, require_ray
from st_llm_embed.encoding.shards import (
    COMPARED,
    MANIFEST,
    UNFINISHED,
    Manifest,
    read_manifest,
    shard_path,
    write_manifest,
)
from st_llm_embed.encoding.texts import Shard, cut_into_shards
from st_llm_embed.encoding.worker import Job
from st_llm_embed.errors import InputError, explained
from st_llm_embed.modules.layout import model_identity

logger = logging.getLogger(__name__)

Engine = Literal["local", "ray"]

ENGINES: tuple[Engine, ...] = ("local", "ray")

LOCK = ".lock"


@dataclass(frozen=True)
class Encoded:
    """What a call did."""

    manifest: Manifest
    kept: int
    """Shards that were there before."""
    written: int
    """Shards that were encoded now."""


def encode(job: Job, *, engine: Engine = "local", processes: int = 1, devices: list[str] | None = None) -> Encoded:
    """Encode texts into `job.folder`; shards that an earlier, killed call finished are kept.

    Args:
        job: what to encode and how.
        engine: processes of this machine, or Ray.
        processes: how many have a model each.
        devices: where they run, in turn; None for all CUDA devices, or the best there is.

    Returns:
        The folder's manifest, and how many shards were kept and written.

    Raises:
        InputError: texts or model cannot be used, the folder holds something else, or no process was left.
    """
    if engine == "ray":
        require_ray()
    if Path(job.texts.path).is_dir() and job.folder.resolve().is_relative_to(Path(job.texts.path).resolve()):
        raise InputError(
            f"--to {job.folder} lies inside {job.texts.path}, whose files are read: the vectors would be read as "
            "texts. Choose a folder elsewhere."
        )
    if devices is None:
        devices = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    # On the CPU: this process must not take memory of a device that another one needs.
    embedder = Embedder(job.model, job.role, revision=job.revision, dimension=job.dimension, device="cpu")
    logger.info("reading %s", job.texts.path)
    shards = cut_into_shards(job.texts, job.shard_size)
    manifest = _manifest(job, shards, embedder)
    # Commit and dimension are known now; all processes have to have these.
    folder = Path(job.model)
    job = replace(
        job,
        model=manifest.model,
        revision=None if folder.is_dir() else manifest.model_revision,
        dimension=manifest.dimension,
        folder=job.folder.resolve(),
    )
    del embedder
    _check_folder(job.folder, manifest)
    lock = FileLock(job.folder / LOCK)
    with explained(f"{job.folder} cannot be written to", "Choose another folder with --to, or mend this one."):
        job.folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise InputError(
                f"Another process encodes into {job.folder}. Wait for it, or choose another --to."
            ) from None
    with lock:
        # Again, now that nobody else can begin the folder.
        _check_folder(job.folder, manifest)
        if not (job.folder / MANIFEST).exists():
            write_manifest(job.folder, manifest)
        for part in job.folder.glob(f"shard-*{UNFINISHED}"):
            part.unlink(missing_ok=True)
        todo = [shard for shard in shards if not shard_path(job.folder, shard.number, len(shards)).is_file()]
        rows = sum(shard.rows for shard in todo)
        logger.info("%d of %d shards to encode, %d texts", len(todo), len(shards), rows)
        if todo:
            run = encode_with_ray if engine == "ray" else encode_in_processes
            with tqdm(total=manifest.rows, initial=manifest.rows - rows, desc="encoding", unit=" texts") as progress:
                for shard in run(job, todo, len(shards), min(processes, len(todo)), devices):
                    progress.update(shard.rows)
    return Encoded(manifest, len(shards) - len(todo), len(todo))


def _manifest(job: Job, shards: list[Shard], embedder: Embedder) -> Manifest:
    digest = hashlib.sha256("".join(shard.digest for shard in shards).encode()).hexdigest()
    local = Path(job.model).is_dir()
    _, revision = model_identity(job.model, revision=job.revision)
    return Manifest(
        input=job.texts.path,
        input_hash=digest,
        rows=sum(shard.rows for shard in shards),
        shards=len(shards),
        model=str(Path(job.model).resolve()) if local else job.model,
        model_revision=revision,
        prompts={name: prompt or "" for name, prompt in embedder.model.prompts.items()},
        similarity=str(embedder.model.similarity_fn_name),
        role=job.role,
        dimension=embedder.dimension,
        dtype=job.dtype,
        shard_size=job.shard_size,
        keep_text=job.keep_text,
        versions={name: version(name) for name in ("st_llm_embed", "sentence-transformers", "transformers", "torch")},
    )


def _check_folder(folder: Path, manifest: Manifest) -> None:
    """Check that a folder is absent, empty, or holds shards of the same."""
    earlier = read_manifest(folder)
    if earlier is None:
        ours = {LOCK, MANIFEST + UNFINISHED}
        others = sorted(path.name for path in folder.iterdir() if path.name not in ours) if folder.is_dir() else []
        if others:
            raise InputError(
                f"{folder} is no folder of vectors: it holds {', '.join(others[:3])} and no {MANIFEST}. Choose an "
                "empty or new one with --to."
            )
        return
    differing = [words for name, words in COMPARED.items() if getattr(earlier, name) != getattr(manifest, name)]
    if differing:
        raise InputError(
            f"{folder} holds vectors of something else: {', '.join(differing)} differ from what its {MANIFEST} says. "
            "Nothing was changed. Give the same command as before to go on, or choose another --to."
        )
