"""Whole distillations with real tiny models: what is written, what loads with stock libraries, what runs again."""

from __future__ import annotations

import gc
import json
import os
import re
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pytest
import torch
from conftest import INSTRUCTIONS, example_rows
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from transformers import AutoModel

from st_llm_embed import LLMSentenceTransformer
from st_llm_embed.data.dataset import write_dataset
from st_llm_embed.data.rows import Row
from st_llm_embed.distillation import distillation_of, teacher_instructions, train
from st_llm_embed.distillation.report import bytes_on_disk, cost_rows
from st_llm_embed.distillation.student import build_student
from st_llm_embed.distillation.train import student_set
from st_llm_embed.pipeline import run_distillation
from st_llm_embed.publishing.push import check_model
from st_llm_embed.recipe import Instructions, Recipe
from tests.distillation.conftest import BERT, TRAINING, MakeRecipe

TEXTS = ["a question about thing 3", "", "thing " * 100]


def written(folder: Path) -> dict[str, int]:
    return {path.stem: path.stat().st_mtime_ns for path in (folder / "manifests").glob("*.json")}


def test_an_encoder_is_made_whole_and_made_again_only_where_something_changed(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def teachers() -> int:
        return sum(type(one) is LLMSentenceTransformer for one in gc.get_objects())

    def counted(*args: Any, **kwargs: Any) -> SentenceTransformer:
        alive.append(teachers())
        return build_student(*args, **kwargs)

    alive: list[int] = []
    monkeypatch.setattr(train, "build_student", counted)
    gc.collect()
    before_all = teachers()
    out = tmp_path / "out"
    report = run_distillation(make_recipe(loss={"matryoshka_dims": [16, 8]}), out)
    assert alive == [before_all], "the teacher is freed before the student is built"
    for name in ("report.json", "report.md"):
        assert (out / "student-report" / name).stat().st_size > 0
    assert list(report["scores"]) == ["teacher", "student before training", "student"]
    assert report["lengths"].keys() == {"16", "8"}
    assert report["scores"]["student"]["retrieval_ndcg_at_10"] == pytest.approx(report["lengths"]["16"])
    assert report["costs"]["student"]["parameters"] < report["costs"]["teacher"]["parameters"]
    student = SentenceTransformer(str(out / "student-release"))
    trained = SentenceTransformer(str(out / "student" / "model"))
    np.testing.assert_array_equal(student.encode_query(TEXTS), trained.encode_query(TEXTS))
    np.testing.assert_array_equal(student.encode_query(TEXTS), student.encode_document(TEXTS))
    assert check_model(out / "student-release") is not None
    before = load_file(out / "student" / "start" / "model.safetensors")
    after = load_file(out / "student" / "model" / "model.safetensors")
    assert not torch.equal(before["embeddings.word_embeddings.weight"], after["embeddings.word_embeddings.weight"])

    first = written(out)
    run_distillation(make_recipe(loss={"matryoshka_dims": [16, 8]}), out)
    assert written(out) == first
    run_distillation(make_recipe("renamed", loss={"matryoshka_dims": [16, 8]}), out)
    second = written(out)
    assert {name for name in first if first[name] != second[name]} == {"student-report", "student-release"}
    run_distillation(make_recipe("renamed", loss={"matryoshka_dims": [16]}), out)
    third = written(out)
    assert {name for name in first if second[name] != third[name]} == {"student", "student-report", "student-release"}


def test_a_fresh_encoder_begins_as_the_weighted_mean_of_the_teachers_token_vectors(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    bert = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 32}
    students = {
        "encoder": ({"kind": "encoder", "bert": bert, "max_seq_length": 48}, {}),
        "static": ({"kind": "static", "dimensions": 30}, {"matryoshka_dims": [30, 8]}),
    }
    similarities = {}
    for name, (student, loss) in students.items():
        run_distillation(make_recipe(student=student, loss=loss), tmp_path / name)
        start = SentenceTransformer(str(tmp_path / name / "student" / "start"))
        vectors = start.encode([f"a question about thing {number} and {number * 7}" for number in range(30)])
        similarities[name] = (vectors @ vectors.T)[np.triu_indices(30, 1)]
    assert np.corrcoef(similarities["encoder"], similarities["static"])[0, 1] > 0.9
    check_card(tmp_path / "static" / "student-release", dimension=30)


def check_card(release: Path, *, dimension: int) -> None:
    """Run the code of a static student's card."""
    assert SentenceTransformer(str(release)).encode(TEXTS).shape == (3, dimension)
    card = (release / "README.md").read_text(encoding="utf-8")
    # What is folded needs other libraries; tests/publishing/test_usage.py runs it.
    card = re.sub("<details>.*?</details>", "", card, flags=re.DOTALL)
    code = "\n".join(re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL))
    code = code.replace("path/to/this/folder", str(release))
    assert "tensor([[" in forked.run("-c", code, cwd=release).stdout


