"""Folders pushed by the real clients to a local Hub, and loaded back by name."""

from __future__ import annotations

import os
import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hub import STRANGERS_TOKEN, TOKEN, Hub, Pusher, files_in
from huggingface_hub import DatasetCard

from st_llm_embed import InputError, Recipe
from st_llm_embed.data.dataset import write_dataset
from st_llm_embed.data.rows import Row, read_rows, rows_file
from st_llm_embed.publishing.dataset_card import dataset_card
from st_llm_embed.publishing.push import push_folder

AGAIN = "run the same command again"


def sample_rows() -> list[Row]:
    """Every twelfth row of the sample: all task types, train and validation."""
    return list(islice(read_rows(rows_file("embedded")), 0, None, 12))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dataset")
    counts = write_dataset(sample_rows(), folder, 0.3)
    card = DatasetCard(dataset_card(Recipe.load("demo"), folder, counts))
    card.data.license = "cc-by-4.0"
    card.save(folder / "README.md")
    return folder


@pytest.fixture
def changed(dataset: Path, tmp_path: Path) -> Path:
    """A copy of the dataset for a test that breaks it."""
    return shutil.copytree(dataset, tmp_path / "changed")


def test_a_dataset_is_one_commit_and_the_same_folder_again_is_none(hub: Hub, pusher: Pusher, dataset: Path) -> None:
    for _ in range(2):
        assert pusher.push(dataset, "lab/twice") == f"{hub.endpoint}/datasets/lab/twice"
    assert hub.commits("datasets/lab/twice") == ["Add the dataset", "initial commit"]
    assert hub.files("datasets/lab/twice") == files_in(dataset)
    assert not hub.get("/api/datasets/lab/twice")["private"]


def test_what_a_run_writes_for_itself_stays_here(hub: Hub, pusher: Pusher, changed: Path) -> None:
    wanted = files_in(changed)
    for name in (
        ".lock",
        "sts/train.parquet.lock",
        "report.partial",
        ".sts.partial/train.parquet",
        "manifests/d.json",
    ):
        (changed / name).parent.mkdir(exist_ok=True)
        (changed / name).write_text("mine", encoding="utf-8")
    pusher.push(changed, "lab/clean")
    assert hub.files("datasets/lab/clean") == wanted


@pytest.mark.integration
def test_a_dataset_loads_by_name_config_and_split(hub: Hub, pusher: Pusher, dataset: Path) -> None:
    pusher.push(dataset, "lab/by-name")
    program = """
import json
from datasets import get_dataset_config_names, load_dataset
names = get_dataset_config_names("lab/by-name")
print(json.dumps({name: {split: load_dataset("lab/by-name", name, split=split)["key"][:]
                         for split in ("train", "validation")} for name in names}))
"""
    loaded = hub.run(program, token=None)
    assert sorted(loaded) == sorted({row.task_type for row in sample_rows()})
    for name, splits in loaded.items():
        keys = [key for part in splits.values() for key in part]
        assert sorted(keys) == sorted(row.key for row in sample_rows() if row.task_type == name)
        assert all(splits.values())


def test_a_pull_request_leaves_main_alone_and_is_opened_once(hub: Hub, pusher: Pusher, changed: Path) -> None:
    pusher.push(changed, "lab/proposed")
    (changed / "notes.md").write_text("one", encoding="utf-8")
    url = f"{hub.endpoint}/datasets/lab/proposed/discussions/1"
    assert pusher.push(changed, "lab/proposed", create_pr=True, commit_message="Add notes") == url
    (changed / "notes.md").write_text("two", encoding="utf-8")
    for _ in range(2):
        assert pusher.push(changed, "lab/proposed", create_pr=True, commit_message="Add notes") == url
    assert "notes.md" not in hub.files("datasets/lab/proposed")
    assert "notes.md" in hub.files("datasets/lab/proposed", "refs%2Fpr%2F1")
    assert [one["title"] for one in hub.get("/api/datasets/lab/proposed/discussions")["discussions"]] == ["Add notes"]
    proposed = hub.get("/api/datasets/lab/proposed/commits/refs%2Fpr%2F1")
    assert [commit["title"] for commit in proposed] == ["Add notes", "Add notes", "Add the dataset", "initial commit"]


