"""Traps that weights and stock sentence-transformers show, each put into a good repository."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from break_repository import chat_template, edit, no_mask, no_normalize, no_probe, prompts
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer

from st_llm_embed import diagnose
from st_llm_embed.doctor.live import LIVE_CHECKS, LiveModel
from st_llm_embed.doctor.probe import MINIMUM_COSINE, make_probe, write_probe
from st_llm_embed.doctor.repository import Repository
from st_llm_embed.doctor.traps import NotCheckedError


def change_weights(path: Path, change: Callable[[str, torch.Tensor], torch.Tensor]) -> None:
    weights = {key: change(key, weight).contiguous() for key, weight in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})


def other_weights(folder: Path) -> None:
    torch.manual_seed(1)
    change_weights(folder / "model.safetensors", lambda _, weight: weight + 0.05 * torch.randn_like(weight))


def mean_pooling(folder: Path) -> None:
    """Spelt so that all libraries agree: only the vectors show it."""
    edit(folder / "1_Pooling" / "config.json", pooling_mode_mean_tokens=True, pooling_mode_lasttoken=False)


def nan(folder: Path) -> None:
    change_weights(
        folder / "model.safetensors", lambda key, weight: weight * float("nan") if "norm" in key else weight
    )


def collapsed(folder: Path) -> None:
    change_weights(folder / "model.safetensors", lambda key, weight: weight * 0 + 1 if "embed" in key else weight)


@pytest.mark.parametrize(
    ("trap", "damage"),
    [
        ("padding", no_mask),
        ("pooling", mean_pooling),
        ("not normalised", no_normalize),
        ("tokenizer", chat_template),
        (
            "max length",
            lambda folder: edit(
                folder / "sentence_bert_config.json", processing_kwargs={"text": {"truncation": False}}
            ),
        ),
        ("weights", other_weights),
        ("not finite", nan),
        ("collapsed", collapsed),
    ],
)
def test_a_trap_shows_in_tokens_or_vectors(trap: str, damage: Callable[[Path], None], broken: Path) -> None:
    """By the live checks alone, as if the files showed nothing."""
    damage(broken)
    model = LiveModel(Repository(str(broken)), broken, "cpu")
    found: set[str] = set()
    for _, check in LIVE_CHECKS:
        with suppress(NotCheckedError):
            found |= {finding.trap for finding in check(model)}
    assert trap in found


def test_a_model_that_cannot_be_loaded_is_a_finding(broken: Path) -> None:
    edit(broken / "sentence_bert_config.json", no_such_key=1)
    [finding] = [one for one in diagnose(str(broken), live=True).findings if one.trap == "not loaded"]
    assert "cannot be loaded by sentence-transformers" in finding.message


def test_truncated_vectors_have_their_length_checked(broken: Path) -> None:
    edit(broken / "config.json", matryoshka_dimensions=[32, 8])
    # Of these, the first eight numbers of every vector are zero.
    change_weights(
        broken / "model.safetensors",
        lambda key, weight: torch.cat([torch.zeros(8), weight[8:]]) if key == "norm.weight" else weight,
    )
    no_probe(broken)
    [finding] = diagnose(str(broken), live=True).findings
    assert finding.trap == "not normalised"
    assert "At 8 dimensions vectors have lengths from 0.000" in finding.message


def test_weights_rounded_after_publishing_are_found(broken: Path) -> None:
    """A model in bfloat16 that went through eight bits on its way, with the probe of the float32 one."""
    change_weights(broken / "model.safetensors", lambda _, weight: weight.to(torch.float8_e4m3fn).to(torch.bfloat16))
    edit(broken / "config.json", dtype="bfloat16")
    [finding] = diagnose(str(broken), live=True).findings
    assert finding.trap == "precision"


def test_a_release_in_bfloat16_with_the_probe_of_its_own_weights_is_healthy(broken: Path) -> None:
    change_weights(broken / "model.safetensors", lambda _, weight: weight.to(torch.bfloat16))
    edit(broken / "config.json", dtype="bfloat16")
    exact = SentenceTransformer(str(broken), device="cpu", model_kwargs={"dtype": torch.float32})
    write_probe(make_probe(exact), broken / "probe.json")
    assert diagnose(str(broken), live=True).findings == []


def test_a_merge_that_was_rounded_to_sixteen_bits_once_is_healthy(broken: Path) -> None:
    """The probe is of the weights before they were rounded: what rounding leaves is no fault."""
    torch.manual_seed(4)
    change_weights(broken / "model.safetensors", lambda _, weight: weight + 0.2 * torch.randn_like(weight))
    write_probe(make_probe(SentenceTransformer(str(broken), device="cpu")), broken / "probe.json")
    change_weights(broken / "model.safetensors", lambda _, weight: weight.to(torch.bfloat16))
    edit(broken / "config.json", dtype="bfloat16")
    model = LiveModel(Repository(str(broken)), broken, "cpu")
    probe = model.repository.probe
    assert probe is not None
    assert model.probed(probe).min() < MINIMUM_COSINE
    assert diagnose(str(broken), live=True).findings == []


def test_another_prompt_makes_other_vectors_only_under_it(broken: Path) -> None:
    prompts(broken, query="Instruct: Find\nQuery: ")
    found = diagnose(str(broken), live=True).findings
    assert [finding.trap for finding in found] == ["prompt"]
    assert "'Instruct: Find\\nQuery: '" in found[0].message
