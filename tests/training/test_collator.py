"""What the collator hands to the model is what `encode_query` and `encode_document` tokenize, byte for byte."""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import Any

import pytest
import torch
from families import TOKENIZERS, save_base
from modules.test_families import TEXTS

from st_llm_embed import LLMSentenceTransformer
from st_llm_embed.modules.transformer import DecoderTransformer
from st_llm_embed.training.collator import InstructionCollator

INSTRUCTIONS = ["find the answer", "find the answer to it among many others", "Ünïcödé", "long " * 30]


def rows_of(texts: list[str]) -> list[dict[str, Any]]:
    return [
        {
            "anchor": text,
            "positive": f"{text} positive",
            "negative": text[::-1],
            "instruction": INSTRUCTIONS[place % len(INSTRUCTIONS)],
            "label": place,
            "score": 0.5,
            "key": f"key-{place}",
            "language": "en",
            "dataset_name": "sts",
        }
        for place, text in enumerate(texts)
    ]


def ids_of(batch: dict[str, Any], column: str) -> list[list[int]]:
    """Token ids of each row, without padding."""
    masks = batch[f"{column}_attention_mask"].bool()
    return [ids[mask].tolist() for ids, mask in zip(batch[f"{column}_input_ids"], masks, strict=True)]


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_the_ids_are_those_of_encoding(
    tokenizer: str, bos: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = save_base(tmp_path / "base", "mistral", tokenizer, bos=bos)
    model = LLMSentenceTransformer.from_base(str(base), max_seq_length=40, device="cpu")
    seen: list[list[int]] = []
    token_ids = DecoderTransformer.token_ids

    def recorded(module: DecoderTransformer, texts: list[str]) -> list[array[int]]:
        ids = token_ids(module, texts)
        if len(texts) > 1:
            seen.extend(map(list, ids))
        return ids

    rows = rows_of(TEXTS)
    batch = InstructionCollator(preprocess_fn=model.preprocess)(rows)
    monkeypatch.setattr(DecoderTransformer, "token_ids", recorded)
    model.encode_query(TEXTS, instruction=[row["instruction"] for row in rows])
    assert ids_of(batch, "anchor") == seen
    assert max(map(len, seen)) == 40, "some have to be cut"
    for column in ("positive", "negative"):
        seen.clear()
        model.encode_document([row[column] for row in rows])
        assert ids_of(batch, column) == seen


def test_nothing_but_texts_that_all_rows_have_reaches_the_model(tiny_base: Path) -> None:
    model = LLMSentenceTransformer.from_base(str(tiny_base), max_seq_length=40, device="cpu")
    collator = InstructionCollator(preprocess_fn=model.preprocess)
    rows = rows_of(["a", "b"])
    batch = collator(rows)
    assert (batch.pop("dataset_name"), batch.pop("task_type")) == ("sts", "sts")
    assert {name.split("_")[0] for name in batch} == {"anchor", "positive", "negative"}

    several = [{**row, "negative_1": "x", "negative_2": "y", "positive_id": 3} for row in rows]
    assert {name.removesuffix("_input_ids") for name in collator(several) if name.endswith("_input_ids")} == {
        "anchor",
        "positive",
        "negative",
        "negative_1",
        "negative_2",
    }

    triplet, pair = rows
    del pair["negative"]
    for mixed in ([triplet, pair], [pair, triplet]):
        batch = collator(mixed)
        assert not any(name.startswith("negative") for name in batch)
        assert all(value.shape[0] == 2 for value in batch.values() if isinstance(value, torch.Tensor))
