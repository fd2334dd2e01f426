"""The command evaluate: killed and resumed, of a model of the Hub, and on official data."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import forked
import pytest
from conftest import Outcome
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
tasks = [MockClassificationTask(), MockMultilingualSTSTask(), MockRetrievalTask()]
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
    finished = forked.run("-c", KILLED, model, output_dir, killed_at)
    if finished.returncode == -signal.SIGKILL:
        return None
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout.splitlines()[-1])


def test_a_killed_run_goes_on_with_identical_scores_and_repeats_no_finished_task(saved: Path, tmp_path: Path) -> None:
    whole = run_killed(saved, tmp_path / "whole", 10_000)
    assert whole is not None
    first, second, _ = dict.fromkeys(whole["calls"])
    # In the last subset of the second task.
    killed_at = len(whole["calls"]) - whole["calls"][::-1].index(second) - 1
    out = tmp_path / "killed"
    assert run_killed(saved, out, killed_at) is None
    rest = run_killed(saved, out, 10_000)
    assert rest is not None
    assert rest["scores"] == whole["scores"]
    assert first not in rest["calls"]
    assert len(rest["calls"]) < len(whole["calls"])
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


@pytest.fixture
def official_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """STSBenchmark's official data, which datasets finds by its name from the working directory."""
    if not HUB_DATASETS.is_dir():
        pytest.skip(f"{HUB_DATASETS} with STSBenchmark's official data is not there")
    monkeypatch.chdir(HUB_DATASETS)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


@pytest.mark.filterwarnings("ignore:The task 'STSBenchmark' is superseded")
@pytest.mark.usefixtures("official_data")
def test_training_is_scored_on_a_task_as_evaluate_scores_what_it_gives(
    run_cli: Callable[..., Outcome], tiny_recipe: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    options = ["--set", "evaluation.tasks=[STSBenchmark]", "--set", "training.eval_strategy=steps"]
    options += ["--set", "training.eval_steps=3", "--set", "training.metric_for_best_model=STSBenchmark"]
    trained = run_cli("train", tiny_recipe, "--output-dir", out, *options)
    assert trained.code == 0, trained.err
    log = json.loads((out / "training" / "log.json").read_text(encoding="utf-8"))
    scores = [entry["eval_STSBenchmark"] for entry in log if "eval_STSBenchmark" in entry]
    assert len(scores) == 2
    model, scored = out / "training" / "model", out / "mteb"
    done = run_cli("evaluate", model, "--tasks", "STSBenchmark", "--prompts", "paper", "--output-dir", scored)
    assert done.code == 0, done.err
    [path] = (scored / "results").rglob("STSBenchmark.json")
    [score] = json.loads(path.read_text(encoding="utf-8"))["scores"]["test"]
    assert score["main_score"] == pytest.approx(scores[-1], abs=1e-4)
    unknown = run_cli("train", tiny_recipe, "--output-dir", tmp_path / "no", "--set", "evaluation.tasks=[STSBenchmrk]")
    assert unknown.code == 2
    assert "Did you mean: 'STSBenchmark'" in unknown.err
    assert not (tmp_path / "no").exists()
