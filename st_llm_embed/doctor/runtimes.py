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
    from tokenizers import Tokenizer


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
        InputError: it cannot be loaded.
    """
    import torch
    from sentence_transformers import SentenceTransformer

    # A SentenceTransformer and its card refer to each other, so weights that nobody uses may still be in memory.
    gc.collect()
    advice = "Give the folder or Hub id of a sentence-transformers model."
    with explained(f"The model {str(folder)!r} cannot be loaded", advice):
        model = SentenceTransformer(str(folder), device="cpu")
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
    path = Path(path)
    try:
        import onnxruntime
    except ImportError:
        raise InputError(f"{path} needs onnxruntime. Install it: pip install 'st_llm_embed[onnx]'.") from None
    with _readable(path):
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    folder = next((one for one in (path.parent, path.parent.parent) if (one / "tokenizer.json").is_file()), None)
    if folder is None:
        raise InputError(f"There is no tokenizer.json beside {path} or in the folder above. Copy that of the model.")
    with _readable(folder / "tokenizer.json"):
        tokenizer, pad, is_left = _tokenizer_of(folder)

    def embed(texts: Sequence[str]) -> list[Embedding]:
        ids = [one.ids for one in tokenizer.encode_batch(list(texts))]
        longest = max(map(len, ids))
        padded = np.full((len(ids), longest), pad, dtype=np.int64)
        mask = np.zeros_like(padded)
        for row, own in enumerate(ids):
            place = slice(longest - len(own), longest) if is_left else slice(0, len(own))
            padded[row, place], mask[row, place] = own, 1
        with _readable(path):
            [vectors] = session.run(["sentence_embedding"], {"input_ids": padded, "attention_mask": mask})
        return [Embedding(own, vector) for own, vector in zip(ids, np.asarray(vectors, np.float32), strict=True)]

    return embed


def _tokenizer_of(folder: Path) -> tuple[Tokenizer, int, bool]:
    """Return the tokenizer of an export, the id that pads, and whether it does so on the left."""
    from tokenizers import Tokenizer

    lengths, export, settings = (
        read_json(folder / name) or {}
        for name in ("sentence_bert_config.json", "export.json", "tokenizer_config.json")
    )
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    if lengths.get("max_seq_length") is not None:
        tokenizer.enable_truncation(lengths["max_seq_length"])
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = export.get("split_special_tokens", False)
    pad = settings.get("pad_token")
    number = tokenizer.token_to_id(pad["content"] if isinstance(pad, dict) else pad or "")
    return tokenizer, number or 0, settings.get("padding_side") == "left"


def llama_cpp_runtime(path: str | Path, max_seq_length: int) -> Runtime:
    """Run a .gguf file with llama.cpp and its own tokenizer, pooling as the file says.

    llama.cpp does not cut texts so that EOS stays; those of more than `max_seq_length` tokens are refused.

    Raises:
        InputError: llama-cpp-python is not installed, or the file cannot be used.
    """
    try:
        from llama_cpp import Llama  # ty: ignore[import-not-found]
    except ImportError:
        raise InputError(
            f"{path} is run with llama.cpp, and llama-cpp-python is not installed here. Install it, or serve the file "
            "with llama-server --embedding and give its address."
        ) from None
    with _readable(path):
        # A text has to fit into one physical batch.
        size = {"n_ctx": max_seq_length, "n_batch": max_seq_length, "n_ubatch": max_seq_length}
        llama = Llama(model_path=str(path), embedding=True, verbose=False, **size)

    def embed(text: str) -> Embedding:
        ids = llama.tokenize(text.encode(), add_bos=True, special=True)
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

    def embed_all(texts: Sequence[str]) -> list[Embedding]:
        with _readable(path):
            return [embed(text) for text in texts]

    return embed_all


def _readable(path: str | Path) -> Any:
    return explained(
        f"{path} cannot be used",
        "It has to be an embedding model with the inputs input_ids and attention_mask and the output "
        "sentence_embedding, or a .gguf file; export the model again.",
    )
