"""A real mteb task with rows enough that two models do not score alike, and without data to download."""

from __future__ import annotations

from typing import Any

from datasets import Dataset, DatasetDict
from mteb.abstasks import AbsTaskSTS
from mteb.mocks.mock_tasks import MockSTSTask

PAIRS = 24


class SmallSTS(AbsTaskSTS):
    metadata = MockSTSTask().metadata.model_copy(update={"name": "SmallSTS"})
    min_score, max_score = 0, 5

    def load_data(self, **_: Any) -> None:
        self.dataset = DatasetDict(
            test=Dataset.from_dict(
                {
                    "sentence1": [f"the answer about thing {number % 7}" for number in range(PAIRS)],
                    "sentence2": [f"question {number} about another thing" for number in range(PAIRS)],
                    "score": [number * 5 % 6 for number in range(PAIRS)],
                }
            )
        )
        self.data_loaded = True


class WithoutData(SmallSTS):
    metadata = MockSTSTask().metadata.model_copy(update={"name": "WithoutData"})

    def load_data(self, **_: Any) -> None:
        raise ConnectionError("Couldn't reach 'mteb/without-data' on the Hub (OfflineModeIsEnabled)")
