"""What is given on the command line becomes a probe and a runtime."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError

from st_llm_embed.doctor.probe import PROBE_FILE, Probe, make_probe, read_probe
from st_llm_embed.doctor.verify.runtimes import (
    llama_cpp_runtime,
    load_stock,
    onnx_runtime,
    openvino_runtime,
    sentence_transformers_runtime,
)
from st_llm_embed.doctor.verify.server import server_runtime
from st_llm_embed.doctor.verify.traps import Runtime
from st_llm_embed.errors import InputError, explained

IN_FOLDERS = ("model.onnx", "onnx/model.onnx", "openvino_model.xml", "openvino/openvino_model.xml")


def probe_of(model: str | Path) -> tuple[Probe, str | Path | None]:
    """Find the probe of a model, or compute it where it has none.

    Args:
        model: a folder; a probe.json, whose vectors are compared without any weights; or a Hub id, of which nothing
            but probe.json is fetched where it has one.

    Returns:
        The probe, and what to load the weights from if they are on this machine.

    Raises:
        InputError: there is no such model.
    """
    path = Path(model)
    if path.is_file():
        return read_probe(path), None
    if path.is_dir():
        if (path / PROBE_FILE).is_file():
            return read_probe(path / PROBE_FILE), path if any(path.glob("*.safetensors")) else None
        return make_probe(load_stock(path)), path
    if len(path.parts) > 2 or path.is_absolute():
        raise InputError(f"There is no {model}. Give the folder of a model, its probe.json, or a Hub id.")
    with explained(
        f"The model {str(model)!r} cannot be had", "Give a folder that is there, or the id of a model on the Hub."
    ):
        try:
            return read_probe(Path(hf_hub_download(str(model), PROBE_FILE))), None
        except EntryNotFoundError:
            return make_probe(load_stock(model)), model


def runtime_of(against: str | Path, probe: Probe) -> Runtime:
    """Open what a model is compared with.

    Raises:
        InputError: it is nothing that can embed texts.
    """
    if str(against).startswith(("http://", "https://")):
        return server_runtime(str(against), max_seq_length=probe.max_seq_length)
    path = Path(against)
    if path.is_dir():
        if (path / "modules.json").is_file():
            return sentence_transformers_runtime(path)
        path = next((path / name for name in IN_FOLDERS if (path / name).is_file()), path)
    if path.is_file() and path.suffix == ".onnx":
        return onnx_runtime(path)
    if path.is_file() and path.suffix == ".xml":
        return openvino_runtime(path)
    if path.is_file() and path.suffix == ".gguf" and probe.max_seq_length is not None:
        return llama_cpp_runtime(path, probe.max_seq_length)
    raise InputError(
        f"{against} is nothing to compare a model with. Allowed are the folder of a sentence-transformers model, an "
        ".onnx file, OpenVINO's .xml file, a .gguf file, and the address of a server, such as "
        "http://localhost:8000/v1/embeddings or http://localhost:8080/embed."
    )