@pytest.mark.integration
def test_a_pull_request_is_opened_with_xet_as_without(hub: Hub, tmp_path: Path) -> None:
    """The client opens pull requests otherwise where it may upload by Xet, which this Hub does not have."""
    (tmp_path / "sts").mkdir()
    (tmp_path / "sts" / "train.csv").write_text("anchor,positive\na,b\n", encoding="utf-8")
    configs = "configs: [{config_name: sts, data_files: sts/train.csv}]"
    (tmp_path / "README.md").write_text(f"---\nlicense: mit\n{configs}\n---\n", encoding="utf-8")
    pusher = Pusher(hub, xet=True)
    url = f"{hub.endpoint}/datasets/lab/xet-pr"
    for _ in range(2):
        assert pusher.push(tmp_path, "lab/xet-pr", create_pr=True) == f"{url}/discussions/1"
    assert "sts/train.csv" in hub.files("datasets/lab/xet-pr", "refs%2Fpr%2F1")
    pusher.push(tmp_path, "lab/xet-pr")
    assert pusher.push(tmp_path, "lab/xet-pr", create_pr=True, commit_message="Once more") == url
    pusher.close()
    assert len(hub.get("/api/datasets/lab/xet-pr/discussions")["discussions"]) == 1


def large(folder: Path, *names: str) -> None:
    """Add files that go by LFS, that an upload can be cut in, and that the Hub has never seen."""
    for name in names:
        (folder / name).write_bytes(os.urandom(300_000))


CUT = {"method": "PUT", "path": "/_objects/", "times": 99, "cut_after": 100_000}
BROKEN = {"method": "PUT", "path": "/_objects/", "times": 99, "status": 500, "message": "no storage"}
CROWDED = {"method": "POST", "path": "/preupload/", "times": 99, "status": 429, "headers": {"Retry-After": "0"}}
LOST = {"method": "POST", "path": "/commit/", "times": 1, "status": 503, "message": "try later"}


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (CUT, "failed or was cut"),
        (BROKEN, "cannot serve lab/NAME for now (500: no storage)"),
        (CROWDED, "cannot serve lab/NAME for now (429: a fault of the Hub)"),
        (LOST, "cannot serve lab/NAME for now (503: try later)"),
    ],
    ids=["cut", "500", "429", "503"],
)
def test_an_upload_that_failed_is_resumed_by_the_same_command(
    *, hub: Hub, pusher: Pusher, changed: Path, request: pytest.FixtureRequest, fault: dict[str, Any], reason: str
) -> None:
    name = f"fault-{request.node.callspec.id}"
    large(changed, "a.bin", "b.bin")
    hub.fail(fault)
    message = pusher.push(changed, f"lab/{name}")
    assert reason.replace("NAME", name) in message
    assert f"Then {AGAIN}; what was uploaded is kept" in message
    assert hub.commits(f"datasets/lab/{name}") == ["initial commit"]
    hub.fail()
    assert pusher.push(changed, f"lab/{name}") == f"{hub.endpoint}/datasets/lab/{name}"
    assert hub.commits(f"datasets/lab/{name}") == ["Add the dataset", "initial commit"]
    assert hub.files(f"datasets/lab/{name}") == files_in(changed)


