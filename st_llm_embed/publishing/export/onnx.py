"""ONNX: token ids in, finished embeddings out. Pooling and normalisation are part of the graph.

sentence-transformers' own `backend="onnx"` needs optimum, which cannot be installed beside transformers 5. The graph
here is what Text Embeddings Inference reads, too: inputs `input_ids` and `attention_mask`, output
`sentence_embedding`.
"""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from st_llm_embed.errors import explained
from st_llm_embed.publishing.export.source import decoder_of

if TYPE_CHECKING:
    import torch

    from st_llm_embed.modules import LLMSentenceTransformer

OPSET = 18
"""The ONNX operator set; ONNX Runtime reads it from 1.14 on."""

LARGEST_FILE = 2_000_000_000
"""Bytes of weights up to which they stay in the .onnx file: protobuf ends at 2 GiB."""


def write_onnx(model: LLMSentenceTransformer, folder: Path) -> Path:
    """Write the graph of a model in float32.

    Args:
        model: the embedder, on the CPU in float32; its attention implementation is set to eager.
        folder: an empty folder. It gets model.onnx, and model.onnx_data where the weights exceed protobuf's limit.

    Returns:
        The path of model.onnx. Inputs `input_ids` and `attention_mask`, int64 of shape (batch, sequence), padded on
        either side; output `sentence_embedding`, float32 of shape (batch, dimension).

    Raises:
        InputError: the model's code cannot be traced.
    """
    import onnx
    import torch

    decoder = decoder_of(model)
    # Its mask holds finite numbers; a row of padding would be NaN in the others.
    decoder.set_attn_implementation("eager")
    path = folder / "model.onnx"
    weights = sum(weight.numel() * weight.element_size() for weight in decoder.parameters())
    traced = path if weights <= LARGEST_FILE else folder / "traced" / "model.onnx"
    traced.parent.mkdir(exist_ok=True)
    ids = torch.full((2, 5), model.tokenizer.pad_token_id or 0)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    dynamic = {0: "batch", 1: "sequence"}
    with (
        explained(
            f"A model of type {decoder.config.model_type!r} cannot be exported to ONNX",
            "Mistral, Llama, Qwen2, Qwen3, Gemma, Gemma 2, Phi, Phi-3, GPT-2, GPT-Neo, GPT-NeoX and Bloom are tested.",
        ),
        warnings.catch_warnings(),
    ):
        # The traced exporter is called legacy. The other one needs onnxscript, takes four times as long, and gives
        # the same numbers. Traced control flow is what the comparison at the end of an export is for.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _graph(decoder),
            (ids, mask),
            str(traced),
            input_names=["input_ids", "attention_mask"],
            output_names=["sentence_embedding"],
            dynamic_axes={"input_ids": dynamic, "attention_mask": dynamic, "sentence_embedding": {0: "batch"}},
            opset_version=OPSET,
            dynamo=False,
        )
    graph = onnx.load(traced)
    # Tracing leaves the dimension open.
    graph.graph.output[0].type.tensor_type.shape.dim[1].dim_value = model.get_embedding_dimension() or 0
    if traced == path:
        onnx.save(graph, path)
    else:
        onnx.save(graph, path, save_as_external_data=True, location="model.onnx_data")
        shutil.rmtree(traced.parent)
    onnx.checker.check_model(path)
    return path


def _graph(decoder: torch.nn.Module) -> torch.nn.Module:
    """Put pooling and normalisation behind a decoder."""
    import inspect

    import torch

    takes_positions = "position_ids" in inspect.signature(decoder.forward).parameters

    class Graph(torch.nn.Module):
        """Token ids to embeddings."""

        def __init__(self) -> None:
            super().__init__()
            self.decoder = decoder

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            # Counted from the first attended token, so that padding on the left shifts nothing.
            positions = (attention_mask.cumsum(dim=1) - 1).clamp(min=0)
            hidden = self.decoder(
                input_ids=input_ids,
                attention_mask=attention_mask,
                use_cache=False,
                **({"position_ids": positions} if takes_positions else {}),
            ).last_hidden_state
            last = (attention_mask * torch.arange(attention_mask.shape[1])).argmax(dim=1)
            return torch.nn.functional.normalize(hidden[torch.arange(hidden.shape[0]), last], dim=1)

    return Graph().eval()
