"""The command evaluate in processes of its own: killed and gone on with, and on official data."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hub import Hub

from st_llm_embed import LLMSentenceTransformer

pytestmark = pytest.mark.integration

HUB_DATASETS = Path(__file__).parents[3] / "shared" / "hub-datasets"
"""Official data in the layout of the Hub; a folder tree that `datasets` finds from the working directory."""

# The whole process is killed at the given call of encode, in the middle of whatever is being written.
KILLED = """
import json, os, signal, sys
from mteb.mocks.mock_tasks import MockClassificationTask, MockMultilingualSTSTask, MockRetrievalTask
from st_llm_embed.evaluation.mteb_models import LocalModel, load_model
from st_llm_embed.evaluation.mteb import evaluate

model_dir, output_dir, killed_at = sys.argv[1:]
calls = []
encode = LocalModel.encode
def counted(self, *args, **kwargs):
    if len(calls) == int(killed_at):
        os.kill(os.getpid(), signal.SIGKILL)
    calls.append(kwargs["task_metadata"].name)
    return encode(self, *args, **kwargs)
LocalModel.encode = counted
tasks = [MockMultilingualSTSTask(), MockClassificationTask(), MockRetrievalTask()]
from pathlib import Path
results = evaluate(load_model(model_dir, prompts="paper"), tasks, Path(output_dir))
files = [path for one in results for path in Path(output_dir).rglob(f"{one.task_name}.json")]
print(json.dumps({"calls": calls, "scores": {path.stem: json.loads(path.read_text())["scores"] for path in files}}))
"""


@pytest.fixture(scope="module")
def saved(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    LLMSentenceTransformer.from_base(str(tiny_base), max_seq_length=64, device="cpu").save(str(folder))
    return folder


def run_killed(model: Path, output_dir: Path, killed_at: int) -> dict[str, Any] | None:
    command = [sys.executable, "-c", KILLED, str(model), str(output_dir), str(killed_at)]
    finished = subprocess.run(command, check=False, capture_output=True, text=True)
    if finished.returncode == -signal.SIGKILL:
        return None
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout.splitlines()[-1])


def test_a_killed_run_goes_on_with_identical_scores_and_repeats_no_finished_task(saved: Path, tmp_path: Path) -> None:
    whole = run_killed(saved, tmp_path / "whole", 10_000)
    assert whole is not None
    calls = whole["calls"]
    # In the second subset of the first task, and in the last task.
    for killed_at in (3, len(calls) - 1):
        out = tmp_path / str(killed_at)
        assert run_killed(saved, out, killed_at) is None
        rest = run_killed(saved, out, 10_000)
        assert rest is not None
        assert rest["scores"] == whole["scores"]
        finished = {name for name in calls if name not in calls[killed_at:]}
        assert not finished & set(rest["calls"])
        assert len(rest["calls"]) < len(calls)
        assert set(json.loads((out / "run.json").read_text())["tasks"]) == set(whole["scores"])


PUSH = """
import json, sys
from huggingface_hub import HfApi
api = HfApi()
api.create_repo("ada/embedder")
commits = [api.upload_folder(repo_id="ada/embedder", folder_path=sys.argv[1]).oid]
commits.append(api.upload_file(repo_id="ada/embedder", path_or_fileobj=b"card", path_in_repo="NOTES.md").oid)
print(json.dumps(commits))
"""

NAMES = """
import json, sys
from st_llm_embed.evaluation.mteb_models import load_model
metas = [load_model("ada/embedder", prompts="mteb", revision=one or None).mteb_model_meta for one in sys.argv[1:]]
print(json.dumps([[meta.name, meta.revision] for meta in metas]))
"""


def test_a_hub_model_is_named_by_its_id_and_the_commit_that_was_loaded(saved: Path, hub: Hub) -> None:
    first, last = hub.run(PUSH, saved)
    assert first != last
    assert hub.run(NAMES, "", "main", first) == [
        ["ada/embedder", last],
        ["ada/embedder", last],
        ["ada/embedder", first],
    ]


@pytest.mark.skipif(not HUB_DATASETS.is_dir(), reason=f"{HUB_DATASETS} with STSBenchmark's official data is not there")
def test_training_is_scored_on_a_task_as_evaluate_scores_what_it_gives(tiny_recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    # In a process of its own: datasets finds a local folder by its Hub name only in the current directory.
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "datasets")}

    def call(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "st_llm_embed.cli", *map(str, arguments)],
            cwd=HUB_DATASETS,
            env=environment,
            check=False,
            capture_output=True,
            text=True,
        )

    options = ["--set", "evaluation.tasks=[STSBenchmark]", "--set", "training.eval_strategy=steps"]
    options += ["--set", "training.eval_steps=3", "--set", "training.metric_for_best_model=STSBenchmark"]
    trained = call("train", tiny_recipe, "--output-dir", out, *options)
    assert trained.returncode == 0, trained.stderr
    log = json.loads((out / "training" / "log.json").read_text(encoding="utf-8"))
    scores = [entry["eval_STSBenchmark"] for entry in log if "eval_STSBenchmark" in entry]
    assert len(scores) == 2
    model, scored = out / "training" / "model", out / "mteb"
    done = call("evaluate", model, "--tasks", "STSBenchmark", "--prompts", "paper", "--output-dir", scored)
    assert done.returncode == 0, done.stderr
    [path] = (scored / "results").rglob("STSBenchmark.json")
    [score] = json.loads(path.read_text(encoding="utf-8"))["scores"]["test"]
    assert score["main_score"] == pytest.approx(scores[-1], abs=1e-4)
    unknown = call("train", tiny_recipe, "--output-dir", tmp_path / "no", "--set", "evaluation.tasks=[STSBenchmrk]")
    assert unknown.returncode == 2
    assert "Did you mean: 'STSBenchmark'" in unknown.stderr
    assert not (tmp_path / "no").exists()
