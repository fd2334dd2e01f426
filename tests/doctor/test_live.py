"""Traps that weights and stock sentence-transformers show, each put into a good repository."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from spoil import edit, edit_list, no_probe, prompts, template, tokenizer_config
from transformers import AutoModel

from st_llm_embed import doctor
from st_llm_embed.doctor import diagnose
from st_llm_embed.doctor.finding import NotCheckedError
from st_llm_embed.doctor.live import LIVE_CHECKS, LiveModel
from st_llm_embed.doctor.probe import make_probe, write_probe
from st_llm_embed.doctor.repository import Repository


def change_weights(path: Path, change: Callable[[str, torch.Tensor], torch.Tensor]) -> None:
    weights = {key: change(key, weight).contiguous() for key, weight in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})


def no_eos(folder: Path) -> None:
    template(folder, "<s>", "A")


def eos_twice(folder: Path) -> None:
    template(folder, "<s>", "A", "</s>", "</s>")


def eos_as_text(folder: Path) -> None:
    """Appended by a normalizer, so that truncation takes it away."""
    template(folder, "<s>", "A")
    tokens = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    tokens = [token | {"normalized": token["content"] == "</s>"} for token in tokens]
    append = {"type": "Replace", "pattern": {"Regex": "(?<!</s>)$"}, "content": "</s>"}
    edit(folder / "tokenizer.json", normalizer=append, added_tokens=tokens)


def rendered_by_a_chat_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}</s>", encoding="utf-8")
    forward = {"method": "forward", "method_output_name": "last_hidden_state"}
    edit(
        folder / "sentence_bert_config.json",
        modality_config={"text": forward, "message": forward | {"format": "flat"}},
        module_output_name="token_embeddings",
        transformer_task="feature-extraction",
    )


def no_truncation(folder: Path) -> None:
    edit(folder / "sentence_bert_config.json", processing_kwargs={"text": {"truncation": False}})


def no_mask(folder: Path) -> None:
    tokenizer_config(folder, model_input_names=["input_ids"])


def no_normalize(folder: Path) -> None:
    edit_list(folder / "modules.json", lambda modules: modules[:2])


def other_weights(folder: Path) -> None:
    torch.manual_seed(1)
    change_weights(folder / "model.safetensors", lambda _, weight: weight + 0.05 * torch.randn_like(weight))


def mean_pooling(folder: Path) -> None:
    """Spelt so that all libraries agree: only the vectors tell."""
    edit(folder / "1_Pooling" / "config.json", pooling_mode_mean_tokens=True, pooling_mode_lasttoken=False)


def nan(folder: Path) -> None:
    change_weights(
        folder / "model.safetensors", lambda key, weight: weight * float("nan") if "norm" in key else weight
    )


def collapsed(folder: Path) -> None:
    change_weights(folder / "model.safetensors", lambda key, weight: weight * 0 + 1 if "embed" in key else weight)


@pytest.mark.parametrize(
    ("trap", "spoil"),
    [
        (1, no_eos),
        (2, eos_twice),
        (3, eos_as_text),
        (4, no_mask),
        (5, mean_pooling),
        (12, no_normalize),
        (14, rendered_by_a_chat_template),
        (15, no_truncation),
        ("weights", other_weights),
        ("weights", nan),
        ("weights", collapsed),
    ],
)
def test_a_trap_shows_in_tokens_or_vectors(trap: int | str, spoil: Callable[[Path], None], spoilt: Path) -> None:
    """By the live checks alone, as if the files told nothing."""
    spoil(spoilt)
    readings = diagnose(str(spoilt), live=False)
    readings.findings.clear()
    model = LiveModel(Repository(str(spoilt)), spoilt, "cpu")
    found: set[int | str] = set()
    for checked, _, check in LIVE_CHECKS:
        if checked in (trap, 3, 14):
            with suppress(NotCheckedError):
                found |= {finding.trap for finding in check(model, readings)}
    assert trap in found


def test_a_model_that_cannot_be_loaded_is_a_finding(spoilt: Path) -> None:
    (spoilt / "model.safetensors").write_bytes(b"no weights")
    [finding] = doctor(str(spoilt), live=True)
    assert finding.trap == "layout"
    assert "cannot be loaded by sentence-transformers" in finding.message


def test_truncated_vectors_have_their_length_checked(spoilt: Path) -> None:
    edit(spoilt / "config.json", matryoshka_dimensions=[32, 8])
    # Of these, the first eight numbers of every vector are zero.
    change_weights(
        spoilt / "model.safetensors",
        lambda key, weight: torch.cat([torch.zeros(8), weight[8:]]) if key == "norm.weight" else weight,
    )
    no_probe(spoilt)
    [finding] = doctor(str(spoilt), live=True)
    assert finding.trap == 12
    assert "At 8 dimensions vectors have lengths from 0.000" in finding.message


@pytest.fixture
def merged(good: Callable[[str], Path], tiny_base: Path, tmp_path: Path) -> Path:
    """A run's folders: an adapter, and a model in bfloat16 that it was merged into in float32."""
    adapter, release = tmp_path / "adapter", tmp_path / "model"
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"])
    torch.manual_seed(3)
    model = get_peft_model(AutoModel.from_pretrained(tiny_base), config)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data = torch.randn_like(weight) * 0.2
    model.save_pretrained(adapter)
    edit(adapter / "adapter_config.json", base_model_name_or_path=str(tiny_base))
    shutil.copytree(good("mistral"), release)
    no_probe(release)
    write_merged(release, adapter, tiny_base, torch.float32)
    return release


