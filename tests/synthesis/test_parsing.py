"""What comes of every kind of answer that servers and models give."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

import st_llm_embed
from st_llm_embed.api.exchange import json_object
from st_llm_embed.synthesis.parsing import Rejection, content_of, parse_answer
from st_llm_embed.synthesis.plan import BRAINSTORM_SCHEMA, EXAMPLE_SCHEMAS, JUDGE_SCHEMA

GOOD = {"S1": "Rain fell all night.", "S2": "It rained until morning.", "S3": "Snow fell all night."}
PLAIN = json.dumps(GOOD)
INDENTED = json.dumps(GOOD, indent=2)


def verdict(body: str, schema: dict[str, Any] = EXAMPLE_SCHEMAS["sts"]) -> str | dict[str, Any]:
    """The reason of the rejection, or the fields."""
    content = content_of(json_object(body))
    answer = content if isinstance(content, Rejection) else parse_answer(content, schema)
    return answer.reason if isinstance(answer, Rejection) else answer


def said(content: Any, finish_reason: str = "stop", **message: Any) -> str:
    """The body of a completion with this content."""
    message = {"role": "assistant", "content": content, **message}
    return json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": finish_reason}]})


CONTENTS = {
    "plain": (PLAIN, GOOD),
    "indented": (INDENTED, GOOD),
    "spaces around": (f"\n\n  {PLAIN}\n\n\n", GOOD),
    "fenced": (f"```json\n{INDENTED}\n```", GOOD),
    "fenced without a name": (f"```\n{PLAIN}\n```", GOOD),
    "fenced on one line": (f"```json {PLAIN} ```", GOOD),
    "fence not closed": (f"```json\n{PLAIN}", GOOD),
    "fenced with words around": (f"Here is the example:\n\n```json\n{INDENTED}\n```\nI hope it {{helps}}.", GOOD),
    "words around": (f"Sure! {PLAIN} Let me know if you need more.", GOOD),
    "words with braces before": (f"With {{difficulty}} left out: {PLAIN}", GOOD),
    "fence within a text": (
        json.dumps(GOOD | {"S1": "```python\nprint({1})\n```"}),
        GOOD | {"S1": "```python\nprint({1})\n```"},
    ),
    "braces within a text": (json.dumps(GOOD | {"S3": "a { b } c } d"}), GOOD | {"S3": "a { b } c } d"}),
    "trailing comma": (PLAIN[:-1] + ",}", GOOD),
    "trailing comma, fenced, words around": (f"Here:\n```json\n{PLAIN[:-1]},\n}}\n```\nDone.", GOOD),
    "missing comma": (PLAIN.replace('", "S2', '" "S2'), GOOD),
    "python dict": (repr(GOOD), GOOD),
    "python dict with an apostrophe": (repr(GOOD | {"S1": "It's late."}), GOOD | {"S1": "It's late."}),
    "quotes within quotes": (
        PLAIN.replace("all night.", 'all "night".'),
        GOOD | {"S1": 'Rain fell all "night".', "S3": 'Snow fell all "night".'},
    ),
    "line break within a text": (
        PLAIN.replace("fell all", "fell\nall"),
        GOOD | {"S1": "Rain fell\nall night.", "S3": "Snow fell\nall night."},
    ),
    "line break within a text, trailing comma": (
        PLAIN.replace("Rain fell", "Rain\nfell")[:-1] + ",}",
        GOOD | {"S1": "Rain\nfell all night."},
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
    "the tag within a text": (json.dumps(GOOD | {"S2": "a </think> b"}), GOOD | {"S2": "a </think> b"}),
    "extra key": (json.dumps(GOOD | {"explanation": "why", "score": 3}), GOOD),
    "in a list": (f"[{PLAIN}]", GOOD),
    "two objects": (f"{PLAIN}\n{json.dumps(dict.fromkeys(GOOD, 'other'))}", GOOD),
    "within another object": (json.dumps({"example": GOOD}), GOOD),
    "JSON in a string": (json.dumps(PLAIN), GOOD),
    "escaped JSON": (json.dumps(PLAIN)[1:-1], GOOD),
    "escaped characters": (json.dumps(dict.fromkeys(GOOD, "für 😀")), dict.fromkeys(GOOD, "für 😀")),
    "unknown escape": (PLAIN.replace("Rain", r"\d Rain"), GOOD | {"S1": "\\d Rain fell all night."}),
    "missing key": (json.dumps({"S1": "a", "S2": "b"}), "missing key"),
    "keys in another case": (json.dumps({"s1": "a", "s2": "b", "s3": "c"}), "missing key"),
    "the schema itself": (json.dumps(EXAMPLE_SCHEMAS["sts"]), "wrong type"),
    "empty object": ("{}", "missing key"),
    "number": (json.dumps(GOOD | {"S2": 4.5}), "wrong type"),
    "null": (json.dumps(GOOD | {"S3": None}), "wrong type"),
    "true": (json.dumps(GOOD | {"S3": True}), "wrong type"),
    "nested object": (json.dumps(GOOD | {"S1": {"text": "a"}}), "wrong type"),
    "list instead of string": (json.dumps(GOOD | {"S2": ["a", "b"]}), "wrong type"),
    "NaN": (PLAIN.replace('"Snow fell all night."', "NaN"), "wrong type"),
    "Infinity": (PLAIN.replace('"Snow fell all night."', "-Infinity"), "wrong type"),
    "Python's None": (repr(GOOD | {"S3": None}), "wrong type"),
    "only a string": ('"Rain fell all night."', "not JSON"),
    "only a number": ("42", "not JSON"),
    "only null": ("null", "not JSON"),
    "words": ("Rain fell all night. It rained until morning.", "not JSON"),
    "lines instead of JSON": ("S1: Rain fell.\nS2: It rained.\nS3: Snow fell.", "not JSON"),
    "HTML": ("<!DOCTYPE html><html><body><style>p {color: red}</style></body></html>", "not JSON"),
    "truncated within a text": (PLAIN[:-10], "not JSON"),
    "truncated after a brace within a text": (PLAIN[:-4].replace("Snow", "{Snow} or {rain}"), "not JSON"),
    "truncated after a text": (PLAIN[: PLAIN.index(', "S3')], "not JSON"),
    "truncated before the first text": ('{"S1": ', "not JSON"),
    "duplicate key": (PLAIN[:-1] + ', "S3": "Hail fell."}', "duplicate key"),
    "duplicate key and a comma too many": (PLAIN[:-1] + ', "S3": "Hail fell.",}', "duplicate key"),
    "lone surrogate": (json.dumps(GOOD | {"S1": "a \ud83d b"}), "broken characters"),
    "deep nesting": ('{"S1":' * 100_000, "not JSON"),
    "deep nesting in lists": ('{"S1": ' + "[" * 100_000, "not JSON"),
    "braces alone": ("{" * 200_000 + "}" * 200_000, "not JSON"),
    "huge text": (json.dumps(GOOD | {"S2": "word " * 200_000}), GOOD | {"S2": "word " * 200_000}),
    "huge and broken": ('{"S1": "' + 'a "b" ' * 200_000 + '",}', "not JSON"),
    "huge number": ('{"S1": ' + "9" * 5_000 + "}", "not JSON"),
    "code instead of a text": (
        '{"S1": __import__(\'os\').system(\'touch /tmp/pwned\'), "S2": "b", "S3": "c"}',
        "not JSON",
    ),
    "code instead of a text, single quotes": ("{'S1': open('/etc/passwd').read(), 'S2': 'b', 'S3': 'c'}", "not JSON"),
    "code alone": ("__import__('os').system('touch /tmp/pwned')", "not JSON"),
    "code as a text": (json.dumps(GOOD | {"S1": "__import__('os')"}), GOOD | {"S1": "__import__('os')"}),
    "pickle": ("!!python/object/apply:os.system ['id']", "not JSON"),
    "refusal as text": ("I'm sorry, but I can't assist with that request.", "refusal"),
    "refusal as text, German": ("Es tut mir leid, aber ich kann bei dieser Anfrage nicht helfen.", "refusal"),
    "refusal in another object": (json.dumps({"error": "I cannot comply with this request."}), "missing key"),
}


@pytest.mark.parametrize(("content", "expected"), CONTENTS.values(), ids=CONTENTS.keys())
def test_what_a_model_says(content: str, expected: str | dict[str, str]) -> None:
    assert verdict(said(content)) == expected


BODIES = {
    "refusal field": (said(None, refusal="I can't help with that."), "refusal"),
    "refusal field beside a content": (said(PLAIN, refusal="No."), "refusal"),
    "truncated": (said(PLAIN[:-5], "length"), "truncated"),
    "truncated before the first word": (said(None, "length", reasoning_content="Let me think"), "truncated"),
    "content filter": (said("", "content_filter"), "content filter"),
    "content filter as an error": ('{"error": {"code": "content_filter", "message": "no"}}', "content filter"),
    "null": (said(None), "empty answer"),
    "empty": (said(""), "empty answer"),
    "spaces": (said(" \n\t"), "empty answer"),
    "a number": (said(3), "empty answer"),
    "parts": (said([{"type": "text", "text": PLAIN[:20]}, {"type": "text", "text": PLAIN[20:]}]), GOOD),
    "parts without text": (said([{"type": "image_url", "image_url": "x"}, "text", None]), "empty answer"),
    "tool calls": (
        said(None, "tool_calls", tool_calls=[{"function": {"name": "f", "arguments": PLAIN}}]),
        "empty answer",
    ),
    "reasoning apart": (said(PLAIN, reasoning_content="<think> {"), GOOD),
    "no finish_reason": (json.dumps({"choices": [{"message": {"content": PLAIN}}]}), GOOD),
    "empty choices": ('{"choices": []}', "no completion"),
    "null choices": ('{"choices": null}', "no completion"),
    "choices of another kind": ('{"choices": {"0": 1}}', "no completion"),
    "a choice of another kind": ('{"choices": ["text"]}', "no completion"),
    "no message": ('{"choices": [{"text": "a"}]}', "no completion"),
    "null message": ('{"choices": [{"message": null}]}', "no completion"),
    "no choices": ('{"id": "x", "usage": {}}', "no completion"),
    "error object": ('{"error": {"message": "context too long", "code": 400}}', "request refused"),
    "error with a list as its code": ('{"error": {"code": ["content_filter"]}}', "request refused"),
    "error text": ('{"error": "overloaded"}', "request refused"),
    "null error beside an answer": (json.dumps(json.loads(said(PLAIN)) | {"error": None}), GOOD),
    "HTML": ("<html><body>Bad gateway</body></html>", "no completion"),
    "nothing": ("", "no completion"),
    "a list": (f"[{said(PLAIN)}]", "no completion"),
    "a stream": (f"data: {said(PLAIN)}\n\ndata: [DONE]\n\n", "no completion"),
    "a cut body": (said(PLAIN)[:-9], "no completion"),
    "deep nesting": ("[" * 100_000, "no completion"),
}


@pytest.mark.parametrize(("body", "expected"), BODIES.values(), ids=BODIES.keys())
def test_what_a_server_sends(body: str, expected: str | dict[str, str]) -> None:
    assert verdict(body) == expected


@pytest.mark.parametrize(
    ("content", "expected"),
    [
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
    ],
)
def test_lists_of_tasks(content: str, expected: str | dict[str, list[str]]) -> None:
    assert verdict(said(content), BRAINSTORM_SCHEMA) == expected


@pytest.mark.parametrize(
    ("content", "expected"),
    [('{"score": 4}', {"score": 4}), ("The grade: {'score': 1}", {"score": 1})]
    + [(f'{{"score": {score}}}', "wrong type") for score in ("0", "6", "50", "true", '"4"', "3.5", "null", "[3]")],
)
def test_grades(content: str, expected: str | dict[str, int]) -> None:
    assert verdict(said(content), JUDGE_SCHEMA) == expected


def test_nothing_in_the_package_evaluates_text_or_loads_pickles() -> None:
    forbidden = {"eval", "exec", "literal_eval", "compile", "__import__"}
    for path in Path(st_llm_embed.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                # re.compile and model.eval() are something else.
                name = node.func.id if isinstance(node.func, ast.Name) else ""
                attribute = node.func.attr if isinstance(node.func, ast.Attribute) else ""
                assert name not in forbidden, f"{path}:{node.lineno}"
                assert attribute not in {"literal_eval", "exec"}, f"{path}:{node.lineno}"
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                assert not names & {"pickle", "dill", "cloudpickle", "marshal", "shelve"}, f"{path}:{node.lineno}"
