"""Requests by number: the same everywhere, drawn as the preset says."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest
from synthesis.planned import TWO_STEP_TASKS, request_plan, synthesis, write_tasks

import st_llm_embed
from st_llm_embed import InputError
from st_llm_embed.data.rows import Row
from st_llm_embed.languages import LANGUAGE_CODES, SAMPLING_WEIGHTS
from st_llm_embed.recipe import TASK_TYPES, Recipe, TaskType
from st_llm_embed.synthesis.attributes import ATTRIBUTES
from st_llm_embed.synthesis.attributes import TASK_TYPES as TASK_TYPE_WEIGHTS
from st_llm_embed.synthesis.plan import RequestPlan
from st_llm_embed.synthesis.prompts import PROMPT_VERSION, fill_template
from st_llm_embed.synthesis.tasks import TaskFile, tasks_path

TEMPLATES = Path(st_llm_embed.__file__).parent / "synthesis" / "templates"
GOLDEN_KEYS = "7db571ebbdcef590"


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> TaskFile:
    return TaskFile(write_tasks(tmp_path_factory.mktemp("tasks") / "tasks.jsonl"))


def prompt(request: Any) -> str:
    return request.messages[0]["content"]


def planned(recipe: Recipe) -> RequestPlan:
    return RequestPlan(recipe.synthesis.plan, recipe.synthesis.endpoint)


def test_a_template_is_not_changed_without_a_new_version() -> None:
    digest = hashlib.sha256()
    for path in sorted(TEMPLATES.glob("*.txt")):
        digest.update(f"{path.name}\n{path.read_text(encoding='utf-8')}".encode())
    # A template was changed? Raise PROMPT_VERSION and put the new pair here.
    assert (PROMPT_VERSION, digest.hexdigest()[:16]) == ("2", "64e38e425528be0c")


def test_requests_are_those_of_any_machine(tasks: TaskFile) -> None:
    plan = request_plan()
    keys = [plan.brainstorm(index).key for index in (0, 1, 4, 1_000_000)]
    keys += [plan.example(index, tasks).key for index in (0, 1, 2, 3, 4, 1_000_000)]
    assert hashlib.sha256(" ".join(keys).encode()).hexdigest()[:16] == GOLDEN_KEYS, keys


def test_neither_the_order_of_lines_nor_later_requests_change_the_first(tasks: TaskFile) -> None:
    one = request_plan(task_types={"sts": 1, "bitext": 2, "short-long": 3}, languages={"German": 1, "Dutch": 2})
    other = request_plan(
        languages={"Dutch": 2, "German": 1}, task_types={"short-long": 3, "bitext": 2, "sts": 1}, requests=300
    )
    assert [r.key for r in one.examples(tasks)] == [r.key for r in other.examples(tasks)][:100]
    assert [r.key for r in one.brainstorms()] == [r.key for r in other.brainstorms()]


def test_weights_of_one_attribute_leave_the_other_draws_alone(tasks: TaskFile) -> None:
    changed = {"short-long": {"num_words": {"50": 1, "700": 3}}, "sts": {"unit": {"unspecified": 1}}}
    one, other = request_plan(requests=2000), request_plan(requests=2000, attributes=changed)
    drawn = Counter()
    for before, after in zip(one.examples(tasks), other.examples(tasks), strict=True):
        assert (before.about["task_type"], before.model) == (after.about["task_type"], after.model)
        assert before.about["instruction"] == after.about["instruction"]
        old, new = dict(before.about["attributes"]), dict(after.about["attributes"])
        assert before.about["task_type"] in changed or before.key == after.key
        for name in changed.get(before.about["task_type"], {}):
            drawn[new.pop(name, None)] += 1
            old.pop(name)
        assert old == new
    assert set(drawn) == {"50", "700", None}


def test_draws_follow_the_preset(tasks: TaskFile) -> None:
    """Chi-square of 60,000 requests: the probability of a value as large as the bound is 1 in a million."""
    plan = request_plan()
    drawn: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for index in range(60_000):
        task = plan._task(index, tasks)
        drawn["", "task type"][task.task_type] += 1
        drawn[task.task_type, "instruction"][task.instruction or ""] += 1
        attributes = plan._draw_attributes(index, task)
        assert attributes.get("src_lang") is None or attributes["src_lang"] != attributes["tgt_lang"]
        for name in ("language", "src_lang", "tgt_lang"):
            drawn["", name].update([attributes[name]] if name in attributes else [])
        for name in ATTRIBUTES[task.task_type]:
            drawn[task.task_type, name][attributes.get(name, "unspecified")] += 1
    weights = SAMPLING_WEIGHTS
    targets = {
        target: sum(
            weights[source] * weights[target] / (1 - weights[source]) for source in weights if source != target
        )
        for target in weights
    }
    assert_drawn(drawn["", "task type"], TASK_TYPE_WEIGHTS)
    for name, wanted in (("language", weights), ("src_lang", weights), ("tgt_lang", targets)):
        assert_drawn(drawn["", name], wanted)
        assert len(drawn["", name]) == len(LANGUAGE_CODES) == 93
    instructions = {task["instruction"]: 1 for task in TWO_STEP_TASKS if task["task_type"] == "long-short"}
    assert_drawn(drawn["long-short", "instruction"], instructions)
    for task_type in TASK_TYPES:
        for name, values in ATTRIBUTES[task_type].items():
            assert_drawn(drawn[task_type, name], values)


def assert_drawn(counts: Counter[str], weights: Any) -> None:
    assert set(counts) <= set(weights)
    expected = {name: counts.total() * weight / sum(weights.values()) for name, weight in weights.items()}
    statistic = sum((counts[name] - wanted) ** 2 / wanted for name, wanted in expected.items())
    freedom = len(weights) - 1
    # Wilson and Hilferty: the cube root of chi-square over its degrees of freedom is nearly normal.
    spread = 2 / (9 * freedom)
    assert ((statistic / freedom) ** (1 / 3) - (1 - spread)) / math.sqrt(spread) < 4.75, (counts, statistic)


def test_models_are_drawn_by_their_shares(tasks: TaskFile) -> None:
    section = synthesis()
    plan = RequestPlan(section.plan, section.endpoint.model_copy(update={"models": {"large": 3.0, "small": 1.0}}))
    assert_drawn(Counter(plan.example(index, tasks).model for index in range(2_000)), {"large": 3, "small": 1})


def test_brainstorming_begins_with_one_request_of_each_type(tmp_path: Path) -> None:
    plan = request_plan(brainstorm_requests=300, task_types={"long-long": 1, "short-long": 1000, "sts": 5})
    types = [request.about["task_type"] for request in plan.brainstorms()]
    assert types[:2] == ["short-long", "long-long"]
    assert (
        290 < Counter(types)["short-long"] < len(types) == len({request.key for request in plan.brainstorms()}) == 300
    )
    nothing = TaskFile(write_tasks(tmp_path / "tasks.jsonl", []))
    plan = request_plan(brainstorm_requests=0, task_types={"sts": 1, "bitext": 1})
    assert list(plan.brainstorms()) == []
    assert {request.about["task_type"] for request in plan.examples(nothing)} == {"sts", "bitext"}


def test_topics_are_asked_for_where_no_instruction_sets_the_subject(tasks: TaskFile) -> None:
    plan = request_plan(topics=("gardening", "{tax} law"))
    subjects = Counter()
    for request in [*plan.brainstorms(), *plan.examples(tasks)]:
        lines = [line for line in prompt(request).split("\n") if "this subject: " in line]
        assert len(lines) == (request.about.get("instruction") is None)
        subjects.update(line.rpartition(": ")[2] for line in lines)
    assert set(subjects) == {"gardening.", "{tax} law."}
    drawn = {r.about["task_type"]: "this subject: " in prompt(r) for r in request_plan(requests=300).examples(tasks)}
    assert drawn == {name: name in ("sts", "bitext") for name in TASK_TYPES}
    paper = request_plan(preset="paper", requests=300)
    assert not any("this subject: " in prompt(request) for request in [*paper.brainstorms(), *paper.examples(tasks)])


def test_tasks_of_ones_own_are_taken_in_turn(tmp_path: Path) -> None:
    given = [
        {"task_type": "short-long", "instruction": "Find { a } and {language}\n.", "attributes": {"num_words": 75}},
        {"task_type": "bitext", "attributes": {"tgt_lang": "English", "high_score": 4.0}},
        {"task_type": "bitext", "attributes": {"src_lang": "Dutch", "tgt_lang": "Latin"}},
        {"task_type": "sts", "attributes": {"language": "Welsh", "unit": None}},
        {"task_type": "long-short", "instruction": "Name the kind.", "attributes": {"difficulty": "unspecified"}},
    ]
    path = write_tasks(tmp_path / "mine.jsonl", given)
    plan = request_plan(tasks=str(path), requests=500)
    tasks = TaskFile(path)
    plan.check(tasks)
    requests = list(plan.examples(tasks))
    for index, request in enumerate(requests):
        task, attributes = given[index % 5], request.about["attributes"]
        assert request.about["task_type"] == task["task_type"]
        for name, value in (task.get("attributes") or {}).items():
            if value not in (None, "unspecified"):
                assert attributes[name] == (f"{value:g}" if isinstance(value, float) else str(value))
        assert attributes.get("src_lang") is None or attributes["src_lang"] != attributes["tgt_lang"]
    assert "A retrieval task: Find { a } and {language}\n." in prompt(requests[0])
    assert "at least 75 words" in prompt(requests[0])
    assert all("education" not in prompt(request) for request in requests[4::5])
    assert len({request.about["attributes"]["unit"] for request in requests[3::5]}) == 3


def test_judged_rows_with_and_without_a_negative() -> None:
    plan = request_plan()
    row = Row(anchor="a {positive}", positive="b", negative="c", instruction="find")
    with_negative, pair = plan.judge(0, row, "m"), plan.judge(0, row.model_copy(update={"negative": None}), "m")
    assert "Query: a {positive}\n" in prompt(with_negative)
    assert "Unfitting text: c\n" in prompt(with_negative)
    assert "nfitting" not in prompt(pair)
    assert with_negative.key != pair.key != plan.judge(1, row, "m").key
    assert plan.judge(0, row, "other").key != with_negative.key


def test_guidelines_are_shuffled_and_those_without_a_value_left_out() -> None:
    values = {"instruction": "i", "language": "German", "query_type": "q", "clarity": "c", "query_length": "l {x}"}
    orders = (lambda number: number, lambda number: -number)
    one, other = (fill_template("example-short-long", values, order).split("\n") for order in orders)
    assert "* The query has l {x}." in one
    places = [place for place, line in enumerate(one) if line.startswith("* ")]
    assert places == list(range(places[0], places[-1] + 1))
    assert other == one[: places[0]] + one[places[0] : places[-1] + 1][::-1] + one[places[-1] + 1 :] != one
    assert not any("num_words" in line or "education" in line for line in one)


@pytest.mark.parametrize("task_type", TASK_TYPES)
def test_every_attribute_stands_in_its_template(task_type: TaskType) -> None:
    text = (TEMPLATES / f"example-{task_type}.txt").read_text(encoding="utf-8")
    assert all(f"{{{name}}}" in text for name in ATTRIBUTES[task_type])


CUSTOM = {"seed": 1, "requests": 5, "preset": "custom"}
BAD_PLANS = {
    "unknown language": ({"languages": {"German": 1, "Klingon": 1}}, "languages names 'Klingon'.*Afrikaans"),
    "no language": ({"languages": {"German": 0, "Dutch": 0}}, "languages has no value with a weight above 0"),
    "unknown attribute": ({"attributes": {"sts": {"num_words": {"50": 1}}}}, "names 'num_words'.*unit, high_score"),
    "empty value": ({"attributes": {"sts": {"unit": {" ": 1}}}}, "names have to be words.*unspecified"),
    "no task type": ({"task_types": {"sts": 0}}, "task_types has no value with a weight above 0"),
    "infinite": ({"task_types": {"sts": 1e308, "bitext": 1e308}}, "infinity"),
    "bitext in one language": ({"languages": {"German": 1, "Dutch": 0}}, "one language, German, and bitext needs two"),
    "few brainstorms": ({"brainstorm_requests": 3}, "is 3; short-long, .*, long-long need at least one"),
    "paper has weights": ({"preset": "paper", "topics": ["cars"]}, "preset paper fixes topics; set preset to custom"),
    "tasks and brainstorms": ({"tasks": "embedded", "brainstorm_requests": 4}, "tasks fixes instructions"),
    "tasks and types": ({"tasks": "embedded", "task_types": {"sts": 1}}, "tasks fixes instructions"),
}


@pytest.mark.parametrize(("plan", "message"), BAD_PLANS.values(), ids=BAD_PLANS.keys())
def test_bad_plans_are_explained(plan: dict[str, Any], message: str) -> None:
    given = CUSTOM | ({} if "tasks" in plan else {"brainstorm_requests": 4}) | plan
    with pytest.raises(InputError, match=message) as error:
        planned(Recipe.load("demo", [f"synthesis.plan={json.dumps(given)}"]))
    assert "\n" not in str(error.value)


GOOD_TASK = json.dumps(TWO_STEP_TASKS[0])
STS = '{"task_type": "sts", "attributes": %s}'
BAD_TASKS = {
    "blank": ("\n \n", "holds no tasks"),
    "broken line": (f"{GOOD_TASK}\n\n{{", "line 3 is not JSON"),
    "deep": (f"{GOOD_TASK}\n{'[' * 100_000}", "line 2 is not JSON"),
    "no task type": ('{"instruction": "Find it."}', "line 1 is not a task.*short-long, long-short"),
    "task type that is a list": ('{"task_type": ["sts"]}', "line 1 is not a task"),
    "no instruction": ('{"task_type": "short-long"}', "line 1: a short-long task needs an instruction"),
    "lone surrogate": ('{"task_type": "short-long", "instruction": "a \\ud800"}', "instruction is .*set a text"),
    "unknown attribute": (STS % '{"num_words": 5}', "attributes of a sts task are language, unit"),
    "attribute that is a list": (STS % '{"unit": ["a"]}', "unit is .*set a text or a number"),
    "unknown language": (STS % '{"language": "Klingon"}', "language is 'Klingon'.*English names"),
    "one language twice": (
        '{"task_type": "bitext", "attributes": {"src_lang": "Dutch", "tgt_lang": "Dutch"}}',
        "src_lang and tgt_lang is 'Dutch and Dutch'.*two different",
    ),
}


@pytest.mark.parametrize(("text", "message"), BAD_TASKS.values(), ids=BAD_TASKS.keys())
def test_bad_files_of_tasks_are_explained(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "tasks.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message) as error:
        request_plan(tasks=str(path)).check(TaskFile(path))
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)


def test_files_of_tasks_and_their_bytes(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be read: No such file.*\.jsonl"):
        TaskFile(tmp_path / "none.jsonl")
    (tmp_path / "latin").write_bytes('{"task_type": "sts", "x": "é"}'.encode("latin-1"))
    with pytest.raises(InputError, match="line 1 is not JSON in UTF-8"):
        TaskFile(tmp_path / "latin")
    (tmp_path / "windows").write_bytes(b"\xef\xbb\xbf" + GOOD_TASK.encode() + b"\r\n" + GOOD_TASK.encode())
    windows = TaskFile(tmp_path / "windows")
    assert [windows[0].instruction, windows[1].instruction] == [TWO_STEP_TASKS[0]["instruction"]] * 2


def test_bitext_tasks_in_a_plan_of_one_language(tmp_path: Path) -> None:
    bitext = '{"task_type": "bitext", "attributes": {"tgt_lang": "%s"}}'
    tasks = TaskFile(write_tasks(tmp_path / "fine.jsonl", [GOOD_TASK, bitext % "Dutch"]))
    plan = request_plan(tasks=str(tasks.path), languages={"German": 1})
    plan.check(tasks)
    assert plan.example(1, tasks).about["attributes"]["src_lang"] == "German"
    tasks = TaskFile(write_tasks(tmp_path / "bad.jsonl", [GOOD_TASK, bitext % "Dutch", bitext % "German"]))
    with pytest.raises(InputError, match="one language, German, and bitext needs two"):
        plan.check(tasks)


def test_no_two_requests_of_the_demo_have_the_same_prompt() -> None:
    """Its recorded answers are found by their prompt."""
    prompts = [prompt(r) for r in planned(Recipe.load("demo")).examples(TaskFile(tasks_path("embedded")))]
    assert len(set(prompts)) == len(prompts) == 1920
