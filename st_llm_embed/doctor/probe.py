"""Reference texts, and how near two vectors of one text have to be.

The probe of a model, probe.json, holds texts with the token ids and vectors that every copy and server of the model
has to return. Each text shows a fault that is silent otherwise: an empty one where EOS is missing, one with whitespace
at its ends where that is stripped, an over-long one where it is cut elsewhere, and so on.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from st_llm_embed.errors import InputError
from st_llm_embed.instructions import instruction_prompt

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

Role = Literal["query", "document"]

PROBE_FILE = "probe.json"

VERSION = 1

MINIMUM_COSINE = 0.9999
"""What rounding in float32 leaves of the similarity of two vectors of one text, computed in another order."""

EXACT_COSINE = 0.99999
"""For the same weights in the same precision by another runtime; two texts above it are not distinguished."""

SIXTEEN_BIT_COSINE = 0.999
"""For bfloat16 and float16, where two batch sizes alone leave down to 0.9998."""

ROUNDED_COSINE = 0.995
"""Above it a difference of all texts looks like rounding: bfloat16 leaves 0.999, eight bits less."""

NORM_TOLERANCE = 0.01
"""A vector of norm 1 rounded to bfloat16 is within it."""

FLOAT32_NORM_TOLERANCE = 1e-3

CHECK_TEXTS = (
    "",
    " ",
    "a",
    "two words",
    " edges \n",
    "Ünïcödé 文字 текст 🎈",
    "Instruct: Given a question, retrieve passages that answer it.\nQuery: why is the sky blue?",
    "one two three four five six seven " * 4,
)
"""For checks of a loaded model: empty, blank, short and longer texts in several scripts, and an instruction."""

LONGEST_PROBE = 4096
"""Tokens. With a higher limit, the over-long texts still show lower ones."""

TAIL = " Here ends the long text: a red harbour at dawn, seven bells and an orange kite."

QUESTION = "Why is the sky blue at noon and red at sunset?"

OTHER_INSTRUCTION = "Given a claim, retrieve documents that refute it"

DOCUMENTS = {
    "empty": "",
    "word": "Photosynthesis",
    "edge whitespace": "  blanks stand before and behind this text  ",
    "newline and tab": "A first line\nand a second\tafter a tab\n\nand after an empty line a third",
    "latin": "Ünïcödé façades, żółć, Ærøskøbing — “naïve” coöperation…",
    "cyrillic": "Почему небо голубое днём и красное на закате?",
    "arabic": "لماذا تكون السماء زرقاء عند الظهر؟",
    "devanagari": "दोपहर में आसमान नीला क्यों होता है?",
    "chinese and japanese": "为什么天空是蓝色的？夕焼けはなぜ赤いのでしょうか。",  # noqa: RUF001
    "emoji": "family 👨‍👩‍👧‍👦, flag 🇳🇵, thumbs 👍🏽",
    "code": "def area(r: float) -> float:\n    return 3.14159 * r ** 2  # πr²",
    "question": QUESTION,
}


@dataclass(frozen=True)
class ProbeText:
    """One text of a probe."""

    name: str
    role: Role
    text: str
    prompt: str
    """What is put before the text."""
    ids: tuple[int, ...]
    """Of prompt and text, special tokens included, cut at the model's length."""
    vector: NDArray[np.float32]
    """Of norm 1, shape (dimension,)."""

    @property
    def whole(self) -> str:
        """Prompt and text: what a server has to be sent."""
        return self.prompt + self.text


@dataclass(frozen=True)
class Probe:
    """The reference texts of one model."""

    model: str | None
    """Name on the Hub."""
    max_seq_length: int | None
    """Tokens at which texts are cut; None for a static model, which cuts none."""
    dimension: int
    dtype: str
    """Data type that the vectors were computed in."""
    prompts: dict[str, str]
    """By role, query and document."""
    texts: tuple[ProbeText, ...]

    def is_cut(self, text: ProbeText) -> bool:
        """Return whether a text is as long as the model allows, so that a longer one was cut."""
        return len(text.ids) == self.max_seq_length


def cosines(one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.float64]:
    """Return cosine similarities along the last axis of vectors, shape (..., dimension); nan for a zero vector."""
    a, b = one.astype(np.float64), other.astype(np.float64)
    with np.errstate(invalid="ignore"):
        return (a * b).sum(axis=-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))


def is_same(expected: NDArray[np.float32], got: NDArray[np.float32] | None, minimum_cosine: float) -> bool:
    """Return whether a vector points where the expected one does."""
    return got is not None and got.shape == expected.shape and bool(cosines(expected, got) >= minimum_cosine)


def make_probe(model: SentenceTransformer, name: str | None = None) -> Probe:
    """Compute the ids and vectors of the reference texts.

    Args:
        model: stock sentence-transformers in float32, on the CPU for vectors that are those of any machine.
        name: the model's name on the Hub.

    Raises:
        InputError: the model states no longest text, or its tokenizer has no vocabulary.
    """
    if model.max_seq_length is None:
        raise InputError(
            "The model states no longest text, so no probe can be made. Set model.max_seq_length and save it again."
        )
    limit = None if model.max_seq_length == math.inf else int(model.max_seq_length)
    prompts = {role: model.prompts.get(role) or "" for role in ("query", "document")}
    texts = [_text(model, *one) for one in _reference_texts(model, prompts, limit)]
    # To a static model a text without tokens has no vector.
    texts = [text for text in texts if text.ids]
    special = set(getattr(model.tokenizer, "all_special_ids", ()))
    if all(special.issuperset(text.ids) for text in texts):
        raise InputError(
            "The model's tokenizer knows no word of any probe text. Put tokenizer.json, or the files that it is made "
            "of, into the model's folder."
        )
    return Probe(
        model=name,
        max_seq_length=limit,
        dimension=len(texts[0].vector),
        dtype=str(next(model.parameters()).dtype).removeprefix("torch."),
        prompts=prompts,
        texts=tuple(texts),
    )


