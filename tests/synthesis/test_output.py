"""From a journal to a dataset."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from huggingface_hub import DatasetCard
from synthesis.planned import completion, synthesis, write_journal

from st_llm_embed import InputError, Recipe
from st_llm_embed.data.dataset import load_split
from st_llm_embed.data.rows import Row
from st_llm_embed.modules.model import LLMSentenceTransformer
from st_llm_embed.publishing.dataset_card import dataset_card
from st_llm_embed.recipe import TASK_TYPES
from st_llm_embed.synthesis.generate import tasks_file
from st_llm_embed.synthesis.journal import Journal, request_record
from st_llm_embed.synthesis.output import write_synthetic_dataset
from st_llm_embed.synthesis.plan import Request, RequestPlan
from st_llm_embed.synthesis.prompts import PROMPT_VERSION
from st_llm_embed.synthesis.selection import Rejected, Selection, Similarities
from st_llm_embed.synthesis.tasks import TaskFile

NO_LANGUAGES = {"languages": False}
COLUMNS = ["instruction", "task_type", "language", "target_language", "generator", "prompt_version", "attributes"]
COLUMNS += ["quality", "key"]


def words(*seed: object, count: int = 30) -> str:
    digest = hashlib.shake_128(repr(seed).encode()).hexdigest(count * 3)
    return " ".join(digest[start : start + 6] for start in range(0, len(digest), 6))


def made_up(request: Request) -> dict[str, str]:
    return {key: words(request.index, key, count=5 if "label" in key else 30) for key in request.schema["properties"]}


def write(section: Any, journal: Path, folder: Path, similarities: Similarities | None = None) -> Counter:
    folder.mkdir()
    return write_synthetic_dataset(section, journal, folder, 0.3, similarities)


def select(section: Any, journal: Path, similarities: Similarities | None = None) -> list[Row | Rejected]:
    plan = RequestPlan(section.plan, section.endpoint)
    tasks = TaskFile(tasks_file(section, plan, journal))
    return list(Selection(section, plan, tasks, journal / "answers.jsonl", similarities, workspace=journal).rows())


def reasons(items: list[Row | Rejected]) -> Counter[str]:
    return Counter(getattr(item, "reason", "") for item in items)


def bad_now_and_then(request: Request) -> dict[str, str] | str:
    bad = {3: "I'm sorry, but I can't assist with that.", 7: f"not {request.index}"}
    return bad.get(request.index % 10) or made_up(request)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path, Path, Counter]:
    """Section, journal, dataset and counts of 600 answers, a fifth of them bad."""
    folder = tmp_path_factory.mktemp("written")
    section = synthesis(
        requests=600,
        filters=NO_LANGUAGES,
        task_types={"short-long": 2, "long-short": 2, "short-short": 2, "long-long": 2, "sts": 1, "bitext": 1},
    )
    write_journal(section, folder / "journal", bad_now_and_then)
    counts = write(section, folder / "journal", folder / "dataset")
    recipe = Recipe.load("demo").model_copy(update={"synthesis": section})
    (folder / "dataset" / "README.md").write_text(dataset_card(recipe, folder / "dataset", counts), encoding="utf-8")
    return section, folder / "journal", folder / "dataset", counts


def test_each_configuration_loads_by_name_and_holds_what_was_asked_for(written: Any, tmp_path: Path) -> None:
    section, journal, folder, counts = written
    plan = RequestPlan(section.plan, section.endpoint)
    planned = {request.key: request for request in plan.examples(TaskFile(tasks_file(section, plan, journal)))}
    keys: list[str] = []
    for task_type in TASK_TYPES:
        loaded = load_dataset(str(folder), task_type, cache_dir=str(tmp_path))
        texts = ["anchor", "positive", *(["negative"] if task_type not in ("short-short", "long-long") else [])]
        instructions = []
        for name, split in loaded.items():
            assert (split.column_names, len(split)) == ([*texts, *COLUMNS], counts[task_type, name])
            places = [planned[key].index for key in split["key"]]
            assert places == sorted(places)
            for row in split:
                assert all(isinstance(row[name], str) and row[name] for name in (*texts, *COLUMNS[:6], "key"))
                request = planned[row["key"]]
                asked = request.about["attributes"]
                assert (row["task_type"], request.about["task_type"]) == (task_type, task_type)
                assert (row["generator"], row["prompt_version"]) == ("sample", PROMPT_VERSION)
                assert request.about["instruction"] in (None, row["instruction"])
                assert row["anchor"] == next(iter(made_up(request).values()))
                assert {key: value for key, value in row["attributes"].items() if value} == {
                    key: value for key, value in asked.items() if key not in ("language", "src_lang", "tgt_lang")
                }
                assert (row["language"] == row["target_language"]) == (task_type != "bitext")
            keys += split["key"]
            instructions.append(set(split["instruction"]))
        assert not instructions[0] & instructions[1]
    assert len(set(keys)) == len(keys) == 480
    tasks = load_dataset(str(folder), "tasks", split="train", cache_dir=str(tmp_path))
    assert (tasks.column_names, len(tasks)) == (["task_type", "instruction"], 48)
    rejected = load_dataset(str(folder), "rejected", split="train", cache_dir=str(tmp_path))
    assert Counter(rejected["reason"]) == {"refusal": 60, "not JSON": 60}
    assert all(isinstance(value, str) for row in rejected for value in row.values())
    assert "not 7" in rejected["answer"]


def test_statistics_and_card_are_those_of_the_files(written: Any) -> None:
    _, _, folder, counts = written
    statistics = json.loads((folder / "statistics.json").read_text(encoding="utf-8"))
    rows = [row for split in ("train", "validation") for part in load_split(folder, split).values() for row in part]
    rejected = pq.read_table(folder / "rejected" / "rejected.parquet").to_pylist()
    assert statistics["rows"] == len(rows) == counts.total() == 480
    assert statistics["rejected"] == len(rejected) == 120
    assert statistics["distinct_instructions"] == len({(row["task_type"], row["instruction"]) for row in rows})
    assert statistics["rows_by_task_type"] == Counter(row["task_type"] for row in rows)
    assert statistics["rows_by_language"] == Counter(row["language"] for row in rows)
    assert statistics["rejected_by_task_type"] == Counter(row["task_type"] for row in rejected)
    assert statistics["rejected_by_reason"] == {"refusal": 60, "not JSON": 60}
    for language, count in Counter(row["language"] for row in rejected).items():
        share = count / (count + statistics["rows_by_language"].get(language, 0))
        assert statistics["share_rejected_by_language"][language] == pytest.approx(share, abs=1e-4)
    assert statistics["share_duplicates_by_language"] == {}
    lengths = sorted(len(row["anchor"]) for row in rows if row["task_type"] == "sts")
    assert statistics["characters"]["sts.anchor"]["p50"] == pytest.approx(lengths[len(lengths) // 2], rel=0.1)
    assert statistics["cost"]["by_model"]["sample"] == {"answered": 600, "tokens": 60_000, "usd": 6.0}
    assert statistics["cost"]["usd"] == pytest.approx(6)
    card = DatasetCard.load(folder / "README.md")
    spoken = {row[side] for row in rows for side in ("language", "target_language")}
    assert card.data.language[:2] == ["multilingual", "en"]
    assert set(card.data.language[1:]) <= spoken
    assert f"and {len(spoken) - 5} others." in card.text
    assert "written by sample: an anchor" in card.text
    configurations = ["bitext", "long-long", "long-short", "short-long", "short-short", "sts", "tasks", "rejected"]
    assert [config["config_name"] for config in card.data.to_dict()["configs"]] == configurations
    for text in (
        "| rows | 480, of ",
        "| rejected responses | 120 |",
        "| cost | $6.00 |",
        "| refusal | 60 |",
        "brainstormed by the LLM",
        f"| sts | {counts['sts', 'train']} | {counts['sts', 'validation']} |",
    ):
        assert text in card.text


def test_answers_in_another_order_give_the_same_rows(written: Any, tmp_path: Path) -> None:
    section, _, folder, _ = written
    shuffled = random.Random(1)  # noqa: S311
    write_journal(section, tmp_path / "j", bad_now_and_then, lambda requests: shuffled.sample(requests, len(requests)))
    write(section, tmp_path / "j", tmp_path / "again")
    for path in (*folder.rglob("*.parquet"), folder / "statistics.json"):
        assert (tmp_path / "again" / path.relative_to(folder)).read_bytes() == path.read_bytes()


def test_answers_to_an_earlier_recipe_stay_out_and_come_back_with_it(tmp_path: Path) -> None:
    one = synthesis(requests=40, filters=NO_LANGUAGES)
    other = synthesis(requests=40, filters=NO_LANGUAGES, attributes={"short-long": {"num_words": {"700": 1}}})
    write_journal(one, tmp_path / "j", made_up)
    before, shared = select(one, tmp_path / "j"), select(other, tmp_path / "j")
    assert len(before) == 40 > len(shared) > 0
    assert all(row.task_type != "short-long" for row in shared)
    write_journal(other, tmp_path / "j", lambda r: made_up(r) | {"user_query": words("new", r.index)})
    after = select(other, tmp_path / "j")
    assert len(after) == 40
    assert all((row.attributes.num_words == "700") == (row.task_type == "short-long") for row in after)
    assert select(one, tmp_path / "j") == before


def test_repetitions(tmp_path: Path) -> None:
    def answer(request: Request) -> dict[str, str]:
        texts = {key: words(request.index // 4, key, count=60) for key in request.schema["properties"]}
        if request.index % 4 == 1:
            return {key: text.upper() + " " for key, text in texts.items()}
        if request.index % 4 == 2:
            return {key: text.replace(text[:6], "other", 1) for key, text in texts.items()}
        return made_up(request) if request.index % 4 == 3 else texts

    section = synthesis(requests=40, filters=NO_LANGUAGES, task_types={"sts": 1})
    write_journal(section, tmp_path / "j", answer)
    found = select(section, tmp_path / "j")
    assert [getattr(item, "reason", "") for item in found] == ["", "duplicate", "near duplicate", ""] * 10
    assert [item.detail for item in found[2::4]] == [f"of {item.key}" for item in found[::4]]
    section = synthesis(requests=40, filters=NO_LANGUAGES | {"near_duplicates": None}, task_types={"sts": 1})
    assert reasons(select(section, tmp_path / "j")) == {"": 30, "duplicate": 10}


def test_a_row_says_how_sure_its_language_is(tmp_path: Path) -> None:
    english = "The old train stopped once more before the bridge in the evening, and nobody got on or off."
    recipe = {"task_types": {"sts": 1}, "languages": {"English": 1, "German": 1}}
    section = synthesis(requests=20, filters={"near_duplicates": None}, **recipe)
    write_journal(section, tmp_path / "j", lambda r: {key: f"{english} {key} {r.index}" for key in ("S1", "S2", "S3")})
    items = select(section, tmp_path / "j")
    assert set(reasons(items)) == {"", "wrong language"}
    assert all(row.quality.lang_conf == pytest.approx(1, abs=0.01) for row in items if isinstance(row, Row))


def test_evaluation_texts(tmp_path: Path) -> None:
    known = words("known", count=8)
    changed = {
        0: {"S1": known.upper()},
        1: {"S3": known.replace(known[:6], "other")},
        2: {"S2": "Yes"},
        3: {"S2": known + words("and more", count=8)},
    }
    (tmp_path / "test.txt").write_text(f"{known}\nyes\n", encoding="utf-8")
    filters = NO_LANGUAGES | {"evaluation_texts": [str(tmp_path / "test.txt")]}
    section = synthesis(requests=20, task_types={"sts": 1}, filters=filters)
    write_journal(section, tmp_path / "j", lambda request: made_up(request) | changed.get(request.index, {}))
    items = select(section, tmp_path / "j")
    assert reasons(items) == {"": 18, "evaluation text": 2}
    details = [item.detail.split(" of ")[0] for item in items if isinstance(item, Rejected)]
    assert details == ["anchor, exact", "negative, one-word edit"]
    counts = write(section, tmp_path / "j", tmp_path / "dataset")
    overlap = json.loads((tmp_path / "dataset" / "statistics.json").read_text())["overlap_with_evaluation_texts"]
    assert sorted((row["kind"], row["low_entropy"], row["texts"]) for row in overlap) == [
        ("exact", False, 1),
        ("exact", True, 1),
        ("one-word edit", False, 1),
    ]
    recipe = Recipe.load("demo").model_copy(update={"synthesis": section})
    assert "| test.txt | exact | yes | 1 |\n" in dataset_card(recipe, tmp_path / "dataset", counts)


def test_a_model_has_to_rank_the_positive_above_the_negative(tmp_path: Path, tiny_base: Path) -> None:
    """A real model: of a random one, texts that are equal are the most similar."""
    model = LLMSentenceTransformer.from_base(str(tiny_base), max_seq_length=48)
    model.save_pretrained(str(tmp_path / "model"))
    from st_llm_embed.pipeline import _similarities

    def answer(request: Request) -> dict[str, str]:
        text = words(request.index, count=10)
        near, far = text + ".", "0 " * 40
        texts = (text, near, far) if request.index % 2 else (text, far, near)
        return dict(zip(request.schema["properties"], texts, strict=False))

    filters = NO_LANGUAGES | {"consistency_model": str(tmp_path / "model"), "near_duplicates": None}
    section = synthesis(requests=30, filters=filters, task_types={"sts": 1, "short-short": 1})
    requests = write_journal(section, tmp_path / "j", answer)
    for request, item in zip(requests, select(section, tmp_path / "j", _similarities(section)), strict=True):
        if request.about["task_type"] == "short-short":
            assert item.quality.pos_sim is None
        elif request.index % 2:
            assert item.quality.pos_sim > item.quality.neg_sim
        else:
            assert item.reason == "inconsistent"


def test_the_judges_grades(tmp_path: Path) -> None:
    filters = NO_LANGUAGES | {"judge_model": "judge", "judge_score": 3}
    section = synthesis(requests=12, filters=filters, task_types={"sts": 1, "short-short": 1})
    write_journal(section, tmp_path / "j", made_up)
    rows = select(section, tmp_path / "j")
    assert [row.quality.judge for row in rows] == [None] * 12
    plan = RequestPlan(section.plan, section.endpoint)
    answers = ['{"score": 1}', '{"score": 2}', '{"score": 3}', '{"score": 5}', '{"score": 9}', "good"] * 2
    with Journal(tmp_path / "j") as journal:
        for index, (row, answer) in enumerate(zip(rows, answers, strict=True)):
            request = plan.judge(index, row, "judge")
            journal.append(request_record(request, "answered", 10, 0.0, body=completion(answer)))
    graded = select(section, tmp_path / "j")
    assert [getattr(item, "detail", None) for item in graded] == ["1 by judge", "2 by judge", *[None] * 4] * 2
    assert reasons(graded) == {"low grade": 4, "": 8}
    assert [row.quality.judge for row in graded if isinstance(row, Row)] == [3.0, 5.0, None, None] * 2
    other = section.model_copy(update={"filters": section.filters.model_copy(update={"judge_model": "other"})})
    assert select(other, tmp_path / "j") == rows


def test_one_broken_answer_spoils_nothing(tmp_path: Path) -> None:
    bad = {
        0: '{"S1": "half \\ud83d", "S2": "b", "S3": "c"}',
        1: "half \ud83d",
        2: '{"S1": "\\u0000", "S2": "b", "S3": "c"}',
        3: '{"S1": "\x1c", "S2": "b", "S3": "c"}',
    }
    section = synthesis(requests=40, filters=NO_LANGUAGES, task_types={"sts": 1})
    write_journal(section, tmp_path / "j", lambda request: bad.get(request.index) or made_up(request))
    counts = write(section, tmp_path / "j", tmp_path / "dataset")
    assert counts.total() == 36
    rejected = pq.read_table(tmp_path / "dataset" / "rejected" / "rejected.parquet").to_pylist()
    assert Counter(row["reason"] for row in rejected) == {"broken characters": 3, "not JSON": 1}


def test_no_rows_at_all_say_why(tmp_path: Path) -> None:
    section = synthesis(requests=20, filters=NO_LANGUAGES)
    write_journal(section, tmp_path / "j", lambda request: f"no {request.index}" if request.index else "{}")
    with pytest.raises(InputError, match=r"None of the answers .* is a row: not JSON 19, missing key 1\. "):
        write(section, tmp_path / "j", tmp_path / "dataset")
    with pytest.raises(InputError, match="holds no answers to example requests yet"):
        write(section, tmp_path / "none", tmp_path / "other")
