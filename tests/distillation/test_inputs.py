"""What cannot be distilled is refused in one paragraph, before anything is written."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from transformers import AlbertConfig, BertConfig, MPNetConfig, PretrainedConfig, T5Config, XLMRobertaConfig

from st_llm_embed import InputError
from st_llm_embed.pipeline import check_student_inputs, run_distillation
from tests.distillation.conftest import BERT, TRAINING, MakeRecipe

ENCODER = {"kind": "encoder", "bert": BERT}


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"student": {"kind": "encoder"}}, "either name_or_path, a checkpoint, or bert"),
        ({"student": {"kind": "static", "layers": 2}}, "layers is for kind encoder"),
        ({"student": ENCODER | {"layers": 1}}, "layers is for a checkpoint"),
        ({"rows": False}, "rows is false and there are no texts"),
        ({"student": {"kind": "encoder", "bert": {"hidden_sizes": 8}}}, "hidden_sizes is not an argument"),
        ({"student": {"kind": "encoder", "bert": BERT | {"num_attention_heads": 3}}}, "bert is refused"),
        ({"student": {"kind": "encoder", "bert": BERT | {"num_hidden_layers": 0}}}, "num_hidden_layers has to be 1"),
        ({"student": {"kind": "encoder", "bert": BERT | {"hidden_size": 2}}}, "hidden_size 8 or more"),
        (
            {"student": {"kind": "encoder", "bert": BERT | {"max_position_embeddings": 32}, "max_seq_length": 48}},
            "max_seq_length is 48, and distillation.student.bert has 32 positions",
        ),
        ({"teacher": {"name_or_path": "nowhere"}}, "no modules.json|cannot be loaded"),
        ({"student": {"kind": "encoder", "name_or_path": "nowhere"}}, "The student 'nowhere' cannot be loaded"),
        ({"texts": ["nowhere.txt"]}, "nowhere.txt cannot be read"),
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
    section: dict[str, Any], message: str, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message) as error:
        check_student_inputs(make_recipe(**section))
    assert len(str(error.value).splitlines()) == 1
    with pytest.raises(InputError, match=message):
        run_distillation(make_recipe(**section), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_decoder_is_not_a_student(make_recipe: MakeRecipe, tiny_base: Path) -> None:
    with pytest.raises(InputError, match="a decoder"):
        check_student_inputs(make_recipe(student={"kind": "encoder", "name_or_path": str(tiny_base)}))


def test_more_layers_than_there_are_cannot_be_kept(make_recipe: MakeRecipe, checkpoint: Path) -> None:
    with pytest.raises(InputError, match=r"layers is 5, and .* has 4 layers"):
        check_student_inputs(make_recipe(student={"kind": "encoder", "name_or_path": str(checkpoint), "layers": 5}))


@pytest.mark.parametrize(
    ("config", "positions"),
    [
        (BertConfig(**BERT, max_position_embeddings=64), 64),
        (XLMRobertaConfig(**BERT, max_position_embeddings=66, pad_token_id=1), 64),
        (MPNetConfig(**BERT, max_position_embeddings=66), 64),
    ],
    ids=["bert", "xlm-roberta", "mpnet"],
)
def test_texts_are_no_longer_than_an_encoders_positions(
    config: PretrainedConfig, positions: int, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    config.save_pretrained(tmp_path / "encoder")
    student = {"kind": "encoder", "name_or_path": str(tmp_path / "encoder")}
    check_student_inputs(make_recipe(student=student | {"max_seq_length": positions}))
    with pytest.raises(InputError, match=f"max_seq_length is {positions + 1}, and .* has {positions} positions"):
        check_student_inputs(make_recipe(student=student | {"max_seq_length": positions + 1}))


def test_encoders_without_a_table_of_positions_take_longer_texts(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2).save_pretrained(tmp_path / "t5")
    student = {"kind": "encoder", "name_or_path": str(tmp_path / "t5"), "layers": 1, "max_seq_length": 5_000}
    check_student_inputs(make_recipe(student=student))


def test_shared_layers_cannot_be_chosen_from(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    AlbertConfig(**BERT | {"num_hidden_layers": 4}, embedding_size=8).save_pretrained(tmp_path / "albert")
    student = {"kind": "encoder", "name_or_path": str(tmp_path / "albert")}
    check_student_inputs(make_recipe(student=student))
    with pytest.raises(InputError, match=r"'albert' has one layer, used again. Omit it"):
        check_student_inputs(make_recipe(student=student | {"layers": 2}))


@pytest.mark.parametrize(
    ("student", "dims", "message"),
    [
        ({"kind": "static", "dimensions": 64}, [], "have 64 dimensions and the teacher's 32"),
        ({"kind": "encoder", "bert": BERT | {"hidden_size": 64}}, [], "have 64 dimensions and the teacher's 32"),
        (ENCODER, [1000, 8], r"\[1000, 8\], and .* have 16 dimensions"),
        ({"kind": "static", "dimensions": 24}, [32, 8], r"\[32, 8\], and .* have 24 dimensions"),
    ],
)
def test_dimensions_that_do_not_fit_are_refused_before_training(
    student: dict[str, Any], dims: list[int], message: str, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        run_distillation(make_recipe(student=student, loss={"matryoshka_dims": dims}), tmp_path / "out")
    assert not (tmp_path / "out" / "student" / "start").exists()


@pytest.mark.parametrize(
    ("content", "message"), [("", "holds no texts"), ('{"text": 3}\n', "line 1: text is 3"), ("[\n", "is not JSON")]
)
def test_a_file_of_texts_that_holds_none_is_named(
    content: str, message: str, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        check_student_inputs(make_recipe(texts=[str(path)]))
