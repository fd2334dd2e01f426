"""The held-out rows of a dataset as mteb tasks: `mteb.evaluate(model, held_out_tasks(dataset_dir))`.

Three retrieval tasks with one relevant document per query and the scores of `st_llm_embed.evaluation.held_out`, apart
from ties, which mteb breaks by id.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from mteb.abstasks import AbsTaskRetrieval
from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models import EncoderProtocol
from mteb.types import Array, PromptType

from st_llm_embed.errors import InputError
from st_llm_embed.evaluation.held_out import HeldOut, load_held_out
from st_llm_embed.recipe import Instructions

SPLIT = "validation"
DESCRIPTIONS = {
    "HeldOutRetrieval": "Retrieval of each held-out query's document among all held-out documents.",
    "HeldOutSTS": "Held-out triplets: the text of the same meaning against a hard negative.",
    "HeldOutBitext": "The translation of each held-out text among those of all.",
}


class HeldOutTask(AbsTaskRetrieval):
    """Retrieval among held-out rows, each query under the instruction of its own row.

    mteb's column for an instruction per query would put it behind the query, and the model's prompt for the task
    before both.
    """

    k_values = (1, 3, 5, 10)

    def __init__(self, metadata: TaskMetadata, data: RetrievalSplitData) -> None:
        self.metadata = metadata
        super().__init__()
        self.data = data

    def load_data(self, *_: Any, **__: Any) -> None:
        """Take the rows, which are in memory already."""
        self.dataset, self.data_loaded = {"default": {SPLIT: self.data}}, True

    def unload_data(self) -> None:
        """Keep the rows; mteb's own would forget this task's metadata as well."""
        self.dataset, self.data_loaded = {}, False

    def evaluate(self, model: Any, *args: Any, **kwargs: Any) -> Mapping[str, Any]:
        """Evaluate as mteb does, without a prompt before the queries."""
        encoder: Any = _WithoutPrompt(model) if isinstance(model, EncoderProtocol) else model
        return super().evaluate(encoder, *args, **kwargs)


class _WithoutPrompt:
    """An encoder that encodes queries, which carry their instruction, as it does documents, which take none."""

    def __init__(self, model: EncoderProtocol) -> None:
        self.model = model
        self.mteb_model_meta = model.mteb_model_meta
        self.similarity, self.similarity_pairwise = model.similarity, model.similarity_pairwise

    def encode(self, inputs: Any, *, prompt_type: PromptType | None = None, **kwargs: Any) -> Array:
        side = PromptType.document if prompt_type == PromptType.query else prompt_type
        return self.model.encode(inputs, prompt_type=side, **kwargs)


def held_out_tasks(dataset_dir: Path, instructions: Instructions = "natural") -> list[HeldOutTask]:
    """Make the tasks of a written dataset: retrieval, and STS and bitext where it has such rows.

    Args:
        dataset_dir: the folder `write_dataset` wrote, or the `dataset` folder of a run.
        instructions: what the model was trained with before its queries, a recipe's `base.instructions`.

    Returns:
        `HeldOutRetrieval` (main score nDCG@10), `HeldOutSTS` and `HeldOutBitext` (main score nDCG@1, which is accuracy
        where one document is relevant). The names end in the hash of the content that is the dataset's revision too:
        mteb takes a finished result for that of any task of the same name, whatever the revision.

    Raises:
        InputError: the folder has no held-out rows.
    """
    if not any(dataset_dir.glob(f"*/{SPLIT}.parquet")):
        raise InputError(
            f"{dataset_dir} holds no held-out rows: there is no <task type>/{SPLIT}.parquet in it. Name the dataset "
            "folder of a run, such as runs/demo/dataset."
        )
    rows = load_held_out(dataset_dir, instructions)
    sts = np.flatnonzero((rows.task_type == "sts") & (rows.negative >= 0))
    bitext = np.flatnonzero(rows.task_type == "bitext")
    tasks = [_task(rows, "HeldOutRetrieval", range(len(rows.queries)), range(len(rows.documents)))]
    if len(sts):
        pairs = {_query(place): [_document(rows.positive[place]), _document(rows.negative[place])] for place in sts}
        documents = np.concatenate([rows.positive[sts], rows.negative[sts]])
        tasks.append(_task(rows, "HeldOutSTS", sts, documents, pairs))
    if len(bitext):
        tasks.append(_task(rows, "HeldOutBitext", bitext, rows.positive[bitext]))
    return tasks


def _task(
    rows: HeldOut,
    name: str,
    queries: Iterable[Any],
    documents: Iterable[Any],
    choices: dict[str, list[str]] | None = None,
) -> HeldOutTask:
    """Make a task of some of the queries and documents, given as indices, which may repeat.

    `choices` are the ids of the documents that are ranked for each query; None for all.
    """
    queries = [int(place) for place in queries]
    documents = [int(place) for place in dict.fromkeys(documents)]
    asked = {"id": [_query(place) for place in queries], "text": [rows.queries[place] for place in queries]}
    corpus = {
        "id": [_document(place) for place in documents],
        "text": [rows.documents[place] for place in documents],
        "title": [""] * len(documents),
    }
    relevant = {_query(place): {_document(rows.positive[place]): 1} for place in queries}
    content = json.dumps([asked, corpus, relevant, choices], sort_keys=True)
    revision = hashlib.sha256(content.encode()).hexdigest()
    metadata = TaskMetadata(
        name=f"{name}-{revision[:8]}",
        description=DESCRIPTIONS[name],
        dataset={"path": "local/held-out", "revision": revision},
        type="Retrieval",
        category="t2t",
        eval_splits=[SPLIT],
        eval_langs=["eng-Latn"] if rows.english[queries].all() else ["mul"],
        # nDCG@1 is accuracy where one document is relevant.
        main_score="ndcg_at_10" if name == "HeldOutRetrieval" else "ndcg_at_1",
        sample_creation="LM-generated and verified",
        # The texts have their own.
        prompt={"query": "", "document": ""},
        is_public=False,
    )
    data = RetrievalSplitData(
        corpus=Dataset.from_dict(corpus),
        queries=Dataset.from_dict(asked),
        relevant_docs=relevant,
        top_ranked=choices,
    )
    return HeldOutTask(metadata, data)


def _query(place: Any) -> str:
    return f"query-{place}"


def _document(place: Any) -> str:
    return f"document-{place}"