def write_probe(probe: Probe, path: Path) -> None:
    """Write a probe as JSON, one text a line; vectors read back as they were."""
    head = {
        "version": VERSION,
        "model": probe.model,
        "max_seq_length": probe.max_seq_length,
        "dimension": probe.dimension,
        "dtype": probe.dtype,
        "prompts": probe.prompts,
        "tolerance": {"cosine": MINIMUM_COSINE},
    }
    lines = [
        {
            "name": text.name,
            "role": text.role,
            "text": text.text,
            "prompt": text.prompt,
            "ids": text.ids,
            "length": len(text.ids),
            # The shortest digits that read back as the same float32.
            "vector": [float(str(number)) for number in text.vector],
        }
        for text in probe.texts
    ]
    rows = ",\n".join("  " + json.dumps(line, ensure_ascii=False) for line in lines)
    opening = json.dumps(head, indent=1, ensure_ascii=False).removesuffix("\n}")
    path.write_text(f'{opening},\n "texts": [\n{rows}\n ]\n}}\n', encoding="utf-8")


def read_probe(path: Path) -> Probe:
    """Read what `write_probe` wrote.

    Raises:
        InputError: there is no such file, or it is not a probe of this version.
    """
    try:
        read = _File.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"There is no probe at {path} ({error.strerror or error}). {WANTED}") from error
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"])) or "the file"
        problem = f"{place}: {error.errors()[0]['msg']}"
        raise InputError(f"{path} is not a probe that can be read: {problem}. {WANTED}") from error
    texts = tuple(
        ProbeText(one.name, one.role, one.text, one.prompt, tuple(one.ids), np.array(one.vector, dtype=np.float32))
        for one in read.texts
    )
    for text in texts:
        if len(text.vector) != read.dimension or abs(np.linalg.norm(text.vector) - 1) > FLOAT32_NORM_TOLERANCE:
            problem = f"the vector of {text.name!r} is not one of length 1 with {read.dimension} numbers"
            raise InputError(f"{path} is not a probe that can be read: {problem}. {WANTED}")
        if read.max_seq_length is not None and len(text.ids) > read.max_seq_length:
            problem = f"{text.name!r} has {len(text.ids)} tokens, and texts are cut at {read.max_seq_length}"
            raise InputError(f"{path} is not a probe that can be read: {problem}. {WANTED}")
    queries = {text.prompt for text in texts if text.role == "query"}
    if queries and read.prompts.get("query", "") not in queries:
        problem = f"no query has the prompt {read.prompts.get('query', '')!r}, which it states"
        raise InputError(f"{path} is not a probe that can be read: {problem}. {WANTED}")
    return Probe(read.model, read.max_seq_length, read.dimension, read.dtype, read.prompts, texts)


WANTED = f"Give the {PROBE_FILE} of a released model, which the release stage of a run writes."


class _Text(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)
    name: str
    role: Role
    text: str
    prompt: str
    ids: list[Annotated[int, Field(ge=0)]]
    vector: list[float]


class _File(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)
    version: Literal[1]
    model: str | None
    max_seq_length: Annotated[int, Field(ge=1)] | None
    dimension: Annotated[int, Field(ge=1)]
    dtype: Literal["float64", "float32", "bfloat16", "float16"]
    prompts: dict[str, str]
    texts: Annotated[list[_Text], Field(min_length=1)]


def _reference_texts(
    model: SentenceTransformer, prompts: dict[str, str], limit: int | None
) -> list[tuple[str, Role, str, str]]:
    """Return name, role, text and prompt of each reference text."""
    documents = DOCUMENTS
    if limit is not None:
        end = model.tokenizer.eos_token or model.tokenizer.sep_token or "</s>"
        long = _long_text(model, min(limit, LONGEST_PROBE))
        documents = DOCUMENTS | {
            "end of text inside": f"Before the token {end} and after it.",
            "over-long": long + TAIL,
            "over-long without its tail": long,
        }
    return [
        *((name, "document", text, prompts["document"]) for name, text in documents.items()),
        ("query", "query", QUESTION, prompts["query"]),
        ("query of another task", "query", QUESTION, instruction_prompt(OTHER_INSTRUCTION)),
    ]


def _long_text(model: SentenceTransformer, limit: int) -> str:
    """Make a text of a few tokens more than the limit, no two lines of it the same."""
    tokenizer: Any = model.tokenizer

    def lines(count: int) -> str:
        return "\n".join(f"Line {number} of a long text." for number in range(1, count + 1))

    def tokens(count: int) -> int:
        return len(tokenizer(lines(count), truncation=False, verbose=False)["input_ids"])

    return lines(bisect_right(range(1, limit + 1), limit, key=tokens) + 1)


def _text(model: SentenceTransformer, name: str, role: Role, text: str, prompt: str) -> ProbeText:
    whole = prompt + text
    ids = model.preprocess([whole])["input_ids"].flatten().tolist()
    # Alone, so that there is no padding; the empty prompt keeps a default one away.
    [vector] = model.encode([whole], prompt="", normalize_embeddings=True, show_progress_bar=False)
    return ProbeText(name, role, text, prompt, tuple(ids), vector.astype(np.float32))
