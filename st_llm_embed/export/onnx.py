"""ONNX: token ids in, finished embeddings out. Pooling and normalisation are part of the graph.

sentence-transformers' own `backend="onnx"` needs optimum, which cannot be installed beside transformers 5. The graph
here is what Text Embeddings Inference reads, too: inputs `input_ids` and `attention_mask`, output
`sentence_embedding`.
"""

from __future__ import annotations

import inspect
import logging
import os
import sys
import warnings
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

import torch
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding
from tokenizers import Tokenizer
from torch import Tensor, nn

from st_llm_embed.errors import explained
from st_llm_embed.modules.base import is_decoder_only
from st_llm_embed.modules.model import LLMSentenceTransformer

if TYPE_CHECKING:
    import onnx

OPSET = 18
"""The ONNX operator set; ONNX Runtime reads it from 1.14 on."""

LARGEST_FILE = 2_000_000_000
"""Bytes of weights up to which they stay in the .onnx file: protobuf ends at 2 GiB."""


def onnx_graph(model: LLMSentenceTransformer) -> onnx.ModelProto:
    """Trace a model in float32, and copy its weights into the graph.

    Inputs are `input_ids` and `attention_mask`, int64 of shape (batch, sequence), padded on the right, of decoders and
    static models on either side; output is `sentence_embedding`, float32 of shape (batch, dimension). The model's
    attention implementation is set to eager.

    Raises:
        InputError: the model's code cannot be traced.
    """
    import onnx

    [token, *_] = graph_tokenizer(model).encode("a").ids
    ids = torch.full((2, 5), token)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    dynamic = {0: "batch", 1: "sequence"}
    module = _Graph(model).eval()
    kind = "static" if is_static(model) else cast(Any, model[0]).model.config.model_type
    with (
        explained(
            f"A model of type {kind!r} cannot be exported to ONNX",
            "docs/publishing.md names the architectures that can.",
        ),
        warnings.catch_warnings(),
        _stdout_discarded(),
        TemporaryDirectory() as scratch,
    ):
        # The other exporter needs onnxscript, takes four times as long, and has the same numbers. Traced control
        # flow is what the comparison at the end of an export is for.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (ids, mask),
            f"{scratch}/graph.onnx",
            input_names=["input_ids", "attention_mask"],
            output_names=["sentence_embedding"],
            dynamic_axes={"input_ids": dynamic, "attention_mask": dynamic, "sentence_embedding": {0: "batch"}},
            opset_version=OPSET,
            dynamo=False,
            # With the weights the exporter takes four times their memory.
            export_params=False,
            do_constant_folding=False,
        )
        written = onnx.load(f"{scratch}/graph.onnx")
    # Tracing leaves the dimension open.
    written.graph.output[0].type.tensor_type.shape.dim[1].dim_value = model.get_embedding_dimension() or 0
    _add_weights(written.graph, module.state_dict())
    return written


@contextmanager
def _stdout_discarded() -> Generator[None]:
    """Discard what is written to stdout, also by C++: of a graph that it cannot export, torch prints every line."""
    sys.stdout.flush()
    stdout = os.dup(1)
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        yield
    finally:
        sys.stdout.flush()
        os.dup2(stdout, 1)
        os.close(stdout)


def _add_weights(graph: onnx.GraphProto, weights: dict[str, Tensor]) -> None:
    """Put weights into a graph that has them as inputs, transposed where nothing else is done with them."""
    from onnx import numpy_helper

    users = Counter(name for node in graph.node for name in node.input)
    transposed = {
        node.input[0]: node
        for node in graph.node
        if node.op_type == "Transpose" and weights.get(node.input[0], torch.empty(0)).ndim == 2
    }
    for value in [value for value in graph.input if value.name in weights]:
        graph.input.remove(value)
        node = transposed.get(value.name)
        if node is not None and users[value.name] == 1:
            array, name = weights[value.name].T.contiguous().numpy(), node.output[0]
            graph.node.remove(node)
        else:
            array, name = weights[value.name].numpy(), value.name
        graph.initializer.append(numpy_helper.from_array(array, name))


def save_onnx(graph: onnx.ModelProto, folder: Path) -> Path:
    """Write a graph as model.onnx, with model.onnx_data where the weights exceed protobuf's limit; return its path."""
    import onnx

    path = folder / "model.onnx"
    weights = sum(len(tensor.raw_data) for tensor in graph.graph.initializer)
    onnx.save(graph, path, save_as_external_data=weights > LARGEST_FILE, location="model.onnx_data")
    onnx.checker.check_model(path)
    return path


def quantize_onnx(path: Path) -> Path:
    """Write model_int8.onnx beside model.onnx, weights as int8, and return its path."""
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
    return isinstance(model[0], StaticEmbedding)


def longest_text(model: LLMSentenceTransformer) -> int:
    """Return the number of tokens, special ones included, at which texts are cut."""
    return model.max_seq_length or model.tokenizer.model_max_length


def graph_tokenizer(model: LLMSentenceTransformer) -> Tokenizer:
    """Return a copy of a model's tokenizer that by itself makes the token ids that the graph wants.

    It cuts texts where the model does, and pads none. A static model has no special tokens and cuts nothing.
    """
    own: Any = model.tokenizer
    copy = Tokenizer.from_str((own if isinstance(own, Tokenizer) else own.backend_tokenizer).to_str())
    copy.no_padding()
    if is_static(model):
        copy.no_truncation()
        copy.post_processor = None
    else:
        copy.enable_truncation(longest_text(model))
    return copy


class _Graph(nn.Module):
    """Token ids to embeddings: all modules of a model."""

    def __init__(self, model: LLMSentenceTransformer) -> None:
        super().__init__()
        first, *others = cast(list[Any], list(model))
        self.is_static = is_static(model)
        if self.is_static:
            self.tokens: Any = nn.Embedding.from_pretrained(first.embedding.weight)
            self.pooling = Pooling(first.embedding_dim, pooling_mode="mean")
        else:
            # Its mask holds finite numbers; a row of padding would be NaN in the others.
            first.model.set_attn_implementation("eager")
            self.tokens, self.pooling = first.model, others.pop(0)
            self.is_decoder = is_decoder_only(first.model.config)
            self.takes_positions = "position_ids" in inspect.signature(first.model.forward).parameters
        self.others = nn.ModuleList(others)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.tokens(input_ids) if self.is_static else self._hidden(input_ids, attention_mask)
        if self.pooling.pooling_mode == "lasttoken":
            last = (attention_mask * torch.arange(attention_mask.shape[1])).argmax(dim=1)
            features = {"sentence_embedding": hidden[torch.arange(hidden.shape[0]), last]}
        else:
            features = self.pooling({"token_embeddings": hidden, "attention_mask": attention_mask})
        for module in self.others:
            features = module(features)
        return features["sentence_embedding"]

    def _hidden(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        options: dict[str, Any] = {"use_cache": False} if self.is_decoder else {}
        if self.is_decoder and self.takes_positions:
            # Counted from the first attended token, so that padding on the left shifts nothing.
            options["position_ids"] = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
        return self.tokens(input_ids=input_ids, attention_mask=attention_mask, **options).last_hidden_state
