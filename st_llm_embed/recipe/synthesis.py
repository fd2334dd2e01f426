"""How an LLM writes rows: its server, the plan of requests, what may be spent, what is rejected."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, StringConstraints, field_validator, model_validator
from pydantic_core import PydanticCustomError

from st_llm_embed.recipe.section import REPLAY, Label, Section, TaskType


def is_plain_address(value: str) -> bool:
    """Return whether a text is an http(s) address that holds no secret: no user, password, query or fragment."""
    try:
        url = urlsplit(value)
    except ValueError:
        return False
    secret = url.username or url.password or url.query or url.fragment
    return url.scheme in ("http", "https") and bool(url.hostname) and not secret


class Endpoint(Section):
    """An OpenAI-compatible server: OpenAI, Azure (its address ending in /openai/v1/), vLLM, llama.cpp, Ollama, ..."""

    base_url: str
    """Address of the API, such as `https://api.openai.com/v1`; `replay` repeats recorded answers."""
    api_key_env: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key; the key itself is never written anywhere."""
    models: dict[str, Annotated[float, Field(gt=0)]] = Field(min_length=1)
    """Names of models and their share of the requests."""
    parameters: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "max_completion_tokens": 4096}
    """Fields of a chat completion request. `max_completion_tokens` or `max_tokens` is needed: it bounds what an answer
    can cost. Temperature and top-p are the paper's (section 3.1)."""
    mode: Literal["live", "batch"] = "live"
    """`batch` uses the Batch API: cheaper, within 24 hours."""
    concurrency: int = Field(default=16, ge=1, le=1024)
    """Most requests in flight; falls by itself while the server answers that there are too many."""
    requests_per_minute: int | None = Field(default=None, ge=1)
    """None: the limit the server states in its headers, if it does."""
    tokens_per_minute: int | None = Field(default=None, ge=1)
    """None: the limit the server states in its headers, if it does."""
    timeout_seconds: float = Field(default=600, gt=0)
    """Longest wait for one answer. What times out may have been paid; it is asked at most once more in a run."""
    give_up_after_minutes: float = Field(default=15, gt=0)
    """Stop, to be resumed later, when the server has not answered for this long."""

    @field_validator("base_url")
    @classmethod
    def _no_secret_in_the_address(cls, value: str) -> str:
        if value == REPLAY or is_plain_address(value):
            return value
        # Not shown: it may hold a secret.
        raise PydanticCustomError(
            "address",
            "has to be replay or an http:// or https:// address without user, password, query or fragment; the key "
            "goes into the variable that api_key_env names",
        )

    @field_validator("parameters")
    @classmethod
    def _only_what_the_run_does_not_set(cls, value: dict[str, Any]) -> dict[str, Any]:
        if own := sorted(value.keys() & {"model", "messages", "response_format", "stream", "n"}):
            raise ValueError(f"{', '.join(own)} cannot be set here; the run sends its own")
        return value

    @model_validator(mode="after")
    def _batches_need_a_server(self) -> Self:
        if self.mode == "batch" and self.base_url == REPLAY:
            raise ValueError("mode batch needs the address of a server; replay answers live requests alone")
        return self


class Plan(Section):
    """What is asked for (paper, section 3.1 and appendix C)."""

    seed: int = Field(ge=0, lt=2**32)
    """Seeds every draw below; apart from the training seed, so that another training asks for nothing new."""
    preset: Literal["paper", "custom"] = "paper"
    """`paper`: the paper's task types, attributes and languages; `custom`: those, replaced by what is set below."""
    requests: int = Field(ge=1)
    """Examples to ask for, one request each; more may be asked for later, the first ones stay the same."""
    brainstorm_requests: int = Field(default=0, ge=0)
    """Requests for about 20 instructions each, before the examples; 0 with `tasks`."""
    tasks: str | None = None
    """A .jsonl file of `task_type`, `instruction` and, if wanted, `attributes`, in place of brainstormed ones. Request
    i takes line i and starts again from the top; `embedded` is the demo's."""
    task_types: dict[TaskType, Annotated[float, Field(ge=0)]] = {}
    """Custom: shares of the task types."""
    attributes: dict[TaskType, dict[str, dict[Label, Annotated[float, Field(ge=0)]]]] = {}
    """Custom: for a task type's attribute, its values and their weights; `unspecified` omits it from the prompt."""
    languages: dict[str, Annotated[float, Field(ge=0)]] = {}
    """Custom: English names of languages and their weights."""
    topics: tuple[Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)], ...] = ()
    """Custom: subjects, one of which is drawn for each brainstorm, sts and bitext request: your domain. Without any,
    sts and bitext requests draw one of st_llm_embed/synthesis/subjects.txt."""

    @model_validator(mode="after")
    def _paper_means_paper(self) -> Self:
        own = [name for name in ("task_types", "attributes", "languages", "topics") if getattr(self, name)]
        if self.preset == "paper" and own:
            raise ValueError(f"preset paper fixes {', '.join(own)}; set preset to custom for your own")
        if self.tasks is not None and (self.brainstorm_requests or self.task_types):
            raise ValueError("tasks fixes instructions and task types; omit it, or brainstorm_requests and task_types")
        return self


class Price(Section):
    """USD per million tokens."""

    input: float = Field(ge=0)
    output: float = Field(ge=0)
    cached_input: float | None = Field(default=None, ge=0)
    """Tokens read from the server's prompt cache; None: as `input`."""


class Budget(Section):
    """Limits that are never exceeded: the worst case of a request is set aside before it is sent."""

    usd: float | None = Field(default=None, gt=0)
    """Most to spend over all runs in one output folder; needs a price for every model."""
    tokens: int | None = Field(default=None, gt=0)
    """Most tokens, prompts and answers, over all runs; the only limit where a price is unknown."""
    prices: dict[str, Price] = {}
    """By model; in place of the prices in st_llm_embed/api/prices.yaml."""


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
