"""From the journal to rows: every answer becomes a row or is rejected with a reason. Nothing is sent, so it is free.

Rows that pass the filters of one row are spooled to a file; the filters that compare rows read it back. Memory holds a
few numbers per answer.
"""

from __future__ import annotations

import json
import tempfile
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import numpy as np

from st_llm_embed.data.contamination import EvaluationTexts
from st_llm_embed.data.rows import RESPONSE_KEYS, Row, row_of_answer
from st_llm_embed.languages import LANGUAGE_CODES
from st_llm_embed.recipe import Synthesis, TaskType
from st_llm_embed.synthesis.duplicates import near_duplicates, text_hash
from st_llm_embed.synthesis.filters import check_language, check_texts
from st_llm_embed.synthesis.journal import read_journal, read_record
from st_llm_embed.synthesis.language_id import confidence_in
from st_llm_embed.synthesis.parsing import Rejection, completion_of, content_of, parse_answer
from st_llm_embed.synthesis.plan import EXAMPLE_SCHEMAS, JUDGE_SCHEMA, RequestPlan
from st_llm_embed.synthesis.tasks import TaskFile

Similarities = Callable[[Sequence[Row]], Sequence[tuple[float, float]]]
"""Gives, for rows with a negative, the cosine similarity of the anchor to the positive and to the negative."""

ROWS_PER_BATCH = 256

TEXTS = ("anchor", "positive", "negative")


@dataclass(frozen=True, slots=True)
class Rejected:
    """An answer that is no row, with the reason."""

    task_type: TaskType
    instruction: str
    language: str
    reason: str
    detail: str
    answer: str
    """What the model wrote."""
    generator: str
    key: str


class Selection:
    """The rows of one journal."""

    def __init__(
        self,
        synthesis: Synthesis,
        plan: RequestPlan,
        tasks: TaskFile,
        journal: Path,
        similarities: Similarities | None,
    ) -> None:
        """Read where each answer lies.

        Args:
            synthesis: the recipe's section.
            plan: its requests; answers to others, which an earlier recipe asked for, are left aside.
            tasks: what the examples are asked for.
            journal: path of the journal's file.
            similarities: of the consistency filter; None leaves it out.
        """
        self._filters, self._plan, self._tasks = synthesis.filters, plan, tasks
        self._journal, self._similarities = journal, similarities
        self._planned = synthesis.plan.requests
        self._overlap: Counter[tuple[str, str, bool]] = Counter()
        self._answers = _Answers(journal)
        self._evaluation_texts = (
            EvaluationTexts.read([Path(path) for path in self._filters.evaluation_texts])
            if self._filters.evaluation_texts
            else None
        )

    def overlap(self) -> list[dict[str, Any]]:
        """Give how many texts were found among the evaluation texts; those of low entropy are not rejected."""
        return [
            {"file": Path(file).name, "kind": kind, "low_entropy": low_entropy, "texts": count}
            for (file, kind, low_entropy), count in self._overlap.most_common()
        ]

    def rows(self, workspace: Path) -> Iterator[Row | Rejected]:
        """Give each planned and answered request as a row or as rejected; rows in the order of the plan.

        Args:
            workspace: an existing folder for what memory should not hold; left empty.
        """
        with self._journal.open("rb") as journal:
            for candidate in self.candidates(workspace):
                yield candidate if isinstance(candidate, Rejected) else self._graded(*candidate, journal)

    def candidates(self, workspace: Path) -> Iterator[tuple[int, Row] | Rejected]:
        """Give the same before the judge, each row with the index of its request."""
        with tempfile.TemporaryFile("w+", dir=workspace, encoding="utf-8") as spool:
            spooled = array("Q")
            for index, row in self._alone():
                if isinstance(row, Rejected):
                    yield row
                else:
                    spooled.append(index)
                    spool.write(row.model_dump_json() + "\n")
            distinct = self._distinct(spool, spooled, workspace)
            if self._similarities is None:
                yield from distinct
                return
            while batch := list(islice(distinct, ROWS_PER_BATCH)):
                yield from self._consistent(batch, self._similarities)

    def _alone(self) -> Iterator[tuple[int, Row | Rejected]]:
        """Give every answer after the filters that need it alone."""
        seen: set[int] = set()
        with self._journal.open("rb") as journal:
            for index in range(min(self._planned, self._answers.examples)):
                record = self._answers.read(journal, self._plan.example(index, self._tasks).key)
                if record is not None:
                    yield index, self._row(record, seen)

    def _row(self, record: dict[str, Any], seen: set[int]) -> Row | Rejected:
        content = content_of(completion_of(record["body"]))
        if isinstance(content, Rejection):
            return _rejected(record, content, record["body"])
        task_type: TaskType = record["about"]["task_type"]
        response = parse_answer(content, EXAMPLE_SCHEMAS[task_type])
        if isinstance(response, Rejection):
            return _rejected(record, response, content)
        texts = dict(zip(TEXTS, (response[key] for key in RESPONSE_KEYS[task_type]), strict=False))
        problem = check_texts(texts, task_type)
        if problem is None:
            row = row_of_answer(
                {
                    **record["about"],
                    "response": response,
                    "generator": record["model"],
                    "prompt_version": record["prompt_version"],
                },
                f"answer {record['key']}",
            ).model_copy(update={"key": record["key"]})
            problem = check_language(row) if self._filters.languages else None
            if self._filters.languages:
                sure = confidence_in(row.anchor, row.language)
                row = row.model_copy(update={"quality": row.quality.model_copy(update={"lang_conf": sure})})
            problem = problem or self._known(row, seen)
            if problem is None:
                return row
        return _rejected(record, problem, content)

    def _known(self, row: Row, seen: set[int]) -> Rejection | None:
        digest = text_hash(_all_texts({name: getattr(row, name) for name in TEXTS}))
        if digest in seen:
            return Rejection("duplicate", row.anchor[:200])
        seen.add(digest)
        for name in TEXTS:
            text = getattr(row, name)
            match = self._evaluation_texts.match(text) if self._evaluation_texts and text else None
            if match is None:
                continue
            self._overlap[str(match.file), match.kind, match.low_entropy] += 1
            if not match.low_entropy:
                return Rejection("evaluation text", f"{name}, {match.kind} of {match.file}")
        return None

    def _distinct(
        self, spool: TextIO, indexes: Sequence[int], workspace: Path
    ) -> Iterator[tuple[int, Row] | Rejected]:
        """Give the spooled rows without those that nearly repeat an earlier one."""
        similarity = self._filters.near_duplicates
        earlier = None
        if similarity is not None:
            texts = (_all_texts(json.loads(line)) for line in _lines(spool))
            earlier = near_duplicates(texts, workspace=workspace, similarity=similarity)
        for number, line in enumerate(_lines(spool)):
            row = Row.model_validate_json(line)
            if earlier is None or earlier[number] < 0:
                yield indexes[number], row
            else:
                repeated = self._plan.example(indexes[earlier[number]], self._tasks).key
                yield _rejected_row(row, Rejection("near duplicate", f"of {repeated}"))

    def _consistent(
        self, batch: list[tuple[int, Row] | Rejected], similarities: Similarities
    ) -> Iterator[tuple[int, Row] | Rejected]:
        """Give the rows whose positive an embedding model ranks above the negative."""
        with_negative = [item for item in batch if not isinstance(item, Rejected) and item[1].negative is not None]
        found = dict(
            zip(
                (index for index, _ in with_negative),
                similarities([row for _, row in with_negative]) if with_negative else (),
                strict=True,
            )
        )
        for item in batch:
            if isinstance(item, Rejected) or item[0] not in found:
                yield item
                continue
            index, row = item
            to_positive, to_negative = found[index]
            quality = row.quality.model_copy(update={"pos_sim": to_positive, "neg_sim": to_negative})
            row = row.model_copy(update={"quality": quality})
            if to_positive - to_negative > self._filters.consistency_margin:
                yield index, row
            else:
                detail = f"similarity to the positive {to_positive:.3f}, to the negative {to_negative:.3f}"
                yield _rejected_row(row, Rejection("inconsistent", detail))

    def _graded(self, index: int, row: Row, journal: BinaryIO) -> Row | Rejected:
        """Give a row with the judge's grade, if it has one, and reject it if that is too low."""
        model = self._filters.judge_model
        if model is None:
            return row
        record = self._answers.read(journal, self._plan.judge(index, row, model).key)
        if record is None:
            return row
        content = content_of(completion_of(record["body"]))
        answer = content if isinstance(content, Rejection) else parse_answer(content, JUDGE_SCHEMA)
        if isinstance(answer, Rejection):
            return row
        row = row.model_copy(update={"quality": row.quality.model_copy(update={"judge": float(answer["score"])})})
        if answer["score"] < self._filters.judge_score:
            return _rejected_row(row, Rejection("low grade", f"{answer['score']} by {model}"))
        return row


