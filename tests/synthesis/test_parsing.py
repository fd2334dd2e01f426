"""What comes of every kind of answer that servers and models give."""

from __future__ import annotations

import json
from typing import Any

import pytest

from st_llm_embed.api.exchange import json_object
from st_llm_embed.synthesis.parsing import Rejection, parse_completion
from st_llm_embed.synthesis.plan import BRAINSTORM_SCHEMA, EXAMPLE_SCHEMAS, JUDGE_SCHEMA

GOOD = {"S1": "Rain fell all night.", "S2": "It rained until morning.", "S3": "Snow fell all night."}
PLAIN = json.dumps(GOOD)
INDENTED = json.dumps(GOOD, indent=2)
DRAFT = json.dumps(dict.fromkeys(GOOD, "draft"))
TRAILING = json.dumps(GOOD | {"S1": 'Rain, "cats" and dogs: all night.'}).replace('\\"', '"')[:-1] + ",}"


def verdict(body: str, schema: dict[str, Any] = EXAMPLE_SCHEMAS["sts"]) -> str | dict[str, Any]:
    """The reason of the rejection, or the fields."""
    answer = parse_completion(json_object(body), schema)
    return answer.reason if isinstance(answer, Rejection) else answer


def said(content: Any, finish_reason: str = "stop", **message: Any) -> str:
    """The body of a completion with this content."""
    message = {"role": "assistant", "content": content, **message}
    return json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": finish_reason}]})


CURLY = "{“S1”: “Rain, “cats”, and dogs.”, “S2”: “It rained until morning.”, “S3”: “Snow fell all night.”}"

CONTENTS = {
    "plain": (PLAIN, GOOD),
    "fenced": (f"```json\n{INDENTED}\n```", GOOD),
    "fenced with words around": (f"Here is the example:\n\n```json\n{INDENTED}\n```\nI hope it {{helps}}.", GOOD),
    "words with braces before": (f"With {{difficulty}} left out: {PLAIN}", GOOD),
    "braces within a text": (json.dumps(GOOD | {"S3": "a { b } c } d"}), GOOD | {"S3": "a { b } c } d"}),
    "trailing comma": (PLAIN[:-1] + ",}", GOOD),
    "missing comma": (PLAIN.replace('", "S2', '" "S2'), GOOD),
    "python dict with an apostrophe": (repr(GOOD | {"S1": "It's late."}), GOOD | {"S1": "It's late."}),
    "quotes within quotes": (
        PLAIN.replace("all night.", 'all "night".'),
        GOOD | {"S1": 'Rain fell all "night".', "S3": 'Snow fell all "night".'},
    ),
    "line break within a text": (
        PLAIN.replace("fell all", "fell\nall"),
        GOOD | {"S1": "Rain fell\nall night.", "S3": "Snow fell\nall night."},
    ),
    "byte order mark": ("\ufeff" + PLAIN, GOOD),
    "thought aloud": (
        f"<think>\nS1 could be {{...}}, like {json.dumps(dict.fromkeys(GOOD, 'draft'))}.\n</think>\n\n{PLAIN}",
        GOOD,
    ),
    "thought aloud, tag begun by the prompt": (f"First a draft {{x}}.\n</think>{PLAIN}", GOOD),
    "thought without a thought": (f"<think>\n\n</think>\n\n```json\n{PLAIN}\n```", GOOD),
    "thought to the end": (f"<think>I would write {PLAIN}, or rather", "not JSON"),
    "thought and then declined": (f"<think>{PLAIN}?</think>I can't assist with that.", "refusal"),
    "prose, and the tag within a text": (
        "Here: " + json.dumps(GOOD | {"S2": "a </think> b"}),
        GOOD | {"S2": "a </think> b"},
    ),
    "a thought of many braces": ("<think>" + '{"x", ' * 3_000 + f"</think>{PLAIN}", GOOD),
    "thought after the answer": (f"{PLAIN}<think>Or {DRAFT}?", GOOD),
    "thought after the answer, ended": (f"{PLAIN}<think>Or {DRAFT}?</think>", GOOD),
    "the tag within a text": (json.dumps(GOOD | {"S2": "a </think> b"}), GOOD | {"S2": "a </think> b"}),
    "extra key": (json.dumps(GOOD | {"explanation": "why", "score": 3}), GOOD),
    "a draft and the answer": (f"{DRAFT}\nBetter:\n{PLAIN}", GOOD),
    "a draft and a broken answer": (f"{DRAFT}\nBetter:\n{PLAIN[:-1]},}}", GOOD),
    "an answer and part of another": (f"{PLAIN}\n{PLAIN[:30]}", GOOD),
    "within another object": (json.dumps({"draft": json.loads(DRAFT), "example": [GOOD]}), GOOD),
    "keys in other case": (PLAIN.replace("S1", " s1").replace("S2", "s_2").replace("S3", "s 3"), GOOD),
    "a key in two cases": (PLAIN[:-1] + ', "s3": "Hail fell."}', "duplicate key"),
    "curly quotes": (CURLY, GOOD | {"S1": "Rain, “cats”, and dogs."}),
    "guillemets": ("{" + ", ".join(f"«{key}»: «{text}»" for key, text in GOOD.items()) + "}", GOOD),
    "curly quotes, cut": (CURLY[:-2], "not JSON"),
    "curly quotes, one missing": (CURLY.replace("dogs.”", "dogs."), "not JSON"),
    "commas and quotes within quotes": (TRAILING, GOOD | {"S1": 'Rain, "cats" and dogs: all night.'}),
    "a text that is not quoted to its end": (PLAIN.replace('night."', 'night." [sic]'), "not JSON"),
    "another key in broken JSON": (PLAIN[:-1] + ', "note": "n",}', "not JSON"),
    "escapes in broken JSON": (
        PLAIN.replace("Rain", r"\u00dcR\n\"").replace('."}', '.",}'),
        GOOD | {"S1": 'ÜR\n" fell all night.'},
    ),
    "escaped JSON": (json.dumps(PLAIN)[1:-1], GOOD),
    "escaped characters": (json.dumps(dict.fromkeys(GOOD, "für 😀")), dict.fromkeys(GOOD, "für 😀")),
    "unknown escape": (PLAIN.replace("Rain", r"\d Rain"), GOOD | {"S1": "\\d Rain fell all night."}),
    "missing key": (json.dumps({"S1": "a", "S2": "b"}), "missing key"),
    "empty object": ("{}", "missing key"),
    "list instead of string": (json.dumps(GOOD | {"S2": ["a", "b"]}), "wrong type"),
    "NaN": (PLAIN.replace('"Snow fell all night."', "NaN"), "wrong type"),
    "Python's None": (repr(GOOD | {"S3": None}), "not JSON"),
    "words": ("Rain fell all night. It rained until morning.", "not JSON"),
    "HTML": ("<!DOCTYPE html><html><body><style>p {color: red}</style></body></html>", "not JSON"),
    "truncated after a brace within a text": (PLAIN[:-4].replace("Snow", "{Snow} or {rain}"), "not JSON"),
    "duplicate key": (PLAIN[:-1] + ', "S3": "Hail fell."}', "duplicate key"),
    "duplicate key and a comma too many": (PLAIN[:-1] + ', "S3": "Hail fell.",}', "duplicate key"),
    "lone surrogate": (json.dumps(GOOD | {"S1": "a \ud83d b"}), "broken characters"),
    "deep nesting": ('{"S1":' * 100_000, "not JSON"),
    "braces alone": ("{" * 200_000 + "}" * 200_000, "missing key"),
    "huge text": (json.dumps(GOOD | {"S2": "word " * 200_000}), GOOD | {"S2": "word " * 200_000}),
    "huge and broken": ('{"S1": "' + 'a "b" ' * 200_000 + '",}', "not JSON"),
    "huge number": ('{"S1": ' + "9" * 5_000 + "}", "not JSON"),
    "code instead of a text": (
        '{"S1": __import__(\'os\').system(\'touch /tmp/pwned\'), "S2": "b", "S3": "c"}',
        "not JSON",
    ),
    "code instead of a text, single quotes": ("{'S1': open('/etc/passwd').read(), 'S2': 'b', 'S3': 'c'}", "not JSON"),
    "refusal as text": ("I'm sorry, but I can't assist with that request.", "refusal"),
    "refusal in another object": (json.dumps({"error": "I cannot comply with this request."}), "missing key"),
}


