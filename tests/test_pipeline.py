from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from sentence_transformers import SentenceTransformer

from st_llm_embed import InputError, Recipe, run_pipeline
from st_llm_embed.pipeline import run_training

RecipeOf = Callable[..., Recipe]


def written(folder: Path) -> dict[str, int]:
    """When each stage last ended, in nanoseconds."""
    return {path.stem: path.stat().st_mtime_ns for path in (folder / "manifests").glob("*.json")}


@pytest.fixture(scope="session")
def whole_run(tiny_run_recipe: RecipeOf, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run, not to be written to."""
    folder = tmp_path_factory.mktemp("whole-run") / "out"
    run_pipeline(tiny_run_recipe(), folder)
    return folder


@pytest.fixture
def out(whole_run: Path, tmp_path: Path) -> Path:
    """A copy of the folder of a run of `tiny_run_recipe()`."""
    shutil.copytree(whole_run, tmp_path / "out", symlinks=True)
    return tmp_path / "out"


def test_a_run_leaves_everything_where_it_is_promised(whole_run: Path) -> None:
    names = ["recipe.yaml", "dataset/README.md", "dataset/sts/train.parquet", "training/log.json", "training/model"]
    names += ["evaluation/report.md", "evaluation/report.json", "release/README.md", "release/recipe.yaml"]
    names += [f"evaluation/{name}.png" for name in ("loss", "before_after", "similarity")]
    for name in names:
        assert (whole_run / name).exists(), name
    report = json.loads((whole_run / "evaluation" / "report.json").read_text(encoding="utf-8"))
    for moment in ("before", "after"):
        for key in ("retrieval_ndcg_at_10", "sts_triplet_accuracy", "bitext_accuracy"):
            assert 0 <= report[moment][key] <= 1
    for path in (whole_run / "evaluation").glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")
    trained = SentenceTransformer(str(whole_run / "training" / "model"), device="cpu")
    released = SentenceTransformer(str(whole_run / "release"), device="cpu")
    np.testing.assert_array_equal(released.encode(["a text", ""]), trained.encode(["a text", ""]))


def test_a_second_run_does_only_what_changed(tiny_run_recipe: RecipeOf, out: Path) -> None:
    first = written(out)
    report = run_pipeline(tiny_run_recipe(), out)
    assert written(out) == first
    assert report == json.loads((out / "evaluation" / "report.json").read_text(encoding="utf-8"))

    run_pipeline(tiny_run_recipe("publishing.license=mit"), out)
    second = written(out)
    assert {name for name in first if first[name] != second[name]} == {"release"}

    run_pipeline(tiny_run_recipe("publishing.license=mit", "name=renamed"), out)
    renamed = written(out)
    assert {name for name in first if second[name] != renamed[name]} == {"evaluation", "release"}
    assert not list(out.glob("training.*"))

    run_pipeline(tiny_run_recipe("publishing.license=mit", "lora={}"), out)
    third = written(out)
    assert {name for name in first if renamed[name] != third[name]} == {"training", "evaluation", "release"}
    assert len(list(out.glob("training.*/model"))) == 1, "a training that is replaced has to be kept"
    assert "LoRA (peft's defaults), merged" in (out / "release" / "README.md").read_text(encoding="utf-8")


def test_changed_rows_are_noticed(tiny_run_recipe: RecipeOf, out: Path, rows_path: Path) -> None:
    first = written(out)
    rows_path.write_text(rows_path.read_text(encoding="utf-8").replace("thing 1", "thing one"), encoding="utf-8")
    run_pipeline(tiny_run_recipe(f"data.rows={rows_path}"), out)
    assert all(first[name] != moment for name, moment in written(out).items())


def test_two_runs_cannot_share_an_output_folder(tiny_recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / ".lock"), pytest.raises(InputError, match="Another process is writing"):
        run_pipeline(Recipe.load(str(tiny_recipe)), tmp_path / "out")


def contents(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("recipe.yaml", "name: mine", "recipe.yaml was not written by a run"),
        ("recipe.yaml/inner.txt", "mine", "recipe.yaml was not written by a run"),
        ("manifests", "mine", "manifests was not written by a run"),
        ("manifests/deployment.yaml", "mine", "manifests was not written by a run"),
        ("manifests/dataset.json", "{not json", "dataset.json is not a manifest"),
        ("manifests/dataset.json", "[]", "dataset.json is not a manifest"),
        ("manifests/dataset.json", '{"finished": true}', "dataset.json is not a manifest"),
        ("manifests/dataset.json/inner.txt", "mine", "dataset.json is not a manifest"),
        ("dataset", "mine", "dataset was not written by a run"),
        ("dataset/precious.txt", "mine", "dataset was not written by a run"),
        ("release/precious.txt", "mine", "release was not written by a run"),
    ],
)
def test_a_folder_that_holds_what_no_run_wrote_is_left_as_it_is(
    name: str, content: str, told: str, tiny_recipe: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text(content, encoding="utf-8")
    before = contents(out)
    with pytest.raises(InputError, match=told) as error:
        run_pipeline(Recipe.load(str(tiny_recipe)), out)
    assert len(str(error.value).splitlines()) == 1
    assert contents(out) == before


def test_a_finished_stage_that_became_a_link_or_a_file_is_refused(
    tiny_run_recipe: RecipeOf, out: Path, tmp_path: Path
) -> None:
    for replace in (lambda: (out / "dataset").write_text("mine"), lambda: (out / "dataset").symlink_to("nowhere")):
        (out / "dataset").rename(tmp_path / "moved")
        replace()
        with pytest.raises(InputError, match="dataset was not written by a run"):
            run_pipeline(tiny_run_recipe(), out)
        (out / "dataset").unlink()
        (tmp_path / "moved").rename(out / "dataset")


def test_what_a_user_added_or_changed_is_kept_when_a_stage_runs_again(tiny_run_recipe: RecipeOf, out: Path) -> None:
    (out / "evaluation" / "notes.txt").write_text("mine", encoding="utf-8")
    (out / "release" / "README.md").write_text("my card", encoding="utf-8")
    for description in ("one", "two"):
        run_pipeline(tiny_run_recipe(f"description={description}"), out)
        assert [path.read_text() for path in out.glob("evaluation.*/notes.txt")] == ["mine"]
        assert [path.read_text() for path in out.glob("release.*/README.md")] == ["my card"]
        assert description in (out / "release" / "README.md").read_text(encoding="utf-8")
    assert not list(out.glob("dataset.*"))
    # The second was written by the run alone and is not kept.
    assert len(list(out.glob("evaluation.*"))) == 1


def test_no_training_is_lost_by_going_back_and_forth(tiny_run_recipe: RecipeOf, out: Path) -> None:
    for steps in (2, 6, 2):
        run_training(tiny_run_recipe(f"training.max_steps={steps}"), out)
    assert len(list(out.glob("training.*/model"))) == 3


def test_a_stage_made_with_another_version_is_kept_with_a_warning(
    tiny_run_recipe: RecipeOf, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = written(out)
    path = out / "manifests" / "training.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    manifest["versions"]["st_llm_embed"] = "0.0.1"
    path.write_text(json.dumps(manifest), encoding="utf-8")
    run_pipeline(tiny_run_recipe(), out)
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "training: made with st_llm_embed 0.0.1. To make it with what is installed now, choose another --output-dir."
    ]
    assert written(out).keys() == before.keys()


def test_a_stage_that_died_is_done_again_and_nothing_else(
    tiny_run_recipe: RecipeOf, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(out / "release")
    (out / "manifests" / "release.json").unlink()

    def dies(*_: object) -> Callable[..., None]:
        (out / ".release.partial" / "half").write_text("x", encoding="utf-8")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("st_llm_embed.publishing.release.write_release", dies)
        with pytest.raises(KeyboardInterrupt):
            run_pipeline(tiny_run_recipe(), out)
    assert not (out / "release").exists(), "half a release must not look like one"
    before = written(out)
    run_pipeline(tiny_run_recipe(), out)
    after = written(out)
    assert {name for name in after if after[name] != before.get(name)} == {"release"}
    assert not (out / "release" / "half").exists()


@pytest.mark.parametrize(
    ("override", "prompt", "told"),
    [
        ("base.instructions=none", "", "Queries and documents are encoded as they are."),
        ("base.instructions=task_type", "Instruct: short-short\nQuery: ", "A query carries the name of its task type"),
        ("base.pooling_mode=mean", None, "the mean of the hidden states of all tokens"),
    ],
)
def test_what_is_compared_is_trained_scored_saved_and_said_on_the_card(
    override: str, prompt: str | None, told: str, tiny_run_recipe: RecipeOf, out: Path
) -> None:
    other = json.loads((out / "evaluation" / "report.json").read_text(encoding="utf-8"))
    report = run_pipeline(tiny_run_recipe(override), out)
    assert len(list(out.glob("training.*/model"))) == 1, "the key is an input of the training"
    assert report["after"] != other["after"]
    assert report["training"]["loss"] != other["training"]["loss"]
    released = SentenceTransformer(str(out / "release"), device="cpu")
    if prompt is not None:
        assert released.prompts["query"] == prompt
        assert not any("Given" in one for one in released.prompts.values())
    else:
        assert next(module for module in released if hasattr(module, "pooling_mode")).pooling_mode == "mean"
    card = (out / "release" / "README.md").read_text(encoding="utf-8")
    assert told in card
    assert ("For another task" in card) == (prompt is None)
