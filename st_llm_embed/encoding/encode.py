"""Encode texts into a folder of shards; a stopped run is resumed without encoding a finished shard again."""

from __future__ import annotations

import hashlib
import logging
import os
import signal
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from multiprocessing import parent_process
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from sentence_transformers.sentence_transformer.modules import Normalize
from tokenizers import Tokenizer

from st_llm_embed.data.vectors import check_vectors
from st_llm_embed.encoding.shards import (
    COMPARED,
    MANIFEST,
    Manifest,
    Passages,
    Shard,
    ShardReader,
    Texts,
    VectorType,
    cut_into_shards,
    document_of,
    lengths_metadata,
    read_manifest,
    shard_path,
)
from st_llm_embed.errors import InputError, explained
from st_llm_embed.evaluation.embedders import saved_prompt
from st_llm_embed.modules.layout import model_identity
from st_llm_embed.modules.lengths import Lengths, longest_text, text_lengths
from st_llm_embed.modules.model import LLMSentenceTransformer
from st_llm_embed.processes import held_alone, progress, written_beside

logger = logging.getLogger(__name__)

Role = Literal["query", "document"]

SHARDS_AT_ONCE = 2
"""Shards of a process that are in memory: more level out their different lengths."""


@dataclass(frozen=True)
class Job:
    """What to encode and how, the same for all processes."""

    texts: Texts | Passages
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

    @property
    def chunk_tokens(self) -> int | None:
        """Most tokens of a passage; None where whole texts are encoded."""
        return self.texts.tokens if isinstance(self.texts, Passages) else None

    def write(
        self, path: Path, ids: list[str], texts: list[str], vectors: NDArray[np.floating], lengths: Lengths
    ) -> None:
        """Write a shard, the whole file or nothing; vectors, shape (number of texts, dimension), must be finite."""
        with np.errstate(over="ignore"):
            stored = vectors.astype(self.dtype)
        advice = "Encode with --dtype float32 into another folder, or choose another model."
        check_vectors(stored, texts, f"The vectors of {self.model!r} in {self.dtype}", advice)
        vector = pa.FixedSizeListArray.from_arrays(pa.array(stored.reshape(-1)), stored.shape[1])
        columns = {"id": pa.array(ids, pa.string()), "vector": vector}
        if self.chunk_tokens is not None:
            columns["document"] = pa.array(map(document_of, ids), pa.string())
        if self.keep_text:
            columns["text"] = pa.array(texts, pa.string())
        with (
            explained(f"{path} cannot be written", "Make room or fix the folder, and run the command again."),
            written_beside(path) as part,
            part.open("wb") as file,
        ):
            pq.write_table(pa.table(columns, metadata=lengths_metadata(lengths)), file, use_dictionary=False)
            file.flush()
            os.fsync(file.fileno())


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
        model: str,
        role: Role,
        revision: str | None = None,
        dimension: int | None = None,
        device: str | None = None,
    ) -> None:
        """Load a Hub id or folder onto a device, None for the best there is.

        `dimension` leading numbers of a vector are kept, at unit length again if the model's own vectors have it.

        Raises:
            InputError: there is no such model, or its vectors are shorter than `dimension`.
        """
        self.model = PooledModel(model, revision=revision, device=device)
        self._encode = self.model.encode_query if role == "query" else self.model.encode_document
        self._prompt = saved_prompt(self.model, role)
        self._normalize = any(isinstance(module, Normalize) for module in self.model.modules())
        # Encoded, not asked for: an asymmetric model does not know its dimension by itself.
        size = self.encode(["text"]).shape[1]
        if dimension is not None and not 1 <= dimension <= size:
            raise InputError(
                f"--dimension is {dimension}; the vectors of {model!r} have {size}. Give at most that, and one that "
                "the model was trained for (Matryoshka)."
            )
        self.model.truncate_dim = dimension
        self.dimension = dimension or size

    def passages(self, path: str, tokens: int | None) -> Passages:
        """Return the documents at a path as passages of at most so many tokens; None for as many as are read.

        Raises:
            InputError: the model has no longest text, or its tokens cannot be counted outside of it.
        """
        tokenizer: Any = self.model.tokenizer
        counter = getattr(tokenizer, "backend_tokenizer", tokenizer)
        longest = longest_text(self.model)
        if not isinstance(counter, Tokenizer) or (tokens is None and longest is None):
            lacks = "longest text" if isinstance(counter, Tokenizer) else "fast tokenizer, which counts tokens"
            raise InputError(
                f"Documents cannot be cut for this model, which has no {lacks}. "
                + ("Give --chunk-tokens." if longest is None else "Cut them yourself, or choose another model.")
            )
        room = (longest or 0) - text_lengths(self.model, [""], self._prompt).tokens
        return Passages(path, room if tokens is None else tokens, counter.to_str())

    def lengths(self, texts: list[str]) -> Lengths:
        """Return how much of texts is read, their prompt included."""
        return text_lengths(self.model, texts, self._prompt)

    def encode(self, texts: list[str], batch_size: int = 32, **options: Any) -> NDArray[np.float32]:
        """Return the vectors of texts, shape (number of texts, dimension)."""
        options |= {"normalize_embeddings": self._normalize, "show_progress_bar": False}
        with torch.inference_mode():
            return self._encode(texts, batch_size=batch_size, **options)