@pytest.mark.parametrize(("content", "expected"), CONTENTS.values(), ids=CONTENTS.keys())
def test_what_a_model_says(content: str, expected: str | dict[str, str]) -> None:
    assert verdict(said(content)) == expected


THOUGHTS = [
    "<thinking>{}</thinking>{}",
    "<thought>{}</thought>{}",
    "<seed:think>{}</seed:think>{}",
    "<reasoning>{}</reasoning>\n{}",
    '<reasoning effort="high">{}</reasoning>```json\n{}\n```',
    "[THINK]{}[/THINK]{}",
    "◁think▷{}◁/think▷{}",
    "<|START_THINKING|>{}<|END_THINKING|><|START_RESPONSE|>{}<|END_RESPONSE|>",
    "<|channel>thought\n{}<channel|>{}",
    "<|channel|>analysis<|message|>Draft: {}<|end|><|start|>assistant<|channel|>final<|message|>{}",
    "<|channel|>commentary<|message|>{}<|end|><|channel|>final <|constrain|>json<|message|>{}<|return|>",
    "analysisWe need {} and more.assistantfinal{}",
    "Here is my thought process: {}\nHere is my response: {}",
    "{}</think>Here you are: {}",
]


@pytest.mark.parametrize("form", THOUGHTS)
def test_drafts_in_thoughts_are_never_the_answer(form: str) -> None:
    assert verdict(said(form.format(DRAFT, PLAIN))) == GOOD
    assert verdict(said(form.format(PLAIN, ""))) in ("not JSON", "missing key")
    unended = form[: form.index("{}") + 2].format(PLAIN)
    assert form.startswith("{}") or verdict(said(unended + " Or", "length")) == "truncated"


