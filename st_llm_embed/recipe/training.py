"""The base, how it is trained, and how it is scored on the way."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, JsonValue, field_validator

from st_llm_embed.recipe.section import NAME_PATTERN, Direction, Dtype, Instructions, PoolingMode, Section, TaskType


class Base(Section):
    """The decoder-only language model that becomes an embedder."""

    name_or_path: str = Field(min_length=1)
    """Hub id or local folder of a decoder-only model, or `embedded`, the small one inside the package."""
    revision: str | None = None
    """Branch, tag or commit of a Hub model."""
    random_init: bool = False
    """Keep architecture and tokenizer but draw fresh weights: shows what pretraining is worth."""
    dtype: Dtype = "float32"
    """Data type the weights are loaded in."""
    quantization: Literal["nf4"] | None = None
    """`nf4` loads the weights in 4 bits, as QLoRA does: for a LoRA on one small GPU. Needs the extra `qlora`."""
    adapter: str | None = None
    """Hub id or folder of a LoRA adapter that was trained on this base, to be trained further; its own configuration
    says rank and modules, so `lora` is null."""
    max_seq_length: int = Field(ge=8)
    """Longest text in tokens, instruction and special tokens included; the rest is cut off before the EOS token."""
    pooling_mode: PoolingMode = "lasttoken"
    """What the vector is: the hidden state of the EOS token, or, for comparison (paper, section 5.3), the mean of
    all tokens' or one whose weights rise with the position. EOS is appended with each."""
    instructions: Instructions = "natural"
    """What is put before a query, also in the prompts saved with the model: its own instruction; for comparison
    (paper, section 5.3) the name of its task type in place of it; or nothing. Mining has `query_prompt`."""


class Loss(Section):
    """InfoNCE over the positives and negatives of the batch (paper, equation 2)."""

    temperature: float = Field(gt=0)
    """Cosine similarities are divided by this before the softmax."""
    hardness_strength: dict[TaskType, Annotated[float, Field(ge=0)]] = {}
    """By task type, extra weight of a row's own hard negative, the higher the more similar it still is
    (sentence-transformers' hardness_mode "hard_negatives"; EmbeddingGemma uses 5). Empty is the paper's loss."""
    mini_batch_num_tokens: int | None = Field(default=None, ge=1)
    """Most tokens per forward pass, padding included, with GradCache: any batch size in the memory of that many
    tokens, for a second forward pass (arXiv 2101.06983). None: no GradCache."""
    directions: tuple[Direction, ...] = ("query_to_doc",)
    """What else an example is compared with, in one softmax: query_to_query, doc_to_query, doc_to_doc (arXiv
    2308.03281, GTE; 2506.05176, Qwen3-Embedding). query_to_doc has to be there."""
    own_negatives_only: tuple[TaskType, ...] = ()
    """Task types whose rows are compared with their own hard negatives and not with the batch: those whose positives
    are labels that many rows share (SFR-Embedding-Mistral)."""
    mask_duplicates: bool = True
    """Mask candidates that repeat a text of the row, or share its anchor or positive, over all processes."""
    false_negative_margin: float | None = Field(default=None, ge=0, le=2)
    """Mask a candidate whose similarity is above the positive's by more than this (Qwen3-Embedding: 0.1)."""
    matryoshka_dims: tuple[Annotated[int, Field(ge=1)], ...] = ()
    """Numbers of leading dimensions that are trained to be vectors of their own, by the sum of their losses (arXiv
    2205.13147); the model's own number has to be among them. Empty: that one alone."""

    @field_validator("directions")
    @classmethod
    def _queries_meet_documents(cls, directions: tuple[Direction, ...]) -> tuple[Direction, ...]:
        if directions.count("query_to_doc") != 1 or len(set(directions)) < len(directions):
            raise ValueError("query_to_doc has to be there, and each direction once")
        return directions


class Batches(Section):
    """Which rows make a batch, in place of sentence-transformers' samplers.

    No anchor or positive occurs twice in the batch of all processes together, apart from the labels of long-short
    rows, and what is left of small configurations is packed into full batches.
    """

    mixed: bool = False
    """False: a batch has rows of one configuration, and so of one task type, as long as they fill batches. True: of
    all that train under the same loss settings."""


class TrainingStage(Section):
    """One of several trainings, each of which continues from what the one before it ended with.

    Of `loss`, `batches` and `training` it holds what differs from the recipe's sections of that name.
    """

    name: str = Field(pattern=NAME_PATTERN)
    """Its folder is training-<name>. A stage that is renamed is trained again, and so are those after it."""
    configurations: tuple[str, ...] = ()
    """Beginnings of the names of the task types and sources it trains on; empty: all."""
    hard_negatives: bool = True
    """False: the rows' own negatives are not used, those in the batch remain."""
    loss: dict[str, JsonValue] = {}
    batches: dict[str, JsonValue] | None = {}
    """null: none, where the recipe has that section."""
    training: dict[str, JsonValue] = {}


class Evaluation(Section):
    """Retrieval, STS and bitext on the held-out rows, before and after training."""

    batch_size: int = Field(ge=1)
    """Texts per forward pass."""
    tasks: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """mteb tasks, `Tatoeba:fra-eng` for one subset, scored whole as often as training.eval_strategy says, with the
    paper's instructions."""
