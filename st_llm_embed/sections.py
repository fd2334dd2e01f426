"""The sections of a recipe: every key typed and described.

Sections that belong to an upstream library (``lora``, ``training``) hold that library's own keyword arguments. They
are checked against it where they are used (``st_llm_embed.training.arguments``), because importing it takes seconds.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, get_args
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

TaskType = Literal["short-long", "long-short", "short-short", "long-long", "sts", "bitext"]
"""The paper's six task types (section 3.1): four asymmetric, by the length of query and document, two symmetric."""

TASK_TYPES: tuple[TaskType, ...] = get_args(TaskType)

Direction = Literal["query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc"]

Dtype = Literal["float32", "bfloat16", "float16"]

PoolingMode = Literal["lasttoken", "mean", "weightedmean"]

Instructions = Literal["natural", "task_type", "none"]

EMBEDDED = "embedded"
"""Value of ``base.name_or_path``, ``data.rows`` and ``synthesis.plan.tasks`` for what ships with the package."""

SYNTHESIS = "synthesis"
"""Value of ``data.rows`` for the rows that an LLM writes by the recipe's ``synthesis`` section."""

BASE = "base"
"""Value of ``data.mining.model`` for the recipe's own base before training."""

TRAINED = "trained"
"""Value of ``distillation.teacher.name_or_path`` for the model that the recipe itself trains."""

REPLAY = "replay"
"""Value of ``synthesis.endpoint.base_url`` for the server inside the package, which gives recorded answers."""

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


class Section(BaseModel):
    """Common to all parts of a recipe: immutable, unknown keys refused, docstrings as help."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        # Python, and pydantic with it, takes true for 1.
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise ValueError("true and false are allowed for switches only")
        return value


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
    all tokens' or one whose weights rise with the position. EOS is appended with each; what older versions of
    sentence-transformers read, and sharing an instruction's computation, is for `lasttoken` alone."""
    instructions: Instructions = "natural"
    """What stands before a query in training, in the scores of held-out rows and in the prompts saved with the model:
    its own instruction; for comparison (paper, section 5.3) the name of its task type in place of it; or nothing.
    Mining is not concerned, it has `query_prompt`."""


class Source(Section):
    """A public or local set of pairs that is trained on besides the rows; nothing of it is held out."""

    path: str
    """Id of a dataset on the Hub, or the path of a .jsonl, .parquet, .csv or .tsv file."""
    config: str | None = None
    """Configuration of a Hub dataset."""
    file: str | None = None
    """A file of a Hub dataset, or a pattern of several, in place of `config` and `split`: where the repository has a
    loading script, which `datasets` does not run any more, or one split of many is wanted."""
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
    """What stands before each anchor, such as `query: ` for E5; null: the row's own instruction."""
    document_prompt: str | None = None
    """What stands before each document, such as `passage: ` for E5; null: what the model has saved for documents."""
    num_negatives: int = Field(default=1, ge=1, le=64)
    """Negatives that a row shall have; those it has come first. 1 gives a column negative, more negative_1, ..."""
    range_min: int = Field(default=0, ge=0)
    """So many of the nearest documents are passed over."""
    range_max: int = Field(default=100, ge=1, le=10_000)
    """A negative is among so many of the nearest documents, the known positives not counted."""
    relative_margin: float | None = Field(default=0.05, ge=0, le=2)
    """A document is dropped as a suspected false negative if its score is above the positive's less this share of it:
    0.05 allows 95 % of a positive's score. null: no such limit."""
    absolute_margin: float | None = Field(default=None, ge=0, le=2)
    """The same with the difference of the two scores."""
    sampling_strategy: Literal["top", "random"] = "top"
    """Of what is left the nearest, or any, drawn by hash."""
    batch_size: int = Field(default=64, ge=1)
    """Texts per forward pass."""

    @model_validator(mode="after")
    def _range_has_room(self) -> Self:
        if self.range_max - self.range_min < self.num_negatives:
            raise ValueError(
                f"range_min {self.range_min} to range_max {self.range_max} has no room for num_negatives "
                f"{self.num_negatives}"
            )
        return self


class Data(Section):
    """The rows to train on and to hold out."""

    rows: str
    """A .jsonl file of rows or of LLM answers; `synthesis`: what an LLM writes by that section; or `embedded`, the
    rows inside the package."""
    sources: dict[Annotated[str, Field(pattern=NAME_PATTERN)], Source] = {}
    """Sets of pairs to train on besides, by a name of yours; each has batches of its own."""
    validation_fraction: float = Field(gt=0, lt=1)
    """Share of instructions held out, by hash: no instruction of a task type is in both parts. sts and bitext have
    twelve instructions each; bitext rows are held out from 0.07 on, sts rows from 0.12 (docs/decisions.md)."""
    mining: Mining | None = None
    """Gives hard negatives to rows that lack them; null: those rows have in-batch negatives only."""


