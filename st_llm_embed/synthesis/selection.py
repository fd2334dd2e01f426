"""From the journal to rows: every answer becomes a row or is rejected with a reason. Nothing is sent, so it is free.

Each answer is parsed and each row embedded once. What the filters of one row make of an answer is spooled to a file,
which the filters that compare rows read back. Memory holds a few numbers per answer.
"""

from __future__ import annotations

import json
import math
import tempfile
import weakref
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from st_llm_embed.api.exchange import json_object
from st_llm_embed.data.contamination import EvaluationTexts
from st_llm_embed.data.rows import RESPONSE_KEYS, Row, row_of_answer
from st_llm_embed.languages import LANGUAGE_CODES
from st_llm_embed.recipe import Synthesis, TaskType
from st_llm_embed.synthesis.duplicates import near_duplicates, text_hash
from st_llm_embed.synthesis.filters import check_language, check_texts
from st_llm_embed.synthesis.journal import answer_offsets, read_answers, read_record
from st_llm_embed.synthesis.language_id import confidence_in
from st_llm_embed.synthesis.parsing import Rejection, content_of, parse_completion
from st_llm_embed.synthesis.plan import EXAMPLE_SCHEMAS, JUDGE_SCHEMA, RequestPlan
from st_llm_embed.synthesis.tasks import TaskFile

Similarities = Callable[[Sequence[Row]], Sequence[tuple[float, float]]]
"""Returns, for rows with a negative, the cosine similarities of the anchor to the positive and to the negative."""

ROWS_PER_BATCH = 256

TEXTS = ("anchor", "positive", "negative")


