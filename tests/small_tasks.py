"""Real mteb tasks with rows enough that two models do not score alike, and without data to download."""

from __future__ import annotations

from typing import Any

from datasets import Dataset, DatasetDict
from mteb.abstasks import AbsTaskRetrieval, AbsTaskSTS
from mteb.mocks.mock_tasks import MockRetrievalTask, MockSTSTask

PAIRS = 24
THINGS = ("river", "mountain", "engine", "violin", "harbour", "library", "glacier", "orchard")


class SmallSTS(AbsTaskSTS):
    """STS with an instruction of its own."""

    metadata = MockSTSTask().metadata.model_copy(update={"name": "SmallSTS", "prompt": "Find the same."})
    min_score, max_score = 0, 5

    def load_data(self, **_: Any) -> None:
        rows = {
            "sentence1": [f"the answer about thing {number % 7}" for number in range(PAIRS)],
            "sentence2": [f"question {number} about another thing" for number in range(PAIRS)],
            "score": [number * 5 % 6 for number in range(PAIRS)],
        }
        self.dataset = DatasetDict(test=Dataset.from_dict(rows))
        self.data_loaded = True


class SmallRetrieval(AbsTaskRetrieval):
    """Retrieval with an instruction of its own, before queries."""

    metadata = MockRetrievalTask().metadata.model_copy(
        update={"name": "SmallRetrieval", "eval_splits": ["test"], "prompt": {"query": "Find the thing."}}
    )

    def load_data(self, **_: Any) -> None:
        corpus = [
            {"id": f"d{number}", "title": "", "text": f"The {thing} number {number} is {number % 3} miles away."}
            for number, thing in enumerate(THINGS * 5)
        ]
        queries = [
            {"id": f"q{number}", "text": f"Where is {thing} {number}?"} for number, thing in enumerate(THINGS * 2)
        ]
        split = {
            "corpus": Dataset.from_list(corpus),
            "queries": Dataset.from_list(queries),
            "relevant_docs": {f"q{number}": {f"d{number}": 1} for number in range(len(queries))},
            "top_ranked": None,
        }
        self.dataset = {"default": {"test": split}}
        self.data_loaded = True


class WithoutData(SmallSTS):
    metadata = MockSTSTask().metadata.model_copy(update={"name": "WithoutData"})

    def load_data(self, **_: Any) -> None:
        raise ConnectionError("Couldn't reach 'mteb/without-data' on the Hub (OfflineModeIsEnabled)")