CALL = {"function": {"name": "f", "arguments": PLAIN}}
BODIES = {
    "refusal field beside a content": (said(PLAIN, refusal="No."), "refusal"),
    "content filter": (said("", "content_filter"), "content filter"),
    "content filter as an error": ('{"error": {"code": "content_filter", "message": "no"}}', "content filter"),
    "null": (said(None), "empty answer"),
    "a number": (said(3), "empty answer"),
    "parts": (said([{"type": "text", "text": PLAIN[:20]}, {"type": "text", "text": PLAIN[20:]}]), GOOD),
    "parts without text": (said([{"type": "image_url", "image_url": "x"}, "text", None]), "empty answer"),
    "a tool call": (said(None, "tool_calls", tool_calls=[CALL]), GOOD),
    "a tool call's object": (said("", tool_calls=[{"function": {"arguments": GOOD}}]), GOOD),
    "a function call": (said(None, "function_call", function_call=CALL["function"]), GOOD),
    "two tool calls": (said(None, "tool_calls", tool_calls=[CALL, CALL]), "empty answer"),
    "reasoning_content": (said("", reasoning_content=PLAIN), GOOD),
    "reasoning": (said(None, reasoning=f"It has to be about rain.\n```json\n{PLAIN}\n```\n"), GOOD),
    "reasoning beside a content": (said(PLAIN, reasoning_content=DRAFT), GOOD),
    "reasoning that is a thought": (said("", reasoning_content=f"First {DRAFT}, or rather"), "empty answer"),
    "reasoning that was cut": (said("", "length", reasoning_content=f"First {DRAFT}, or rather"), "truncated"),
    "parts of a thought": (said([{"type": "reasoning", "text": DRAFT}, {"type": "text", "text": PLAIN}]), GOOD),
    "parts of a list of thoughts": (said([{"type": "thinking", "thinking": [{"text": DRAFT}]}]), "empty answer"),
    "an object as content": (said(GOOD), GOOD),
    "whole though cut": (said(PLAIN + "\n" * 900, "length"), GOOD),
    "whole though cut, in a fence": (said(f"Here:\n```json\n{PLAIN}\n```\n", "MAX_TOKENS"), GOOD),
    "whole though cut, after a thought": (said(f"<think>{DRAFT}</think>So: {PLAIN} It", "length"), GOOD),
    "cut within": (said(PLAIN[:60], "length"), "truncated"),
    "cut within, after a brace": (said(PLAIN[:60] + "}", "length"), "truncated"),
    "a draft in a thought without marks, cut": (said(f"I could write {DRAFT}. Or", "length"), "truncated"),
    "blocked": (said("", "SAFETY"), "content filter"),
    "an error in a choice": (said(PLAIN[:50], "error"), "server error"),
    "broken JSON by the server's measure": (json.dumps({"error": {"code": "x", "failed_generation": PLAIN}}), GOOD),
    "empty choices": ('{"choices": []}', "no completion"),
    "error object": ('{"error": {"message": "context too long", "code": 400}}', "request refused"),
    "null error beside an answer": (json.dumps(json.loads(said(PLAIN)) | {"error": None}), GOOD),
    "HTML": ("<html><body>Bad gateway</body></html>", "no completion"),
    "nothing": ("", "no completion"),
    "a stream": (f"data: {said(PLAIN)}\n\ndata: [DONE]\n\n", "no completion"),
    "deep nesting": ("[" * 100_000, "no completion"),
}


@pytest.mark.parametrize(("body", "expected"), BODIES.values(), ids=BODIES.keys())
def test_what_a_server_sends(body: str, expected: str | dict[str, str]) -> None:
    assert verdict(body) == expected


OTHER_SCHEMAS = [
    ('{"tasks": ["Find a", "Find b"]}', {"tasks": ["Find a", "Find b"]}),
    ('["Find a", "Find b"]', {"tasks": ["Find a", "Find b"]}),
    ('Here you are:\n```json\n["Find a",\n "Find b"]\n```', {"tasks": ["Find a", "Find b"]}),
    ("{'tasks': ['Find a', 'Find b',]}", {"tasks": ["Find a", "Find b"]}),
    ('{"tasks": []}', {"tasks": []}),
    ('{"tasks": "Find a"}', "wrong type"),
    ('{"tasks": ["Find a", 3]}', "wrong type"),
    ('{"tasks": [{"task": "Find a"}]}', "wrong type"),
    ("1. Find a\n2. Find b [1]", "wrong type"),
    ("1. Find a\n2. Find b", "not JSON"),
    ('{"tasks": ["Find a", "Find', "not JSON"),
    ('{"score": 4}', {"score": 4}),
    ("The grade: {'score': 1}", {"score": 1}),
    *((f'{{"score": {score}}}', "wrong type") for score in ("0", "6", "50", "true", '"4"', "3.5", "null", "[3]")),
]


@pytest.mark.parametrize(("content", "expected"), OTHER_SCHEMAS)
def test_lists_of_tasks_and_grades(content: str, expected: str | dict[str, Any]) -> None:
    assert verdict(said(content), JUDGE_SCHEMA if "score" in content else BRAINSTORM_SCHEMA) == expected
