"""Embeddings of texts by the runtimes that exports are for, as a user of them would compute them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Vectors = NDArray[np.float32]
Encode = Callable[[Sequence[str]], Vectors]
"""Gives texts, each with its prompt in front, their embeddings of shape (texts, dimension)."""

BATCH = 8
"""Texts of different lengths in one batch."""


def read_settings(folder: Path) -> dict[str, Any]:
    """Read export.json."""
    return json.loads((folder / "export.json").read_text(encoding="utf-8"))


def load_tokenizer(folder: Path, settings: dict[str, Any]) -> Tokenizer:
    """Load an export's tokenizer.json, to cut texts off and pad them as the model does."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(settings["max_seq_length"])
    tokenizer.enable_padding(pad_id=settings["pad_token_id"])
    tokenizer.encode_special_tokens = settings["split_special_tokens"]
    return tokenizer


def onnx_encoder(folder: Path, settings: dict[str, Any], file: str) -> Encode:
    """Open an ONNX graph in ONNX Runtime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / file, providers=["CPUExecutionProvider"])
    return _batched(load_tokenizer(folder, settings), lambda inputs: session.run(None, inputs)[0])


def openvino_encoder(folder: Path, settings: dict[str, Any], file: str) -> Encode:
    """Compile an OpenVINO graph for the CPU, to compute in float32."""
    import openvino

    compiled = openvino.compile_model(folder / file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return _batched(load_tokenizer(folder, settings), lambda inputs: compiled(inputs)["sentence_embedding"])


def _batched(tokenizer: Tokenizer, run: Callable[[dict[str, Any]], Any]) -> Encode:
    def encode(texts: Sequence[str]) -> Vectors:
        parts = []
        for start in range(0, len(texts), BATCH):
            rows = tokenizer.encode_batch(list(texts[start : start + BATCH]))
            inputs = {
                "input_ids": np.array([row.ids for row in rows], dtype=np.int64),
                "attention_mask": np.array([row.attention_mask for row in rows], dtype=np.int64),
            }
            # OpenVINO gives the same memory to the next call.
            parts.append(np.array(run(inputs), dtype=np.float32))
        return np.concatenate(parts)

    return encode


def llama_cpp_encoder(path: Path, max_seq_length: int) -> Encode | None:
    """Open a GGUF file in llama.cpp; None where llama-cpp-python is not installed."""
    if find_spec("llama_cpp") is None:
        return None
    import llama_cpp  # ty: ignore[import-not-found]

    model = llama_cpp.Llama(
        str(path),
        embedding=True,
        n_ctx=max_seq_length,
        n_batch=max_seq_length,
        n_ubatch=max_seq_length,
        verbose=False,
    )
    return lambda texts: np.array([model.embed(text, normalize=True) for text in texts], dtype=np.float32)
