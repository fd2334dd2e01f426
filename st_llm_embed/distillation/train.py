"""Training a student: its texts, the teacher's vectors of them, the loss, and the stock trainer."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainingArguments
from sentence_transformers.base.losses.merged_forward import embed_columns
from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator
from sentence_transformers.sentence_transformer.losses import EmbedDistillLoss, MatryoshkaLoss
from sentence_transformers.util import load_file_path
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax, normalize
from transformers import PreTrainedTokenizerBase
from transformers.trainer_utils import IntervalStrategy

from st_llm_embed.data.dataset import negative_columns
from st_llm_embed.data.files import read_texts
from st_llm_embed.data.vectors import VectorFolder, encoder_with_prompts
from st_llm_embed.distillation.student import build_student, check_student
from st_llm_embed.errors import InputError, explained, shown
from st_llm_embed.instructions import format_query
from st_llm_embed.modules.model import LLMSentenceTransformer
from st_llm_embed.recipe import TRAINED, Distillation, DistillationLoss, Instructions, Recipe
from st_llm_embed.training.arguments import training_arguments
from st_llm_embed.training.batches import SetSamplerEpoch
from st_llm_embed.training.interrupt import train_from
from st_llm_embed.training.loss import known_positives
from st_llm_embed.training.reporting import check_reporting, reporting_into
from st_llm_embed.training.train import last_complete_checkpoint, training_set
from st_llm_embed.training.trainer import EmbedderTrainer

UNLABELLED = "texts"
"""Name of the subset of unlabelled texts, beside those of the rows."""

AXES_FROM = 20_000
"""Most vectors of queries, and of documents, that the principal axes are computed from."""

TEACHER_ADVICE = (
    f"Give {TRAINED!r}, what this recipe trains, or the Hub id or folder of a sentence-transformers model."
)


class StudentTrainer(EmbedderTrainer):
    """Trains on texts as they are: the student's instructions, if it has any, are already in its queries."""

    data_collator_class = SentenceTransformerDataCollator


class TeacherVectors(NamedTuple):
    """The teacher's vectors, of unit length; documents are numbered from 0 up, queries from -1 down."""

    queries: NDArray[np.float32]
    """Shape (queries, dimension)."""
    documents: NDArray[np.float32]
    """Shape (documents, dimension)."""

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return max(self.queries.shape[1], self.documents.shape[1])

    def of(self, numbers: Tensor) -> Tensor:
        """Return the vectors of texts by their numbers, shape (*shape of numbers, dimension), on their device."""
        wanted = numbers.cpu().numpy()
        found = np.empty((*wanted.shape, self.dimension), dtype=np.float32)
        is_query = wanted < 0
        found[is_query] = self.queries[-1 - wanted[is_query]]
        found[~is_query] = self.documents[wanted[~is_query]]
        return torch.from_numpy(found).to(numbers.device)

    def principal_axes(self, dimension: int) -> Tensor:
        """Return the axes that keep most of the dot products, largest first; shape (own dimension, dimension)."""
        # Without rows there are no queries, and their array has no columns.
        parts = [part[:AXES_FROM] for part in (self.queries, self.documents) if len(part)]
        some = np.concatenate(parts).astype(np.float64)
        _, axes = np.linalg.eigh(some.T @ some)
        return torch.from_numpy(np.ascontiguousarray(axes[:, ::-1][:, :dimension], dtype=np.float32))

    def on_axes(self, vectors: NDArray[np.float32], dimension: int | None) -> NDArray[np.float32]:
        """Return other vectors of the teacher on its first axes; as they are where that makes them no shorter."""
        shortens = dimension is not None and dimension < self.dimension
        return vectors @ self.principal_axes(dimension).numpy() if shortens else vectors


class StudentLoss(nn.Module):
    """Weighted sum of three parts, for students of whole rows and of unlabelled texts.

    - InfoNCE over the documents of the batch, false negatives masked (`known_positives`).
    - Kullback-Leibler divergence of the student's from the teacher's softmax over documents, as in
      sentence-transformers' DistillKLDivLoss, but over all documents of the batch: a row has one or two of its own,
      and over one document there is nothing to learn.
    - 1 - cosine similarity with the teacher's vectors (sentence-transformers' EmbedDistillLoss), at full length.

    Without `contrastive` a text's first document is not its positive, and the first part is omitted.
    """

    def __init__(
        self, model: SentenceTransformer, weights: DistillationLoss, teacher: TeacherVectors, *, contrastive: bool
    ) -> None:
        super().__init__()
        self.model, self.weights, self.teacher = model, weights, teacher
        self.contrastive = contrastive
        self.embedding = EmbedDistillLoss(model, distance_metric="cosine")
        self.dimension = int(model.get_embedding_dimension() or 0)
        self.axes: Tensor | None = None
        if weights.embedding and self.dimension < teacher.dimension:
            self.axes = teacher.principal_axes(self.dimension)

    def forward(self, sentence_features: Iterable[dict[str, Any]], labels: Tensor) -> Tensor:
        """Compute the loss of a batch of columns; `labels` are the numbers of its texts, shape (batch, columns)."""
        columns = [normalize(column.float(), dim=-1) for column in embed_columns(self.model, sentence_features)]
        targets = self.teacher.of(labels).to(columns[0].device)
        total = columns[0].new_zeros(())
        if self.contrastive and self.weights.contrastive:
            # Equal to InfoNCELoss, one of sentence-transformers' cached losses, which refuse static models.
            rows = torch.arange(len(labels), device=labels.device)
            _, not_negative = known_positives(labels, rows)
            logits = _scores(columns) / self.weights.temperature
            total = total + self.weights.contrastive * cross_entropy(
                logits.masked_fill(not_negative, -torch.inf), rows
            )
        if self.weights.scores:
            own, wanted = (
                log_softmax(_scores(texts) / self.weights.temperature, dim=1)
                for texts in (columns, list(targets.unbind(dim=1)))
            )
            divergence = kl_div(own, wanted, reduction="batchmean", log_target=True)
            total = total + self.weights.scores * divergence
        # Not for the shorter vectors of Matryoshka.
        if self.weights.embedding and columns[0].shape[1] == self.dimension:
            targets = targets if self.axes is None else targets @ self.axes.to(targets.device)
            vectors = self.embedding.compute_loss_from_embeddings(columns, list(targets.unbind(dim=1)))
            total = total + self.weights.embedding * vectors
        return total


