"""Files and batches of the loopback server, through the real openai client."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI
from openai.types import Batch

from st_llm_embed.synthesis.replay import Faults, ReplayServer, made_up_answer
from st_llm_embed.synthesis.replay.faults import REFUSAL

COUNT = 40


def client(server: ReplayServer) -> OpenAI:
    return OpenAI(base_url=server.base_url, api_key="x", max_retries=0)


def line(number: int, **fields: Any) -> dict[str, Any]:
    body = {"model": "m", "messages": [{"role": "user", "content": f"question {number}"}]}
    return {"custom_id": f"row-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body} | fields


def jsonl(lines: list[Any]) -> bytes:
    return "".join(json.dumps(one) + "\n" for one in lines).encode()


def start(one: OpenAI, content: bytes | None = None, **metadata: str) -> Batch:
    content = jsonl([line(number) for number in range(COUNT)]) if content is None else content
    file = one.files.create(file=("requests.jsonl", content), purpose="batch")
    return one.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata=metadata
    )


def poll(one: OpenAI, batch: Batch, times: int) -> list[str]:
    return [one.batches.retrieve(batch.id).status for _ in range(times)]


def results(one: OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    assert file_id is not None
    return [json.loads(text) for text in one.files.content(file_id).text.splitlines()]


def test_files() -> None:
    content = jsonl([line(0)]) + b"\r\n--not-the-boundary\r\n\xff"
    with ReplayServer(made_up_answer) as server, client(server) as one:
        file = one.files.create(file=("requests.jsonl", content), purpose="batch")
        assert (file.filename, file.purpose, file.bytes, file.status) == (
            "requests.jsonl",
            "batch",
            len(content),
            "processed",
        )
        assert one.files.retrieve(file.id) == file
        assert one.files.content(file.id).content == content
        second = one.files.create(file=("more.jsonl", b""), purpose="batch")
        assert [each.id for each in one.files.list()] == [second.id, file.id]
        assert one.files.delete(file.id).deleted
        for call in (one.files.retrieve, one.files.content, one.files.delete):
            with pytest.raises(openai.NotFoundError):
                call(file.id)
        with pytest.raises(openai.BadRequestError, match="purpose"):
            one.files.create(file=("requests.jsonl", content), purpose="evals")


def test_a_batch_is_completed_after_its_polls_and_out_of_order(tmp_path: Path) -> None:
    log = tmp_path / "ledger.jsonl"
    with ReplayServer(made_up_answer, faults=Faults(batch_polls=3), log=log) as server, client(server) as one:
        batch = start(one, run="seven")
        assert (batch.status, batch.metadata) == ("validating", {"run": "seven"})
        assert poll(one, batch, 2) == ["in_progress", "in_progress"]
        assert not log.read_text()
        assert poll(one, batch, 2) == ["completed", "completed"]
        batch = one.batches.retrieve(batch.id)
        assert (batch.request_counts.total, batch.request_counts.completed) == (COUNT, COUNT)
        assert (batch.error_file_id, batch.metadata) == (None, {"run": "seven"})
        answers = results(one, batch.output_file_id)
    names = [answer["custom_id"] for answer in answers]
    assert sorted(names) == sorted(f"row-{number}" for number in range(COUNT))
    assert names != [f"row-{number}" for number in range(COUNT)]
    first = answers[0]
    assert (first["error"], first["response"]["status_code"]) == (None, 200)
    number = first["custom_id"].removeprefix("row-")
    message = first["response"]["body"]["choices"][0]["message"]
    assert message["content"] == made_up_answer(
        {"model": "m", "messages": [{"role": "user", "content": f"question {number}"}]}
    )
    billed = [json.loads(text) for text in log.read_text().splitlines()]
    assert sorted(one["custom_id"] for one in billed) == sorted(names)


def test_batches_are_listed_newest_first_in_pages() -> None:
    with ReplayServer(made_up_answer) as server, client(server) as one:
        batches = [start(one, run=str(number)) for number in range(5)]
        page = one.batches.list(limit=2)
        assert [batch.metadata for batch in page.data] == [{"run": "4"}, {"run": "3"}]
        assert page.has_more
        assert [batch.id for batch in one.batches.list(after=batches[2].id)] == [batches[1].id, batches[0].id]
        assert [batch.id for batch in one.batches.list(limit=2)] == [batch.id for batch in reversed(batches)]


def test_an_expired_batch_has_part_of_the_answers_and_the_next_is_completed() -> None:
    faults = Faults(batch_polls=1, batch_outcomes=("expired",), batch_unfinished_share=0.4)
    with ReplayServer(made_up_answer, faults=faults) as server, client(server) as one:
        batch = one.batches.retrieve(start(one).id)
        answered, failed = results(one, batch.output_file_id), results(one, batch.error_file_id)
        assert batch.status == "expired"
        assert batch.expired_at is not None
        assert len(answered) + len(failed) == COUNT
        assert 0 < batch.request_counts.failed == len(failed) < COUNT
        assert {one["error"]["code"] for one in failed} == {"batch_expired"}
        assert {one["response"] is None for one in failed} == {True}
        assert server.stats()["billed"]["requests"] == len(answered)
        assert poll(one, start(one), 1) == ["completed"]


def test_some_lines_fail() -> None:
    faults = Faults(batch_polls=1, batch_error_share=0.3)
    lines = [line(number) for number in range(COUNT)]
    for one in lines[:10]:
        one["body"]["max_tokens"] = -1
    with ReplayServer(made_up_answer, faults=faults) as server, client(server) as one:
        batch = one.batches.retrieve(start(one, jsonl(lines)).id)
        failed = results(one, batch.error_file_id)
        answered = results(one, batch.output_file_id)
    assert batch.status == "completed"
    assert {one["response"]["status_code"] for one in failed} == {400, 500}
    assert all(one["response"]["body"]["error"]["message"] and one["error"] is None for one in failed)
    assert {f"row-{number}" for number in range(10)} <= {one["custom_id"] for one in failed}
    assert len(answered) + len(failed) == COUNT


def test_faults_of_the_answer_happen_to_lines_too() -> None:
    faults = Faults(batch_polls=1, shares={"refusal_text": 0.5, "hang": 0.5})
    with ReplayServer(made_up_answer, faults=faults) as server, client(server) as one:
        answered = results(one, one.batches.retrieve(start(one).id).output_file_id)
        refused = [one for one in answered if one["response"]["body"]["choices"][0]["message"]["content"] == REFUSAL]
        assert server.stats()["faults"] == {"refusal_text": len(refused)}
    assert len(answered) == COUNT
    assert 0 < len(refused) < COUNT


@pytest.mark.parametrize(
    ("content", "code", "at"),
    [
        (b"", "invalid_file", None),
        (jsonl([line(0)]) + b"{\n", "invalid_json_line", 2),
        (jsonl([[1]]), "invalid_json_line", 1),
        (jsonl([line(0, body=7)]), "invalid_json_line", 1),
        (jsonl([line(0), line(0)]), "duplicate_custom_id", 2),
        (jsonl([line(0, url="/v1/embeddings")]), "mismatched_url", 1),
        (jsonl([line(0), line(1, body={"model": "n", "messages": []})]), "mismatched_model", 2),
        (b"\xff\n", "invalid_json_line", 1),
    ],
)
def test_a_file_that_openai_would_not_take_fails_validation(content: bytes, code: str, at: int | None) -> None:
    with ReplayServer(made_up_answer, faults=Faults(batch_polls=1)) as server, client(server) as one:
        batch = one.batches.retrieve(start(one, content).id)
        assert server.stats()["billed"]["requests"] == 0
    assert batch.status == "failed"
    assert [(error.code, error.line) for error in batch.errors.data] == [(code, at)]
    assert batch.output_file_id is None


def test_validation_can_be_made_to_fail() -> None:
    faults = Faults(batch_polls=1, batch_outcomes=("failed",))
    with ReplayServer(made_up_answer, faults=faults) as server, client(server) as one:
        batch = one.batches.retrieve(start(one).id)
        assert batch.status == "failed"
        assert batch.errors.data[0].message == "This batch was drawn to fail validation."


def test_cancelling() -> None:
    with ReplayServer(made_up_answer, faults=Faults(batch_polls=100)) as server, client(server) as one:
        batch = start(one)
        poll(one, batch, 1)
        assert one.batches.cancel(batch.id).status == "cancelling"
        batch = one.batches.retrieve(batch.id)
        assert batch.status == "cancelled"
        assert {one["error"]["code"] for one in results(one, batch.error_file_id)} == {"batch_cancelled"}
        assert results(one, batch.output_file_id)
        with pytest.raises(openai.BadRequestError, match="cancelled"):
            one.batches.cancel(batch.id)


def test_a_batch_that_cannot_be_created() -> None:
    with ReplayServer(made_up_answer) as server, client(server) as one:
        with pytest.raises(openai.BadRequestError, match="No such File"):
            one.batches.create(input_file_id="file-x", endpoint="/v1/chat/completions", completion_window="24h")
        with pytest.raises(openai.BadRequestError, match="endpoint"):
            one.batches.create(input_file_id="file-x", endpoint="/v1/embeddings", completion_window="24h")
        with pytest.raises(openai.BadRequestError, match="JSON object"):
            one.post("/batches", body=[], cast_to=object)
        with pytest.raises(openai.BadRequestError, match="limit"):
            one.batches.list(limit="many")  # ty: ignore[invalid-argument-type]
        with pytest.raises(openai.NotFoundError):
            one.batches.retrieve("batch_x")


def test_files_and_batches_outlive_the_server(tmp_path: Path) -> None:
    faults = Faults(batch_polls=3)
    with ReplayServer(made_up_answer, faults=faults, state=tmp_path) as server, client(server) as one:
        batch = start(one, run="seven")
        assert poll(one, batch, 1) == ["in_progress"]
    with ReplayServer(made_up_answer, faults=faults, state=tmp_path) as server, client(server) as one:
        assert [each.metadata for each in one.batches.list()] == [{"run": "seven"}]
        assert poll(one, batch, 2) == ["in_progress", "completed"]
        second = start(one)
        assert [each.id for each in one.batches.list()] == [second.id, batch.id]
    with ReplayServer(made_up_answer, faults=faults, state=tmp_path) as server, client(server) as one:
        batch = one.batches.retrieve(batch.id)
        assert batch.status == "completed"
        assert len(results(one, batch.output_file_id)) == COUNT
