from __future__ import annotations

from pathlib import Path

import mteb
import pytest
from mteb.abstasks import AbsTask
from mteb.models import SentenceTransformerEncoderWrapper
from mteb.models.instruct_wrapper import InstructSentenceTransformerModel
from mteb.types import PromptType
from sentence_transformers import SentenceTransformer

from st_llm_embed import LLMSentenceTransformer
from st_llm_embed.evaluation.mteb_models import model_prompts, task_prompt
from st_llm_embed.instructions import instruction_prompt

# Some of the paper's table of instructions for MTEB (appendix), of each type of task.
OF_THE_PAPER = {
    "AmazonPolarityClassification": "Classify Amazon reviews into positive or negative sentiment",
    "Banking77Classification": "Given a online banking query, find the corresponding intents",
    "ArxivClusteringS2S": "Identify the main and secondary category of Arxiv papers based on the titles",
    "TwitterURLCorpus": "Retrieve tweets that are semantically similar to the given tweet",
    "AskUbuntuDupQuestions": "Retrieve duplicate questions from AskUbuntu forum",
    "FEVER": "Given a claim, retrieve documents that support or refute the claim",
    "TRECCOVID": "Given a query on COVID-19, retrieve documents that answer the query",
    "SummEval": "Given a news summary, retrieve other semantically similar summaries",
    "STS22": "Retrieve semantically similar text.",
    "CQADupstackGisRetrieval": (
        "Given a question, retrieve detailed question descriptions from Stackexchange that are duplicates to the "
        "given question"
    ),
}


def single_tasks(benchmark: str) -> list[AbsTask]:
    """The tasks of a benchmark, those of its aggregates in their place."""
    tasks = mteb.get_benchmark(benchmark).tasks
    return [one for task in tasks for one in (task.metadata.tasks if task.is_aggregate else [task])]


def test_paper_mode_gives_every_task_of_the_benchmark_an_instruction_of_the_paper() -> None:
    tasks = single_tasks("MTEB(eng, v1)")
    assert len(tasks) == 67
    prompts = {task.metadata.name: task_prompt("paper", task.metadata) for task in tasks}
    expected = {name: instruction_prompt(instruction) for name, instruction in OF_THE_PAPER.items()}
    assert {name: prompts[name].query for name in expected} == expected
    assert not any(prompt.generic or prompt.document for prompt in prompts.values())


@pytest.mark.filterwarnings("ignore:Prompt type")
def test_mteb_mode_gives_every_text_task_what_mteb_gives_its_e5_mistral() -> None:
    meta = mteb.get_model_meta("intfloat/e5-mistral-7b-instruct")
    assert meta.loader is InstructSentenceTransformerModel
    assert not meta.loader_kwargs["apply_instruction_to_passages"]
    # Its weights are not needed for what it puts before a query.
    theirs = object.__new__(InstructSentenceTransformerModel)
    theirs.prompts_dict = meta.loader_kwargs.get("prompts_dict")
    asked = [task for task in mteb.get_tasks(exclude_superseded=False) if task.modalities == ["text"]]
    asked = [one for task in asked for one in (task.metadata.tasks if task.is_aggregate else [task])]
    assert {task.metadata.name for task in single_tasks("MTEB(eng, v1)")} <= {task.metadata.name for task in asked}
    for task in asked:
        by_side = isinstance(task.metadata.prompt, dict)
        expected = theirs.get_instruction(task.metadata, PromptType.query if by_side else None)
        assert task_prompt("mteb", task.metadata).query == instruction_prompt(expected), task.metadata.name


def test_where_an_instruction_comes_from_is_said() -> None:
    def of(mode: str, name: str) -> tuple[str, bool]:
        prompt = task_prompt(mode, mteb.get_task(name).metadata)  # type: ignore[arg-type]
        return prompt.source, prompt.generic

    assert of("paper", "FEVERHardNegatives") == ("parent", False)
    assert of("mteb", "FEVERHardNegatives") == ("type", True)
    assert of("paper", "CQADupstackGamingRetrieval") == ("parent", False)
    assert of("mteb", "STSBenchmark") == ("type", False)
    assert of("paper", "BelebeleRetrieval") == ("type", True)
    assert of("none", "SciFact") == ("none", False)
    hard = mteb.get_task("FEVERHardNegatives").metadata
    assert task_prompt("paper", hard).query == instruction_prompt(OF_THE_PAPER["FEVER"])


PROMPTS = model_prompts()


@pytest.fixture(scope="module")
def wrapper(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> SentenceTransformerEncoderWrapper:
    """Plain mteb around a plain SentenceTransformer, loaded from a model that was saved with our prompts."""
    folder = tmp_path_factory.mktemp("saved")
    model = LLMSentenceTransformer.from_base(str(tiny_base), max_seq_length=64, device="cpu")
    model.prompts |= PROMPTS
    model.save_pretrained(str(folder))
    return SentenceTransformerEncoderWrapper(SentenceTransformer(str(folder), device="cpu"))


@pytest.mark.parametrize(
    ("task", "side", "instruction"),
    [
        ("FEVERHardNegatives", PromptType.query, "Given a claim, retrieve documents that support or refute the claim"),
        ("CQADupstackGamingRetrieval", PromptType.query, "retrieve questions from the same forum"),
        ("BelebeleRetrieval", PromptType.query, "Given a web search query"),
        ("SciDocsRR", PromptType.query, "Given a title of a scientific paper"),
        ("STSBenchmark", None, "Retrieve semantically similar text."),
        ("Tatoeba", None, "Retrieve parallel sentences."),
        ("Banking77Classification", None, "online banking query"),
        ("SummEval", None, "Given a news summary"),
        ("WikiCitiesClustering", None, "Identify the topic"),
    ],
)
def test_plain_mteb_gives_each_task_its_instruction(
    task: str, side: PromptType | None, instruction: str, wrapper: SentenceTransformerEncoderWrapper
) -> None:
    prompt = wrapper.model.prompts[wrapper.get_prompt_name(mteb.get_task(task).metadata, side)]
    assert prompt.startswith("Instruct: ")
    assert prompt.endswith("\nQuery: ")
    assert instruction in prompt


def test_every_task_of_the_english_benchmark_has_an_instruction_and_documents_have_none(
    wrapper: SentenceTransformerEncoderWrapper,
) -> None:
    for task in mteb.get_benchmark("MTEB(eng, v2)").tasks:
        metadata = task.metadata
        asymmetric = metadata.type in ("Retrieval", "Reranking")
        name = wrapper.get_prompt_name(metadata, PromptType.query if asymmetric else None)
        assert name, metadata.name
        assert wrapper.model.prompts[name].startswith("Instruct: "), metadata.name
        if asymmetric:
            document = wrapper.get_prompt_name(metadata, PromptType.document)
            assert document is None or wrapper.model.prompts[document] == "", metadata.name


def test_mteb_knows_every_key() -> None:
    valid, messages = SentenceTransformerEncoderWrapper.validate_task_to_prompt_name(
        PROMPTS, raise_for_invalid_keys=False
    )
    assert valid == PROMPTS
    assert not messages
