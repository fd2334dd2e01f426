from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from synthesis.running import small_disk

from st_llm_embed.api.budget import Cost
from st_llm_embed.errors import InputError
from st_llm_embed.synthesis.journal import Journal, read_answers, read_journal, read_record, request_record
from st_llm_embed.synthesis.plan import Request

BODY = '{"choices": [{"message": {"content": "a line\\nend, \\"body\\":\\"x\\", Übung 🙂"}}]}'


def request(index: int, key: int) -> Request:
    return Request("example", index, f"{key:016x}", "m", [], {}, {"task_type": "sts"})


def answer(journal: Journal, asked: Request, body: str = BODY, status: str = "answered") -> None:
    journal.append(request_record(asked, status, 10, 0.5, body=body, usage={"body": 1}))


def filled(folder: Path, count: int = 3) -> Path:
    with Journal(folder) as journal:
        for number in range(count):
            answer(journal, request(number, number + 1))
        return journal.path


def test_what_was_written_is_there_again(tmp_path: Path) -> None:
    path = filled(tmp_path)
    with Journal(tmp_path) as journal:
        answer(journal, request(7, 99), status="maybe paid")
        journal.append({"status": "format", "model": "m", "base_url": "u", "format": "json_object"})
    with Journal(tmp_path) as journal:
        assert [journal.has(request(number, number + 1)) for number in range(4)] == [True, True, True, False]
        assert journal.has(request(0, 2)), "the answer of an earlier recipe"
        assert not journal.has(request(0, 9))
        assert not journal.has(request(7, 99)), "what may have been paid is no answer"
        assert (journal.usd, journal.tokens) == (2.0, 40)
        assert journal.formats == {("u", "m"): "json_object"}
    offset = 0
    with path.open("rb") as file:
        for number, (head, size) in enumerate(read_journal(path)):
            whole = read_record(file, offset)
            assert {**head, "body": whole.get("body")} == {**whole, "body": whole.get("body")}
            assert "body" not in head
            assert number > 3 or whole["body"] == BODY
            offset += size
    assert offset == path.stat().st_size


def test_what_is_in_flight_counts_as_spent_until_something_is_said_of_it(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        for number, (times, status) in enumerate(
            ((1, "answered"), (5, "answered"), (1, "maybe paid"), (0, ""), (1, ""))
        ):
            one = request(number, number)
            journal.begin(one, Cost(10, 0.5), "m with max_tokens 4")
            if status:
                journal.append(request_record(one, status, 10 * times, 0.5 * times, body=""))
            elif not times:
                journal.append({"status": "not billed", "key": one.key, "body": "status 429"})
        assert journal.excess == {"m with max_tokens 4": Cost(75, 3.75)}
        assert (journal.usd, journal.tokens) == (3.5, 70)
    for _ in range(2):  # the process ended with one in flight
        with Journal(tmp_path) as journal:
            assert (journal.usd, journal.tokens) == (4.0, 80)
            assert not journal.has(request(4, 4))
            assert journal.excess == {"m with max_tokens 4": Cost(75, 3.75)}


def test_what_was_refused_is_asked_again_on_request(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        for number, fields in enumerate(({}, {"refused": True}, {"refused": True})):
            journal.append(request_record(request(number, number), "answered", 0, 0.0, body="{}", **fields))
        assert journal.ask_again() == 2
        answer(journal, request(2, 2))
        assert journal.ask_again() == 0
    with Journal(tmp_path) as journal:
        assert [journal.has(request(number, number)) for number in range(3)] == [True, False, True]
        assert (journal.answers("example"), journal.answers("judge")) == (2, 0)
    [record] = read_answers(journal.path, "example", [request(2, 2)])
    assert record["body"] == BODY, "the last answer"


def test_a_last_record_cut_anywhere_is_cut_off_and_the_rest_stays(tmp_path: Path) -> None:
    path = filled(tmp_path)
    whole = path.read_bytes()
    last = whole.rstrip(b"\n").rfind(b"\n") + 1
    for end in range(last, len(whole)):
        path.write_bytes(whole[:end])
        with Journal(tmp_path) as journal:
            kept = 3 if end == len(whole) - 1 else 2  # only the line end is missing
            assert [journal.has(request(number, number + 1)) for number in range(3)] == [True, True, kept == 3], end
            answer(journal, request(5, 6))
        lines = path.read_bytes().splitlines()
        assert len([json.loads(line) for line in lines]) == kept + 1
        assert whole.startswith(b"\n".join(lines[:kept]))
    path.write_bytes(whole + bytes(200_000))  # zeros after a loss of power
    with Journal(tmp_path) as journal:
        assert journal.has(request(2, 3))
    assert path.read_bytes() == whole


def test_a_damaged_line_is_named_and_nothing_is_changed(tmp_path: Path) -> None:
    path = filled(tmp_path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"garbage\n" + lines[2])
    with pytest.raises(InputError, match=r"answers.jsonl, line 2 is damaged: b'garbage"), Journal(tmp_path):
        pass
    path.write_bytes(b"".join(lines))
    with Journal(tmp_path):
        pass


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from st_llm_embed.synthesis.journal import Journal\n"
        "with Journal(Path(sys.argv[1])): pass"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    with Journal(tmp_path):
        refused = subprocess.run(command, check=False, capture_output=True, text=True)
    assert "InputError: Another process is writing to" in refused.stderr
    subprocess.run(command, check=True)


def test_a_full_disk_leaves_the_journal_as_it_was(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", "64k") as folder:
        with Journal(folder) as journal:
            written = 0
            with pytest.raises(OSError, match="No space left"):  # noqa: PT012
                while True:
                    answer(journal, request(written, written + 1), "x" * 5000)
                    written += 1
            size = journal.path.stat().st_size
            assert not journal.has(request(written, written + 1))
        with Journal(folder) as journal:
            assert written > 5
            assert journal.path.stat().st_size == size
            assert all(journal.has(request(number, number + 1)) for number in range(written))
            subprocess.run(["mount", "-o", "remount,size=1m", str(folder)], check=True)
            answer(journal, request(written, written + 1))
        with Journal(folder) as journal:
            assert journal.has(request(written, written + 1))
