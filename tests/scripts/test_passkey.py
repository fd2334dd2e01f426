"""scripts/passkey.py on a tiny model, with made-up texts in the layout of mteb's task."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import datasets
import numpy as np
import passkey
import pytest
from mteb_data import write_repository
from transformers import AutoConfig

from st_llm_embed import InputError, LLMSentenceTransformer


@pytest.fixture(scope="module")
def released(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Mistral embedder with 512 positions."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    LLMSentenceTransformer.from_base(str(tiny_base), max_seq_length=48, device="cpu").save_pretrained(str(folder))
    return folder


@pytest.fixture
def task_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two lengths of two texts, which mteb loads from the working directory."""
    splits = {f"test_{length}": length for length in (32, 64)}
    names = ["Ada", "Omar"]
    texts = {
        split: [
            {"_id": f"d{n}", "title": "", "text": f"{name} has {n}. " + "word " * length}
            for n, name in enumerate(names)
        ]
        for split, length in splits.items()
    }
    queries = {
        split: [{"_id": f"q{n}", "text": f"What has {name}?"} for n, name in enumerate(names)] for split in splits
    }
    relevant = {split: [{"query-id": f"q{n}", "corpus-id": f"d{n}", "score": 1} for n in range(2)] for split in splits}
    write_repository(
        tmp_path / "mteb/LEMBPasskeyRetrieval", {"corpus": texts, "queries": queries, "default": relevant}
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.usefixtures("task_here")
def test_the_script_scores_each_length_under_each_setting_once(
    released: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["passkey.py", str(released), "--lengths", "32,64", "--sweep", "sliding_window=16,none"]
    monkeypatch.setattr(sys, "argv", [*command, "--output-dir", str(out)])
    passkey.main()
    printed = capsys.readouterr().out
    assert printed.startswith("| tokens | 32 | 64 |\n")
    assert "| sliding_window 16 |" in printed
    lines = json.loads((out / "table.json").read_text(encoding="utf-8"))["lines"]
    assert [line["setting"] for line in lines] == [{"sliding_window": 16}, {"sliding_window": None}]
    assert all(set(line["accuracy"]) == {"32", "64"} for line in lines)
    files = {path: path.read_bytes() for path in out.rglob("LEMBPasskeyRetrieval.json")}
    assert len(files) == 2
    passkey.main()
    assert files == {path: path.read_bytes() for path in files}


def test_a_setting_changes_the_vectors_of_long_texts_alone(released: Path) -> None:
    config = AutoConfig.from_pretrained(released)

    def vectors(setting: passkey.Setting) -> np.ndarray:
        override = passkey.config_overrides(str(released), config, setting)
        model = LLMSentenceTransformer(str(released), config_kwargs=override, device="cpu")
        model.max_seq_length = 128
        return model.encode(["tree", "tree " * 60])

    saved, windowed, low = vectors({}), vectors({"sliding_window": 16}), vectors({"rope_theta": 100.0})
    np.testing.assert_allclose(windowed[0], saved[0], atol=1e-6)
    assert np.abs(windowed[1] - saved[1]).max() > 1e-4
    assert np.abs(low - saved).max() > 1e-4


def test_sweeps_are_combined() -> None:
    assert passkey.swept_settings([]) == [{}]
    assert len(passkey.swept_settings(["rope_theta=1e4,1e5", "sliding_window=256,none"])) == 4
    for wrong in ("window=3", "rope_theta=big", "sliding_window=2.5"):
        with pytest.raises(InputError, match="rope_theta and sliding_window at most once"):
            passkey.swept_settings([wrong])


def test_a_length_beyond_the_models_positions_is_refused(released: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="positions for 512 tokens"):
        passkey.sweep_lengths(str(released), tmp_path, [1024], [{}])