@pytest.mark.integration
def test_a_hub_without_xet_storage_ends_a_xet_upload_with_one_message(hub: Hub, dataset: Path) -> None:
    """Xet raises ConnectionError, which is not an HfHubHTTPError."""
    pusher = Pusher(hub, xet=True)
    hub.fail({"method": "GET", "path": "/xet-write-token/", "times": 1, "status": 403})
    forbidden = pusher.push(dataset, "lab/xet")
    assert "The token may not write to lab/xet (403" in forbidden
    message = pusher.push(dataset, "lab/xet")
    assert TOKEN not in forbidden + message + pusher.close()
    assert f"The Hub at {hub.endpoint} has no Xet storage. Set HF_HUB_DISABLE_XET=1" in message
    assert AGAIN in message
    assert hub.commits("datasets/lab/xet") == ["initial commit"]


@pytest.mark.integration
def test_a_hub_that_does_not_answer_is_named(hub: Hub, pusher: Pusher, dataset: Path) -> None:
    pusher.push(dataset, "lab/first")
    hub.stop()
    message = pusher.push(dataset, "lab/first")
    hub.start()
    assert f"The connection to the Hub at {hub.endpoint} failed" in message
    assert "nothing was sent yet" in message
    assert pusher.push(dataset, "lab/first") == f"{hub.endpoint}/datasets/lab/first"
    assert hub.commits("datasets/lab/first") == ["Add the dataset", "initial commit"]


@pytest.mark.parametrize(
    ("repo_id", "arguments", "reason"),
    [
        ("lab/x", {"token": None}, "There is no token for the Hub"),
        ("lab/x", {"token": "hf_unknown"}, "The Hub does not know the token (401: Invalid credentials"),
        ("others/x", {}, "The token may not write to others/x (403: You don't have the rights"),
        ("lab/x", {"token": STRANGERS_TOKEN}, "The token may not write to lab/x (403"),
        ("name", {}, "'name' is not a name of a repository"),
        ("lab/x y", {}, "'lab/x y' is not a name of a repository"),
        ("lab/public", {"private": True}, "lab/public exists and is public, and this push is to a private"),
        ("lab/private", {}, "lab/private exists and is private, and this push is to a public"),
    ],
)
def test_a_push_that_cannot_succeed_sends_nothing(
    *, hub: Hub, pusher: Pusher, dataset: Path, repo_id: str, arguments: dict[str, Any], reason: str
) -> None:
    if repo_id in ("lab/public", "lab/private"):
        pusher.push(dataset, repo_id, private=repo_id == "lab/private")
    hub.fail()
    message = pusher.push(dataset, repo_id, **arguments)
    assert message.startswith(reason)
    assert (arguments.get("token") or TOKEN) not in message
    assert "\n" not in message
    assert not hub.requests("POST", "/preupload/") + hub.requests("POST", "/commit/") + hub.requests("PUT")
    assert hub.requests("POST", "/repos/create") == [] or "(403" in reason


def test_the_token_is_cut_out_of_what_the_hub_says(hub: Hub, pusher: Pusher, dataset: Path) -> None:
    hub.fail({"method": "POST", "path": "/repos/create", "times": 1, "status": 400, "message": f"{TOKEN} is bad"})
    assert "The Hub refused lab/echo (400: *** is bad)" in pusher.push(dataset, "lab/echo")


def test_offline_mode_is_named(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, which conftest.py keeps offline."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(InputError, match=r"HF_HUB_OFFLINE forbids asking the Hub\. Unset it\. Then run the same"):
        push_folder(dataset, "lab/x", repo_type="dataset", private=False, create_pr=False, commit_message="Add")


def test_a_dataset_with_a_wrong_card_is_not_created(hub: Hub, pusher: Pusher, changed: Path) -> None:
    card = (changed / "README.md").read_text(encoding="utf-8")
    for old, new, reason in (
        ("license: cc-by-4.0", "license: made-up", "The Hub does not accept the front matter"),
        ("sts/train.parquet", "sts/lost.parquet", "does not name its data files, or they are gone: Unable to find"),
    ):
        assert old in card
        (changed / "README.md").write_text(card.replace(old, new), encoding="utf-8")
        message = pusher.push(changed, "lab/bad-card")
        assert reason in message
        assert "\n" not in message
        assert not hub.requests("POST", "/repos/create")
