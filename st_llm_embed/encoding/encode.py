"""Encode texts into a folder of shards; a stopped run is resumed without encoding a finished shard again."""

from __future__ import annotations

import hashlib
import logging
import os
import signal
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from multiprocessing import parent_process
from pathlib import Path
from typing import Any, Literal, get_args

import datasets
import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from sentence_transformers.sentence_transformer.modules import Normalize
from tqdm.auto import tqdm
from transformers.utils import logging as transformers_logging

from st_llm_embed.encoding.ray import encode_with_ray
from st_llm_embed.encoding.shards import (
    COMPARED,
    MANIFEST,
    UNFINISHED,
    Manifest,
    Shard,
    ShardReader,
    Texts,
    VectorType,
    cut_into_shards,
    read_manifest,
    shard_path,
    write_manifest,
    write_shard,
)
from st_llm_embed.errors import InputError, explained
from st_llm_embed.modules import LLMSentenceTransformer
from st_llm_embed.modules.layout import model_identity

logger = logging.getLogger(__name__)

Role = Literal["query", "document"]

ROLES: tuple[Role, ...] = get_args(Role)

LOCK = ".lock"

SHARDS_AT_ONCE = 2
"""Shards of a process that are in memory: more level out their different lengths."""


@dataclass(frozen=True)
class Job:
    """What to encode and how, the same for all processes."""

    texts: Texts
    model: str
    folder: Path
    revision: str | None = None
    role: Role = "document"
    dimension: int | None = None
    dtype: VectorType = "float32"
    keep_text: bool = True
    shard_size: int = 10_000
    """Texts per shard; the last has the rest."""
    batch_size: int = 32
    """Texts per forward pass."""

    def write(self, shard: Shard, shards: int, ids: list[str], texts: list[str], vectors: NDArray[np.float32]) -> None:
        """Write one of `shards` shards.

        Raises:
            InputError: a vector is not finite, or the file cannot be written.
        """
        with np.errstate(over="ignore"):
            stored = vectors.astype(self.dtype)
        broken = np.flatnonzero(~np.isfinite(stored).all(axis=1))
        if len(broken):
            raise InputError(
                f"{self.model!r} returns a vector that is not finite in {self.dtype} for {len(broken)} of "
                f"{len(texts)} texts, the first of them {texts[broken[0]][:60]!r}. Encode with --dtype float32 into "
                "another folder, load the model in bfloat16 or float32, or choose another."
            )
        write_shard(shard_path(self.folder, shard.number, shards), ids, texts if self.keep_text else None, stored)


class PooledModel(LLMSentenceTransformer):
    """A model whose pool ends with the process that started it, also when that is killed."""

    @classmethod
    def _multi_process_worker(cls, *args: Any) -> None:  # ty: ignore[incompatible-method-override]
        # Ctrl-C reaches all processes of a terminal; the first one ends the others.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        threading.Thread(target=_end_with_parent, daemon=True).start()
        super()._multi_process_worker(*args)


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None  # noqa: S101
    parent.join()
    os._exit(1)


class Embedder:
    """A saved model that turns texts of one role into vectors."""

    def __init__(
        self,
        name_or_path: str,
        role: Role,
        *,
        revision: str | None = None,
        dimension: int | None = None,
        device: str | None = None,
    ) -> None:
        """Load a Hub id or folder onto a device, None for the best there is.

        `dimension` leading numbers of a vector are kept, at unit length again if the model's own vectors have it.

        Raises:
            InputError: there is no such model, or its vectors are shorter than `dimension`.
        """
        with explained(
            f"The model {name_or_path!r} cannot be loaded",
            "Give the Hub id of a sentence-transformers model or the folder of a saved one, and a device that exists.",
        ):
            self.model = PooledModel(name_or_path, revision=revision, device=device)
        self._encode = self.model.encode_query if role == "query" else self.model.encode_document
        self._normalize = any(isinstance(module, Normalize) for module in self.model.modules())
        # Encoded, not asked for: an asymmetric model does not know its dimension by itself.
        whole = self._encode(["text"], show_progress_bar=False).shape[1]
        if dimension is not None and dimension > whole:
            raise InputError(
                f"--dimension is {dimension}; the vectors of {name_or_path!r} have {whole}. Give at most that, and "
                "one that the model was trained for (Matryoshka)."
            )
        self.dimension = dimension or whole

    def encode(self, texts: list[str], batch_size: int = 32, **options: Any) -> NDArray[np.float32]:
        """Return the vectors of texts, shape (number of texts, dimension)."""
        with torch.inference_mode():
            return self._encode(
                texts,
                batch_size=batch_size,
                truncate_dim=self.dimension,
                normalize_embeddings=self._normalize,
                show_progress_bar=False,
                **options,
            )


class ShardEncoder:
    """What an actor of Ray has: a model that encodes one shard after the other."""

    def __init__(self, job: Job, shards: int, device: str | None) -> None:
        # These bars would run into each other, and into that of the command.
        datasets.disable_progress_bars()
        transformers_logging.disable_progress_bar()
        self._job, self._shards = job, shards
        self._embedder = Embedder(job.model, job.role, revision=job.revision, dimension=job.dimension, device=device)
        self._reader = ShardReader(job.texts, job.shard_size)

    def __call__(self, shard: Shard) -> None:
        """Read, encode and write a shard."""
        ids, texts = self._reader.read(shard)
        self._job.write(shard, self._shards, ids, texts, self._embedder.encode(texts, self._job.batch_size))


