"""What the files of a saved sentence-transformers model say, without its weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors import safe_open

from st_llm_embed.errors import InputError, explained

NO_LIMIT = 10**7
"""Tokens; transformers writes 10^30 where a tokenizer has no limit."""


@dataclass(frozen=True)
class SavedModel:
    """Facts that the usage of a model depends on; of a pair, those of the model of documents."""

    kind: Literal["transformer", "static", "pair"]
    """Of token vectors alone, `static`; of one model for queries and another for documents, `pair`."""
    dimension: int
    max_seq_length: int | None
    pooling: str | None
    """`lasttoken`, `mean`, ...; None where there is no one pooling module."""
    normalized: bool
    query_prompt: str
    document_prompt: str
    split_special_tokens: bool
    """Whether a literal ``</s>`` in a text stays text."""
    eos_token: str | None
    dtype: str | None
    matryoshka_dimensions: tuple[int, ...]
    onnx: bool
    """Whether onnx/ holds an export."""
    gguf: str | None
    """The GGUF file to recommend: the largest, which is the most exact."""


def read_saved_model(folder: Path) -> SavedModel:
    """Read the JSON files of a saved model.

    Raises:
        InputError: one of them cannot be read, or none says how many numbers a vector has.
    """
    with explained(f"The model in {folder} cannot be read", "Save it again with model.save_pretrained."):
        modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        places = {_name(module["type"]): folder / module["path"] for module in modules}
        is_pair = "Router" in places
        if is_pair:
            routes = _read(places["Router"] / "router_config.json")
            places = {_name(routes["types"][place]): folder / place for place in routes["structure"]["document"]}
        pooling = _read(places["Pooling"] / "config.json") if "Pooling" in places else {}
        home = places.get("Transformer", folder)
        config = _read(home / "config.json")
        text_config = config.get("text_config") or config
        tokenizer = _read(home / "tokenizer_config.json")
        prompts = _read(folder / "config_sentence_transformers.json").get("prompts") or {}
        transformer = _read(home / "sentence_bert_config.json")
        options = transformer.get("processing_kwargs") or {}
        dense = _read(places["Dense"] / "config.json") if "Dense" in places else {}
        static = _columns(places["StaticEmbedding"] / "model.safetensors") if "StaticEmbedding" in places else None
    dimension = pooling.get("word_embedding_dimension", pooling.get("embedding_dimension"))
    modes = _pooling_modes(pooling)
    # Several are put side by side.
    dimension = dimension and dimension * len(modes)
    dimension = dense.get("out_features") or dimension or static or text_config.get("hidden_size")
    if not isinstance(dimension, int):
        raise InputError(
            f"{folder} does not say how many numbers a vector has: there is neither a pooling module nor hidden_size "
            "in config.json. Save the model again with model.save_pretrained."
        )
    limit = transformer.get("max_seq_length") or tokenizer.get("model_max_length")
    ggufs = sorted(folder.glob("**/*.gguf"), key=lambda path: path.stat().st_size)
    return SavedModel(
        kind="pair" if is_pair else "transformer" if static is None else "static",
        dimension=dimension,
        max_seq_length=limit if limit is not None and limit <= NO_LIMIT else None,
        pooling=modes[0] if len(modes) == 1 else None,
        normalized="Normalize" in places,
        query_prompt=prompts.get("query") or "",
        document_prompt=prompts.get("document") or "",
        split_special_tokens=bool((options.get("text") or {}).get("split_special_tokens")),
        eos_token=_token(tokenizer.get("eos_token")),
        dtype=config.get("dtype") or config.get("torch_dtype"),
        matryoshka_dimensions=tuple(config.get("matryoshka_dimensions") or ()),
        onnx=all((folder / "onnx" / name).is_file() for name in ("model.onnx", "tokenizer.json")),
        gguf=ggufs[-1].relative_to(folder).as_posix() if ggufs else None,
    )


def _name(module: str) -> str:
    """Give the class of a module's import path."""
    return module.rsplit(".", 1)[-1]


def _columns(path: Path) -> int:
    """Give the width of the one table in a file of weights; the weights are not read."""
    with safe_open(path, framework="np") as file:
        [width] = {shape[1] for name in file.keys() if len(shape := file.get_slice(name).get_shape()) == 2}  # noqa: SIM118
    return width


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _pooling_modes(config: dict[str, Any]) -> list[str]:
    """Give the modes of a pooling configuration in the old spelling, with booleans, or the new one."""
    prefix = "pooling_mode_"
    modes = [key.removeprefix(prefix).removesuffix("_tokens") for key, on in config.items() if on is True]
    modes = [mode for mode in modes if prefix + mode in config or f"{prefix}{mode}_tokens" in config]
    stated = config.get("pooling_mode") or []
    return modes or ([stated] if isinstance(stated, str) else list(stated))


def _token(token: str | dict[str, Any] | None) -> str | None:
    """Give the text of a token, which tokenizer_config.json spells as a text or as an object."""
    return token["content"] if isinstance(token, dict) else token