def is_plain_address(value: str) -> bool:
    """Whether a text is an http(s) address that holds no secret: no user, password, query or fragment."""
    try:
        url = urlsplit(value)
    except ValueError:
        return False
    secret = url.username or url.password or url.query or url.fragment
    return url.scheme in ("http", "https") and bool(url.hostname) and not secret


class Endpoint(Section):
    """An OpenAI-compatible server: OpenAI, Azure (its address ending in /openai/v1/), vLLM, llama.cpp, Ollama, ..."""

    base_url: str
    """Address of the API, such as `https://api.openai.com/v1`; `replay` is the server of recorded answers."""
    api_key_env: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key; the key itself is never written anywhere."""
    models: dict[str, Annotated[float, Field(gt=0)]] = Field(min_length=1)
    """Names of models and their share of the requests."""
    parameters: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "max_completion_tokens": 4096}
    """Fields of a chat completion request, sent as they are. One of `max_completion_tokens` and `max_tokens` is
    needed: it bounds what an answer can cost. Temperature and top-p are the paper's (section 3.1)."""
    mode: Literal["live", "batch"] = "live"
    """`batch` uses the Batch API: cheaper, within 24 hours."""
    concurrency: int = Field(default=16, ge=1, le=1024)
    """Most requests in flight; falls by itself while the server answers that there are too many."""
    requests_per_minute: int | None = Field(default=None, ge=1)
    """None: the limit the server states in its headers, if it does."""
    tokens_per_minute: int | None = Field(default=None, ge=1)
    """None: the limit the server states in its headers, if it does."""
    timeout_seconds: float = Field(default=600, gt=0, allow_inf_nan=False)
    """Longest wait for one answer. What times out may have been paid; it is asked once more at the most."""
    give_up_after_minutes: float = Field(default=15, gt=0, allow_inf_nan=False)
    """Stop, to be resumed later, when the server has given no answer for so long."""

    @field_validator("base_url")
    @classmethod
    def _no_secret_in_the_address(cls, value: str) -> str:
        if value == REPLAY or is_plain_address(value):
            return value
        # Not shown: it may hold a secret.
        raise PydanticCustomError(
            "address",
            "has to be replay or an address that begins with http:// or https:// and holds no user, password, query "
            "or fragment, since recipes are written to files; the key goes into the variable that api_key_env names",
        )

    @field_validator("parameters")
    @classmethod
    def _only_what_the_run_does_not_set(cls, value: dict[str, Any]) -> dict[str, Any]:
        if own := sorted(value.keys() & {"model", "messages", "response_format", "stream", "n"}):
            raise ValueError(
                f"{', '.join(own)} cannot be set here; the run sends its own, and reads one answer a request"
            )
        return value


AttributeValue = Annotated[
    str, BeforeValidator(lambda value: f"{value:g}" if isinstance(value, int | float) else value)
]
"""What goes into a prompt; YAML reads some as numbers."""


class Plan(Section):
    """What is asked for (paper, section 3.1 and appendix C)."""

    seed: int = Field(ge=0, lt=2**32)
    """Seeds every draw below; apart from the training seed, so that another training asks for nothing new."""
    preset: Literal["paper", "custom"] = "paper"
    """`paper`: the paper's task types, attributes and languages; `custom`: those, with what stands below in place."""
    requests: int = Field(ge=1)
    """Examples to ask for, one request each; more may be asked for later, the first ones stay the same."""
    brainstorm_requests: int = Field(default=0, ge=0)
    """Requests for about 20 instructions each, before the examples; 0 where `tasks` are given."""
    tasks: str | None = None
    """A .jsonl file of tasks in place of brainstormed ones: `task_type`, `instruction` and, if wanted, `attributes`,
    one object a line. Request i takes line i and starts again from the top; `embedded` is the demo's."""
    task_types: dict[TaskType, Annotated[float, Field(ge=0)]] = {}
    """Custom: shares of the task types."""
    attributes: dict[TaskType, dict[str, dict[AttributeValue, Annotated[float, Field(ge=0)]]]] = {}
    """Custom: for a task type's attribute, its values and their weights; `unspecified` leaves it out of the prompt."""
    languages: dict[str, Annotated[float, Field(ge=0)]] = {}
    """Custom: English names of languages and their weights."""
    topics: tuple[Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)], ...] = ()
    """Custom: subjects, one of which is drawn for each brainstorm, sts and bitext request: your domain."""

    @model_validator(mode="after")
    def _paper_means_paper(self) -> Self:
        own = [name for name in ("task_types", "attributes", "languages", "topics") if getattr(self, name)]
        if self.preset == "paper" and own:
            raise ValueError(f"preset paper fixes {', '.join(own)}; set preset to custom to give your own")
        if self.tasks is not None and (self.brainstorm_requests or self.task_types):
            raise ValueError(
                "tasks fixes instructions and task types; give either tasks, or brainstorm_requests and task_types"
            )
        return self


