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
    """What is put before each query, such as `query: ` for E5; null: the row's own instruction."""
    document_prompt: str | None = None
    """What is put before each document, such as `passage: ` for E5; null: what the model has saved for documents."""
    batch_size: int = Field(default=64, ge=1)
    """Texts per forward pass."""


class Student(Section):
    """The small model."""

    kind: Literal["encoder", "static"]
    """`encoder`: a bidirectional encoder. `static`: the mean of token vectors."""
    name_or_path: str | None = None
    """Of an encoder, the checkpoint to start from: Hub id or folder, with its own pooling; null: fresh weights."""
    revision: str | None = None
    """Branch, tag or commit of a Hub checkpoint."""
    layers: int | None = Field(default=None, ge=1)
    """Of a checkpoint, the number of layers to keep, evenly spread from first to last; null: all."""
    bert: dict[str, JsonValue] | None = None
    """Fresh weights: keyword arguments of transformers.BertConfig."""
    dimensions: int | None = Field(default=None, ge=8)
    """Length of the vectors; null: the encoder's hidden size, or the teacher's."""
    max_seq_length: int = Field(default=256, ge=8)
    """Longest text of an encoder in tokens; a static student takes any length."""
    instructions: bool = False
    """Put the instruction before the student's queries, as for the teacher. Without it a query is short and fast."""

    @model_validator(mode="after")
    def _keys_fit_the_kind(self) -> Self:
        if self.kind == "encoder":
            if (self.name_or_path is None) == (self.bert is None):
                raise ValueError("an encoder needs either name_or_path, a checkpoint, or bert, for fresh weights")
            if self.name_or_path is None and self.layers is not None:
                raise ValueError("layers is for a checkpoint; fresh weights have bert.num_hidden_layers")
        elif own := [
            name for name in ("name_or_path", "revision", "layers", "bert") if getattr(self, name) is not None
        ]:
            raise ValueError(f"{', '.join(own)} is for kind encoder; kind static has token vectors alone")
        return self


class DistillationLoss(Section):
    """Weights of the parts of a student's loss; 0 omits a part."""

    contrastive: float = Field(default=1.0, ge=0)
    """InfoNCE on the rows."""
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

    teacher: Teacher = Teacher()
    student: Student
    rows: bool = True
    """False omits the rows, so that the student learns from `texts` alone: shows what the LLM's rows are worth."""
    texts: tuple[str, ...] = ()
    """Files of unlabelled texts: one a line in .txt files, or under the key `text` in .jsonl, .parquet, .csv files."""
    loss: DistillationLoss = DistillationLoss()
    training: dict[str, JsonValue] = {}
    """Keyword arguments of SentenceTransformerTrainingArguments, as in the section training."""

    @model_validator(mode="after")
    def _something_to_learn_from(self) -> Self:
        if not self.rows and not self.texts:
            raise ValueError("rows is false and there are no texts; give files of texts, or leave rows true")
        if not (self.loss.scores or self.loss.embedding or (self.loss.contrastive and self.rows)):
            raise ValueError("loss has no part that these texts can be trained with; set scores or embedding above 0")
        return self
