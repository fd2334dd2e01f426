"""Whether answers can be used, seen while they come: a server that answers nothing usable is not paid to the end."""

from __future__ import annotations

from collections import Counter, deque
from typing import Any

from st_llm_embed.data.rows import RESPONSE_KEYS, row_of_answer
from st_llm_embed.errors import InputError
from st_llm_embed.synthesis.filters import check_language, check_texts
from st_llm_embed.synthesis.parsing import Rejection, parse_completion
from st_llm_embed.synthesis.plan import Request
from st_llm_embed.synthesis.prompts import PROMPT_VERSION

LATEST, MOST_UNUSABLE = 50, 48
"""How many answers are looked at together, and from how many unusable ones of them nothing more is sent."""
LOOKED_AT = 10
"""One answer in so many is looked at while all of the latest can be used."""


class LatestAnswers:
    """The latest answers of a run."""

    def __init__(self, *, languages: bool) -> None:
        """Look at nothing yet; `languages` rejects texts in another language than the one asked for."""
        self._languages = languages
        self._problems: deque[str] = deque(maxlen=LATEST)
        self._passed_over = 0

    def add(self, request: Request, completion: dict[str, Any]) -> None:
        """Look at an answer; raise an InputError if hardly one of the latest can be used."""
        if self._passed_over:
            self._passed_over -= 1
            return
        self._problems.append(why_unusable(request, completion, languages=self._languages))
        reasons = Counter(filter(None, self._problems))
        if reasons.total() >= MOST_UNUSABLE:
            counted = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
            raise InputError(
                f"{reasons.total()} of the latest {len(self._problems)} answers cannot be used ({counted}), so no "
                "more are asked for. Look at the last ones in journal/answers.jsonl, and fix synthesis.endpoint: its "
                "parameters (a larger max_completion_tokens where answers are truncated), its models, or the server. "
                "The same command resumes."
            )
        if len(self._problems) == LATEST and not reasons:
            self._passed_over = LOOKED_AT - 1


def why_unusable(request: Request, completion: dict[str, Any], *, languages: bool) -> str:
    """Return why a completion cannot become what was asked for, as far as it alone shows; empty if it can."""
    answer = parse_completion(completion, request.schema)
    if isinstance(answer, Rejection):
        return answer.reason
    if request.step != "example":
        return ""
    task_type = request.about["task_type"]
    given = (answer[key] for key in RESPONSE_KEYS[task_type])
    texts = dict(zip(("anchor", "positive", "negative"), given, strict=False))
    problem = check_texts(texts, task_type)
    if problem is None and languages:
        content = {**request.about, "response": answer, "generator": request.model, "prompt_version": PROMPT_VERSION}
        problem = check_language(row_of_answer(content, f"answer {request.key}"))
    return problem.reason if problem else ""
