"""A small student and its teacher."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, JsonValue, model_validator

from st_llm_embed.recipe.section import TRAINED, Section


class Teacher(Section):
    """The embedder whose vectors a student learns."""

    name_or_path: str = Field(default=TRAINED, min_length=1)
    """Hub id or folder of any sentence-transformers model, or `trained`, the release of this recipe."""
    revision: str | None = None
    """Branch, tag or commit of a Hub model."""
    query_prompt: str | None = None
    """What stands before each query, such as `query: ` for E5; null: the row's own instruction."""
    document_prompt: str | None = None
    """What stands before each document, such as `passage: ` for E5; null: what the model has saved for documents."""
    batch_size: int = Field(default=64, ge=1)
    """Texts per forward pass."""


class Student(Section):
    """The small model."""

    kind: Literal["encoder", "static-query", "static"]
    """`encoder`: a bidirectional encoder for queries and documents. `static-query`: queries by the mean of token
    vectors, documents by the teacher, whose index stays as it is. `static`: both by the mean of token vectors."""
    name_or_path: str | None = None
    """Of an encoder, the checkpoint to start from: Hub id or folder, with its own pooling; null: fresh weights."""
    revision: str | None = None
    """Branch, tag or commit of a Hub checkpoint."""
    layers: int | None = Field(default=None, ge=1)
    """Of a checkpoint, keep so many layers, evenly spread from first to last; null: all."""
    bert: dict[str, JsonValue] | None = None
    """Fresh weights: keyword arguments of transformers.BertConfig."""
    tokenizer: str | None = None
    """Fresh weights and static kinds: Hub id or folder of a tokenizer; null: the teacher's."""
    dimensions: int | None = Field(default=None, ge=8)
    """Length of the vectors; null: the encoder's hidden size, or the teacher's."""
    max_seq_length: int = Field(default=256, ge=8)
    """Longest text of an encoder in tokens; static kinds take any length."""
    instructions: bool = False
    """Put the instruction before the student's queries, as for the teacher. Without, a query is short and fast."""

    @model_validator(mode="after")
    def _keys_fit_the_kind(self) -> Self:
        if self.kind == "encoder":
            if (self.name_or_path is None) == (self.bert is None):
                raise ValueError("an encoder needs either name_or_path, a checkpoint, or bert, for fresh weights")
            if self.name_or_path is None and self.layers is not None:
                raise ValueError("layers is for a checkpoint; fresh weights have bert.num_hidden_layers")
            if self.name_or_path is not None and self.tokenizer is not None:
                raise ValueError("a checkpoint has its own tokenizer; leave tokenizer out")
            return self
        if own := [name for name in ("name_or_path", "revision", "layers", "bert") if getattr(self, name) is not None]:
            raise ValueError(f"{', '.join(own)} is for kind encoder; kind {self.kind} has token vectors alone")
        if self.kind == "static-query" and self.dimensions is not None:
            raise ValueError("kind static-query has vectors as long as the teacher's; leave dimensions out")
        return self


class DistillationLoss(Section):
    """Weights of the parts of a student's loss; 0 leaves a part out."""

    contrastive: float = Field(default=1.0, ge=0)
    """InfoNCE on the rows; on unlabelled texts, where there is no teacher, with each text as its own positive under
    another dropout (arXiv 2104.08821, SimCSE)."""
    scores: float = Field(default=1.0, ge=0)
    """Divergence of the student's from the teacher's distribution over the documents of the batch."""
    embedding: float = Field(default=1.0, ge=0)
    """1 - cosine similarity of the student's and the teacher's vector of each text. Where the student has fewer
    dimensions, of the teacher's vector on as many principal axes."""
    temperature: float = Field(default=0.05, gt=0)
    """Similarities are divided by it, for both of the first two parts."""
    matryoshka_dims: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Numbers of leading dimensions that are trained to be vectors of their own; as in the section loss."""


class Distillation(Section):
    """A small student for production: `st-llm-embed distill` (docs/distillation.md)."""

    teacher: Teacher | None = Teacher()
    """null: the student learns from the rows alone."""
    student: Student
    rows: bool = True
    """False leaves the rows out, so that the student sees `texts` alone: shows what the LLM's rows are worth."""
    texts: tuple[str, ...] = ()
    """Files of unlabelled texts, one a line, in .txt files, or in .jsonl files under the key `text`."""
    loss: DistillationLoss = DistillationLoss()
    training: dict[str, JsonValue] = {}
    """Keyword arguments of SentenceTransformerTrainingArguments, as in the section training."""

    @model_validator(mode="after")
    def _something_to_learn_from(self) -> Self:
        if not self.rows and not self.texts:
            raise ValueError("rows is false and there are no texts; give files of texts, or leave rows true")
        kind, loss = self.student.kind, self.loss
        if self.teacher is None:
            if kind == "static-query":
                raise ValueError("kind static-query embeds documents with the teacher, and teacher is null")
            if kind == "static" and self.texts:
                raise ValueError("texts teach a static student only what a teacher says of them, and teacher is null")
            if self.student.name_or_path is None and self.student.tokenizer is None:
                raise ValueError("without a teacher, student.tokenizer has to name the tokenizer")
            if kind == "static" and self.student.dimensions is None:
                raise ValueError(
                    "without a teacher, student.dimensions has to say how long a static student's vectors are"
                )
            if not loss.contrastive:
                raise ValueError("without a teacher, loss.contrastive is all there is, and it is 0")
        elif not (loss.scores or loss.embedding or (loss.contrastive and self.rows)):
            raise ValueError("loss has no part that these texts can be trained with; set scores or embedding above 0")
        return self
