"""Adapter repositories: an adapter that does not apply, and a base that others do not get."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from break_repository import edit
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from st_llm_embed import LLMSentenceTransformer, diagnose
from st_llm_embed.publishing.release import has_public_base

COMMIT = "0123456789abcdef0123456789abcdef01234567"
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> Path:
    """An adapter of the tiny base, by its path: what peft writes, and nothing good to publish."""
    folder = tmp_path_factory.mktemp("adapter") / "saved"
    model = LLMSentenceTransformer.from_base(str(tiny_base), max_seq_length=48, device="cpu")
    model.add_adapter(LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]))
    torch.manual_seed(3)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data = torch.randn_like(weight) * 0.2
    model.save_pretrained(str(folder), create_model_card=False)
    edit(folder / "adapter_config.json", base_model_name_or_path=str(tiny_base))
    return folder


@pytest.fixture
def adapter(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / "adapter")


def rename(folder: Path, change: Callable[[str], str]) -> None:
    save_file({change(key): value for key, value in load_file(folder / WEIGHTS).items()}, folder / WEIGHTS)


def change(folder: Path, change: Callable[[str, torch.Tensor], torch.Tensor]) -> None:
    save_file({key: change(key, value) for key, value in load_file(folder / WEIGHTS).items()}, folder / WEIGHTS)


def test_an_adapter_of_a_pinned_base_on_the_hub_is_healthy_as_far_as_can_be_seen(adapter: Path) -> None:
    edit(adapter / "adapter_config.json", base_model_name_or_path="lab/base", revision=COMMIT)
    diagnosis = diagnose(str(adapter))
    assert diagnosis.findings == []
    reasons = {check.what: check.not_checked for check in diagnosis.checks}
    assert "the base cannot be reached" in str(reasons["the adapter's keys fit its base"])
    assert reasons["the adapter's weights are numbers and not zero"] is None


@pytest.mark.parametrize("name", ["lab/base", "distilgpt2"])
def test_a_base_that_publish_takes_is_not_a_finding(name: str, adapter: Path) -> None:
    edit(adapter / "adapter_config.json", base_model_name_or_path=name, revision=COMMIT)
    assert has_public_base(adapter)
    assert diagnose(str(adapter), live=False).findings == []


@pytest.mark.parametrize(
    ("name", "revision", "trap", "severity"),
    [
        ("/home/somebody/base", COMMIT, "base not on the Hub", "error"),
        ("../base", COMMIT, "base not on the Hub", "error"),
        ("base (not on the Hub)", None, "base not on the Hub", "error"),
        ("lab/base", None, "base not pinned", "warning"),
        ("lab/base", "main", "base not pinned", "warning"),
    ],
)
def test_a_base_that_others_do_not_get_is_found(
    name: str, revision: str | None, trap: str, severity: str, adapter: Path
) -> None:
    edit(adapter / "adapter_config.json", base_model_name_or_path=name)
    edit(adapter / "adapter_config.json", revision=revision or "")
    [finding] = diagnose(str(adapter), live=False).findings
    assert (finding.trap, finding.severity) == (trap, severity)


def test_an_adapter_that_applies_has_the_name_of_its_base_alone_against_it(adapter: Path) -> None:
    """Live, too: its vectors differ from the base's."""
    diagnosis = diagnose(str(adapter), live=True)
    assert [finding.trap for finding in diagnosis.findings] == ["base not on the Hub"]
    [applied] = [check for check in diagnosis.checks if check.what == "vectors differ from those without the adapter"]
    assert applied.not_checked is None


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda folder: rename(folder, lambda key: key.replace(".layers.", ".language_model.layers.")),
            "not in the base",
        ),
        (
            lambda folder: rename(
                folder, lambda key: key.replace("layers.1", "layers.2").replace("layers.0", "layers.1")
            ),
            "of layers 1 to 2, without [0]",
        ),
        (lambda folder: rename(folder, lambda key: key.replace("layers.0.", "layers.7.")), "of layers 1 to 7"),
        (lambda folder: rename(folder, lambda key: key.replace(".weight", ".default.weight")), "peft does not read"),
        (lambda folder: change(folder, lambda key, value: value * 0 if "lora_B" in key else value), "is its base"),
        (lambda folder: change(folder, lambda _, value: value / 0), "NaN or infinity"),
        (lambda folder: change(folder, lambda _, value: (value / 0).bfloat16()), "NaN or infinity"),
    ],
    ids=["language_model", "shifted", "a hole", "default", "zero", "infinite", "infinite in bfloat16"],
)
def test_an_adapter_that_does_not_apply_is_found(damage: Callable[[Path], None], message: str, adapter: Path) -> None:
    damage(adapter)
    [finding] = [
        finding for finding in diagnose(str(adapter), live=False).findings if finding.trap == "adapter not applied"
    ]
    assert message in finding.message


def test_stock_loads_an_adapter_that_does_not_apply_and_the_vectors_show_it(adapter: Path) -> None:
    """The keys have names that peft reads, so only the vectors show it."""
    change(adapter, lambda key, value: value * 1e-9 if "lora_B" in key else value)
    found = diagnose(str(adapter), live=True).findings
    assert {finding.trap for finding in found} == {"adapter not applied", "base not on the Hub"}
    assert any("With and without it" in finding.message for finding in found)
