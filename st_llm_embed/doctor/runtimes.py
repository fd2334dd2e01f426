"""Runtimes on this machine, each with the tokenizer that its world uses."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from st_llm_embed.errors import InputError, explained
from st_llm_embed.modules.layout import read_json

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

Session = Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[np.float32]]
"""From input_ids and attention_mask, shape (batch_size, seq_len), to vectors, shape (batch_size, dimension)."""


class Embedding(NamedTuple):
    """What a runtime returns for one text."""

    ids: Sequence[int] | None
    """The tokens it was computed from; None where the runtime does not say."""
    vector: NDArray[np.float32] | None
    """Shape (dimension,); None where the runtime refused the text."""
    refusal: str = ""


Runtime = Callable[[Sequence[str]], list[Embedding]]
"""Embeds full texts, the prompt already in front, as one batch."""


def load_stock(folder: str | Path) -> SentenceTransformer:
    """Load a model with stock sentence-transformers, in float32 on the CPU.

    Raises:
        InputError: it cannot be loaded, or it is an asymmetric pair.
    """
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Router

    # A SentenceTransformer and its card refer to each other, so weights that nobody uses may still be in memory.
    gc.collect()
    with explained(
        f"The model {str(folder)!r} cannot be loaded", "Give the folder or Hub id of a sentence-transformers model."
    ):
        model = SentenceTransformer(str(folder), device="cpu")
    if isinstance(model[0], Router):
        raise InputError(
            f"{str(folder)!r} is an asymmetric pair, a model for queries and another for documents. Verify each by "
            "itself: the folder or Hub id of the query tower, and that of the model of the documents."
        )
    cast_in_place(model, torch.float32)
    return model


def cast_in_place(model: SentenceTransformer, dtype: torch.dtype) -> None:
    """Cast the weights of a model one after the other, so that no second set of them is in memory."""
    if next(model.parameters()).dtype == dtype:
        return
    for weight in model.parameters():
        # Out of the mapped file, which stays in memory as long as one tensor is in it.
        weight.data = weight.data.clone()
    model.to(dtype)


def sentence_transformers_runtime(folder: str | Path) -> Runtime:
    """Run a folder or Hub repository with stock sentence-transformers, in float32 on the CPU.

    Raises:
        InputError: it cannot be loaded.
    """
    model = load_stock(folder)

    def embed(texts: Sequence[str]) -> list[Embedding]:
        vectors = model.encode(list(texts), prompt="", batch_size=len(texts), show_progress_bar=False)
        ids = [model.preprocess([text])["input_ids"].flatten().tolist() for text in texts]
        return [Embedding(own, vector) for own, vector in zip(ids, vectors, strict=True)]

    return embed


def onnx_runtime(path: str | Path) -> Runtime:
    """Run an .onnx file, its tokenizer.json beside it or in the folder above, with ONNX Runtime on the CPU.

    Raises:
        InputError: onnxruntime is not installed, or the file cannot be used.
    """
    try:
        import onnxruntime
    except ImportError:
        raise _missing("onnxruntime", "onnx", path) from None
    with _readable(path):
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(ids: NDArray[np.int64], mask: NDArray[np.int64]) -> NDArray[np.float32]:
        [vectors] = session.run(["sentence_embedding"], {"input_ids": ids, "attention_mask": mask})
        return np.asarray(vectors)

    return _of_session(Path(path), run)


def openvino_runtime(path: str | Path) -> Runtime:
    """Run an .onnx file, or OpenVINO's .xml, with OpenVINO; as `onnx_runtime`."""
    try:
        import openvino
    except ImportError:
        raise _missing("openvino", "openvino", path) from None
    with _readable(path):
        # By default OpenVINO rounds to bfloat16 where the processor can.
        model = openvino.compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return _of_session(
        Path(path), lambda ids, mask: model({"input_ids": ids, "attention_mask": mask})["sentence_embedding"]
    )


