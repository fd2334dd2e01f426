"""What cannot be distilled is refused in one paragraph, before anything is written."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from st_llm_embed import InputError
from st_llm_embed.student_pipeline import check_student_inputs, run_distillation
from tests.distillation.conftest import BERT, TRAINING, MakeRecipe

ENCODER = {"kind": "encoder", "bert": BERT}


@pytest.mark.parametrize(
    ("section", "told"),
    [
        ({"student": {"kind": "encoder"}}, "either name_or_path, a checkpoint, or bert"),
        ({"student": {"kind": "static", "layers": 2}}, "layers is for kind encoder"),
        ({"student": {"kind": "static-query", "dimensions": 16}}, "as long as the teacher's"),
        ({"student": ENCODER | {"layers": 1}}, "layers is for a checkpoint"),
        ({"teacher": None, "student": {"kind": "static-query"}}, "embeds documents with the teacher"),
        ({"teacher": None}, "student.tokenizer has to name"),
        (
            {"teacher": None, "student": {"kind": "static", "tokenizer": "embedded"}},
            "student.dimensions has to say how long",
        ),
        ({"rows": False}, "rows is false and there are no texts"),
        ({"student": {"kind": "encoder", "bert": {"hidden_sizes": 8}}}, "hidden_sizes is no argument"),
        ({"student": {"kind": "encoder", "bert": BERT | {"num_attention_heads": 3}}}, "bert is refused"),
        ({"teacher": {"name_or_path": "nowhere"}}, "no modules.json|cannot be loaded"),
        ({"student": {"kind": "encoder", "name_or_path": "nowhere"}}, "The student 'nowhere' cannot be loaded"),
        ({"texts": ["nowhere.txt"]}, "which is no .txt or .jsonl file"),
        ({"training": TRAINING | {"learning_rates": 1}}, "did you mean learning_rate"),
        pytest.param(
            {"training": TRAINING | {"report_to": "wandb"}},
            "distillation.training.report_to names wandb, which is not installed",
            marks=pytest.mark.skipif(find_spec("wandb") is not None, reason="wandb is installed"),
        ),
        ({"training": TRAINING | {"per_device_train_batch_size": 0}}, "per_device_train_batch_size is 0"),
        ({"training": TRAINING | {"eval_strategy": "steps", "eval_steps": 2}}, "scores on the way"),
    ],
)
def test_what_cannot_be_used_is_named(
    section: dict[str, Any], told: str, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=told) as error:
        check_student_inputs(make_recipe(**section))
    assert len(str(error.value).splitlines()) == 1
    with pytest.raises(InputError, match=told):
        run_distillation(make_recipe(**section), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_decoder_is_no_student(make_recipe: MakeRecipe, tiny_base: Path) -> None:
    with pytest.raises(InputError, match="a decoder"):
        check_student_inputs(make_recipe(student={"kind": "encoder", "name_or_path": str(tiny_base)}))


def test_more_layers_than_there_are_cannot_be_kept(make_recipe: MakeRecipe, checkpoint: Path) -> None:
    with pytest.raises(InputError, match=r"layers is 5, and .* has 4 layers"):
        check_student_inputs(make_recipe(student={"kind": "encoder", "name_or_path": str(checkpoint), "layers": 5}))


def test_a_student_longer_than_the_teacher_cannot_learn_its_vectors(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = make_recipe(student={"kind": "encoder", "bert": BERT | {"hidden_size": 64}})
    with pytest.raises(InputError, match="have 64 dimensions and the teacher's 32"):
        run_distillation(recipe, tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "told"), [("", "holds no texts"), ('{"text": 3}\n', "line 1 holds no text"), ("[\n", "is not JSON")]
)
def test_a_file_of_texts_that_holds_none_is_named(
    content: str, told: str, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=told):
        check_student_inputs(make_recipe(texts=[str(path)]))