def test_a_checkpoint_keeps_its_first_and_last_layers(
    make_recipe: MakeRecipe, checkpoint: Path, tmp_path: Path
) -> None:
    recipe = make_recipe(student={"kind": "encoder", "name_or_path": str(checkpoint), "layers": 2})
    run_distillation(recipe, tmp_path / "out")
    whole = AutoModel.from_pretrained(checkpoint).encoder.layer
    cut = AutoModel.from_pretrained(tmp_path / "out" / "student" / "start").encoder.layer
    assert len(cut) == 2
    for own, old in zip(cut, (whole[0], whole[3]), strict=True):
        assert torch.equal(own.output.dense.weight, old.output.dense.weight)
    assert len(AutoModel.from_pretrained(tmp_path / "out" / "student-release").encoder.layer) == 2


def with_instructions(recipe: Recipe, instructions: Instructions) -> Recipe:
    return recipe.model_copy(update={"base": recipe.base.model_copy(update={"instructions": instructions})})


@pytest.mark.parametrize(
    ("name_or_path", "asked"),
    [("trained", {"short-long", "sts", "bitext", "short-short"}), ("org/other", set(INSTRUCTIONS))],
)
def test_a_teacher_is_asked_with_the_instructions_that_it_was_trained_with(
    name_or_path: str, asked: set[str], make_recipe: MakeRecipe, texts_file: Path, tmp_path: Path
) -> None:
    section = {"teacher": {"name_or_path": name_or_path}, "student": {"kind": "static"}}
    recipe = with_instructions(make_recipe(**section, texts=[str(texts_file)]), "task_type")
    write_dataset((Row.model_validate(row) for row in example_rows()), tmp_path / "dataset", 0.1)
    rows, queries, documents = student_set(
        distillation_of(recipe), [tmp_path / "dataset"], teacher_instructions(recipe)
    )
    assert {instruction for instruction, _ in queries} <= asked
    for name, part in rows.items():
        for row in part:
            texts = [row[column] for column in ("anchor", "positive", "negative") if row.get(column) is not None]
            of_teacher = [queries[-1 - number][1] if number < 0 else documents[number] for number in row["label"]]
            assert of_teacher == texts, name


def test_a_trained_teacher_has_the_scores_of_its_own_report(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    student = {"kind": "encoder", "bert": BERT, "max_seq_length": 48, "instructions": True}
    short = TRAINING | {"max_steps": 2}
    recipe = with_instructions(make_recipe(teacher={}, student=student, training=short), "task_type")
    report = run_distillation(recipe, tmp_path / "out")
    of_teacher = json.loads((tmp_path / "out" / "evaluation" / "report.json").read_text(encoding="utf-8"))["after"]
    for key in ("retrieval_ndcg_at_10", "sts_triplet_accuracy", "bitext_accuracy"):
        assert report["scores"]["teacher"][key] == pytest.approx(of_teacher[key]), key
    released = SentenceTransformer(str(tmp_path / "out" / "student-release"))
    assert released.prompts["query"] == "Instruct: short-short\nQuery: "


def test_a_teacher_on_the_hub_has_no_size_on_disk(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"0" * 1_500_000)
    sizes = {"teacher": bytes_on_disk(Path("org/name")), "student": bytes_on_disk(tmp_path)}
    costs = {name: {"parameters": 1, "bytes_on_disk": size, "query_p50_ms": 1.0} for name, size in sizes.items()}
    assert ("MB on disk", "", "1.5") in cost_rows({"costs": costs})


def test_a_student_learns_from_what_a_longer_teacher_says_of_texts_alone(
    make_recipe: MakeRecipe, texts_file: Path, tmp_path: Path
) -> None:
    report = run_distillation(make_recipe(rows=False, texts=[str(texts_file)]), tmp_path / "out")
    assert report["costs"]["student"]["parameters"] < report["costs"]["teacher"]["parameters"]
    log = json.loads((tmp_path / "out" / "student" / "log.json").read_text(encoding="utf-8"))
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert losses[-1] < losses[0]


def test_a_distillation_killed_in_training_is_resumed_and_ends_with_the_same_student(
    make_recipe: MakeRecipe, tiny_recipe: Path, tmp_path: Path
) -> None:
    make_recipe()
    command = ["-m", "st_llm_embed.cli", "distill", tiny_recipe, "--output-dir"]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = forked.Python(*command, killed)
    state = killed / "student" / "checkpoints" / "checkpoint-2" / "trainer_state.json"
    while process.running() and not state.exists():
        os.sched_yield()
    assert process.running(), "the run ended before it could be killed"
    process.kill()
    vectors = {path.name: path.stat().st_mtime_ns for path in (killed / "teacher").iterdir()}
    assert not (killed / "student-release").exists()
    for folder in (killed, whole):
        done = forked.run(*command, folder)
        assert done.returncode == 0, done.stderr
        assert ("student: resuming" in done.stderr) == (folder == killed)
        assert "what the student keeps" in done.stdout
    assert {path.name: path.stat().st_mtime_ns for path in (killed / "teacher").iterdir()} == vectors
    got, expected = (load_file(folder / "student-release" / "model.safetensors") for folder in (killed, whole))
    assert all(torch.equal(expected[name], got[name]) for name in expected)
