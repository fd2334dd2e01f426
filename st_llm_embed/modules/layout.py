"""The layout on disk that sentence-transformers 5 and 6, vLLM, TEI and llama.cpp's converter all read.

What sentence-transformers 6 and transformers 5 write by themselves, the others refuse or misread: new module paths, a
compact pooling configuration, no max_seq_length, the tokenizer class TokenizersBackend. The legacy spelling of the
same facts is read by all.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from st_llm_embed.modules.base import SENTENCEPIECE_FILE

LEGACY_MODULES = {
    name: f"sentence_transformers.models.{name}" for name in ("Transformer", "Pooling", "Normalize", "Dense")
}

LEGACY_POOLING_MODES = {
    "cls": "cls_token",
    "mean": "mean_tokens",
    "max": "max_tokens",
    "mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "weightedmean": "weightedmean_tokens",
    "lasttoken": "lasttoken",
}
"""Names of pooling modes, and what their flags are called."""


OF_THIS_SESSION = ("backend", "extra_special_tokens", "is_local", "local_files_only", "name_or_path")
"""What transformers 5 writes into tokenizer_config.json of how the tokenizer was loaded here, or as a list that
transformers 4 cannot read."""


def make_portable(folder: Path, tokenizer: PreTrainedTokenizerBase, sentencepiece: Path | None) -> None:
    """Rewrite the JSON files of a saved model in place; its vectors stay bit for bit the same.

    Args:
        folder: what `SentenceTransformer.save` wrote for a text model of transformer and pooling.
        tokenizer: the model's tokenizer.
        sentencepiece: the file tokenizer.model of the base, if it has one: llama.cpp's converter takes the scores of
            pieces from it, and without them cuts texts into other tokens.
    """
    modules = _read(folder / "modules.json")
    for module in modules:
        name = module["type"].rsplit(".", 1)[-1]
        if module["type"].startswith("sentence_transformers."):
            module["type"] = LEGACY_MODULES.get(name, module["type"])
        if name == "Pooling":
            _edit(folder / module["path"] / "config.json", _legacy_pooling)
    _write(folder / "modules.json", modules)
    _edit(folder / "sentence_bert_config.json", lambda config: _legacy_transformer(config, tokenizer.model_max_length))
    if tokenizer.is_fast:
        _edit(folder / "tokenizer_config.json", lambda config: _common_tokenizer(config, tokenizer))
        _edit(folder / "tokenizer.json", lambda content: _own_length(content, tokenizer.model_max_length))
    if (folder / "config.json").is_file():
        _edit(folder / "config.json", _common_config)
    if sentencepiece is not None and not (folder / SENTENCEPIECE_FILE).exists():
        shutil.copyfile(sentencepiece, folder / SENTENCEPIECE_FILE)


def _legacy_pooling(config: dict[str, Any]) -> dict[str, Any]:
    modes = [config["pooling_mode"]] if isinstance(config["pooling_mode"], str) else config["pooling_mode"]
    return {
        "word_embedding_dimension": config["embedding_dimension"],
        **{f"pooling_mode_{flag}": mode in modes for mode, flag in LEGACY_POOLING_MODES.items()},
        "include_prompt": config["include_prompt"],
    }


def _legacy_transformer(config: dict[str, Any], max_seq_length: int) -> dict[str, Any]:
    # Text in, hidden states out is what a file without these keys means.
    stated = ("transformer_task", "modality_config", "module_output_name", "method", "method_output_name")
    kept = {key: value for key, value in config.items() if key not in stated}
    return {"max_seq_length": max_seq_length, "do_lower_case": False} | kept


def _common_tokenizer(config: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    ids = tokenizer("a")["input_ids"]
    common = {key: value for key, value in config.items() if key not in OF_THIS_SESSION}
    return common | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "padding_side": tokenizer.padding_side,
        # transformers 4 goes by these flags, transformers 5 by the post-processor in tokenizer.json.
        "add_bos_token": tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id,
        "add_eos_token": tokenizer.eos_token_id is not None and ids[-1] == tokenizer.eos_token_id,
    }


def _own_length(content: dict[str, Any], max_seq_length: int) -> dict[str, Any]:
    """State the length for programs that read tokenizer.json alone; there stood that of the last call."""
    truncation = {"direction": "Right", "max_length": max_seq_length, "strategy": "LongestFirst", "stride": 0}
    return content | {"truncation": truncation, "padding": None}


def _common_config(config: dict[str, Any]) -> dict[str, Any]:
    changed = dict(config)
    theta = (config.get("rope_parameters") or {}).get("rope_theta")
    if theta is not None:
        changed["rope_theta"] = theta
    # llama.cpp's converter does not know MistralModel; vLLM goes by the pooling in modules.json in both cases.
    causal = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config["model_type"])
    if causal is not None and config["model_type"] not in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        changed["architectures"] = [causal]
    return changed


def _edit(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    _write(path, change(_read(path)))


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