def encode(
    job: Job, *, processes: int = 1, devices: Sequence[str] = (), with_ray: bool = False
) -> tuple[Manifest, int]:
    """Encode texts into `job.folder`; shards that an earlier, killed call finished are kept.

    Args:
        job: what to encode and how.
        processes: how many have a model each.
        devices: where they run, in turn; none for all CUDA devices, or the best there is.
        with_ray: have actors of Ray Data do it, on one machine or a cluster, and not processes of this machine.

    Returns:
        The folder's manifest, and the number of shards that were encoded now.

    Raises:
        InputError: texts or model cannot be used, the folder holds something else, or a process died.
    """
    if with_ray and find_spec("ray") is None:
        raise InputError(
            "--ray needs Ray Data, which is not installed. Install it with: pip install 'st_llm_embed[ray]', or omit "
            "--ray."
        )
    if Path(job.texts.path).is_dir() and job.folder.resolve().is_relative_to(Path(job.texts.path).resolve()):
        raise InputError(
            f"--to {job.folder} is inside {job.texts.path}, whose files are read: the vectors would be read as "
            "texts. Choose a folder elsewhere."
        )
    devices = devices or [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    device = "cpu" if with_ray or processes > 1 else next(iter(devices), None)
    embedder = Embedder(job.model, job.role, revision=job.revision, dimension=job.dimension, device=device)
    logger.info("reading %s", job.texts.path)
    shards = cut_into_shards(job.texts, job.shard_size)
    manifest = _manifest(job, shards, embedder)
    with _owned(job.folder, manifest):
        todo = [shard for shard in shards if not shard_path(job.folder, shard.number, len(shards)).is_file()]
        rows = sum(shard.rows for shard in todo)
        logger.info("%d of %d shards to encode, %d texts", len(todo), len(shards), rows)
        processes = min(processes, len(todo))
        if with_ray:
            del embedder
            # Every actor has to have the same commit and dimension.
            revision = None if Path(job.model).is_dir() else manifest.model_revision
            job = replace(job, model=manifest.model, revision=revision, dimension=manifest.dimension)
            actor = partial(ShardEncoder, replace(job, folder=job.folder.resolve()), len(shards))
            written = encode_with_ray(actor, todo, processes, devices)
        else:
            targets = [devices[number % len(devices)] if devices else "cpu" for number in range(processes)]
            written = _encode_here(job, embedder, todo, len(shards), targets)
        with tqdm(total=manifest.rows, initial=manifest.rows - rows, desc="encoding", unit=" texts") as progress:
            for shard in written:
                progress.update(shard.rows)
    return manifest, len(todo)


def _encode_here(
    job: Job, embedder: Embedder, todo: Sequence[Shard], shards: int, targets: Sequence[str]
) -> Iterator[Shard]:
    """Encode shards by this process, or by sentence-transformers' pool; yield each when its file is there."""
    reader = ShardReader(job.texts, job.shard_size)
    pool, at_once, options = None, 1, {}
    if len(targets) > 1:
        # Read by torch in the processes of the pool, each of which would take all cores otherwise.
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, torch.get_num_threads() // len(targets))))
        pool = embedder.model.start_multi_process_pool(list(targets))
        # A chunk is a shard, so that a text shares its batch with the same ones however many processes there are.
        at_once, options = len(targets) * SHARDS_AT_ONCE, {"pool": pool, "chunk_size": job.shard_size}
    try:
        for first in range(0, len(todo), at_once):
            part = [(shard, *reader.read(shard)) for shard in todo[first : first + at_once]]
            try:
                vectors = embedder.encode([text for *_, texts in part for text in texts], job.batch_size, **options)
            except RuntimeError as error:
                raise InputError(
                    f"{error} Finished shards are kept: run the command again, with fewer --processes or a smaller "
                    "--batch-size. Exit code -9 mostly means that memory ran out."
                ) from error
            start = 0
            for shard, ids, texts in part:
                job.write(shard, shards, ids, texts, vectors[start : start + shard.rows])
                start += shard.rows
                yield shard
    finally:
        if pool is not None:
            embedder.model.stop_multi_process_pool(pool)


@contextmanager
def _owned(folder: Path, manifest: Manifest) -> Generator[None]:
    """Hold a folder for this run alone, with its manifest and without what a killed run left unfinished."""
    _check_folder(folder, manifest)
    lock = FileLock(folder / LOCK)
    with explained(f"{folder} cannot be written to", "Choose another folder with --to, or fix this one."):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise InputError(f"Another process encodes into {folder}. Wait for it, or choose another --to.") from None
    with lock:
        # Again, now that nobody else can begin the folder.
        _check_folder(folder, manifest)
        if not (folder / MANIFEST).exists():
            write_manifest(folder, manifest)
        for part in folder.glob(f"shard-*{UNFINISHED}"):
            part.unlink(missing_ok=True)
        yield


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
                f"{folder} is not a folder of vectors: it holds {', '.join(others[:3])} and no {MANIFEST}. Choose an "
                "empty or new one with --to."
            )
        return
    differing = [words for name, words in COMPARED.items() if getattr(earlier, name) != getattr(manifest, name)]
    if differing:
        raise InputError(
            f"{folder} holds vectors of something else: {', '.join(differing)} differ from what its {MANIFEST} says. "
            "Nothing was changed. Give the same command as before to resume, or choose another --to."
        )
