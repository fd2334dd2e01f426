"""Two tiny mteb tasks with data of their own: retrieval with queries and documents, and STS without."""

from __future__ import annotations

from typing import Any, ClassVar

from datasets import Dataset, DatasetDict
from mteb.abstasks import AbsTaskRetrieval, AbsTaskSTS
from mteb.abstasks.task_metadata import TaskMetadata

THINGS = ("river", "mountain", "engine", "violin", "harbour", "library", "glacier", "orchard")


def metadata(name: str, task_type: str, main_score: str, prompt: str) -> TaskMetadata:
    return TaskMetadata(
        name=name,
        type=task_type,
        category="t2t",
        modalities=["text"],
        description="tests",
        reference=None,
        dataset={"path": f"local/{name}", "revision": "1"},
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score=main_score,
        prompt={"query": prompt} if task_type == "Retrieval" else prompt,
        date=None,
        domains=None,
        task_subtypes=None,
        license=None,
        annotations_creators=None,
        dialect=None,
        sample_creation=None,
        bibtex_citation="",
    )


class ThingsRetrieval(AbsTaskRetrieval):
    metadata: ClassVar[TaskMetadata] = metadata("ThingsRetrieval", "Retrieval", "ndcg_at_10", "Find the thing.")

    def load_data(self, **_: Any) -> None:
        corpus = [
            {
                "id": f"d{number}",
                "title": "",
                "text": f"The {thing} number {number} is old and {number % 3} miles away.",
            }
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


class ThingsSTS(AbsTaskSTS):
    metadata: ClassVar[TaskMetadata] = metadata("ThingsSTS", "STS", "cosine_spearman", "Find the same.")
    min_score, max_score = 0, 5

    def load_data(self, **_: Any) -> None:
        rows = [
            {
                "sentence1": f"A {THINGS[number % 8]} in the morning",
                "sentence2": f"A {THINGS[number % 5]} at noon {number}",
                "score": float(number % 6),
            }
            for number in range(30)
        ]
        self.dataset = DatasetDict({"test": Dataset.from_list(rows)})
        self.data_loaded = True
