"""Exports: the same vectors in ONNX Runtime, OpenVINO and llama.cpp."""

from st_llm_embed.export.formats import FORMATS, QUANTIZATIONS, Exported, export

__all__ = ["FORMATS", "QUANTIZATIONS", "Exported", "export"]
