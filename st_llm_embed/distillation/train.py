"""Training a student with the stock trainer, from its last complete checkpoint if there is one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator
from transformers import PreTrainedTokenizerBase
from transformers.trainer_utils import IntervalStrategy

from st_llm_embed.distillation.loss import student_loss
from st_llm_embed.distillation.precision import RANGES_FILE, int8_ranges
from st_llm_embed.distillation.student import (
    build_student,
    check_student,
    known_dimensions,
    student_tokenizer,
)
from st_llm_embed.distillation.teacher import (
    TeacherVectors,
    check_teacher,
    load_teacher,
    teacher_vectors,
    token_vectors,
)
from st_llm_embed.distillation.texts import UNLABELLED, check_texts, student_set
from st_llm_embed.errors import InputError
from st_llm_embed.recipe import TRAINED, Distillation, Instructions, Recipe
from st_llm_embed.training import training_arguments
from st_llm_embed.training.batches import SetSamplerEpoch
from st_llm_embed.training.reporting import check_reporting, reporting_into
from st_llm_embed.training.train import last_complete_checkpoint
from st_llm_embed.training.trainer import EmbedderTrainer

CALIBRATION_TEXTS = 10_000
"""Most documents whose vectors say how far each dimension goes."""


class StudentTrainer(EmbedderTrainer):
    """Trains on texts as they are: the student's instructions, if it has any, stand before its queries already."""

    data_collator_class = SentenceTransformerDataCollator


def distillation_of(recipe: Recipe) -> Distillation:
    """Give a recipe's section.

    Raises:
        InputError: it has none.
    """
    if recipe.distillation is None:
        raise InputError(
            f"Recipe {recipe.name} has no section distillation. Take one from a shipped recipe: st-llm-embed recipes "
            "show demo-distill."
        )
    return recipe.distillation


def teacher_instructions(recipe: Recipe) -> Instructions:
    """Give what a recipe has before queries: of a teacher that it trains, what that was trained with."""
    teacher = distillation_of(recipe).teacher
    return recipe.base.instructions if teacher is not None and teacher.name_or_path == TRAINED else "natural"


def check_distillation(recipe: Recipe) -> None:
    """Check in seconds what a distillation needs, before anything is written.

    Raises:
        InputError: teacher, student, texts or the training section cannot be used.
    """
    distillation = distillation_of(recipe)
    if distillation.teacher is not None:
        check_teacher(distillation.teacher)
    check_student(distillation.student)
    if (own := known_dimensions(distillation.student)) is not None:
        _check_matryoshka(distillation, own)
    check_texts(distillation)
    _arguments(recipe, Path("checkpoints"))