class Price(Section):
    """USD per million tokens."""

    input: float = Field(ge=0, allow_inf_nan=False)
    output: float = Field(ge=0, allow_inf_nan=False)
    cached_input: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Tokens read from the server's prompt cache; None: as `input`."""


class Budget(Section):
    """Limits that are never passed: the worst case of a request is set aside before it is sent."""

    usd: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Most to spend over all runs in one output folder; needs a price for every model."""
    tokens: int | None = Field(default=None, gt=0)
    """Most tokens, prompts and answers, over all runs; the only limit where a price is unknown."""
    prices: dict[str, Price] = {}
    """By model; in place of the prices in st_llm_embed/synthesis/prices.yaml."""


class Filters(Section):
    """Which answers become rows; each rejected one is kept with its reason."""

    near_duplicates: float | None = Field(default=0.8, gt=0, le=1)
    """Jaccard similarity of character 5-grams from which the later of two rows goes; None keeps all but equal ones."""
    languages: bool = True
    """Reject texts that are confidently not in the language asked for."""
    evaluation_texts: tuple[str, ...] = ()
    """Files or folders of evaluation texts that no row may hold, exactly or up to one word."""
    consistency_model: str | None = None
    """Embedding model that has to rank the positive above the negative; Hub id or folder."""
    consistency_margin: float = Field(default=0.0, ge=-2, le=2)
    """Least difference of the two cosine similarities."""
    judge_model: str | None = None
    """LLM at the same endpoint that grades each row from 1 to 5."""
    judge_score: int = Field(default=3, ge=1, le=5)
    """Least grade a row needs."""


class Synthesis(Section):
    """An LLM writes the rows (paper, section 3.1)."""

    endpoint: Endpoint
    plan: Plan
    budget: Budget = Budget()
    filters: Filters = Filters()


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
    """Leave out a candidate that is no negative: a text of the row itself, or what belongs to the same anchor or
    positive in another row, in the batch of all processes."""
    false_negative_margin: float | None = Field(default=None, ge=0, le=2)
    """Leave out a candidate whose similarity is above the positive's by more than this (Qwen3-Embedding: 0.1)."""
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

    No anchor or positive stands twice in the batch of all processes together, and what is left of small configurations
    is packed into full batches.
    """

    mixed: bool = False
    """False: a batch has rows of one configuration, and so of one task type, as long as they fill batches. True: of
    all that train under the same loss settings."""
    label_configurations: tuple[str, ...] = ("long-short",)
    """Beginnings of the names of configurations whose positives are labels, which many rows share: a batch may have
    one several times."""


class TrainingStage(Section):
    """One of several trainings, each of which goes on from what the one before it ended with.

    Of `loss`, `batches` and `training` it holds what differs from the recipe's sections of that name.
    """

    name: str = Field(pattern=NAME_PATTERN)
    """Its folder is training-<name>. A stage that is renamed is trained again, and so are those after it."""
    configurations: tuple[str, ...] = ()
    """Beginnings of the names of the task types and sources it trains on; empty: all."""
    hard_negatives: bool = True
    """False: negatives of the rows are left away, those in the batch remain."""
    loss: dict[str, JsonValue] = {}
    batches: dict[str, JsonValue] | None = {}
    """null: none, where the recipe has that section."""
    training: dict[str, JsonValue] = {}


class Evaluation(Section):
    """Retrieval, STS and bitext on the held-out rows, before and after training."""

    batch_size: int = Field(ge=1)
    """Texts per forward pass."""
    tasks: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """mteb tasks, `Tatoeba:fra-eng` for one subset, that are scored as often as training.eval_strategy says, with the
    paper's instructions. Keep them small: each is encoded whole every time."""


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
            if not loss.contrastive:
                raise ValueError("without a teacher, loss.contrastive is all there is, and it is 0")
        elif not (loss.scores or loss.embedding or (loss.contrastive and self.rows)):
            raise ValueError("loss has no part that these texts can be trained with; set scores or embedding above 0")
        return self


class Publishing(Section):
    """What the released folder says about itself."""

    repo_id: str | None = None
    """The Hub name that the card's examples load, such as `org/e5-mistral`; None: the folder's path."""
    license: str
    """Licence of the released weights, as the Hub spells it (`apache-2.0`, `cc-by-nc-4.0`, ...)."""
    limitations: tuple[str, ...] = ()
    """What a user has to know before relying on the model; goes into the card and the report."""
    dataset_repo_id: str | None = None
    """The Hub name that the dataset card's example loads."""
    dataset_license: str | None = None
    """Licence of the rows, needed to push them: ask what the terms of the LLM that wrote them allow."""
