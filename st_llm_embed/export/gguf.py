"""GGUF: one file for llama.cpp and Ollama that needs no flags.

llama.cpp's converter refuses a MistralModel and forgets the pooling of Mistral and Llama; the file is therefore
written here, with the gguf package that the converter itself writes with.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from numpy.typing import NDArray

from st_llm_embed.errors import InputError
from st_llm_embed.export.gguf_tokenizer import read_tokenizer, write_tokenizer
from st_llm_embed.export.onnx import longest_text
from st_llm_embed.modules.model import LLMSentenceTransformer

ARCHITECTURES = {"mistral": "llama", "llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""llama.cpp's architecture by transformers' model type."""

SCALINGS = {"llama": ("default", "linear", "llama3"), "qwen2": ("default",), "qwen3": ("default",)}
"""Scalings of positions that llama.cpp computes, by architecture."""


def write_gguf(model: LLMSentenceTransformer, path: Path, kind: str, name: str) -> tuple[str, ...]:
    """Write weights, tokenizer and pooling of a model that is on the CPU in float32.

    `kind` is the type of the matrices (F32, F16, Q8_0 or Q4_0), `name` the model's name in the file.

    Returns:
        In words, the texts that llama.cpp tokenizes otherwise; none for most tokenizers.

    Raises:
        InputError: llama.cpp would compute something else.
    """
    import gguf

    decoder = cast(Any, model[0]).model
    config = decoder.config
    architecture = _architecture(config, longest_text(model))
    tokenizer = read_tokenizer(model.tokenizer, decoder.get_input_embeddings().num_embeddings)
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type("model")
    writer.add_name(name)
    _write_settings(writer, config, longest_text(model))
    writer.add_vocab_size(len(tokenizer.pieces))
    writer.add_file_type(gguf.LlamaFileType["ALL_F32" if kind == "F32" else f"MOSTLY_{kind}"])
    write_tokenizer(writer, tokenizer)
    [number] = [arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture]
    names = gguf.get_tensor_name_map(number, config.num_hidden_layers)
    for key, weight in decoder.state_dict().items():
        new = names.get_name(f"model.{key}", try_suffixes=(".weight", ".bias"))
        if new is None:
            raise InputError(
                f"The model has weights called {key}, which llama.cpp's architecture {architecture!r} lacks. Export "
                "to onnx instead."
            )
        matrix = _llama_order(key, weight, config) if architecture == "llama" else weight
        data, stored = _stored(matrix, gguf.GGMLQuantizationType[kind])
        writer.add_tensor(new, data, raw_dtype=stored)
    # What llama.cpp divides each rotation frequency by, shape (head size / 2,).
    actual = decoder.rotary_emb.inv_freq.float()
    steps = torch.arange(len(actual), dtype=torch.float32) / len(actual)
    factors = 1.0 / config.rope_parameters["rope_theta"] ** steps / actual
    if not torch.allclose(factors, torch.ones_like(factors), rtol=1e-4):
        writer.add_tensor("rope_freqs.weight", factors.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tokenizer.differences


def _architecture(config: Any, max_seq_length: int) -> str:
    """Return llama.cpp's architecture for a model that it computes in the same way."""
    refusal = None
    window = getattr(config, "sliding_window", None)
    slides = "sliding_attention" in (getattr(config, "layer_types", None) or ["sliding_attention"])
    if config.model_type not in ARCHITECTURES:
        refusal = f"is of type {config.model_type!r}; allowed are {', '.join(ARCHITECTURES)}"
    elif config.hidden_act != "silu":
        refusal = f"has the activation {config.hidden_act!r}, and llama.cpp computes 'silu'"
    elif window is not None and window < max_seq_length and slides:
        refusal = f"has a sliding window of {window} tokens; allowed is a max_seq_length of at most that"
    elif (rope := config.rope_parameters["rope_type"]) not in SCALINGS[ARCHITECTURES[config.model_type]]:
        refusal = (
            f"has the position scaling {rope!r}; allowed are default, and for Llama and Mistral linear and llama3"
        )
    if refusal is not None:
        raise InputError(f"The model cannot be exported to gguf: it {refusal}. Export to onnx instead.")
    return ARCHITECTURES[config.model_type]


def _write_settings(writer: Any, config: Any, max_seq_length: int) -> None:
    import gguf

    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    # Ollama cuts texts off here; other lengths than the trained one give other vectors of long texts.
    writer.add_context_length(max_seq_length)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_causal_attention(getattr(config, "is_causal", True) is not False)
    writer.add_pooling_type(gguf.PoolingType.LAST)


def _llama_order(key: str, weight: torch.Tensor, config: Any) -> torch.Tensor:
    """Put the rows of a Mistral's or Llama's query and key projections into llama.cpp's order of rotated pairs."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(key.split(".")[-2])
    if heads is None:
        return weight
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def _stored(weight: torch.Tensor, quantization: Any) -> tuple[NDArray[Any], Any]:
    """Return a weight as it is stored, and its type: vectors, and rows that blocks do not fit, stay as they are."""
    import gguf

    data = weight.detach().float().numpy()
    if data.ndim < 2:
        return data, gguf.GGMLQuantizationType.F32
    block = gguf.GGML_QUANT_SIZES[quantization][0]
    fits = gguf.GGMLQuantizationType.F16 if data.shape[-1] % block else quantization
    return gguf.quants.quantize(data, fits), fits