def _scores(columns: list[Tensor]) -> Tensor:
    """Return similarities of the first column with all others; without others, of its texts with each other."""
    if len(columns) > 1:
        return columns[0] @ torch.cat(columns[1:]).T
    similarity = columns[0] @ columns[0].T
    others = ~torch.eye(len(similarity), dtype=torch.bool, device=similarity.device)
    return similarity[others].view(len(similarity), len(similarity) - 1)


def student_loss(
    model: SentenceTransformer, weights: DistillationLoss, teacher: TeacherVectors, *, contrastive: bool
) -> nn.Module:
    """Build the loss, over several lengths of the vectors where the recipe says so; arguments as in `StudentLoss`."""
    loss = StudentLoss(model, weights, teacher, contrastive=contrastive)
    return MatryoshkaLoss(model, loss, list(weights.matryoshka_dims)) if weights.matryoshka_dims else loss


def distillation_of(recipe: Recipe) -> Distillation:
    """Return a recipe's section, which only a recipe for `distill` has."""
    if recipe.distillation is None:
        raise InputError(
            f"Recipe {recipe.name} has no section distillation. See one with: st-llm-embed recipes show demo-distill"
        )
    return recipe.distillation


def teacher_instructions(recipe: Recipe) -> Instructions:
    """Return what a recipe has before queries: of a teacher that it trains, what that was trained with."""
    trained = distillation_of(recipe).teacher.name_or_path == TRAINED
    return recipe.base.instructions if trained else "natural"


def check_distillation(recipe: Recipe) -> None:
    """Check in seconds what a distillation needs, before anything is written.

    Raises:
        InputError: teacher, student, texts or the training section cannot be used.
    """
    distillation = distillation_of(recipe)
    teacher = distillation.teacher
    if teacher.name_or_path != TRAINED:
        name = shown(teacher.name_or_path)
        with explained(f"The teacher {name} cannot be loaded", TEACHER_ADVICE):
            found = load_file_path(teacher.name_or_path, "modules.json", revision=teacher.revision)
        if not found:
            raise InputError(f"The teacher {name} has no modules.json. {TEACHER_ADVICE}")
    check_student(distillation.student)
    for path in map(Path, distillation.texts):
        if next(read_texts(path), None) is None:
            raise InputError(f"{path} of distillation.texts holds no texts. Give a file with one text a line.")
    _arguments(recipe, Path("checkpoints"))


def student_set(
    distillation: Distillation, dataset_dirs: Sequence[Path], instructions: Instructions
) -> tuple[DatasetDict, list[tuple[str, str]], list[str]]:
    """Make the training set of a student out of the rows in `dataset_dirs` and the files of texts.

    Returns:
        The rows by subset, with a column `label`: the numbers of each row's texts, as in `TeacherVectors`; instruction
        and anchor of each distinct query; each distinct document.
    """
    queries: dict[tuple[str, str], int] = {}
    documents: dict[str, int] = {}
    parts = DatasetDict()
    rows = training_set(dataset_dirs, instructions=instructions) if distillation.rows else DatasetDict()
    for name, part in rows.items():
        names = ["positive", *negative_columns(part.column_names)]
        columns: dict[str, list[Any]] = {column: [] for column in ("anchor", *names, "label")}
        for row in part:
            given = format_query(row["instruction"], row["anchor"])
            columns["anchor"].append(given if distillation.student.instructions else row["anchor"])
            label = [queries.setdefault((row["instruction"], row["anchor"]), -1 - len(queries))]
            for column in names:
                columns[column].append(row[column])
                label.append(documents.setdefault(row[column], len(documents)))
            columns["label"].append(label)
        parts[str(name)] = Dataset.from_dict(columns)
    if distillation.texts:
        # Repeated texts would be each other's negatives.
        texts = list(dict.fromkeys(text for name in distillation.texts for text in read_texts(Path(name))))
        labels = [[documents.setdefault(text, len(documents))] for text in texts]
        parts[UNLABELLED] = Dataset.from_dict({"anchor": texts, "label": labels})
    return parts, list(queries), list(documents)


