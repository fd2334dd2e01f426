"""A run published by the real clients to a local Hub, interrupted, repeated, refused, and loaded back by name."""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hub import STRANGERS_TOKEN, TOKEN, Hub, Pusher, files_in
from huggingface_hub import DatasetCard, ModelCard
from sentence_transformers import SentenceTransformer

from st_llm_embed import Recipe, run_pipeline

LORA = "lora={r: 4, target_modules: all-linear}"
ADAPTER_FILES = {
    "1_Pooling/config.json",
    "2_Normalize/config.json",
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "config_sentence_transformers.json",
    "modules.json",
    "probe.json",
    "recipe.yaml",
    "sentence_bert_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
}
DATASET_LICENSE = "publishing.dataset_license=cc-by-4.0"


@pytest.fixture(scope="module")
def finished_run(
    tiny_base: Path, tmp_path_factory: pytest.TempPathFactory, hub: Hub, tiny_run_recipe: Callable[..., Recipe]
) -> Path:
    """A LoRA run whose base is on the Hub."""
    folder = tmp_path_factory.mktemp("published") / "run"
    run_pipeline(tiny_run_recipe(LORA, DATASET_LICENSE), folder)
    path = folder / "training" / "adapter" / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    push_base = """
import json, sys
from huggingface_hub import create_repo, upload_folder
create_repo("lab/base")
print(json.dumps(upload_folder(repo_id="lab/base", folder_path=sys.argv[1]).oid))
"""
    config |= {"base_model_name_or_path": "lab/base", "revision": hub.run(push_base, tiny_base)}
    path.write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture
