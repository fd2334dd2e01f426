"""A model's probe through another runtime or server: whether the vectors are the same, and if not, why."""

from st_llm_embed.doctor.verify.comparison import Row, Verification, verify
from st_llm_embed.doctor.verify.runtimes import (
    llama_cpp_runtime,
    onnx_runtime,
    openvino_runtime,
    sentence_transformers_runtime,
)
from st_llm_embed.doctor.verify.server import server_runtime
from st_llm_embed.doctor.verify.traps import Embedding, Explanation, Runtime

__all__ = [
    "Embedding",
    "Explanation",
    "Row",
    "Runtime",
    "Verification",
    "llama_cpp_runtime",
    "onnx_runtime",
    "openvino_runtime",
    "sentence_transformers_runtime",
    "server_runtime",
    "verify",
]
