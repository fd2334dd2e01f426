"""The released folders of a run: complete Hub repositories of the model, its adapter and its student, as files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from ipaddress import ip_address
from itertools import cycle, islice
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, cast
from urllib.parse import urlsplit, urlunsplit

import numpy as np
import yaml
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from st_llm_embed.distillation import distillation_of
from st_llm_embed.doctor.checks.adapter import COMMIT, HUB_ID
from st_llm_embed.doctor.fix import link_weights
from st_llm_embed.doctor.probe import MINIMUM_COSINE, PROBE_FILE, cosines, make_probe, write_probe
from st_llm_embed.doctor.repository import ADAPTER_CONFIG, ADAPTER_WEIGHTS, PROMPTS_FILE, Repository
from st_llm_embed.doctor.runtimes import load_stock
from st_llm_embed.errors import InputError
from st_llm_embed.modules.eos import check_eos
from st_llm_embed.modules.layout import make_portable
from st_llm_embed.publishing.card_parts import INVARIANCE_FILE
from st_llm_embed.publishing.cards import PICTURE, model_card, student_card
from st_llm_embed.publishing.counts import query_prompt
from st_llm_embed.recipe import Recipe
from st_llm_embed.training.check import ROUNDING_COSINE, read_reference_vectors

BATCH = 32
"""Texts that are encoded together, to compare their vectors with those of single texts."""

SHARED_WITH_ADAPTER = (
    "modules.json",
    "[0-9]_*/config.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    PROBE_FILE,
    "recipe.yaml",
)
"""Files of the merged model that are also true of its adapter."""


def write_release(
    recipe: Recipe, data: Sequence[Path], training_dir: Path, evaluation_dir: Path, output_dir: Path
) -> None:
    """Release the trained model: its own files with its prompts, probe, card and recipe.

    Its weights are hard-linked, so that they are on disk once. Stock sentence-transformers loads the release once, in
    float32 on the CPU, for the probe, to compare its vectors with those that the training left, and to measure how
    far they depend on the batch. `data` are the folders that were trained on, the dataset first.

    Raises:
        RuntimeError: they differ by more than rounding in the recipe's dtype.
    """
    shutil.copytree(training_dir / "model", output_dir, copy_function=link_weights, dirs_exist_ok=True)
    prompts = {"query": query_prompt(recipe, data)}
    if recipe.base.instructions == "natural":
        # Importing mteb takes seconds.
        from st_llm_embed.evaluation.mteb_models import model_prompts

        prompts |= model_prompts()
    _add_prompts(output_dir, prompts)
    picture = evaluation_dir / PICTURE
    if picture.is_file() and recipe.publishing.dataset_license is not None:
        shutil.copyfile(picture, output_dir / PICTURE)
    released = load_stock(output_dir)
    check_eos(released)
    texts, trained = read_reference_vectors(training_dir)
    vectors = released.encode(texts, prompt="", batch_size=1, show_progress_bar=False)
    _check_cosine(cosines(vectors, trained), ROUNDING_COSINE[recipe.base.dtype], output_dir)
    _measure_invariance(released, texts, vectors, output_dir)
    write_probe(make_probe(released, recipe.publishing.repo_id), output_dir / PROBE_FILE)
    (output_dir / "recipe.yaml").write_text(without_local_places(recipe), encoding="utf-8")
    card = model_card(recipe, output_dir, data, evaluation_dir)
    (output_dir / "README.md").write_text(card, encoding="utf-8")


def write_student_release(
    recipe: Recipe, data: Sequence[Path], student_dir: Path, report_dir: Path, output_dir: Path
) -> None:
    """Release the student: its own files with prompts, card and recipe; RuntimeError where its vectors changed.

    `data` as for `write_release`.
    """
    shutil.copytree(student_dir / "model", output_dir, copy_function=link_weights, dirs_exist_ok=True)
    if distillation_of(recipe).student.kind == "encoder":
        tokenizer = cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(output_dir))
        make_portable(output_dir, tokenizer, None)
    trained = make_probe(load_stock(student_dir / "model"))
    released = load_stock(output_dir)
    texts, vectors = [one.whole for one in trained.texts], np.array([one.vector for one in trained.texts])
    alone = released.encode(texts, prompt="", batch_size=1, show_progress_bar=False)
    _check_cosine(cosines(alone, vectors), MINIMUM_COSINE, output_dir)
    _measure_invariance(released, texts, alone, output_dir)
    if distillation_of(recipe).student.instructions:
        _add_prompts(output_dir, {"query": query_prompt(recipe, data)})
    (output_dir / "recipe.yaml").write_text(without_local_places(recipe), encoding="utf-8")
    card = student_card(recipe, output_dir, data[0], report_dir)
    (output_dir / "README.md").write_text(card, encoding="utf-8")


def _add_prompts(folder: Path, prompts: dict[str, str]) -> None:
    """Write prompts into a saved model, in place of those of the same names."""
    path = folder / PROMPTS_FILE
    config = json.loads(path.read_text(encoding="utf-8"))
    config["prompts"] |= prompts
    path.write_text(json.dumps(config, indent=2), encoding="utf-8")


def _measure_invariance(
    model: SentenceTransformer, texts: Sequence[str], alone: NDArray[np.floating], folder: Path
) -> None:
    """Write the lowest cosine of texts' vectors in one batch with their vectors when encoded alone."""
    whole = list(islice(cycle(texts), max(BATCH, len(texts))))
    found = model.encode(whole, prompt="", batch_size=len(whole), show_progress_bar=False)[: len(texts)]
    report = {"batch_size": len(whole), "texts": len(texts), "lowest_cosine": float(cosines(found, alone).min())}
    (folder / INVARIANCE_FILE).write_text(json.dumps(report, indent=2), encoding="utf-8")


