"""What a student is trained on: rows and unlabelled texts, each text with its place among the teacher's vectors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset, DatasetDict

from st_llm_embed.data.dataset import negative_columns
from st_llm_embed.data.files import read_texts
from st_llm_embed.errors import InputError, shown
from st_llm_embed.instructions import RETRIEVAL_INSTRUCTION, format_query, instruction_of
from st_llm_embed.recipe import Distillation, Instructions
from st_llm_embed.training import training_set

UNLABELLED = "texts"
"""Name of the configuration of unlabelled texts, beside those of the rows."""


class StudentTexts:
    """The distinct texts of a student's training, numbered: queries first, documents after them."""

    def __init__(self) -> None:
        self._queries: dict[tuple[str, str], int] = {}
        self._documents: dict[str, int] = {}

    @property
    def queries(self) -> list[tuple[str, str]]:
        """Instruction and anchor of each query."""
        return list(self._queries)

    @property
    def documents(self) -> list[str]:
        """Each document."""
        return list(self._documents)

    def add_query(self, instruction: str, anchor: str) -> int:
        """Count a query, and give its place among the queries."""
        return self._queries.setdefault((instruction, anchor), len(self._queries))

    def add_document(self, text: str) -> int:
        """Count a document, and give its place among the documents."""
        return self._documents.setdefault(text, len(self._documents))


def student_set(
    distillation: Distillation, dataset_dirs: Sequence[Path], instructions: Instructions
) -> tuple[DatasetDict, StudentTexts]:
    """Make the training set of a student.

    Every configuration has a column `label`: the number of each text of the row, anchor first. A static query tower
    learns anchors alone; the numbers still name the documents, whose vectors are the teacher's.

    Args:
        distillation: all choices.
        dataset_dirs: folders of the rows to train on.
        instructions: what stands before a query; see `teacher_instructions`.

    Returns:
        The rows by configuration, and what their numbers mean.

    Raises:
        InputError: a row lacks a text, or there are no unlabelled texts where some were named.
    """
    numbered = StudentTexts()
    columns: dict[str, dict[str, list[str]]] = {}
    numbers: dict[str, list[list[tuple[bool, int]]]] = {}
    rows = training_set(dataset_dirs, instructions=instructions) if distillation.rows else DatasetDict()
    for name, part in rows.items():
        names = ["positive", *negative_columns(part.column_names)]
        columns[str(name)] = {column: [] for column in ("anchor", *names)}
        numbers[str(name)] = []
        for row in part:
            given = format_query(row["instruction"], row["anchor"])
            columns[str(name)]["anchor"].append(given if distillation.student.instructions else row["anchor"])
            query = numbered.add_query(row["instruction"], row["anchor"])
            documents = [numbered.add_document(row[column]) for column in names]
            for column in names:
                columns[str(name)][column].append(row[column])
            numbers[str(name)].append([(True, query), *((False, number) for number in documents)])
    if distillation.texts:
        columns[UNLABELLED], numbers[UNLABELLED] = _unlabelled(distillation, numbered, instructions)
    if distillation.student.kind == "static-query":
        columns = {name: {"anchor": part["anchor"]} for name, part in columns.items()}
    queries = len(numbered.queries)
    return DatasetDict(
        {
            name: Dataset.from_dict(
                part
                | {
                    "label": [
                        [number if is_query else queries + number for is_query, number in row] for row in numbers[name]
                    ]
                }
            )
            for name, part in columns.items()
        }
    ), numbered


def check_texts(distillation: Distillation) -> None:
    """Check that the files of unlabelled texts hold some.

    Raises:
        InputError: one does not.
    """
    for name in distillation.texts:
        path = Path(name)
        if path.suffix not in (".txt", ".jsonl") or not path.is_file():
            raise InputError(
                f"distillation.texts names {shown(name)}, which is no .txt or .jsonl file. Give the paths of files "
                "with one text a line, in .jsonl files under the key text."
            )
        if next(read_texts(path), None) is None:
            raise InputError(f"{path} of distillation.texts holds no texts. Give a file with one text a line.")


def _unlabelled(
    distillation: Distillation, numbered: StudentTexts, instructions: Instructions
) -> tuple[dict[str, list[str]], list[list[tuple[bool, int]]]]:
    """Give the columns of unlabelled texts and their numbers."""
    # Repeated texts would be each other's negatives.
    texts = list(dict.fromkeys(text for name in distillation.texts for text in read_texts(Path(name))))
    if distillation.student.kind == "static-query":
        instruction = instruction_of(instructions, RETRIEVAL_INSTRUCTION, "short-long")
        both = [(numbered.add_query(instruction, text), numbered.add_document(text)) for text in texts]
        return {"anchor": texts}, [[(True, query), (False, document)] for query, document in both]
    documents = [(False, numbered.add_document(text)) for text in texts]
    if distillation.teacher is not None:
        return {"anchor": texts}, [[number] for number in documents]
    # SimCSE (arXiv 2104.08821): dropout makes two vectors of one text.
    return {"anchor": texts, "positive": texts}, [[number, number] for number in documents]
