from __future__ import annotations

from pathlib import Path

import mteb
import pytest
from mteb.models import SentenceTransformerEncoderWrapper
from mteb.types import PromptType
from sentence_transformers import SentenceTransformer

from st_llm_embed import LLMSentenceTransformer
from st_llm_embed.evaluation import mteb_prompts

PROMPTS = mteb_prompts()


@pytest.fixture(scope="module")
def wrapper(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> SentenceTransformerEncoderWrapper:
    """Plain mteb around a plain SentenceTransformer that loaded what we saved."""
    folder = tmp_path_factory.mktemp("saved")
    model = LLMSentenceTransformer.from_base(str(tiny_base), max_seq_length=64, device="cpu")
    model.prompts |= PROMPTS
    model.save_pretrained(str(folder))
    return SentenceTransformerEncoderWrapper(SentenceTransformer(str(folder), device="cpu"))


@pytest.mark.parametrize(
    ("task", "side", "instruction"),
    [
        ("FEVER", PromptType.query, "Given a claim, retrieve documents that support or refute the claim"),
        ("FEVERHardNegatives", PromptType.query, "Given a claim, retrieve documents that support or refute the claim"),
        ("FEVERHardNegatives", PromptType.document, None),
        ("CQADupstackGamingRetrieval", PromptType.query, "retrieve questions from the same forum"),
        ("BelebeleRetrieval", PromptType.query, "Given a web search query"),
        ("BelebeleRetrieval", PromptType.document, None),
        ("SciDocsRR", PromptType.query, "Given a title of a scientific paper"),
        ("STSBenchmark", None, "Retrieve semantically similar text."),
        ("Tatoeba", None, "Retrieve parallel sentences."),
        ("Banking77Classification", None, "online banking query"),
        ("SummEval", None, "Given a news summary"),
        ("WikiCitiesClustering", None, "Identify the topic"),
    ],
)
def test_plain_mteb_gives_each_task_its_instruction(
    task: str, side: PromptType | None, instruction: str | None, wrapper: SentenceTransformerEncoderWrapper
) -> None:
    name = wrapper.get_prompt_name(mteb.get_task(task).metadata, side)
    prompt = wrapper.model.prompts[name] if name else ""
    if instruction is None:
        assert prompt == ""
    else:
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
