"""What the files of a saved sentence-transformers model say, without its weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from st_llm_embed.errors import InputError, explained


@dataclass(frozen=True)
class SavedModel:
    """Facts that the usage of a model depends on."""

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
    pad_token: str | None
    dtype: str | None
    matryoshka_dimensions: tuple[int, ...]
    onnx: bool
    """Whether onnx/model.onnx is there."""
    openvino: bool
    gguf: str | None
    """The GGUF file to recommend: the largest, which is the most exact."""


def read_saved_model(folder: Path) -> SavedModel:
    """Read the JSON files of a saved model.

    Raises:
        InputError: one of them cannot be read, or none says how many numbers a vector has.
    """
    with explained(f"The model in {folder} cannot be read", "Save it again with model.save_pretrained."):
        modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
        paths = {module["type"].rsplit(".", 1)[-1]: folder / module["path"] for module in modules}
        pooling = _read(paths["Pooling"] / "config.json") if "Pooling" in paths else {}
        config = _read(folder / "config.json")
        text_config = config.get("text_config") or config
        tokenizer = _read(folder / "tokenizer_config.json")
        prompts = _read(folder / "config_sentence_transformers.json").get("prompts") or {}
        transformer = _read(folder / "sentence_bert_config.json")
        options = transformer.get("processing_kwargs") or {}
    dimension = pooling.get("word_embedding_dimension", pooling.get("embedding_dimension"))
    dimension = dimension or text_config.get("hidden_size")
    if not isinstance(dimension, int):
        raise InputError(
            f"{folder} does not say how many numbers a vector has: there is neither a pooling module nor hidden_size "
            "in config.json. Save the model again with model.save_pretrained."
        )
    ggufs = sorted(folder.glob("*.gguf"), key=lambda path: path.stat().st_size)
    return SavedModel(
        dimension=dimension,
        max_seq_length=transformer.get("max_seq_length") or tokenizer.get("model_max_length"),
        pooling=_pooling_mode(pooling),
        normalized="Normalize" in paths,
        query_prompt=prompts.get("query") or "",
        document_prompt=prompts.get("document") or "",
        split_special_tokens=bool((options.get("text") or {}).get("split_special_tokens")),
        eos_token=_token(tokenizer.get("eos_token")),
        pad_token=_token(tokenizer.get("pad_token")),
        dtype=config.get("dtype") or config.get("torch_dtype"),
        matryoshka_dimensions=tuple(config.get("matryoshka_dimensions") or ()),
        onnx=(folder / "onnx" / "model.onnx").is_file(),
        openvino=(folder / "openvino" / "openvino_model.xml").is_file(),
        gguf=ggufs[-1].name if ggufs else None,
    )


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _pooling_mode(config: dict[str, Any]) -> str | None:
    """Give the one mode of a pooling configuration in the old spelling, with booleans, or the new one."""
    prefix = "pooling_mode_"
    modes = [key.removeprefix(prefix).removesuffix("_tokens") for key, on in config.items() if on is True]
    modes = [mode for mode in modes if prefix + mode in config or f"{prefix}{mode}_tokens" in config]
    if not modes and isinstance(config.get("pooling_mode"), str):
        modes = [config["pooling_mode"]]
    return modes[0] if len(modes) == 1 else None


def _token(token: str | dict[str, Any] | None) -> str | None:
    """Give the text of a token, which tokenizer_config.json spells as a text or as an object."""
    return token["content"] if isinstance(token, dict) else token