def train_student(
    recipe: Recipe, dataset_dirs: Sequence[Path], teacher: tuple[str, str] | None, vectors_dir: Path, output_dir: Path
) -> None:
    """Train the recipe's student and save it.

    Writes ``start/`` (the student before training), ``checkpoints/`` on the way, and at the end ``log.json``, the
    ranges for int8 vectors, and ``model/``; ``logs/`` where TensorBoard or W&B is asked for.

    Args:
        recipe: all choices.
        dataset_dirs: folders of the rows to train on.
        teacher: where it is and what names its weights; None where the recipe has none.
        vectors_dir: keeps the teacher's vectors.
        output_dir: what an earlier, killed call left there is gone on with.

    Raises:
        InputError: teacher, student or rows cannot be used, or the student's vectors are not finite.
    """
    distillation = distillation_of(recipe)
    instructions = teacher_instructions(recipe)
    rows, texts = student_set(distillation, dataset_dirs, instructions)
    vectors, start, tokenizer = None, None, None
    if teacher is not None and distillation.teacher is not None:
        section, (path, identity) = distillation.teacher, teacher
        embedder = load_teacher(section, path)
        tokenizer = embedder.tokenizer
        vectors = teacher_vectors(embedder, section, identity, texts, vectors_dir)

        def start(tokenizer: PreTrainedTokenizerBase, dimension: int | None) -> NDArray[np.float32]:
            found = token_vectors(embedder, section, identity, tokenizer, vectors_dir)
            return _reduced(found, vectors, dimension)

    model = build_student(
        distillation.student,
        student_tokenizer(distillation.student, tokenizer),
        start,
        (*texts.documents, *(anchor for _, anchor in texts.queries)),
        teacher_dimension=None if vectors is None else vectors.dimension,
        instructions=instructions,
        seed=recipe.seed,
    )
    _check_lengths(distillation, model, vectors)
    arguments = _arguments(recipe, output_dir / "checkpoints")
    model.save_pretrained(str(output_dir / "start"), create_model_card=False)
    losses = {
        name: student_loss(
            model, distillation.loss, vectors, contrastive=str(name) != UNLABELLED or distillation.teacher is None
        )
        for name in rows
    }
    with reporting_into(output_dir / "logs", arguments):
        trainer = StudentTrainer(
            model=model, args=arguments, train_dataset=rows, loss=losses, callbacks=[SetSamplerEpoch()]
        )
        checkpoint = last_complete_checkpoint(output_dir / "checkpoints")
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    (output_dir / "log.json").write_text(json.dumps(trainer.state.log_history, indent=1), encoding="utf-8")
    documents = texts.documents[:CALIBRATION_TEXTS]
    if distillation.student.kind == "static-query" and vectors is not None:
        encoded = np.asarray(vectors.documents[: len(documents)])
    else:
        encoded = model.encode_document(documents, batch_size=64, normalize_embeddings=True)
    if not np.isfinite(encoded).all():
        raise InputError(
            "The student gives vectors with numbers that are not finite: its training has diverged. Lower "
            "distillation.training.learning_rate and train again."
        )
    lengths = distillation.loss.matryoshka_dims or (encoded.shape[1],)
    (output_dir / RANGES_FILE).write_text(json.dumps(int8_ranges(encoded, lengths)), encoding="utf-8")
    model.save_pretrained(str(output_dir / "model"), create_model_card=False)


def _arguments(recipe: Recipe, folder: Path) -> SentenceTransformerTrainingArguments:
    """Build the trainer's arguments from ``distillation.training``."""
    own = recipe.model_copy(
        # The name is seen in messages alone.
        update={"name": f"{recipe.name}, distillation", "training": distillation_of(recipe).training, "batches": None}
    )
    arguments = training_arguments(own, folder)
    if arguments.eval_strategy != IntervalStrategy.NO or arguments.load_best_model_at_end:
        raise InputError(
            f"Recipe {recipe.name}: distillation.training asks for scores on the way, which a student's training has "
            "none of. Take eval_strategy and load_best_model_at_end out; the report scores the student at the end."
        )
    if arguments.world_size > 1:
        raise InputError(
            f"A student is trained by one process, and this is one of {arguments.world_size}. Run st-llm-embed "
            "distill without torchrun."
        )
    check_reporting(arguments, "distillation.training")
    return arguments


def _check_lengths(distillation: Distillation, model: SentenceTransformer, vectors: TeacherVectors | None) -> None:
    own, asked = int(model.get_embedding_dimension() or 0), distillation.student.dimensions
    if vectors is not None and asked is not None and own < asked:
        raise InputError(
            f"distillation.student.dimensions is {asked}, and the teacher's vectors, which those of a static student "
            f"are made of, have {vectors.dimension}. Set it to {vectors.dimension} or less, or leave it out."
        )
    if vectors is not None and distillation.loss.embedding and own > vectors.dimension:
        raise InputError(
            f"The student's vectors have {own} dimensions and the teacher's {vectors.dimension}, so that the student "
            f"cannot learn them as they are. Set distillation.student.dimensions to {vectors.dimension} or less, or "
            "distillation.loss.embedding to 0."
        )
    _check_matryoshka(distillation, own)


def _check_matryoshka(distillation: Distillation, own: int) -> None:
    if distillation.loss.matryoshka_dims and max(distillation.loss.matryoshka_dims) != own:
        raise InputError(
            f"distillation.loss.matryoshka_dims is {list(distillation.loss.matryoshka_dims)}, and the student's "
            f"vectors have {own} dimensions. The largest has to be that, so that whole vectors are trained, too."
        )


def _reduced(found: NDArray[np.float32], vectors: TeacherVectors | None, dimension: int | None) -> NDArray[np.float32]:
    """Give vectors on the axes that the student's targets have; as they are where it has as many dimensions."""
    if vectors is None or dimension is None or dimension >= vectors.dimension:
        return np.asarray(found)
    return np.asarray(found) @ vectors.principal_axes(dimension).numpy()