def llama_cpp_runtime(path: str | Path, max_seq_length: int) -> Runtime:
    """Run a .gguf file with llama.cpp and its own tokenizer, pooling as the file says.

    llama.cpp does not cut texts so that EOS stays; longer ones are refused.

    Args:
        path: the file.
        max_seq_length: longest text in tokens.

    Raises:
        InputError: llama-cpp-python is not installed, or the file cannot be used.
    """
    try:
        from llama_cpp import Llama  # ty: ignore[import-not-found]
    except ImportError:
        raise InputError(
            f"{path} is run with llama.cpp, and llama-cpp-python is not installed here. Install it (pip install "
            "llama-cpp-python, in an environment of its own if need be), or serve the file with llama-server "
            "--embedding and give its address."
        ) from None
    with _readable(path):
        # A text has to fit into one physical batch.
        size = {"n_ctx": max_seq_length, "n_batch": max_seq_length, "n_ubatch": max_seq_length}
        llama = Llama(model_path=str(path), embedding=True, verbose=False, **size)

    def embed(texts: Sequence[str]) -> list[Embedding]:
        with _readable(path):
            ids = [llama.tokenize(text.encode(), add_bos=True, special=True) for text in texts]
            return [_by_llama(llama, own, max_seq_length) for own in ids]

    return embed


def _by_llama(llama: Any, ids: list[int], max_seq_length: int) -> Embedding:
    if len(ids) > max_seq_length:
        return Embedding(None, None, f"{len(ids)} tokens, and llama.cpp does not cut texts; the client has to")
    # By itself `embed` does not parse special tokens, as llama-server does.
    llama.tokenize = lambda *_, **__: ids
    try:
        vector = np.asarray(llama.embed("", normalize=False), dtype=np.float32)
    finally:
        del llama.tokenize
    # llama-server normalises what it pools; a matrix is what comes of a file without a pooling type.
    norm = float(np.linalg.norm(vector)) if vector.ndim == 1 else 1.0
    return Embedding(ids, np.asarray(vector / (norm or 1.0), dtype=np.float32))


def _of_session(path: Path, run: Session) -> Runtime:
    """Make a runtime of a graph and the tokenizer files beside it."""
    folder = next((one for one in (path.parent, path.parent.parent) if (one / "tokenizer.json").is_file()), None)
    if folder is None:
        raise InputError(
            f"There is no tokenizer.json in the folder of {path} or the one above, so texts cannot be tokenized. Copy "
            "that of the model there."
        )
    from tokenizers import Tokenizer

    with _readable(folder / "tokenizer.json"):
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        limit = _of(folder / "sentence_bert_config.json").get("max_seq_length")
        if limit is not None:
            tokenizer.enable_truncation(limit)
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = _of(folder / "export.json").get("split_special_tokens", False)
        settings = _of(folder / "tokenizer_config.json")
    pad_token = settings.get("pad_token")
    pad = tokenizer.token_to_id(pad_token["content"] if isinstance(pad_token, dict) else pad_token or "") or 0
    is_left = settings.get("padding_side") == "left"

    def embed(texts: Sequence[str]) -> list[Embedding]:
        ids = [one.ids for one in tokenizer.encode_batch(list(texts))]
        longest = max(map(len, ids))
        padded = np.full((len(ids), longest), pad, dtype=np.int64)
        mask = np.zeros_like(padded)
        for row, own in enumerate(ids):
            place = slice(longest - len(own), longest) if is_left else slice(0, len(own))
            padded[row, place], mask[row, place] = own, 1
        with _readable(path):
            vectors = run(padded, mask)
        return [Embedding(own, np.asarray(vector, np.float32)) for own, vector in zip(ids, vectors, strict=True)]

    return embed


def _of(path: Path) -> dict[str, Any]:
    return read_json(path) or {}


def _readable(path: str | Path) -> Any:
    return explained(
        f"{path} cannot be used",
        "It has to be an embedding model with the inputs input_ids and attention_mask and the output "
        "sentence_embedding, or a .gguf file; export the model again.",
    )


def _missing(package: str, extra: str, path: str | Path) -> InputError:
    return InputError(
        f"{path} needs the package {package}, which is not installed. Install it: pip install 'st_llm_embed[{extra}]'."
    )