def changed(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of the run for a test that breaks it."""
    return shutil.copytree(finished_run, tmp_path / "changed")


def read(hub: Hub, repo: str, name: str) -> str:
    program = """
import json, sys
from huggingface_hub import hf_hub_download
kind, _, repo = sys.argv[1].partition("/")
path = hf_hub_download(repo, sys.argv[2], repo_type=kind.removesuffix("s"))
print(json.dumps(open(path, encoding="utf-8").read()))
"""
    return hub.run(program, repo, name)


@pytest.mark.integration
def test_a_run_becomes_three_repositories_that_name_each_other_and_load(
    hub: Hub, pusher: Pusher, finished_run: Path, tmp_path: Path
) -> None:
    before = {path: path.read_bytes() for path in finished_run.rglob("*") if path.is_file()}
    addresses = [f"{hub.endpoint}/datasets/lab/e-data", f"{hub.endpoint}/lab/e-lora", f"{hub.endpoint}/lab/e"]
    for _ in range(2):
        assert pusher.publish(finished_run, "lab/e", private=True, tag="v1") == addresses
    assert {path: path.read_bytes() for path in finished_run.rglob("*") if path.is_file()} == before
    for repo, what in (
        ("datasets/lab/e-data", "dataset"),
        ("models/lab/e-lora", "adapter"),
        ("models/lab/e", "model"),
    ):
        assert hub.commits(repo) == [f"Publish the {what}", "initial commit"]
        assert hub.get(f"/api/{repo}")["private"]
        refs = hub.get(f"/api/{repo}/refs")
        assert [(tag["name"], tag["targetCommit"]) for tag in refs["tags"]] == [
            ("v1", refs["branches"][0]["targetCommit"])
        ]
    assert hub.files("models/lab/e") == files_in(finished_run / "release")
    assert hub.files("datasets/lab/e-data") == files_in(finished_run / "dataset")
    assert hub.files("models/lab/e-lora") == ADAPTER_FILES

    model = ModelCard(read(hub, "models/lab/e", "README.md"))
    assert model.data.datasets == ["lab/e-data"]
    assert "https://huggingface.co/lab/e-lora" in model.text
    assert 'SentenceTransformer("lab/e")' in model.text
    assert "path/to/this/folder" not in model.text
    adapter = ModelCard(read(hub, "models/lab/e-lora", "README.md"))
    assert (adapter.data.base_model, adapter.data.base_model_relation) == ("lab/base", "adapter")
    assert "https://huggingface.co/lab/e)" in adapter.text
    dataset = DatasetCard(read(hub, "datasets/lab/e-data", "README.md"))
    assert 'load_dataset("lab/e-data", ' in dataset.text
    assert "https://huggingface.co/lab/e)" in dataset.text

    texts = ["a text", "", "  edge  ", "question 3 about thing 3"]
    program = f"""
import sys
import numpy as np
from sentence_transformers import SentenceTransformer
for name in ("lab/e", "lab/e-lora"):
    np.save(f"{{sys.argv[1]}}/{{name[4:]}}.npy", SentenceTransformer(name, device="cpu").encode_query({texts!r}))
print("null")
"""
    hub.run(program, tmp_path)
    expected = SentenceTransformer(str(finished_run / "release"), device="cpu").encode_query(texts)
    np.testing.assert_array_equal(np.load(tmp_path / "e.npy"), expected)
    np.testing.assert_allclose(np.load(tmp_path / "e-lora.npy"), expected, atol=1e-5)


@pytest.mark.integration
def test_without_licence_or_public_base_the_model_goes_alone(hub: Hub, pusher: Pusher, changed: Path) -> None:
    recipe = (changed / "recipe.yaml").read_text(encoding="utf-8")
    (changed / "recipe.yaml").write_text(recipe.replace("dataset_license: cc-by-4.0", "dataset_license: null"))
    path = changed / "training" / "adapter" / "adapter_config.json"
    path.write_text(path.read_text(encoding="utf-8").replace("lab/base", "tiny (not on the Hub)"), encoding="utf-8")
    assert pusher.publish(changed, "lab/alone") == [f"{hub.endpoint}/lab/alone"]
    assert "Published together" not in read(hub, "models/lab/alone", "README.md")


@pytest.mark.integration
def test_a_new_version_is_one_commit_without_the_files_of_the_old(hub: Hub, pusher: Pusher, changed: Path) -> None:
    release = changed / "release"
    (release / "onnx").mkdir()
    (release / "onnx" / "model.onnx").write_bytes(b"a graph")
    (release / "onnx" / "tokenizer.json").write_text("{}", encoding="utf-8")
    pusher.publish(changed, "lab/next", tag="v1")
    assert "onnxruntime" in read(hub, "models/lab/next", "README.md")
    shutil.rmtree(release / "onnx")
    (release / ".eval_results").mkdir()
    (release / ".eval_results" / "STSBenchmark.yaml").write_text(
        "- dataset: {id: mteb/stsbenchmark-sts, task_id: STSBenchmark}\n  value: 81.25\n  notes: mteb 2.26\n"
    )
    hub.fail()
    assert "has a tag v1 already" in pusher.publish(changed, "lab/next", tag="v1")
    assert not hub.requests("POST", "/commit/") + hub.requests("PUT")
    pusher.publish(changed, "lab/next", tag="v2")
    assert hub.commits("models/lab/next") == ["Publish the model", "Publish the model", "initial commit"]
    assert hub.commits("models/lab/next-lora") == ["Publish the adapter", "initial commit"]
    assert hub.files("models/lab/next") == files_in(release)
    card = read(hub, "models/lab/next", "README.md")
    assert "onnxruntime" not in card
    assert "| STSBenchmark | mteb/stsbenchmark-sts | 81.25 | mteb 2.26 |" in card
    assert "for commit" in pusher.publish(changed, "lab/next", tag="v1")


@pytest.mark.integration
def test_pull_requests_leave_the_main_branches_alone(hub: Hub, pusher: Pusher, finished_run: Path) -> None:
    for _ in range(2):
        assert pusher.publish(finished_run, "lab/pr", create_pr=True) == [
            f"{hub.endpoint}/{repo}/discussions/1" for repo in ("datasets/lab/pr-data", "lab/pr-lora", "lab/pr")
        ]
    assert hub.commits("models/lab/pr") == ["initial commit"]
    assert pusher.publish(finished_run, "lab/pr", create_pr=True, tag="v1").startswith("--tag v1 is given with")


@pytest.mark.integration
def test_a_publishing_that_is_killed_anywhere_is_finished_by_the_same_call(finished_run: Path, tmp_path: Path) -> None:
    """Four points drawn from all requests of one publishing, and from the bytes of their bodies."""
    wanted = {
        "models/lab/k": files_in(finished_run / "release"),
        "models/lab/k-lora": ADAPTER_FILES,
        "datasets/lab/k-data": files_in(finished_run / "dataset"),
    }
    with Hub(tmp_path / "hub") as hub:
        pusher = Pusher(hub)
        pusher.publish(finished_run, "lab/k")
        uploaded = {one["path"]: one["received"] for one in hub.requests("PUT")}
        asked = {method: hub.requests(method) for method in ("POST", "PUT")}
        draw = random.Random(7)  # noqa: S311
        for method in ("POST", "PUT", "POST", "PUT"):
            place = draw.randrange(len(asked[method]))
            at = asked[method][place]
            fault = {
                "method": method,
                "path": f"^{re.escape(at['path'])}$",
                "times": 1,
                "skip": [one["path"] for one in asked[method][:place]].count(at["path"]),
                "cut_after": draw.randint(0, at["received"]),
                "kill": str(tmp_path / "pid"),
            }
            hub.empty()
            hub.fail(fault)
            assert pusher.publish(finished_run, "lab/k", pid=str(tmp_path / "pid")) is None, f"{fault} killed nothing"
            first = hub.requests("PUT")
            hub.fail()
            assert len(pusher.publish(finished_run, "lab/k")) == 3
            second = hub.requests("PUT")
            stored = {one["path"] for one in first if one["status"] == 200}
            assert not stored & {one["path"] for one in second}, fault
            cut = sum(one["received"] for one in first if one["status"] != 200)
            assert sum(one["received"] for one in first + second) == sum(uploaded.values()) + cut, fault
            assert {repo: hub.files(repo) for repo in wanted} == wanted, fault
            assert all(len(hub.commits(repo)) == 2 for repo in wanted), fault
        pusher.close()


@pytest.mark.integration
def test_what_is_not_fit_is_refused_before_anything_is_sent(hub: Hub, pusher: Pusher, changed: Path) -> None:
    release = changed / "release"

    def refused() -> str:
        message = pusher.publish(changed, "lab/unfit")
        assert isinstance(message, str)
        assert "\n" not in message
        assert TOKEN not in message
        assert not hub.requests("POST", "/repos/create") + hub.requests("PUT")
        return message

    card = (release / "README.md").read_text(encoding="utf-8")
    (release / "README.md").write_text(f"{card}From /home/eve/models/base.\n", encoding="utf-8")
    assert re.search("release/README.md line [0-9]+ holds '/home/eve", refused())
    (release / "README.md").write_text(card, encoding="utf-8")
    (release / "pytorch_model.bin").write_bytes(b"x")
    assert "holds pytorch_model.bin: files that can run code" in refused()
    (release / "pytorch_model.bin").unlink()
    tokenizer = json.loads((release / "tokenizer.json").read_text(encoding="utf-8"))
    (release / "tokenizer.json").write_text(json.dumps(tokenizer | {"post_processor": None}), encoding="utf-8")
    assert refused().startswith(f"doctor refuses {release}: missing EOS")
    shutil.rmtree(release)
    assert "has no release yet. Finish the run first" in refused()


@pytest.mark.integration
@pytest.mark.parametrize(
    ("to", "arguments", "reason"),
    [
        ("lab/x", {"token": STRANGERS_TOKEN}, "The token may not write to lab/x-data (403"),
        ("lab/x", {"tag": "no tag"}, "--tag 'no tag' is not a name of a tag"),
    ],
)
def test_a_publishing_that_cannot_succeed_sends_nothing(
    *, hub: Hub, pusher: Pusher, finished_run: Path, to: str, arguments: dict[str, Any], reason: str
) -> None:
    message = pusher.publish(finished_run, to, **arguments)
    assert reason in message
    assert (arguments.get("token") or TOKEN) not in message
    assert not hub.requests("POST", "/preupload/") + hub.requests("POST", "/commit/") + hub.requests("PUT")


@pytest.mark.integration
def test_a_failure_half_way_says_what_was_published(hub: Hub, pusher: Pusher, finished_run: Path) -> None:
    refused = {
        "method": "POST",
        "path": "/lab/late-lora/commit/",
        "times": 1,
        "status": 403,
        "message": "storage limit",
    }
    hub.fail(refused)
    message = pusher.publish(finished_run, "lab/late")
    assert "The storage of lab/late-lora is full" in message
    assert message.endswith(f"Published before it: {hub.endpoint}/datasets/lab/late-data.")
    hub.fail()
    assert len(pusher.publish(finished_run, "lab/late")) == 3
    assert hub.commits("datasets/lab/late-data") == ["Publish the dataset", "initial commit"]


@pytest.mark.integration
def test_the_command_finds_the_run_of_a_recipe(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_cli: Callable[..., Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    missing = run_cli("publish", "demo", "--to", "lab/x")
    assert (missing.code, missing.err.count("\n")) == (2, 1)
    assert "demo was not run here: there is no runs/demo" in missing.err
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "demo").symlink_to(finished_run)
    # This process is kept offline, so the way ends at the Hub's door.
    found = run_cli("publish", "demo", "--to", "lab/x", "--private", "--tag", "v1")
    assert found.code == 2
    assert "HF_HUB_OFFLINE forbids asking the Hub" in found.err
    nothing = run_cli("publish", str(tmp_path), "--to", "lab/x")
    assert "is neither a run nor a saved model" in nothing.err
