from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from sentence_transformers import SentenceTransformer

from st_llm_embed import InputError, Recipe, run_pipeline


def written(folder: Path) -> dict[str, int]:
    """When each stage last ended, in nanoseconds."""
    return {path.stem: path.stat().st_mtime_ns for path in (folder / "manifests").glob("*.json")}


def test_a_run_leaves_everything_where_it_is_promised(tiny_recipe: Path, tmp_path: Path) -> None:
    report = run_pipeline(Recipe.load(str(tiny_recipe)), tmp_path / "out")
    names = ["recipe.yaml", "dataset/README.md", "dataset/sts/train.parquet", "training/log.json", "training/model"]
    names += ["evaluation/report.md", "evaluation/report.json", "release/README.md", "release/recipe.yaml"]
    names += [f"evaluation/{name}.png" for name in ("loss", "before_after", "similarity")]
    for name in names:
        assert (tmp_path / "out" / name).exists(), name
    assert report == json.loads((tmp_path / "out" / "evaluation" / "report.json").read_text(encoding="utf-8"))
    for moment in ("before", "after"):
        for key in ("retrieval_ndcg_at_10", "sts_triplet_accuracy", "bitext_accuracy"):
            assert 0 <= report[moment][key] <= 1
    for path in (tmp_path / "out" / "evaluation").glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")
    trained = SentenceTransformer(str(tmp_path / "out" / "training" / "model"), device="cpu")
    released = SentenceTransformer(str(tmp_path / "out" / "release"), device="cpu")
    np.testing.assert_array_equal(released.encode(["a text", ""]), trained.encode(["a text", ""]))


def test_a_second_run_does_only_what_changed(tiny_recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_pipeline(Recipe.load(str(tiny_recipe)), out)
    first = written(out)
    run_pipeline(Recipe.load(str(tiny_recipe)), out)
    assert written(out) == first

    run_pipeline(Recipe.load(str(tiny_recipe), ["publishing.license=mit"]), out)
    second = written(out)
    assert {name for name in first if first[name] != second[name]} == {"evaluation", "release"}

    run_pipeline(Recipe.load(str(tiny_recipe), ["publishing.license=mit", "training.max_steps=2"]), out)
    third = written(out)
    assert {name for name in first if second[name] != third[name]} == {"training", "evaluation", "release"}
    assert len(list(out.glob("training.*/model"))) == 1, "a training that is replaced has to be kept"


def test_changed_rows_are_noticed(tiny_recipe: Path, rows_path: Path, tmp_path: Path) -> None:
    run_pipeline(Recipe.load(str(tiny_recipe)), tmp_path / "out")
    first = written(tmp_path / "out")
    rows_path.write_text(rows_path.read_text(encoding="utf-8").replace("thing 1", "thing one"), encoding="utf-8")
    run_pipeline(Recipe.load(str(tiny_recipe)), tmp_path / "out")
    assert all(first[name] != moment for name, moment in written(tmp_path / "out").items())


def test_two_runs_cannot_share_an_output_folder(tiny_recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / ".lock"), pytest.raises(InputError, match="Another run is writing"):
        run_pipeline(Recipe.load(str(tiny_recipe)), tmp_path / "out")


def test_a_folder_of_the_users_is_not_overwritten(tiny_recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "dataset").mkdir(parents=True)
    (tmp_path / "out" / "dataset" / "precious.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="was not written by a run"):
        run_pipeline(Recipe.load(str(tiny_recipe)), tmp_path / "out")
    assert (tmp_path / "out" / "dataset" / "precious.txt").read_text(encoding="utf-8") == "mine"


def test_a_stage_that_died_is_done_again_and_nothing_else(
    tiny_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"

    def dies(*_: object) -> Callable[..., None]:
        (out / ".release.partial" / "half").write_text("x", encoding="utf-8")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("st_llm_embed.pipeline.write_release", dies)
        with pytest.raises(KeyboardInterrupt):
            run_pipeline(Recipe.load(str(tiny_recipe)), out)
    assert not (out / "release").exists(), "half a release must not look like one"
    before = written(out)
    run_pipeline(Recipe.load(str(tiny_recipe)), out)
    after = written(out)
    assert {name for name in after if after[name] != before.get(name)} == {"release"}
    assert not (out / "release" / "half").exists()
