"""The layout on disk that sentence-transformers 5 and 6, with transformers 4 and 5, both read.

What sentence-transformers 6 and transformers 5 write by themselves, sentence-transformers 5 refuses: new module paths,
a compact pooling configuration, no max_seq_length, the tokenizer class TokenizersBackend. The legacy spelling of the
same facts loads in both.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

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


def make_portable(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Rewrite the JSON files of a saved model in place; its vectors stay bit for bit the same.

    Args:
        folder: what `SentenceTransformer.save` wrote for a text model of transformer and pooling.
        tokenizer: the model's tokenizer.
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
    if (folder / "config.json").is_file():
        _edit(folder / "config.json", _common_rope)


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
    common = {
        key: value for key, value in config.items() if key not in ("backend", "extra_special_tokens", "is_local")
    }
    return common | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "padding_side": tokenizer.padding_side,
        # transformers 4 goes by these flags, transformers 5 by the post-processor in tokenizer.json.
        "add_bos_token": tokenizer.bos_token_id is not None and ids[0] == tokenizer.bos_token_id,
        "add_eos_token": tokenizer.eos_token_id is not None and ids[-1] == tokenizer.eos_token_id,
    }


def _common_rope(config: dict[str, Any]) -> dict[str, Any]:
    theta = (config.get("rope_parameters") or {}).get("rope_theta")
    return config if theta is None else {**config, "rope_theta": theta}


def _edit(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    _write(path, change(_read(path)))


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
