"""ONNX: token ids in, finished embeddings out. Pooling and normalisation are part of the graph.

sentence-transformers' own `backend="onnx"` needs optimum, which cannot be installed beside transformers 5. The graph
here is what Text Embeddings Inference reads, too: inputs `input_ids` and `attention_mask`, output
`sentence_embedding`.
"""

from __future__ import annotations

import logging
import shutil
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from st_llm_embed.errors import explained

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer

    from st_llm_embed.modules import LLMSentenceTransformer

OPSET = 18
"""The ONNX operator set; ONNX Runtime reads it from 1.14 on."""

LARGEST_FILE = 2_000_000_000
"""Bytes of weights up to which they stay in the .onnx file: protobuf ends at 2 GiB."""


def write_onnx(model: LLMSentenceTransformer, folder: Path) -> Path:
    """Write the graph of a model in float32.

    Args:
        model: what `load_source` gave, in float32; its attention implementation is set to eager.
        folder: an empty folder. It gets model.onnx, and model.onnx_data where the weights exceed protobuf's limit.

    Returns:
        The path of model.onnx. Inputs `input_ids` and `attention_mask`, int64 of shape (batch, sequence), padded on
        the right, for decoders and static models on either side; output `sentence_embedding`, float32 of shape
        (batch, dimension).

    Raises:
        InputError: the model's code cannot be traced.
    """
    import onnx
    import torch

    path = folder / "model.onnx"
    graph = _static_graph(model) if is_static(model) else _transformer_graph(model)
    weights = sum(weight.numel() * weight.element_size() for weight in graph.parameters())
    traced = path if weights <= LARGEST_FILE else folder / "traced" / "model.onnx"
    traced.parent.mkdir(exist_ok=True)
    [token, *_] = graph_tokenizer(model).encode("a").ids
    ids = torch.full((2, 5), token)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    dynamic = {0: "batch", 1: "sequence"}
    kind = "static" if is_static(model) else cast(Any, model[0]).model.config.model_type
    with (
        explained(
            f"A model of type {kind!r} cannot be exported to ONNX",
            "Tested are the decoders Mistral, Llama, Qwen2, Qwen3, Gemma, Gemma 2, Phi, Phi-3, GPT-2, GPT-Neo, "
            "GPT-NeoX and Bloom, the encoders BERT, DistilBERT, MPNet, XLM-R and ModernBERT, and static models.",
        ),
        warnings.catch_warnings(),
    ):
        # The traced exporter is called legacy. The other one needs onnxscript, takes four times as long, and gives
        # the same numbers. Traced control flow is what the comparison at the end of an export is for.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            graph,
            (ids, mask),
            str(traced),
            input_names=["input_ids", "attention_mask"],
            output_names=["sentence_embedding"],
            dynamic_axes={"input_ids": dynamic, "attention_mask": dynamic, "sentence_embedding": {0: "batch"}},
            opset_version=OPSET,
            dynamo=False,
        )
    written = onnx.load(traced)
    # Tracing leaves the dimension open.
    written.graph.output[0].type.tensor_type.shape.dim[1].dim_value = model.get_embedding_dimension() or 0
    if traced == path:
        onnx.save(written, path)
    else:
        onnx.save(written, path, save_as_external_data=True, location="model.onnx_data")
        shutil.rmtree(traced.parent)
    onnx.checker.check_model(path)
    return path


def quantize_onnx(path: Path) -> Path:
    """Write model_int8.onnx beside model.onnx: weights as int8, activations quantized as they come.

    Returns:
        The path of the new file.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantized = path.with_name("model_int8.onnx")
    has_data = path.with_name(f"{path.name}_data").exists()
    root, quiet = logging.getLogger(), logging.NullHandler()
    # onnxruntime warns by the root logger, which would get a handler of its own that stays.
    root.addHandler(quiet)
    try:
        quantize_dynamic(path, quantized, weight_type=QuantType.QInt8, use_external_data_format=has_data)
    finally:
        root.removeHandler(quiet)
    return quantized


def is_static(model: LLMSentenceTransformer) -> bool:
    """Whether a text's vector is the mean of its tokens' vectors."""
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    return isinstance(model[0], StaticEmbedding)


def longest_text(model: LLMSentenceTransformer) -> int:
    """Return the number of tokens, special ones included, at which texts are cut off."""
    return model.max_seq_length or model.tokenizer.model_max_length


def graph_tokenizer(model: LLMSentenceTransformer) -> Tokenizer:
    """Return a copy of a model's tokenizer that by itself makes the token ids that the graph wants.

    It cuts texts where the model does, and pads none. A static model has no special tokens and cuts nothing.
    """
    from tokenizers import Tokenizer

    own: Any = model.tokenizer
    copy = Tokenizer.from_str((own if isinstance(own, Tokenizer) else own.backend_tokenizer).to_str())
    copy.no_padding()
    if is_static(model):
        copy.no_truncation()
        copy.post_processor = None
    else:
        copy.enable_truncation(longest_text(model))
    return copy


def _transformer_graph(model: LLMSentenceTransformer) -> torch.nn.Module:
    """Put a transformer and the modules after it into one graph."""
    import inspect

    import torch
    from sentence_transformers.sentence_transformer.modules import Pooling

    from st_llm_embed.modules.base import is_decoder_only

    transformer = cast(Any, model[0]).model
    # Its mask holds finite numbers; a row of padding would be NaN in the others.
    transformer.set_attn_implementation("eager")
    _, pooling, *others = model
    reads_last_token = cast(Pooling, pooling).pooling_mode == "lasttoken"
    is_decoder = is_decoder_only(transformer.config)
    takes_positions = "position_ids" in inspect.signature(transformer.forward).parameters

    class Graph(torch.nn.Module):
        """Token ids to embeddings."""

        def __init__(self) -> None:
            super().__init__()
            self.transformer = transformer
            self.others = torch.nn.ModuleList(others)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            options: dict[str, Any] = {"use_cache": False} if is_decoder else {}
            if is_decoder and takes_positions:
                # Counted from the first attended token, so that padding on the left shifts nothing.
                options["position_ids"] = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
            hidden = self.transformer(input_ids=input_ids, attention_mask=attention_mask, **options).last_hidden_state
            if reads_last_token:
                last = (attention_mask * torch.arange(attention_mask.shape[1])).argmax(dim=1)
                features = {"sentence_embedding": hidden[torch.arange(hidden.shape[0]), last]}
            else:
                features = pooling({"token_embeddings": hidden, "attention_mask": attention_mask})
            for module in self.others:
                features = module(features)
            return features["sentence_embedding"]

    return Graph().eval()


def _static_graph(model: LLMSentenceTransformer) -> torch.nn.Module:
    """Put the mean of token vectors and the modules after it into one graph."""
    import torch

    static, *others = cast(Any, model)

    class Graph(torch.nn.Module):
        """Token ids to embeddings."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = static.embedding.weight
            self.others = torch.nn.ModuleList(others)

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            mask = attention_mask[:, :, None].to(self.weight.dtype)
            mean = (self.weight[input_ids] * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
            features = {"sentence_embedding": mean}
            for module in self.others:
                features = module(features)
            return features["sentence_embedding"]

    return Graph().eval()
