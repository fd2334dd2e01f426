"""Whole distillations with real tiny models: what is written, what loads with stock libraries, what runs again."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import INSTRUCTIONS, example_rows
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.util.quantization import quantize_embeddings
from transformers import AutoModel

from st_llm_embed.data import Row, write_dataset
from st_llm_embed.distillation import distillation_of, teacher_instructions
from st_llm_embed.distillation.report import bytes_on_disk, cost_rows
from st_llm_embed.distillation.texts import student_set
from st_llm_embed.instructions import RETRIEVAL_INSTRUCTION
from st_llm_embed.publishing.publishable import check_model
from st_llm_embed.recipe import Instructions, Recipe
from st_llm_embed.student_pipeline import run_distillation
from tests.distillation.conftest import BERT, TRAINING, MakeRecipe

TEXTS = ["a question about thing 3", "", "thing " * 100]


def written(folder: Path) -> dict[str, int]:
    return {path.stem: path.stat().st_mtime_ns for path in (folder / "manifests").glob("*.json")}


def test_an_encoder_is_made_whole_and_made_again_only_where_something_changed(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    report = run_distillation(make_recipe(loss={"matryoshka_dims": [16, 8]}), out)
    for name in ("report.json", "report.md", "cost_quality.png", "index.png"):
        assert (out / "student-report" / name).stat().st_size > 0
    assert list(report["scores"]) == ["teacher", "student before training", "student"]
    assert report["scores"]["student"]["retrieval_ndcg_at_10"] == pytest.approx(report["index"][0]["ndcg_at_10"])
    assert [(row["length"], row["precision"], row["bytes_per_document"]) for row in report["index"]] == [
        (16, "float32", 64),
        (16, "int8", 16),
        (16, "binary", 2),
        (8, "float32", 32),
        (8, "int8", 8),
        (8, "binary", 1),
    ]
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
        "encoder": {"kind": "encoder", "bert": bert, "max_seq_length": 48},
        "static": {"kind": "static", "dimensions": 30},
    }
    similarities = {}
    for name, student in students.items():
        run_distillation(make_recipe(student=student), tmp_path / name)
        start = SentenceTransformer(str(tmp_path / name / "student" / "start"))
        vectors = start.encode([f"a question about thing {number} and {number * 7}" for number in range(30)])
        similarities[name] = (vectors @ vectors.T)[np.triu_indices(30, 1)]
    assert np.corrcoef(similarities["encoder"], similarities["static"])[0, 1] > 0.9


def test_a_static_query_tower_shares_the_teachers_documents(
    make_recipe: MakeRecipe, teacher: Path, texts_file: Path, tmp_path: Path
) -> None:
    recipe = make_recipe(student={"kind": "static-query"}, texts=[str(texts_file)])
    report = run_distillation(recipe, tmp_path / "out")
    release, tower = tmp_path / "out" / "student-release", tmp_path / "out" / "student-query-release"
    program = (
        "import sys, json, numpy\nfrom sentence_transformers import SentenceTransformer\n"
        "texts = json.loads(sys.argv[3])\npair, tower = map(SentenceTransformer, sys.argv[1:3])\n"
        "assert 'st_llm_embed' not in sys.modules\n"
        "numpy.savez(sys.argv[4], query=pair.encode_query(texts), document=pair.encode_document(texts), "
        "tower=tower.encode_query(texts))"
    )
    vectors = tmp_path / "vectors.npz"
    subprocess.run([sys.executable, "-c", program, release, tower, json.dumps(TEXTS), vectors], check=True)
    found = np.load(vectors)
    np.testing.assert_array_equal(found["query"], found["tower"])
    np.testing.assert_array_equal(found["document"], SentenceTransformer(str(teacher)).encode_document(TEXTS))
    assert report["costs"]["student"]["parameters"] == SentenceTransformer(str(tower))[0].embedding.weight.numel()
    check_model(tower)
    check_model(release)


def test_the_query_tower_moves_towards_the_teachers_queries(
    make_recipe: MakeRecipe, teacher: Path, tmp_path: Path
) -> None:
    recipe = make_recipe(
        student={"kind": "static-query"},
        loss={"contrastive": 0, "scores": 0, "embedding": 1},
        training=TRAINING | {"max_steps": 30, "save_steps": 30},
    )
    run_distillation(recipe, tmp_path / "out")
    anchors = [f"question {number} about thing {number % 7}" for number in range(48)]
    prompt = f"Instruct: {INSTRUCTIONS[0]}\nQuery: "
    wanted = SentenceTransformer(str(teacher)).encode(anchors, prompt=prompt, normalize_embeddings=True)
    before, after = (
        (SentenceTransformer(str(tmp_path / "out" / "student" / name)).encode_query(anchors) * wanted).sum(axis=1)
        for name in ("start", "model")
    )
    assert 1 - after.mean() < (1 - before.mean()) / 2


def test_a_static_student_has_the_length_asked_for_and_its_card_runs(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe(student={"kind": "static", "dimensions": 16}, loss={"matryoshka_dims": [16, 8]})
    run_distillation(recipe, tmp_path / "out")
    release = tmp_path / "out" / "student-release"
    assert SentenceTransformer(str(release)).encode(TEXTS).shape == (3, 16)
    card = (release / "README.md").read_text(encoding="utf-8")
    # What is folded needs other libraries; tests/publishing/test_usage.py runs it.
    card = re.sub("<details>.*?</details>", "", card, flags=re.DOTALL)
    code = "\n".join(re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL))
    code = code.replace("path/to/this/folder", str(release)).replace(
        "import json\n", "import json\nvectors = documents\n"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code + "\nprint(small.dtype)"], check=True, capture_output=True, text=True, cwd=release
    ).stdout
    assert "tensor([[" in printed
    assert "int8" in printed


def test_int8_with_the_shipped_ranges_is_the_same_alone_and_in_company(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    run_distillation(make_recipe(student={"kind": "static"}), tmp_path / "out")
    release = tmp_path / "out" / "student-release"
    ranges = np.array(json.loads((release / "int8_ranges.json").read_text(encoding="utf-8"))["32"], dtype=np.float32)
    vectors = SentenceTransformer(str(release)).encode([f"thing {number}" for number in range(20)])
    together = quantize_embeddings(vectors, "int8", ranges=ranges)
    np.testing.assert_array_equal(together[:1], quantize_embeddings(vectors[:1], "int8", ranges=ranges))
    assert len(np.unique(together)) > 50


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
    section = {"teacher": {"name_or_path": name_or_path}, "student": {"kind": "static-query"}}
    recipe = with_instructions(make_recipe(**section, texts=[str(texts_file)]), "task_type")
    write_dataset((Row.model_validate(row) for row in example_rows()), tmp_path / "dataset", 0.1)
    _, texts = student_set(distillation_of(recipe), [tmp_path / "dataset"], teacher_instructions(recipe))
    of_rows = {instruction for instruction, anchor in texts.queries if anchor.startswith("question")}
    [of_texts] = {instruction for instruction, anchor in texts.queries if anchor.startswith("a text")}
    assert of_rows <= asked
    assert of_texts == ("short-long" if name_or_path == "trained" else RETRIEVAL_INSTRUCTION)


def test_a_trained_teacher_has_the_scores_of_its_own_report(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    student = {"kind": "encoder", "bert": BERT, "max_seq_length": 48, "instructions": True}
    short = TRAINING | {"max_steps": 2}
    recipe = with_instructions(make_recipe(teacher={}, student=student, training=short), "task_type")
    report = run_distillation(recipe, tmp_path / "out")
    of_teacher = json.loads((tmp_path / "out" / "evaluation" / "report.json").read_text(encoding="utf-8"))["after"]
    for key in ("retrieval_ndcg_at_10", "sts_triplet_accuracy", "bitext_accuracy"):
        assert report["scores"]["teacher"][key] == pytest.approx(of_teacher[key]), key
    released = SentenceTransformer(str(tmp_path / "out" / "student-release"))
    assert released.prompts["query"] == "Instruct: short-long\nQuery: "


def test_a_teacher_on_the_hub_has_no_size_on_disk(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"0" * 1_500_000)
    sizes = {"teacher": bytes_on_disk(Path("org/name")), "student": bytes_on_disk(tmp_path)}
    costs = {name: {"parameters": 1, "bytes_on_disk": size} for name, size in sizes.items()}
    speed = {name: {"query_p50_ms": 1.0, "query_p95_ms": 1.0, "documents_per_second": 1.0} for name in costs}
    assert ("MB on disk", "", "1.5") in cost_rows({"costs": costs, "speed": speed})


@pytest.mark.parametrize("rows", [True, False])
def test_a_student_without_a_teacher_learns_from_rows_or_from_texts_alone(
    rows: bool, make_recipe: MakeRecipe, texts_file: Path, tiny_base: Path, tmp_path: Path
) -> None:
    recipe = make_recipe(
        teacher=None,
        student={"kind": "encoder", "bert": BERT, "tokenizer": str(tiny_base)},
        rows=rows,
        texts=[] if rows else [str(texts_file)],
    )
    report = run_distillation(recipe, tmp_path / "out")
    assert "teacher" not in report["scores"]
    assert not (tmp_path / "out" / "teacher").exists()
    losses = [
        entry["loss"] for entry in json.loads((tmp_path / "out/student/log.json").read_text()) if "loss" in entry
    ]
    assert losses[-1] < losses[0]


def test_a_student_learns_from_what_a_longer_teacher_says_of_texts_alone(
    make_recipe: MakeRecipe, texts_file: Path, tmp_path: Path
) -> None:
    report = run_distillation(make_recipe(rows=False, texts=[str(texts_file)]), tmp_path / "out")
    assert report["index"][0]["length"] == BERT["hidden_size"] < 32
    log = json.loads((tmp_path / "out" / "student" / "log.json").read_text(encoding="utf-8"))
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert losses[-1] < losses[0]


def test_a_distillation_killed_in_training_goes_on_and_ends_with_the_same_student(
    make_recipe: MakeRecipe, tiny_recipe: Path, tmp_path: Path
) -> None:
    make_recipe()
    command = [sys.executable, "-m", "st_llm_embed.cli", "distill", str(tiny_recipe), "--output-dir"]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = subprocess.Popen([*command, killed], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while (
        process.poll() is None
        and not (killed / "student" / "checkpoints" / "checkpoint-2" / "trainer_state.json").exists()
    ):
        os.sched_yield()
    assert process.poll() is None, "the run ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()
    vectors = {path.name: path.stat().st_mtime_ns for path in (killed / "teacher").iterdir()}
    assert not (killed / "student-release").exists()
    for folder in (killed, whole):
        done = subprocess.run([*command, folder], check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert ("student: resuming" in done.stderr) == (folder == killed)
        assert "what the student keeps" in done.stdout
    assert {path.name: path.stat().st_mtime_ns for path in (killed / "teacher").iterdir()} == vectors
    got, expected = (load_file(folder / "student-release" / "model.safetensors") for folder in (killed, whole))
    assert all(torch.equal(expected[name], got[name]) for name in expected)