@dataclass(frozen=True, slots=True)
class Rejected:
    """An answer that does not become a row, with the reason."""

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
    """The rows of one journal, selected once; the judge's grades are read when the rows are."""

    def __init__(
        self,
        synthesis: Synthesis,
        plan: RequestPlan,
        tasks: TaskFile,
        journal: Path,
        similarities: Similarities | None,
        *,
        workspace: Path,
    ) -> None:
        """Parse every answer and apply every filter but the judge.

        Args:
            synthesis: the recipe's section.
            plan: its requests; answers to others, which an earlier recipe asked for, are ignored.
            tasks: of the plan.
            journal: path of the journal's file.
            similarities: of the consistency filter; None omits it.
            workspace: an existing folder for what memory should not hold; left empty.
        """
        self._filters, self._plan, self._tasks, self._journal = synthesis.filters, plan, tasks, journal
        self._overlap: Counter[tuple[str, str, bool]] = Counter()
        paths = [Path(path) for path in self._filters.evaluation_texts]
        self._evaluation_texts = EvaluationTexts.read(paths) if paths else None
        self._spool = tempfile.TemporaryFile("w+", dir=workspace, encoding="utf-8")  # noqa: SIM115
        weakref.finalize(self, self._spool.close)
        self._indexes = array("Q")
        """The number of the request of each spooled row."""
        self._parse_answers(synthesis.plan.requests)
        self._earlier = self._repetitions(workspace)
        self._similarities = self._embedded(similarities)

    def overlap(self) -> list[dict[str, Any]]:
        """Return how many texts were found among the evaluation texts; those of low entropy are not rejected."""
        return [
            {"file": Path(file).name, "kind": kind, "low_entropy": low_entropy, "texts": count}
            for (file, kind, low_entropy), count in self._overlap.most_common()
        ]

    def candidates(self) -> Iterator[tuple[int, Row]]:
        """Yield the rows that a judge would grade, each with the number of its request, in the order of the plan."""
        for index, item in self._compared():
            if not isinstance(item, Rejected):
                yield index, item

    def rows(self) -> Iterator[Row | Rejected]:
        """Yield each planned and answered request as a row or as rejected, in the order of the plan."""
        model = self._filters.judge_model
        if model is None:
            yield from (item for _, item in self._compared())
            return
        offsets = answer_offsets(self._journal, "judge")
        with self._journal.open("rb") as journal:
            for index, item in self._compared():
                if not isinstance(item, Rejected):
                    offset = offsets.get(self._plan.judge(index, item, model).key)
                    item = item if offset is None else self._graded(item, read_record(journal, offset))  # noqa: PLW2901
                yield item

    def _parse_answers(self, requests: int) -> None:
        """Spool every answer after the filters that need it alone."""
        planned = (self._plan.example(index, self._tasks) for index in range(requests))
        seen: set[int] = set()
        for record in read_answers(self._journal, "example", planned):
            item = self._row(record, seen)
            if isinstance(item, Rejected):
                self._spool.write(json.dumps(asdict(item)) + "\n")
            else:
                self._indexes.append(record["index"])
                self._spool.write(item.model_dump_json() + "\n")

    def _row(self, record: dict[str, Any], seen: set[int]) -> Row | Rejected:
        completion = json_object(record["body"])
        content = content_of(completion)
        written = record["body"] if isinstance(content, Rejection) else content
        task_type: TaskType = record["about"]["task_type"]
        response = parse_completion(completion, EXAMPLE_SCHEMAS[task_type])
        if isinstance(response, Rejection):
            return _rejected(record, response, written)
        texts = dict(zip(TEXTS, (response[key] for key in RESPONSE_KEYS[task_type]), strict=False))
        problem = check_texts(texts, task_type)
        if problem is None:
            answer = {
                **record["about"],
                "response": response,
                "generator": record["model"],
                "prompt_version": record["prompt_version"],
            }
            row = row_of_answer(answer, f"answer {record['key']}").model_copy(update={"key": record["key"]})
            if self._filters.languages:
                problem = check_language(row)
                row = _with_quality(row, lang_conf=confidence_in(row.anchor, row.language))
            problem = problem or self._known(row, seen)
            if problem is None:
                return row
        return _rejected(record, problem, written)

    def _known(self, row: Row, seen: set[int]) -> Rejection | None:
        digest = text_hash(_all_texts(row))
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

    def _spooled(self) -> Iterator[Row | Rejected]:
        self._spool.seek(0)
        # Not the file itself: an abandoned generator would close it.
        for line in iter(self._spool.readline, ""):
            content = json.loads(line)
            yield Rejected(**content) if "reason" in content else Row.model_validate(content)

    def _rows(self) -> Iterator[Row]:
        return (item for item in self._spooled() if isinstance(item, Row))

    def _repetitions(self, workspace: Path) -> np.ndarray | None:
        """Return for each spooled row the earlier one that it nearly repeats, -1 for none; None without the filter."""
        similarity = self._filters.near_duplicates
        if similarity is None:
            return None
        return near_duplicates(map(_all_texts, self._rows()), workspace=workspace, similarity=similarity)

    def _embedded(self, similarities: Similarities | None) -> np.ndarray | None:
        """Return (rows, 2) similarities to the positive and the negative, NaN where none is needed."""
        if similarities is None:
            return None
        found = np.full((len(self._indexes), 2), np.nan)
        kept = (
            (number, row)
            for number, row in enumerate(self._rows())
            if row.negative is not None and (self._earlier is None or self._earlier[number] < 0)
        )
        while batch := list(islice(kept, ROWS_PER_BATCH)):
            found[[number for number, _ in batch]] = similarities([row for _, row in batch])
        return found

    def _compared(self) -> Iterator[tuple[int, Row | Rejected]]:
        """Yield what was spooled, rows after the filters that compare rows; an answer's number is -1."""
        number = -1
        for item in self._spooled():
            if isinstance(item, Rejected):
                yield -1, item
                continue
            number += 1
            index = self._indexes[number]
            if self._earlier is not None and self._earlier[number] >= 0:
                repeated = self._plan.example(self._indexes[self._earlier[number]], self._tasks).key
                yield index, _rejected_row(item, "near duplicate", f"of {repeated}")
            elif self._similarities is None or math.isnan(self._similarities[number, 0]):
                yield index, item
            else:
                yield index, self._consistent(item, *self._similarities[number].tolist())

    def _consistent(self, row: Row, to_positive: float, to_negative: float) -> Row | Rejected:
        """Return the row if an embedding model ranks its positive above its negative."""
        if to_positive - to_negative > self._filters.consistency_margin:
            return _with_quality(row, pos_sim=to_positive, neg_sim=to_negative)
        detail = f"similarity to the positive {to_positive:.3f}, to the negative {to_negative:.3f}"
        return _rejected_row(row, "inconsistent", detail)

    def _graded(self, row: Row, record: dict[str, Any]) -> Row | Rejected:
        """Return a row with the judge's grade, if it can be read; reject it if that is too low."""
        answer = parse_completion(json_object(record["body"]), JUDGE_SCHEMA)
        if isinstance(answer, Rejection):
            return row
        if answer["score"] < self._filters.judge_score:
            return _rejected_row(row, "low grade", f"{answer['score']} by {record['model']}")
        return _with_quality(row, judge=float(answer["score"]))


def _all_texts(row: Row) -> str:
    return "\n".join(text for name in TEXTS if (text := getattr(row, name)) is not None)


def _with_quality(row: Row, **scores: float | None) -> Row:
    return row.model_copy(update={"quality": row.quality.model_copy(update=scores)})


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
        # Half a surrogate pair, which a JSON escape can make, cannot be written to a file.
        answer=answer.encode(errors="replace").decode(),
        generator=record["model"],
        key=record["key"],
    )


def _rejected_row(row: Row, reason: str, detail: str) -> Rejected:
    answer = json.dumps({name: getattr(row, name) for name in TEXTS}, ensure_ascii=False)
    return Rejected(
        row.task_type, row.instruction, row.language, reason, detail, answer, generator=row.generator, key=row.key
    )