class _Answers:
    """Where the answers of a journal lie: 16 bytes each."""

    def __init__(self, journal: Path) -> None:
        keys, offsets = array("Q"), array("q")
        self.examples = 0
        """One more than the highest number of an answered example request."""
        offset = 0
        for record, size in read_journal(journal):
            if record["status"] == "answered" and record["step"] in ("example", "judge"):
                keys.append(int(record["key"], 16))
                offsets.append(offset)
                if record["step"] == "example":
                    self.examples = max(self.examples, record["index"] + 1)
            offset += size
        order = np.argsort(np.asarray(keys), kind="stable")
        self._keys, self._offsets = np.asarray(keys)[order], np.asarray(offsets)[order]

    def read(self, journal: BinaryIO, key: str) -> dict[str, Any] | None:
        """Read the answer to the request of that key from the open journal, if there is one."""
        wanted = np.uint64(int(key, 16))
        place = int(np.searchsorted(self._keys, wanted))
        if place == len(self._keys) or self._keys[place] != wanted:
            return None
        return read_record(journal, self._offsets[place])


def _all_texts(row: Mapping[str, str | None]) -> str:
    return "\n".join(text for name in TEXTS if (text := row[name]) is not None)


def _lines(spool: TextIO) -> Iterator[str]:
    spool.seek(0)
    yield from spool


def _rejected(record: dict[str, Any], rejection: Rejection, answer: str) -> Rejected:
    about = record["about"]
    attributes = about["attributes"]
    language = attributes.get("language") or attributes.get("src_lang") or "und"
    return Rejected(
        task_type=about["task_type"],
        instruction=about["instruction"] or "",
        language=LANGUAGE_CODES.get(language, language),
        reason=rejection.reason,
        detail=rejection.detail.encode(errors="replace").decode(),
        # Half a surrogate pair, which a JSON escape can give, cannot be written to a file.
        answer=answer.encode(errors="replace").decode(),
        generator=record["model"],
        key=record["key"],
    )


def _rejected_row(row: Row, rejection: Rejection) -> Rejected:
    texts = {name: getattr(row, name) for name in TEXTS}
    return Rejected(
        task_type=row.task_type,
        instruction=row.instruction,
        language=row.language,
        reason=rejection.reason,
        detail=rejection.detail,
        answer=json.dumps(texts, ensure_ascii=False),
        generator=row.generator,
        key=row.key,
    )
