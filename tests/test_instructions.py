from __future__ import annotations

from st_llm_embed.data.rows import Row
from st_llm_embed.data.split import Splitter
from st_llm_embed.instructions import (
    ONE_STEP_INSTRUCTIONS,
    PUBLISHED_PROMPTS,
    TRAINING_SET_INSTRUCTIONS,
    format_query,
    instruction_of,
    instruction_prompt,
    published_prompts,
)


def test_a_query_stands_after_its_instruction_as_in_the_paper() -> None:
    assert format_query("Find it", "where is it?") == "Instruct: Find it\nQuery: where is it?"
    assert format_query("Find it", "q") == instruction_prompt("Find it") + "q"


def test_published_prompts_leave_documents_bare_and_carry_the_paper_wordings() -> None:
    assert PUBLISHED_PROMPTS["document"] == ""
    assert PUBLISHED_PROMPTS["STS"] == "Instruct: Retrieve semantically similar text.\nQuery: "
    assert PUBLISHED_PROMPTS["BitextMining"] == "Instruct: Retrieve parallel sentences.\nQuery: "


def test_wordings_of_the_one_step_types_are_distinct_and_fall_on_both_sides_of_the_demo_split() -> None:
    for task_type, wordings in ONE_STEP_INSTRUCTIONS.items():
        assert len(set(wordings)) == len(wordings)
        splitter = Splitter()
        for place, wording in enumerate(wordings):
            splitter.add(Row(anchor=f"a{place}", positive=f"b{place}", instruction=wording, task_type=task_type))
        held = splitter.parts(0.2, "instruction").held
        assert not held[0], "the published prompt has to be one that was trained on"
        assert held.sum() >= 2


def test_the_papers_thirteen_public_sets_have_instructions() -> None:
    names = {name.removesuffix("-passage").removesuffix("-document") for name in TRAINING_SET_INSTRUCTIONS}
    assert len(names) == 13
    for wordings in TRAINING_SET_INSTRUCTIONS.values():
        assert wordings
        assert all(wording == wording.strip() for wording in wordings)


def test_without_an_instruction_nothing_stands_before_a_query() -> None:
    assert format_query("", "q") == "q"


def test_saved_prompts_are_what_the_model_was_trained_with() -> None:
    assert published_prompts("natural") == PUBLISHED_PROMPTS
    assert set(published_prompts("none").values()) == {""}
    assert published_prompts("none").keys() == PUBLISHED_PROMPTS.keys()
    task_type = published_prompts("task_type")
    assert task_type["query"] == instruction_prompt(instruction_of("task_type", "Find it", "short-long"))
    assert task_type["STS"] == "Instruct: sts\nQuery: "
    assert task_type["BitextMining"] == "Instruct: bitext\nQuery: "
    assert task_type["document"] == ""