def encode(
    job: Job,
    *,
    processes: int = 1,
    devices: Sequence[str] = (),
    with_ray: bool = False,
    chunk: bool = False,
    chunk_tokens: int | None = None,
) -> tuple[Manifest, int]:
    """Encode texts into `job.folder`; shards that an earlier, killed call finished are kept.

    `processes`, or as many actors of Ray Data `with_ray`, use `devices` in turn; without any all CUDA devices, or the
    best there is. Returns the folder's manifest, and the number of shards that were encoded now.

    With `chunk`, the texts are documents, of which passages of at most `chunk_tokens` tokens are encoded; None for as
    many as the model reads.

    Raises:
        InputError: texts or model cannot be used, the folder holds something else, or a process died.
    """
    if with_ray and find_spec("ray") is None:
        raise InputError(
            "--ray needs Ray Data, which is not installed. Install it with: pip install 'st_llm_embed[ray]'"
        )
    if Path(job.texts.path).is_dir() and job.folder.resolve().is_relative_to(Path(job.texts.path).resolve()):
        raise InputError(
            f"--to {job.folder} is inside {job.texts.path}, all of which is read as texts. Choose a folder elsewhere."
        )
    devices = devices or [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    device = "cpu" if with_ray or processes > 1 else next(iter(devices), None)
    embedder = Embedder(job.model, job.role, job.revision, job.dimension, device)
    if chunk:
        job = replace(job, texts=embedder.passages(job.texts.path, chunk_tokens))
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
            written = _encode_with_ray(job, todo, len(shards), processes, devices)
        else:
            targets = [devices[number % len(devices)] if devices else "cpu" for number in range(processes)]
            written = _encode_here(job, embedder, todo, len(shards), targets)
        with progress("encoding", manifest.rows, manifest.rows - rows, "texts") as update:
            for count in written:
                update(count)
    return manifest, len(todo)


def _encode_here(
    job: Job, embedder: Embedder, todo: Sequence[Shard], shards: int, targets: Sequence[str]
) -> Iterator[int]:
    """Encode shards by this process, or by sentence-transformers' pool; yield the texts of each finished shard."""
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
                    f"{error} Finished shards are kept: run the command again, where memory ran out (exit code -9) "
                    "with fewer --processes or a smaller --batch-size."
                ) from error
            start = 0
            for shard, ids, texts in part:
                path = shard_path(job.folder, shard.number, shards)
                job.write(path, ids, texts, vectors[start : start + shard.rows], embedder.lengths(texts))
                start += shard.rows
                yield shard.rows
    finally:
        if pool is not None:
            embedder.model.stop_multi_process_pool(pool)


def _encode_with_ray(
    job: Job, todo: Sequence[Shard], shards: int, processes: int, devices: Sequence[str]
) -> Iterator[int]:
    """Encode shards by actors of Ray, which replaces those that die; yield the texts of each finished shard."""
    # Ray reports its use otherwise.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    import ray.data

    if not todo:
        return
    if not ray.is_initialized():
        # RAY_ADDRESS names a cluster; without it Ray starts on this machine.
        ray.init(**({} if "RAY_ADDRESS" in os.environ else {"include_dashboard": False}))
    # Ray shows an actor its own GPU alone, under the number 0, whichever it is.
    on_gpu = any(device.startswith("cuda") for device in devices)
    device = "cuda" if on_gpu else next(iter(devices), None)
    done = ray.data.from_items([asdict(shard) for shard in todo], override_num_blocks=len(todo)).map_batches(
        _Actor,
        fn_constructor_args=(replace(job, folder=job.folder.resolve()), shards, device),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=processes),
        num_cpus=1,
        num_gpus=1 if on_gpu else None,
    )
    for row in done.iter_rows():
        if row["refusal"]:
            raise InputError(row["refusal"])
        yield row["rows"]


class _Actor:
    """Encodes shards, each of which is one row of Ray's columns."""

    def __init__(self, job: Job, shards: int, device: str | None) -> None:
        self._job, self._shards, self._reader = job, shards, ShardReader(job.texts, job.shard_size)
        self._embedder = Embedder(job.model, job.role, job.revision, job.dimension, device)

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        shard = Shard(int(batch["number"][0]), int(batch["rows"][0]), str(batch["digest"][0]))
        refusal = ""
        try:
            ids, texts = self._reader.read(shard)
            path = shard_path(self._job.folder, shard.number, self._shards)
            vectors, lengths = self._embedder.encode(texts, self._job.batch_size), self._embedder.lengths(texts)
            self._job.write(path, ids, texts, vectors, lengths)
        except InputError as error:
            refusal = str(error)
        return {"rows": batch["rows"], "refusal": np.array([refusal])}


@contextmanager
def _owned(folder: Path, manifest: Manifest) -> Generator[None]:
    """Hold a folder that is absent, empty, or has shards of the same, for this run alone and with its manifest."""
    earlier = read_manifest(folder)
    files = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    others = [name for name in files if not name.startswith(".")]
    if earlier is None and others:
        raise InputError(
            f"{folder} is not a folder of vectors: it holds {', '.join(others[:3])} and no {MANIFEST}. Choose an "
            "empty or new one with --to."
        )
    differing = [
        words for name, words in COMPARED.items() if earlier and getattr(earlier, name) != getattr(manifest, name)
    ]
    if differing:
        raise InputError(
            f"{folder} holds vectors of something else: {', '.join(differing)} differ from what its {MANIFEST} says. "
            "Nothing was changed. Give the same command as before to resume, or choose another --to."
        )
    with held_alone(folder, "choose another --to"):
        if earlier is None:
            manifest.write(folder)
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
        chunk_tokens=job.chunk_tokens,
        versions={name: version(name) for name in ("st_llm_embed", "sentence-transformers", "transformers", "torch")},
    )
