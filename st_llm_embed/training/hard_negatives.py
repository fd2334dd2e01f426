"""Hard negatives by the model that a recipe names."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sentence_transformers.util import load_file_path

from st_llm_embed.data import Split
from st_llm_embed.data.mining import mine_dataset
from st_llm_embed.data.vectors import Encode, VectorFolder
from st_llm_embed.errors import InputError, explained, shown
from st_llm_embed.modules import LLMSentenceTransformer
from st_llm_embed.recipe import BASE, Mining, Recipe, Teacher
from st_llm_embed.training.train import untrained_embedder

MODEL_ADVICE = (
    f"Allowed are {BASE!r}, the recipe's base before training, and the Hub id or folder of a sentence-transformers "
    "model. Set it with --set data.mining.model=..."
)


def check_mining(mining: Mining) -> None:
    """Check that there is a mining model, without loading it.

    Raises:
        InputError: there is none.
    """
    if mining.model == BASE:
        return
    files = ("modules.json", "config.json")
    with explained(f"The mining model {shown(mining.model)} cannot be loaded", MODEL_ADVICE):
        found = any(load_file_path(mining.model, name, revision=mining.revision) for name in files)
    if not found:
        raise InputError(
            f"data.mining.model is {shown(mining.model)}, and there is no such model: neither {' nor '.join(files)} "
            f"is found there. {MODEL_ADVICE}"
        )


def mine_hard_negatives(
    recipe: Recipe, mining: Mining, dataset_dir: Path, vectors_dir: Path, model: str
) -> Counter[tuple[str, Split]]:
    """Give a written dataset the negatives that its rows lack; see `mine_dataset`.

    Args:
        recipe: its base is the mining model `base`.
        mining: names the model, and has the limits.
        dataset_dir: what `write_dataset` wrote.
        vectors_dir: keeps the vectors of the texts; a call that was killed goes on from there.
        model: identifies the model's weights; vectors of another one are not used.

    Returns:
        The number of rows by (configuration, split).

    Raises:
        InputError: the model cannot be loaded, or gives vectors that are not finite.
    """
    if mining.model == BASE:
        embedder = untrained_embedder(recipe)
    else:
        with explained(f"The mining model {mining.model!r} cannot be loaded", MODEL_ADVICE):
            embedder = LLMSentenceTransformer(mining.model, revision=mining.revision)
    encoder = f"{model}\n{mining.query_prompt!r}\n{mining.document_prompt!r}"
    vectors = VectorFolder(vectors_dir, encoding(embedder, mining), encoder)
    return mine_dataset(dataset_dir, mining, vectors, str(embedder.device))


def encoding(embedder: LLMSentenceTransformer, prompts: Mining | Teacher) -> Encode:
    """Give what encodes queries, each under its own instruction or under the prompt given, and documents."""
    options: dict[str, Any] = {
        "batch_size": prompts.batch_size,
        "normalize_embeddings": True,
        "show_progress_bar": False,
    }

    def encode(texts: list[str], instructions: list[str] | None) -> NDArray[np.float32]:
        if instructions is None:
            return embedder.encode_document(texts, prompt=prompts.document_prompt, **options)
        if prompts.query_prompt is None:
            return embedder.encode_query(texts, instruction=instructions, **options)
        return embedder.encode_query(texts, prompt=prompts.query_prompt, **options)

    return encode