def _teach(
    recipe: Recipe, teacher: tuple[str, str], queries: list[tuple[str, str]], documents: list[str], folder: Path
) -> tuple[TeacherVectors, PreTrainedTokenizerBase, NDArray[np.float32]]:
    """Return the teacher's vectors of texts, its tokenizer, and its vectors of the tokens, shape (tokens, dimension).

    Vectors are computed as far as they are not on disk; a student that starts from a checkpoint needs none of tokens.
    """
    section, student = distillation_of(recipe).teacher, distillation_of(recipe).student
    path, identity = teacher
    with explained(f"The teacher {path!r} cannot be loaded", TEACHER_ADVICE):
        embedder = LLMSentenceTransformer(path, revision=section.revision)
    encoder = f"{identity}\n{section.query_prompt!r}\n{section.document_prompt!r}"
    vectors = VectorFolder(folder, encoder_with_prompts(embedder, section), encoder, np.dtype(np.float32))
    of_queries = vectors.encoded(
        len(queries), lambda n: queries[n][1], lambda n: queries[n][0], "teacher's vectors of the queries"
    )
    of_documents = vectors.encoded(len(documents), documents.__getitem__, None, "teacher's vectors of the documents")
    tokenizer = embedder.tokenizer
    tokens: list[str] = []
    if student.name_or_path is None:
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        tokens = [str(tokenizer.decode([number])).strip() or " " for number in range(len(tokenizer))]
    of_tokens = vectors.encoded(len(tokens), tokens.__getitem__, None, "teacher's vectors of the tokens")
    return TeacherVectors(of_queries, of_documents), tokenizer, of_tokens


def train_student(
    recipe: Recipe, dataset_dirs: Sequence[Path], teacher: tuple[str, str], vectors_dir: Path, output_dir: Path
) -> None:
    """Train the recipe's student and save it.

    Writes ``start/`` (the student before training), ``checkpoints/`` on the way, and at the end ``log.json`` and
    ``model/``; ``logs/`` where TensorBoard or W&B is asked for. An interrupted run in `output_dir` is resumed.
    `teacher` is where it is and what identifies its weights; its vectors are kept in `vectors_dir`.

    Raises:
        InputError: teacher, student or rows cannot be used, or the training diverged.
    """
    distillation = distillation_of(recipe)
    instructions = teacher_instructions(recipe)
    rows, queries, documents = student_set(distillation, dataset_dirs, instructions)
    vectors, tokenizer, token_vectors = _teach(recipe, teacher, queries, documents, vectors_dir)
    gc.collect()  # frees the teacher: a SentenceTransformer and its card refer to each other
    model = build_student(
        distillation.student,
        tokenizer,
        lambda dimension: vectors.on_axes(token_vectors, dimension),
        (*documents, *(anchor for _, anchor in queries)),
        instructions=instructions,
        seed=recipe.seed,
    )
    _check_dimensions(distillation, int(model.get_embedding_dimension() or 0), vectors.dimension)
    arguments = _arguments(recipe, output_dir / "checkpoints")
    model.save_pretrained(str(output_dir / "start"), create_model_card=False)
    losses = {
        name: student_loss(model, distillation.loss, vectors, contrastive=str(name) != UNLABELLED) for name in rows
    }
    with reporting_into(output_dir / "logs", arguments):
        trainer = StudentTrainer(
            model=model, args=arguments, train_dataset=rows, loss=losses, callbacks=[SetSamplerEpoch()]
        )
        train_from(trainer, last_complete_checkpoint(output_dir / "checkpoints"))
    (output_dir / "log.json").write_text(json.dumps(trainer.state.log_history, indent=1), encoding="utf-8")
    if not all(torch.isfinite(weights).all() for weights in model.parameters()):
        raise InputError("The student's training has diverged. Lower distillation.training.learning_rate.")
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
            f"Recipe {recipe.name}: distillation.training asks for scores on the way; a student is scored at the end. "
            "Omit eval_strategy and load_best_model_at_end."
        )
    if arguments.world_size > 1:
        raise InputError("A student is trained by one process. Run st-llm-embed distill without torchrun.")
    check_reporting(arguments, "distillation.training")
    return arguments


def _check_dimensions(distillation: Distillation, own: int, teachers: int) -> None:
    student = distillation.student
    wanted = student.dimensions or own
    if wanted > teachers and (student.kind == "static" or distillation.loss.embedding):
        raise InputError(
            f"The student's vectors have {wanted} dimensions and the teacher's {teachers}. Set "
            "distillation.student.dimensions to at most that, or, for an encoder, distillation.loss.embedding to 0."
        )
    dims = distillation.loss.matryoshka_dims
    if dims and max(dims) != own:
        raise InputError(
            f"distillation.loss.matryoshka_dims is {list(dims)}, and the student's vectors have {own} dimensions. The "
            "largest has to be that."
        )
