"""OpenVINO: the ONNX graph in OpenVINO's own format, with float32 weights."""

from __future__ import annotations

from pathlib import Path

from st_llm_embed.errors import explained


def write_openvino(onnx_path: Path, folder: Path) -> Path:
    """Convert an ONNX graph.

    Args:
        onnx_path: what `write_onnx` wrote.
        folder: gets openvino_model.xml and openvino_model.bin.

    Returns:
        The path of openvino_model.xml; inputs and output are those of the ONNX graph.

    Raises:
        InputError: OpenVINO cannot read the graph.
    """
    import openvino

    path = folder / "openvino_model.xml"
    with explained(f"OpenVINO {openvino.__version__} cannot convert the ONNX graph", "Export to onnx instead."):
        openvino.save_model(openvino.convert_model(onnx_path), path, compress_to_fp16=False)
    return path
