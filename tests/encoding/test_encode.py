"""Encoding by one process, several and Ray, its folder of shards, and kills at any level."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import Outcome
from filelock import FileLock
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize

from st_llm_embed import InputError, LLMSentenceTransformer
from st_llm_embed.data.documents import read_documents
from st_llm_embed.encoding.encode import Job, encode
from st_llm_embed.encoding.shards import Texts, VectorType

TEXTS = [f"text {number} about thing {number % 7} " + "and more " * (number % 5) for number in range(50)]

HAS_RAY = find_spec("ray") is not None

Cli = Callable[..., Outcome]


def write_texts(path: Path, texts: list[str]) -> Path:
    path.write_text(
        "".join(json.dumps({"text": text, "name": f"n{place}"}) + "\n" for place, text in enumerate(texts))
    )
    return path


def vectors_of(folder: Path) -> NDArray[Any]:
    table = pq.read_table(sorted(folder.glob("*.parquet")))
    return table["vector"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)


def state(folder: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.glob("shard-*")}


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("texts") / "texts.jsonl", TEXTS)


@pytest.fixture(scope="module")
def encoded(texts: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoded") / "vectors"
    job = Job(Texts(str(texts), id_column="name"), str(tiny_model), folder, shard_size=20)
    made, written = encode(job, devices=["cpu"])
    assert (made.rows, made.shards, written) == (50, 3, 3)
    return folder


@pytest.fixture
def same_job(encoded: Path, texts: Path, tiny_model: Path) -> tuple[Path | str, ...]:
    """The arguments that made `encoded`."""
    return texts, "--model", tiny_model, "--to", encoded, "--id", "name", "--shard-size", "20"


def start(texts: Path, model: Path, to: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "st_llm_embed.cli", "encode", texts, "--model", model, "--to", to, *options]
    # One thread, as in an actor of Ray, which gets as many as it has cores.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}
    return subprocess.Popen(
        [*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def wait_for_progress(run: subprocess.Popen[str]) -> None:
    """Read what the command prints until some shards, and not all, are finished."""
    assert run.stderr is not None
    printed = ""
    while not re.search(r"encoding: [\d,]+ of [\d,]+ texts", printed):
        character = run.stderr.read(1)
        assert character, printed
        printed += character


def workers_of(run: subprocess.Popen[str]) -> list[int]:
    pids = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    return [int(pid) for pid in pids if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]


def test_shards_hold_the_vectors_that_stock_gives(encoded: Path, tiny_model: Path) -> None:
    names = [f"shard-0000{number}-of-00003.parquet" for number in range(3)]
    assert sorted(path.name for path in encoded.glob("*")) == [".lock", "_manifest.json", *names]
    table = pq.read_table([encoded / name for name in names])
    assert [pq.read_metadata(encoded / name).num_rows for name in names] == [20, 20, 10]
    assert table["id"].to_pylist() == [f"n{number}" for number in range(50)]
    assert table["text"].to_pylist() == TEXTS
    assert table.schema.field("vector").type == pa.list_(pa.float32(), 32)
    stock = SentenceTransformer(str(tiny_model), device="cpu").encode_document(TEXTS)
    assert np.abs(vectors_of(encoded) - stock).max() < 1e-5


def test_role_dimension_and_type(tiny_model: Path, texts: Path, tmp_path: Path, run_cli: Cli) -> None:
    options = ("--role", "query", "--dimension", 8, "--dtype", "float16", "--no-text", "--batch-size", 7)
    assert run_cli("encode", texts, "--model", tiny_model, "--to", tmp_path / "to", *options).code == 0
    [path] = (tmp_path / "to").glob("*.parquet")
    assert pq.read_schema(path).names == ["id", "vector"]
    vectors = vectors_of(tmp_path / "to")
    assert vectors.dtype == np.float16
    cut = SentenceTransformer(str(tiny_model), device="cpu").encode_query(TEXTS)[:, :8]
    assert np.abs(vectors - cut / np.linalg.norm(cut, axis=1, keepdims=True)).max() < 1e-3


@pytest.mark.integration
def test_a_killed_run_is_resumed_with_the_same_vectors_and_finished_shards_are_left_alone(
    tiny_model: Path, tmp_path: Path
) -> None:
    texts = write_texts(tmp_path / "texts.jsonl", TEXTS * 60)
    options = ("--shard-size", "50", "--batch-size", "4", "--processes", "2")
    run = start(texts, tiny_model, tmp_path / "to", *options)
    wait_for_progress(run)
    run.kill()
    # The pipes end when the last process that has them is gone, so its own end with it.
    run.communicate()
    before = state(tmp_path / "to")
    finished = {name for name in before if name.endswith(".parquet")}
    assert 0 < len(finished) < 60
    for name in finished:
        assert pq.read_metadata(tmp_path / "to" / name).num_rows == 50
    torn = tmp_path / "to" / ".shard-00059-of-00060.parquet.partial"
    torn.write_bytes(b"PAR1")

    again = start(texts, tiny_model, tmp_path / "to", *options)
    printed, _ = again.communicate()
    assert again.returncode == 0
    assert f"{60 - len(finished)} encoded now, {len(finished)} kept" in " ".join(printed.split())
    after = state(tmp_path / "to")
    assert len(after) == 60
    assert {name: after[name] for name in finished} == {name: before[name] for name in finished}
    encode(Job(Texts(str(texts)), str(tiny_model), tmp_path / "whole", shard_size=50, batch_size=4), devices=["cpu"])
    for name in after:
        assert pq.read_table(tmp_path / "to" / name).equals(pq.read_table(tmp_path / "whole" / name)), name


@pytest.mark.integration
def test_a_process_that_dies_ends_the_run_and_keeps_its_shards(tiny_model: Path, tmp_path: Path) -> None:
    texts = write_texts(tmp_path / "texts.jsonl", TEXTS * 60)
    run = start(texts, tiny_model, tmp_path / "to", "--shard-size", "50", "--processes", "2", "--batch-size", "1")
    wait_for_progress(run)
    for worker in workers_of(run):  # of one alone, that waits for work, the other does the rest
        os.kill(worker, signal.SIGKILL)
    _, printed = run.communicate()
    assert run.returncode == 2
    assert "died unexpectedly" in printed
    assert "exit code -9" in printed
    assert "Finished shards are kept" in printed
    assert "Traceback" not in printed
    assert 0 < len(list((tmp_path / "to").glob("*.parquet"))) < 60


@pytest.mark.integration
@pytest.mark.skipif(not HAS_RAY, reason="needs the extra ray: pip install 'ray[data]'")
def test_ray_makes_the_same_vectors_and_resumes_where_processes_stopped(tiny_model: Path, tmp_path: Path) -> None:
    texts = write_texts(tmp_path / "texts.jsonl", TEXTS * 5)
    by_processes, by_ray = tmp_path / "processes", tmp_path / "ray"
    for to, options in ((by_processes, ()), (by_ray, ("--ray",))):
        run = start(texts, tiny_model, to, "--shard-size", "60", "--processes", "2", *options)
        _, printed = run.communicate()
        assert run.returncode == 0, printed
    names = sorted(path.name for path in by_processes.glob("*.parquet"))
    assert len(names) == 5
    assert sorted(path.name for path in by_ray.glob("*.parquet")) == names
    for name in names:
        assert pq.read_table(by_ray / name).equals(pq.read_table(by_processes / name))

    (by_processes / names[3]).unlink()
    kept = state(by_processes)
    run = start(texts, tiny_model, by_processes, "--shard-size", "60", "--processes", "2", "--ray")
    printed, _ = run.communicate()
    assert "1 encoded now, 4 kept" in " ".join(printed.split())
    assert kept.items() <= state(by_processes).items()
    assert pq.read_table(by_ray / names[3]).equals(pq.read_table(by_processes / names[3]))


@pytest.mark.skipif(HAS_RAY, reason="Ray is installed")
def test_without_ray_the_message_says_how_to_install_it(tiny_model: Path, tmp_path: Path, run_cli: Cli) -> None:
    refused = run_cli("encode", tmp_path, "--model", tiny_model, "--to", tmp_path / "to", "--ray")
    assert (refused.code, "pip install 'st_llm_embed[ray]'" in refused.err) == (2, True)
    assert not (tmp_path / "to").exists()


def test_cut_texts_and_repeated_ids_are_counted(tiny_model: Path, tmp_path: Path, run_cli: Cli) -> None:
    """Over a resume, too, and said by what searches."""
    texts = ["short"] * 6 + ["a long text " * 100] * 2
    path = tmp_path / "texts.jsonl"
    lines = (json.dumps({"text": text, "name": f"n{place % 6}"}) for place, text in enumerate(texts))
    path.write_text("\n".join(lines), encoding="utf-8")
    out = tmp_path / "out"
    command = ["encode", path, "--model", tiny_model, "--to", out, "--id", "name", "--shard-size", 3]
    first = run_cli(*map(str, command))
    assert first.code == 0, first.err
    assert "4 texts of" in first.err
    assert "share 2 ids, the first of them 'n0'" in first.err
    [said] = [line for line in first.out.splitlines() if "are cut" in line]
    assert "Encode with --chunk" in said
    assert "2 of 8 texts (25.0%) are cut; " in said
    (out / "shard-00001-of-00003.parquet").unlink()
    assert said in run_cli(*map(str, command)).out
    found = run_cli("search", out, "short " * 400)
    assert said.split("  ")[1] in found.out
    assert re.search(r"The query has \d+ tokens, of which \d+ are read", found.out)


def test_documents_are_cut_into_passages_that_are_read_whole(tiny_model: Path, tmp_path: Path, run_cli: Cli) -> None:
    pages = tmp_path / "pages"
    pages.mkdir()
    (pages / "guide#1.md").write_text(
        "# Guide\n\n" + "How to fix a slow query. " * 40 + "\n\n## Disks\n\nThey fill.\n"
    )
    (pages / "note.html").write_text("<title>Note</title><p>" + "Bees dance. " * 40)
    out = tmp_path / "out"
    command = ["encode", pages, "--model", tiny_model, "--to", out, "--chunk", "--shard-size", 4]
    made = run_cli(*command)
    assert made.code == 0, made.err
    assert "texts is cut" in made.out
    table = pq.read_table(sorted(out.glob("*.parquet"))).to_pylist()
    assert len(table) > 4
    whole = {document.id: document for document in read_documents(str(pages))}
    assert {row["document"] for row in table} == {"guide#1.md", "note.html"} == whole.keys()
    for row in table:
        document, _, offset = row["id"].rpartition("#")
        assert row["document"] == document
        assert whole[document].text[int(offset) :].startswith(row["text"].partition("\n")[2] or row["text"])
    vectors = SentenceTransformer(str(tiny_model), device="cpu").encode_document([row["text"] for row in table])
    assert np.abs(vectors_of(out) - vectors).max() < 1e-5

    before = {path.name: path.read_bytes() for path in out.glob("shard-*")}
    (out / sorted(before)[1]).unlink()
    assert "1 encoded now" in " ".join(run_cli(*command).out.split())
    assert {path.name: path.read_bytes() for path in out.glob("shard-*")} == before
    found = run_cli("search", out, "slow query", "-k", "2")
    assert re.search(r"\d\.\d{4}  (guide#1\.md|note\.html)#\d+", found.out), found.out
    for options, message in (
        (("--chunk-tokens", 20), "the texts, their ids or their order, --chunk or --chunk-tokens differ"),
        (("--chunk-tokens", 3), "has to be at least 16"),
        (("--id", "name"), "--chunk reads documents"),
    ):
        refused = run_cli(*command, *options)
        assert (refused.code, message in refused.err) == (2, True), refused.err


@pytest.mark.parametrize(
    ("options", "differing"),
    [
        (("--role", "query"), "--role"),
        (("--dimension", "8", "--dtype", "float16", "--no-text"), "--dimension, --dtype, --no-text"),
        (("--shard-size", "19"), "--shard-size"),
        (("--id", "text"), "the texts, their ids or their order"),
    ],
)
def test_a_folder_of_other_settings_is_refused(
    options: tuple[str, ...], differing: str, encoded: Path, same_job: tuple[Path | str, ...], run_cli: Cli
) -> None:
    before = state(encoded)
    refused = run_cli("encode", *same_job, *options)
    assert refused.code == 2
    assert differing in refused.err
    assert "Nothing was changed" in refused.err
    assert state(encoded) == before


def test_another_model_or_another_text_is_refused(
    same_job: tuple[Path | str, ...], tiny_base: Path, tmp_path: Path, run_cli: Cli
) -> None:
    texts, *same = same_job
    other = tmp_path / "model"
    LLMSentenceTransformer.from_base(str(tiny_base), max_seq_length=63, device="cpu").save(str(other))
    refused = run_cli("encode", texts, *same, "--model", other)
    assert (refused.code, "holds vectors of something else: the model differ" in refused.err) == (2, True)
    changed = write_texts(tmp_path / "texts.jsonl", [*TEXTS[:-1], "another"])
    refused = run_cli("encode", changed, *same)
    assert (refused.code, "the texts, their ids or their order" in refused.err) == (2, True)
    # The same model and texts elsewhere are the same, and nothing is left to do.
    moved = write_texts(tmp_path / "moved.jsonl", TEXTS)
    assert "0 encoded now, 3 kept" in " ".join(run_cli("encode", moved, *same).out.split())


def test_what_cannot_be_used_is_said_before_anything_is_written(
    texts: Path, tiny_model: Path, tmp_path: Path, run_cli: Cli
) -> None:
    to = tmp_path / "to"
    for changes, message in (
        ({"--model": tmp_path / "absent"}, "cannot be loaded"),
        ({"--dimension": 33}, "the vectors of"),
        ({"--role": "passage"}, "allowed are query, document"),
        ({"--dtype": "int8"}, "allowed are float32, float16"),
        ({"--column": "body"}, "has no column 'body'"),
    ):
        options = {"--model": tiny_model, "--to": to} | changes
        refused = run_cli("encode", texts, *(part for option in options.items() for part in option))
        assert (refused.code, message in refused.err) == (2, True), refused
        assert not to.exists()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.jsonl").write_text('{"text": "a text"}\n')
    inside = run_cli("encode", tmp_path / "texts", "--model", tiny_model, "--to", tmp_path / "texts" / "vectors")
    assert (inside.code, "is inside" in inside.err) == (2, True)
    assert [path.name for path in (tmp_path / "texts").iterdir()] == ["a.jsonl"]
    to.mkdir()
    (to / "mine.part").write_text("mine")
    refused = run_cli("encode", texts, "--model", tiny_model, "--to", to)
    assert (refused.code, "it holds mine.part and no _manifest.json" in refused.err) == (2, True)
    assert [path.name for path in to.iterdir()] == ["mine.part"]


def test_a_folder_that_cannot_be_written_to_is_refused(
    texts: Path, tiny_model: Path, tmp_path: Path, run_cli: Cli
) -> None:
    """A folder in the place of a file, since permissions do not bind root."""
    (tmp_path / "to" / ".lock").mkdir(parents=True)
    refused = run_cli("encode", texts, "--model", tiny_model, "--to", tmp_path / "to")
    assert (refused.code, "cannot be written" in refused.err) == (2, True), refused
    assert not list((tmp_path / "to").glob("shard-*"))


def test_two_runs_never_write_into_one_folder(encoded: Path, same_job: tuple[Path | str, ...], run_cli: Cli) -> None:
    with FileLock(encoded / ".lock"):
        refused = run_cli("encode", *same_job)
    assert (refused.code, "Another process is writing to" in refused.err) == (2, True)


@pytest.mark.parametrize(("dtype", "factor"), [("float16", 1e6), ("float32", float("nan"))])
def test_a_vector_that_is_not_finite_is_refused(
    dtype: VectorType, factor: float, texts: Path, tiny_model: Path, tmp_path: Path
) -> None:
    model = SentenceTransformer(str(tiny_model), device="cpu")
    scale = Dense(32, 32, bias=False, activation_function=torch.nn.Identity())
    torch.nn.init.constant_(scale.linear.weight, factor)
    modules = [module for module in model.children() if not isinstance(module, Normalize)]
    SentenceTransformer(modules=[*modules, scale]).save_pretrained(str(tmp_path / "model"))
    with pytest.raises(InputError, match=f"in {dtype} are not finite for 50 of 50 texts, the first of them 'text 0"):
        encode(Job(Texts(str(texts)), str(tmp_path / "model"), tmp_path / "to", dtype=dtype), devices=["cpu"])
    assert not list((tmp_path / "to").glob("shard-*"))