def write_merged(release: Path, adapter: Path, base: Path, merge_in: torch.dtype) -> None:
    model = PeftModel.from_pretrained(AutoModel.from_pretrained(base, dtype=merge_in), str(adapter))
    whole = model.to(merge_in).merge_and_unload().to(torch.bfloat16)
    whole.save_pretrained(release)
    edit(release / "config.json", rope_theta=10000.0)


def test_a_model_merged_in_float32_is_healthy(merged: Path) -> None:
    diagnosis = diagnose(str(merged), live=True)
    assert diagnosis.findings == []
    [check] = [check for check in diagnosis.checks if check.trap == 9]
    assert check.not_checked is None


def test_a_model_merged_in_bfloat16_is_found(merged: Path, tiny_base: Path) -> None:
    write_merged(merged, merged.parent / "adapter", tiny_base, torch.bfloat16)
    [finding] = doctor(str(merged), live=True)
    assert (finding.trap, finding.severity) == (9, "warning")


def test_a_model_whose_adapter_was_not_merged_is_found(merged: Path, tiny_base: Path) -> None:
    AutoModel.from_pretrained(tiny_base, dtype=torch.bfloat16).save_pretrained(merged)
    edit(merged / "config.json", rope_theta=10000.0)
    [finding] = doctor(str(merged), live=True)
    assert finding.trap == 7
    assert "not merged" in finding.message


def test_weights_rounded_after_publishing_are_found(spoilt: Path) -> None:
    """A model in bfloat16 that went through eight bits on its way, with the probe of the float32 one."""
    change_weights(spoilt / "model.safetensors", lambda _, weight: weight.to(torch.float8_e4m3fn).to(torch.bfloat16))
    edit(spoilt / "config.json", dtype="bfloat16")
    [finding] = doctor(str(spoilt), live=True)
    assert finding.trap == 9


def test_a_release_in_bfloat16_with_the_probe_of_its_own_weights_is_healthy(spoilt: Path) -> None:
    change_weights(spoilt / "model.safetensors", lambda _, weight: weight.to(torch.bfloat16))
    edit(spoilt / "config.json", dtype="bfloat16")
    exact = SentenceTransformer(str(spoilt), device="cpu", model_kwargs={"dtype": torch.float32})
    write_probe(make_probe(exact), spoilt / "probe.json")
    assert doctor(str(spoilt), live=True) == []


def test_another_prompt_makes_other_vectors_only_under_it(spoilt: Path) -> None:
    prompts(spoilt, query="Instruct: Find\nQuery: ")
    found = doctor(str(spoilt), live=True)
    assert [finding.trap for finding in found] == [6]
    assert "'Instruct: Find\\nQuery: '" in found[0].message
