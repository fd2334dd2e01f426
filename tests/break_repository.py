"""Ways to break a repository."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def edit(path: Path, **changes: Any) -> None:
    """Set keys of a JSON file; None removes one."""
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    content |= changes
    for key, value in changes.items():
        if value is None:
            del content[key]
    path.write_text(json.dumps(content), encoding="utf-8")


def edit_list(path: Path, change: Callable[[list[Any]], list[Any]]) -> None:
    path.write_text(json.dumps(change(json.loads(path.read_text(encoding="utf-8")))), encoding="utf-8")


def template(folder: Path, *names: str) -> None:
    """Return tokenizer.json a post-processor that puts these tokens around the text, which is A."""
    ids = {"<s>": 1, "</s>": 2}
    single = [
        {"Sequence": {"id": "A", "type_id": 0}} if name == "A" else {"SpecialToken": {"id": name, "type_id": 0}}
        for name in names
    ]
    special = {name: {"id": name, "ids": [ids[name]], "tokens": [name]} for name in names if name != "A"}
    pair = [*single, {"Sequence": {"id": "B", "type_id": 1}}]
    processor = {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": special}
    edit(folder / "tokenizer.json", post_processor=processor)


def tokenizer_config(folder: Path, **changes: Any) -> None:
    edit(folder / "tokenizer_config.json", **changes)


def prompts(folder: Path, **changes: str | None) -> None:
    path = folder / "config_sentence_transformers.json"
    saved = json.loads(path.read_text(encoding="utf-8"))["prompts"] | changes
    edit(path, prompts={name: prompt for name, prompt in saved.items() if prompt is not None})


def no_probe(folder: Path) -> None:
    (folder / "probe.json").unlink()


def pieces(path: Path, texts: list[str]) -> None:
    """Write a SentencePiece model of these pieces, without anything else."""
    content = b""
    for text in texts:
        inner = b"\x0a" + varint(len(text.encode())) + text.encode() + b"\x15\x00\x00\x80\xbf"
        content += b"\x0a" + varint(len(inner)) + inner
    path.write_bytes(content)


def varint(number: int) -> bytes:
    return bytes([number]) if number < 128 else bytes([number & 127 | 128]) + varint(number >> 7)


def eos_by_flag(folder: Path) -> None:
    """As e5-mistral-7b-instruct: transformers 5 ignores the flag."""
    template(folder, "<s>", "A")
    tokenizer_config(folder, tokenizer_class="LlamaTokenizer", add_eos_token=True)


def eos_twice(folder: Path) -> None:
    template(folder, "<s>", "A", "</s>", "</s>")


def eos_as_text(folder: Path) -> None:
    """Appended by a normalizer, so that the tokenizer takes it for a part of the text."""
    template(folder, "<s>", "A")
    tokens = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    tokens = [token | {"normalized": token["content"] == "</s>"} for token in tokens]
    append = {"type": "Replace", "pattern": {"Regex": "(?<!</s>)$"}, "content": "</s>"}
    edit(folder / "tokenizer.json", normalizer=append, added_tokens=tokens)


def chat_template(folder: Path) -> None:
    """As sentence-transformers 6 saves a model whose base has a chat template."""
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}</s>", encoding="utf-8")
    forward = {"method": "forward", "method_output_name": "last_hidden_state"}
    edit(
        folder / "sentence_bert_config.json",
        modality_config={"text": forward, "message": forward | {"format": "flat"}},
        module_output_name="token_embeddings",
        transformer_task="feature-extraction",
    )


def no_mask(folder: Path) -> None:
    tokenizer_config(folder, model_input_names=["input_ids"])


def no_normalize(folder: Path) -> None:
    edit_list(folder / "modules.json", lambda modules: modules[:2])
