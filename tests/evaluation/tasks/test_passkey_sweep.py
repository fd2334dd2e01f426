from __future__ import annotations

import inspect
import json
import logging
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Outcome
from transformers import GPT2Config, GPT2Model, LlamaConfig, LlamaModel, Qwen3Config, Qwen3Model

from st_llm_embed import InputError, LLMSentenceTransformer
from st_llm_embed.cli.evaluation import passkey
from st_llm_embed.evaluation.tasks import run_passkey, swept_settings
from st_llm_embed.evaluation.tasks.passkey import LENGTHS
from st_llm_embed.evaluation.tasks.passkey_sweep import Setting, _config, _overrides

SHORT, LONG = "tree", "tree " * 60
"""Fewer and more tokens than the window of 16."""


@pytest.fixture(scope="module")
def released(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Mistral embedder with 512 positions, saved with room for 48 tokens."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    LLMSentenceTransformer.from_base(str(tiny_base), max_seq_length=48, device="cpu").save_pretrained(str(folder))
    return folder


def random_embedder(name: str, released: Path, folder: Path) -> Path:
    """Like `released`, of another family."""
    size = {"vocab_size": 400, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    if name == "gpt2":
        model = GPT2Model(GPT2Config(vocab_size=400, n_embd=32, n_layer=2, n_head=4, n_positions=512))
    elif name == "llama":
        model = LlamaModel(LlamaConfig(**size, intermediate_size=64))
    else:
        model = Qwen3Model(Qwen3Config(**size, intermediate_size=64, num_key_value_heads=2, head_dim=8))
    model.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).write_bytes((released / file).read_bytes())
    saved = folder.with_name(f"{folder.name}-released")
    LLMSentenceTransformer.from_base(str(folder), max_seq_length=128, device="cpu").save_pretrained(str(saved))
    return saved


def vectors(folder: Path, setting: Setting) -> np.ndarray:
    override = _overrides(str(folder), _config(str(folder)), setting)
    model = LLMSentenceTransformer(str(folder), config_kwargs=override, device="cpu")
    model.max_seq_length = 128
    return model.encode([SHORT, LONG])


@pytest.mark.parametrize("family", ["mistral", "qwen3"])
def test_a_window_changes_longer_texts_alone(family: str, released: Path, tmp_path: Path) -> None:
    folder = released if family == "mistral" else random_embedder(family, released, tmp_path / family)
    windowed, full = vectors(folder, {"sliding_window": 16}), vectors(folder, {"sliding_window": None})
    np.testing.assert_allclose(windowed[0], full[0], atol=1e-6)
    assert np.abs(windowed[1] - full[1]).max() > 1e-4


def test_the_rope_base_changes_the_vectors(released: Path) -> None:
    low, saved = vectors(released, {"rope_theta": 100.0}), vectors(released, {})
    assert np.abs(low - saved).max() > 1e-4
    np.testing.assert_array_equal(vectors(released, {"rope_theta": 10_000.0}), saved)


def test_sweeps_are_combined() -> None:
    assert swept_settings([]) == [{}]
    assert swept_settings(["rope_theta=1e4,1e5", "sliding_window=256,none"]) == [
        {"rope_theta": 1e4, "sliding_window": 256},
        {"rope_theta": 1e4, "sliding_window": None},
        {"rope_theta": 1e5, "sliding_window": 256},
        {"rope_theta": 1e5, "sliding_window": None},
    ]


@pytest.mark.parametrize(
    ("sweeps", "message"),
    [
        (["window=3"], r"rope_theta and sliding_window once"),
        (["rope_theta=1", "rope_theta=2"], r"rope_theta and sliding_window once"),
        (["rope_theta=big"], r"'big'; rope_theta takes numbers"),
        (["rope_theta="], r"has ''; rope_theta takes numbers"),
        (["sliding_window=2.5"], r"'2.5'.*whole numbers"),
        (["sliding_window=0"], r"'0'.*whole numbers"),
        (["rope_theta=none"], r"'none'; rope_theta takes numbers"),
    ],
)
def test_sweeps_that_cannot_be_read(sweeps: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        swept_settings(sweeps)


@pytest.mark.parametrize(
    ("family", "setting", "message"),
    [
        ("gpt2", {"rope_theta": 1e5}, r"a gpt2 has no rotary positions"),
        ("gpt2", {"sliding_window": 8}, r"gpt2 has no sliding window"),
        ("llama", {"sliding_window": 8}, r"llama has no sliding window"),
    ],
)
def test_what_a_setting_cannot_change_is_refused(
    family: str, setting: Setting, message: str, released: Path, tmp_path: Path
) -> None:
    folder = random_embedder(family, released, tmp_path / family)
    with pytest.raises(InputError, match=message):
        run_passkey(str(folder), tmp_path / "out", lengths=[128], settings=[{}, setting])
    assert not (tmp_path / "out").exists()


def test_settings_and_lengths_are_run_once_and_never_mixed(
    released: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "st_llm_embed")
    settings: list[Setting] = [{}, {"rope_theta": 100.0}]
    run_passkey(str(released), tmp_path, lengths=[128], settings=settings)
    caplog.clear()
    plain, low = run_passkey(str(released), tmp_path, lengths=[128, 160], settings=settings)
    assert [record.getMessage() for record in caplog.records if "pass keys" in record.getMessage()] == [
        "pass keys, as saved: 100 texts of 160 tokens",
        "pass keys, RoPE base 100: 100 texts of 160 tokens",
    ]
    assert set(plain.accuracy) == set(low.accuracy) == {128, 160}
    [revision] = (tmp_path / "results" / "local__tiny").iterdir()
    [apart] = (revision / "experiments").iterdir()
    assert apart.name == "rope_theta_100.0"
    for folder in (revision, apart):
        [path] = folder.glob("PersonalizedPasskeyRetrieval-*.json")
        assert set(json.loads(path.read_text(encoding="utf-8"))["scores"]) == {"len128", "len160"}


def test_half_a_file_of_results_is_set_aside(released: Path, tmp_path: Path) -> None:
    [before] = run_passkey(str(released), tmp_path, lengths=[128], settings=[{}])
    [path] = tmp_path.rglob("PersonalizedPasskeyRetrieval-*.json")
    path.write_bytes(path.read_bytes()[:200])
    [after] = run_passkey(str(released), tmp_path, lengths=[128], settings=[{}])
    assert after == before
    assert path.with_name(f"{path.name}.torn").stat().st_size == 200


def test_a_whole_file_of_results_that_mteb_cannot_read_stays_where_it_is(released: Path, tmp_path: Path) -> None:
    run_passkey(str(released), tmp_path, lengths=[128], settings=[{}])
    [path] = tmp_path.rglob("PersonalizedPasskeyRetrieval-*.json")
    content = json.loads(path.read_text(encoding="utf-8")) | {"evaluation_time": "long"}
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(InputError, match=r"PersonalizedPasskeyRetrieval.*\.json holds no scores of mteb"):
        run_passkey(str(released), tmp_path, lengths=[128], settings=[{}])
    assert json.loads(path.read_text(encoding="utf-8")) == content


def test_the_command_writes_table_plot_and_results(
    released: Path, tmp_path: Path, run_cli: Callable[..., Outcome]
) -> None:
    arguments = ("passkey", released, "--lengths", "128,150", "--sweep", "sliding_window=16,none")
    outcome = run_cli(*arguments, "--output-dir", tmp_path)
    assert outcome.code == 0, outcome.err
    assert "window 16" in outcome.out
    assert "full attention" in outcome.out
    [path] = (tmp_path / "passkey").glob("local__tiny-*-seed0.json")
    report = json.loads(path.read_text(encoding="utf-8"))
    assert [line["setting"] for line in report["lines"]] == [{"sliding_window": 16}, {"sliding_window": None}]
    assert all(set(line["accuracy"]) == {"128", "150"} for line in report["lines"])
    assert path.with_suffix(".png").stat().st_size > 10_000


def test_the_command_has_the_lengths_of_the_task() -> None:
    assert inspect.signature(passkey).parameters["lengths"].default == ",".join(map(str, LENGTHS))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--lengths", "128,1024"), r"--lengths has 1024;.*positions for 512 tokens"),
        (("--lengths", "128,0"), r"--lengths has 0;"),
        (("--lengths", "long"), r"--lengths is 'long'; give whole numbers"),
        (("--lengths", "16"), r"exactly 16 tokens"),
    ],
)
def test_lengths_that_cannot_be_used(
    options: tuple[str, str], message: str, released: Path, tmp_path: Path, run_cli: Callable[..., Outcome]
) -> None:
    outcome = run_cli("passkey", released, *options, "--output-dir", tmp_path / "out")
    assert outcome.code == 2
    assert "Traceback" not in outcome.err
    assert re.search(message, outcome.err)


def test_a_model_that_does_not_exist(tmp_path: Path, run_cli: Callable[..., Outcome]) -> None:
    outcome = run_cli("passkey", tmp_path / "nowhere", "--output-dir", tmp_path / "out")
    assert outcome.code == 2
    assert "Name a released folder or a Hub model" in outcome.err
    assert not (tmp_path / "out").exists()
