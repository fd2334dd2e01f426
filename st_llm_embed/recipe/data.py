"""Where rows come from: files, public sets, mined negatives."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from st_llm_embed.recipe.section import NAME_PATTERN, Section, TaskType


class Source(Section):
    """A public or local set of pairs that is trained on besides the rows; nothing of it is held out."""

    path: str
    """Id of a dataset on the Hub, or the path of a .jsonl, .parquet, .csv or .tsv file."""
    config: str | None = None
    """Configuration of a Hub dataset."""
    file: str | None = None
    """A file of a Hub dataset, or a pattern of several, in place of `config` and `split`."""
    split: str = "train"
    revision: str | None = None
    """Commit of a Hub dataset; pin it, so that the training set stays the same."""
    columns: dict[Literal["anchor", "positive", "negative"], str]
    """Where the texts are: the name of a column, or a template such as `{title} {text}` or `{passages[0][text]}`."""
    instruction: str | None = None
    """Put before each anchor. None: one of those that instructions.py has for a source of this name."""
    task_type: TaskType = "short-long"
    language: str = "und"
    """BCP-47 code."""
    ratio: float = Field(default=1.0, gt=0, le=1)
    """Share of the records that is used."""
    license: str
    """What the set's licence is, for the cards; check that it allows your use."""

    @field_validator("columns")
    @classmethod
    def _a_pair_at_least(cls, value: dict[str, str]) -> dict[str, str]:
        if not {"anchor", "positive"} <= value.keys():
            raise ValueError("anchor and positive are needed")
        return value


class Mining(Section):
    """Hard negatives for rows that lack them: documents near the anchor, by an embedding model, but not too near.

    They come from the row's own configuration. Keys are those of sentence-transformers' mine_hard_negatives.
    """

    model: str = Field(min_length=1)
    """Embedding model: Hub id, folder, or `base`, the recipe's own base before training."""
    revision: str | None = None
    """Branch, tag or commit of a Hub model."""
    query_prompt: str | None = None
    """What is put before each anchor, such as `query: ` for E5; null: the row's own instruction."""
    document_prompt: str | None = None
    """What is put before each document, such as `passage: ` for E5; null: what the model has saved for documents."""
    num_negatives: int = Field(default=1, ge=1, le=64)
    """Negatives of each row; those it has already come first. 1 gives a column negative, more negative_1, ..."""
    range_min: int = Field(default=0, ge=0)
    """Skip this many of the nearest documents."""
    range_max: int = Field(default=100, ge=1, le=10_000)
    """A negative is among this many of the nearest documents, the known positives not counted."""
    relative_margin: float | None = Field(default=0.05, ge=0, le=2)
    """A document with a higher score than the positive's less this share is dropped as a suspected false negative."""
    sampling_strategy: Literal["top", "random"] = "top"
    """Take the nearest of the remaining candidates, or a random one, drawn by hash."""
    batch_size: int = Field(default=64, ge=1)
    """Texts per forward pass."""

    @model_validator(mode="after")
    def _range_has_room(self) -> Self:
        if self.range_max - self.range_min < self.num_negatives:
            raise ValueError("range_max has to be at least range_min plus num_negatives")
        return self


HoldOut = Literal["instruction", "anchor", "positive", "document"]


class Data(Section):
    """The rows to train on and to hold out."""

    rows: str
    """A file or folder of rows or of LLM answers; `synthesis`: what an LLM writes by that section; or `embedded`, the
    rows inside the package."""
    instruction: str | None = Field(default=None, min_length=1)
    """Put before the anchors of rows that have no instruction of their own."""
    sources: dict[Annotated[str, Field(pattern=NAME_PATTERN)], Source] = {}
    """Sets of pairs to train on besides, by a name of yours; each has batches of its own."""
    validation_fraction: float = Field(gt=0, lt=1)
    """Share held out, by hash. sts and bitext have twelve instructions each; bitext rows are held out from 0.07 on,
    sts rows from 0.12 (docs/decisions.md)."""
    hold_out: HoldOut | None = None
    """What is held out as a whole, so that nothing of it is trained on; `instruction` counts by task type, `document`
    is a column of the rows. null: document where all rows have one, else instruction, where that comes near the
    share, else anchor or positive. No text is in both parts but labels (docs/decisions.md)."""
    mining: Mining | None = None
    """Mines hard negatives for rows that lack them; null: those rows have in-batch negatives only."""
