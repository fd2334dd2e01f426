"""Adapter repositories: an adapter that does not apply, and a base that others do not get."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from break_repository import edit
from peft import (
    AdaLoraConfig,
    FourierFTConfig,
    HRAConfig,
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    PeftConfig,
    RandLoraConfig,
    VeraConfig,
    get_peft_model,
)
from safetensors.torch import load_file, save_file
from transformers import AutoModel

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
            "8 keys in the file fit no module of the base",
        ),
        (
            lambda folder: rename(
                folder, lambda key: key.replace("layers.1", "layers.2").replace("layers.0", "layers.1")
            ),
            "such as layers.2.self_attn",
        ),
        (
            lambda folder: rename(folder, lambda key: key.replace("layers.0.", "layers.7.")),
            "such as layers.7.self_attn",
        ),
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


BOTH = ["q_proj", "v_proj"]
KINDS: dict[str, PeftConfig] = {
    "LoRA": LoraConfig(target_modules=BOTH),
    "rank-stabilised LoRA": LoraConfig(target_modules=BOTH, use_rslora=True),
    "LoRA of one layer": LoraConfig(target_modules=r"layers\.1\.self_attn\.q_proj"),
    "LoRA of another rank in part": LoraConfig(target_modules=BOTH, rank_pattern={"q_proj": 2}),
    "LoRA of embeddings": LoraConfig(target_modules=["embed_tokens", "q_proj"]),
    "LoRA with trained norms": LoraConfig(target_modules=BOTH, modules_to_save=["norm"]),
    "LoRA with some tokens": LoraConfig(target_modules=BOTH, trainable_token_indices=[1, 2]),
    "LoRA of all linear layers": LoraConfig(target_modules="all-linear"),
    "AdaLoRA": AdaLoraConfig(target_modules=BOTH, total_step=10),
    "LoHa": LoHaConfig(target_modules=BOTH),
    "LoKr": LoKrConfig(target_modules=BOTH),
    "IA3": IA3Config(target_modules=[*BOTH, "down_proj"], feedforward_modules=["down_proj"]),
    "OFT": OFTConfig(target_modules=BOTH, oft_block_size=4, r=0),
    "HRA": HRAConfig(target_modules=BOTH),
    "FourierFT": FourierFTConfig(target_modules=BOTH, n_frequency=10),
    "RandLora": RandLoraConfig(target_modules=BOTH, r=4),
    "LayerNorm tuning": LNTuningConfig(target_modules=["norm"]),
}


def saved(config: PeftConfig, base: Path, folder: Path) -> Path:
    torch.manual_seed(0)
    model = get_peft_model(AutoModel.from_pretrained(base), config)
    for weight in (weight for weight in model.parameters() if weight.requires_grad):
        weight.data = torch.randn_like(weight) * 0.1
    model.save_pretrained(folder)
    return folder


def of_the_adapter(folder: Path) -> dict[str, str]:
    found = diagnose(str(folder), live=False).findings
    return {one.trap: one.message for one in found if one.trap in ("adapter not applied", "not loaded")}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_adapter_that_transformers_applies_is_healthy(
    kind: str, tiny_base: Path, tmp_path: Path
) -> None:
    assert of_the_adapter(saved(KINDS[kind], tiny_base, tmp_path / "adapter")) == {}


@pytest.mark.filterwarnings("ignore")
def test_what_transformers_drops_or_refuses_of_an_adapter_is_found(tiny_base: Path, tmp_path: Path) -> None:
    dora = saved(LoraConfig(target_modules=BOTH, use_dora=True), tiny_base, tmp_path / "dora")
    assert "lora_magnitude_vector" in of_the_adapter(dora)["adapter not applied"]
    vera = saved(VeraConfig(target_modules=BOTH, r=8), tiny_base, tmp_path / "vera")
    assert "transformers refuses the adapter" in of_the_adapter(vera)["not loaded"]
    (vera / "adapter_model.safetensors").unlink()
    assert "no weights" in {finding.trap for finding in diagnose(str(vera)).findings}


def test_an_adapter_in_a_folder_of_a_whole_model_is_not_the_models(
    good: Callable[[str], Path], trained: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(good("mistral"), tmp_path / "model")
    shutil.copytree(trained, folder / "adapter")
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(b"")
    assert diagnose(str(folder), live=True).findings == []