def _check_cosine(found: NDArray[np.floating], least: float, folder: Path) -> None:
    # Not the other way round: NaN is not above either.
    if not found.min() > least:
        raise RuntimeError(
            f"{folder} must not be published: its vectors are not those of the trained model, with a lowest cosine of "
            f"{found.min():.6f}, where rounding leaves at least {least}."
        )


def write_adapter_release(release_dir: Path, adapter_dir: Path, output_dir: Path) -> None:
    """Write an adapter as a repository of its own, which stock `SentenceTransformer` loads on its base.

    Tokenizer, pooling, prompts and probe are those of the merged model in `release_dir`; no weights are loaded.

    Raises:
        InputError: there is no adapter, or its base is not named by Hub id and commit.
    """
    for folder, name in ((adapter_dir, ADAPTER_CONFIG), (adapter_dir, ADAPTER_WEIGHTS), (release_dir, "modules.json")):
        if not (folder / name).is_file():
            raise InputError(
                f"{folder} has no {name}. Give the release folder of a run with lora and the folder `adapter` of its "
                "training."
            )
    if not has_public_base(adapter_dir):
        config = Repository(str(adapter_dir)).adapter
        raise InputError(
            f"The adapter in {adapter_dir} names its base as {config.get('base_model_name_or_path')!r} at revision "
            f"{config.get('revision')!r}. Allowed are a Hub id and a commit of 40 hex digits. Train with "
            "base.name_or_path set to a Hub id, or publish the merged model alone."
        )
    shared = [path for pattern in SHARED_WITH_ADAPTER for path in sorted(release_dir.glob(pattern))]
    for path in (*shared, adapter_dir / ADAPTER_CONFIG, adapter_dir / ADAPTER_WEIGHTS):
        inside = path.relative_to(release_dir if path in shared else adapter_dir)
        (output_dir / inside).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, output_dir / inside)


def has_public_base(adapter_dir: Path) -> bool:
    """Whether a folder holds an adapter that names its base by Hub id and commit; nobody else can load any other."""
    config = Repository(str(adapter_dir)).adapter if adapter_dir.is_dir() else {}
    base, revision = config.get("base_model_name_or_path") or "", config.get("revision") or ""
    return bool(HUB_ID.fullmatch(base) and COMMIT.fullmatch(revision))


def without_local_places(recipe: Recipe) -> str:
    """Return the recipe as YAML, paths replaced by the files' names, hosts of a local network by localhost."""
    return yaml.safe_dump(_shared(recipe.model_dump(mode="json")), sort_keys=False, allow_unicode=True, width=100)


def _shared(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _shared(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_shared(one) for one in value]
    if not isinstance(value, str) or "\n" in value:
        return value
    if value.startswith(("http://", "https://")):
        return _public_address(value)
    path = PureWindowsPath(value) if PureWindowsPath(value).drive else PurePosixPath(value)
    local = path.is_absolute() or path.parts[:1] in (("~",), ("..",)) or value.startswith("~")
    return path.name if local else value


def _public_address(address: str) -> str:
    url = urlsplit(address)
    host = url.hostname or ""
    try:
        public = ip_address(host).is_global
    except ValueError:
        public = "." in host and not host.endswith((".local", ".internal", ".lan"))
    return address if public else urlunsplit(url._replace(netloc="localhost" + (f":{url.port}" if url.port else "")))
