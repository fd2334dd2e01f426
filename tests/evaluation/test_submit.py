"""A submission prepared from a model on a local Hub, scores of official tasks, and mteb's own submission code."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import datasets
import mteb
import pytest
from conftest import Outcome
from hub import Hub, Pusher
from mteb.mocks import ALL_MOCK_TASK_TEST_GRID
from mteb.models import SentenceTransformerEncoderWrapper
from mteb_data import write_scifact, write_stsbenchmark

from st_llm_embed import LLMSentenceTransformer, Recipe

CLICKS = '{path: org/our-clicks, columns: {anchor: a, positive: b}, license: mit, instruction: "Find."}'
NQ = "{path: Tevatron/wikipedia-nq, columns: {anchor: query, positive: text}, license: cc-by-sa-3.0}"
CARD = """---
license: apache-2.0
language: [en, de]
tags: [sentence-transformers]
---
# tiny
"""

SUBMIT = """
import contextlib, io, json, sys
from st_llm_embed import cli

done = []
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["st-llm-embed", "submit", *arguments]
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.main()
        except SystemExit as stop:
            code = stop.code or 0
    done.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(done))
"""

IN_MTEB = """
import json, sys
from pathlib import Path
import mteb
name, revision, folder = sys.argv[1:]
meta = mteb.get_model_meta(name, revision)
given = json.loads((Path(folder) / "results/lab__tiny" / revision / "model_meta.json").read_text())
sent = mteb.ResultCache(folder).submit_results(create_pr=False)
content = json.loads(json.dumps(meta.to_dict(), default=str))
content["training_datasets"].sort()
print(json.dumps([mteb.__file__, content == given, sent["status"], sent["result_count"]]))
"""


class Tiny(NamedTuple):
    """A model on the Hub with scores."""

    hub: Hub
    revision: str
    results: Path

    def submit(self, *calls: tuple[str, ...]) -> list[Outcome]:
        """Call the command in one process that may ask the Hub."""
        return [Outcome(*done) for done in self.hub.run(SUBMIT, json.dumps(calls), token=None)]

    @property
    def scores(self) -> Path:
        return self.results / "results/lab__tiny" / self.revision

    @property
    def prepared(self) -> Path:
        return self.results / "submission/lab__tiny" / self.revision


@pytest.fixture(scope="module")
def tiny(hub: Hub, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """One with a source that nobody knows, and scores on two official tasks and one that is not."""
    folder = tmp_path_factory.mktemp("tiny")
    model = LLMSentenceTransformer.from_base(str(tiny_base), max_seq_length=48, device="cpu")
    model.save_pretrained(str(folder / "model"), create_model_card=False)
    recipe = Recipe.load("demo", [f"data.sources.clicks={CLICKS}", f"data.sources.wiki={NQ}"])
    recipe.save(folder / "model/recipe.yaml")
    (folder / "model/README.md").write_text(CARD, encoding="utf-8")
    pusher = Pusher(hub)
    for name, private in (("lab/tiny", False), ("lab/secret", True)):
        pusher.push(folder / "model", name, repo_type="model", private=private)
    pusher.close()
    made = Tiny(hub, hub.get("/api/models/lab/tiny")["sha"], folder / "run")
    wrapper = SentenceTransformerEncoderWrapper(model)
    identity = {"name": "lab/tiny", "revision": made.revision}
    wrapper.mteb_model_meta = wrapper.mteb_model_meta.model_copy(update=identity)
    custom = next(task for task in ALL_MOCK_TASK_TEST_GRID if task.metadata.name == "MockSTSTask")
    write_stsbenchmark(folder)
    write_scifact(folder)
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(action="ignore"):
        patch.chdir(folder)
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        tasks = [mteb.get_task("STSBenchmark"), mteb.get_task("SciFact"), custom]
        mteb.evaluate(wrapper, tasks, cache=mteb.ResultCache(made.results), co2_tracker=False, show_progress_bar=False)
    return made


def text(tiny: Tiny, name: str) -> str:
    return (tiny.prepared / name).read_text(encoding="utf-8")


@pytest.mark.integration
def test_a_submission_is_prepared_and_mteb_takes_it(tiny: Tiny, tmp_path: Path) -> None:
    overlap = tmp_path / "overlap.json"
    overlap.write_text(json.dumps({"training_datasets": ["HotpotQA"]}), encoding="utf-8")
    unknown = tiny.results.with_name("unknown")
    shutil.copytree(tiny.scores, unknown / "results/lab__tiny" / ("0" * 40))
    shutil.copytree(tiny.scores, unknown / "results/lab__secret" / tiny.revision)
    base = ("lab/tiny", "--results", str(tiny.results))
    complete = (*base, "--trained-on", "SciFact", "--contamination", str(overlap))
    not_ready, ready, no_commit, private = tiny.submit(
        base,
        complete,
        ("lab/tiny", "--results", str(unknown)),
        ("lab/secret", "--results", str(unknown)),
    )

    # A source that nobody knows.
    assert not_ready.code == 0
    assert "## Missing" in not_ready.out
    assert "data.sources.clicks (org/our-clicks)" in not_ready.out

    assert ready.code == 0, ready.err
    assert "Nothing is missing." in ready.out
    assert "- MockSTSTask: not a task of mteb" in ready.out
    assert "| STSBenchmark | " in ready.out
    assert "Traceback" not in ready.err

    assert "| BEIR | 1 of 15 | 80 % |" in ready.out  # all but HotpotQA, NQ and SciFact
    assert "HotpotQA, NQ, SciFact" in ready.out

    for outcome, said in ((no_commit, "no public commit 000"), (private, "make the repository public")):
        assert outcome.code == 2
        assert said in outcome.err
        assert not outcome.out

    # Submitted are copies, none of a task that is not mteb's.
    copies = tiny.prepared / "results/lab__tiny" / tiny.revision
    assert {path.name for path in copies.iterdir()} == {
        "STSBenchmark.json",
        "SciFact.json",
        "model_meta.json",
        "run_settings.jsonl",
    }
    assert (copies / "SciFact.json").read_bytes() == (tiny.scores / "SciFact.json").read_bytes()
    settings = (copies / "run_settings.jsonl").read_text(encoding="utf-8").splitlines()
    assert {json.loads(line)["task"] for line in settings} == {"STSBenchmark", "SciFact"}
    meta = json.loads((copies / "model_meta.json").read_text(encoding="utf-8"))
    assert meta["training_datasets"] == ["HotpotQA", "NQ", "SciFact"]
    assert meta["revision"] == tiny.revision
    assert meta["max_tokens"] == 48
    assert meta["embed_dim"] == 32
    assert meta["n_parameters"] > 0
    assert meta["loader_kwargs"] == {
        "instruction_template": "Instruct: {instruction}\nQuery: ",
        "apply_instruction_to_passages": False,
    }
    assert meta["languages"] == ["deu-Latn", "eng-Latn"]
    assert meta["public_training_code"].endswith(f"{tiny.revision}/recipe.yaml")
    assert "(28/28)" in text(tiny, "mteb_mock_run_results.md")

    # mteb with the file in its folder knows the model, and its own submission takes exactly what was prepared.
    remote = bare_repository(tmp_path)
    in_mteb = ask_mteb_with(tiny.prepared / "lab_tiny_models.py", tiny, tmp_path, remote)
    assert in_mteb == [str(tmp_path / "site/mteb/__init__.py"), True, "ready_for_submission", 2]
    sent = git("show", "--name-only", "--format=", "HEAD", cwd=tiny.prepared / "remote").split()
    assert sorted(sent) == sorted(str(path.relative_to(tiny.prepared)) for path in copies.iterdir())


def git(*arguments: str, cwd: Path) -> str:
    identity = ["-c", "user.name=Ada", "-c", "user.email=ada@example.org"]
    return subprocess.run(["git", *identity, *arguments], cwd=cwd, check=True, capture_output=True, text=True).stdout


def bare_repository(folder: Path) -> Path:
    """Make what stands in for github.com/embeddings-benchmark/results."""
    work = folder / "work"
    work.mkdir()
    git("init", "-q", "-b", "main", cwd=work)
    (work / "README.md").write_text("results\n", encoding="utf-8")
    git("add", "-A", cwd=work)
    git("commit", "-q", "-m", "Begin", cwd=work)
    git("clone", "-q", "--bare", str(work), "results.git", cwd=folder)
    return folder / "results.git"


def ask_mteb_with(python_file: Path, tiny: Tiny, folder: Path, remote: Path) -> list[object]:
    """Run a program in an mteb that has the file among its models, as after the pull request."""
    installed = Path(mteb.__file__).parent
    ours = folder / "site/mteb"
    for part in (Path(), Path("models"), Path("models/model_implementations")):
        if (ours / part).is_symlink():
            (ours / part).unlink()
        (ours / part).mkdir(parents=True, exist_ok=True)
        for path in (installed / part).iterdir():
            if path.name != "__pycache__":
                (ours / part / path.name).symlink_to(path)
    shutil.copy(python_file, ours / "models/model_implementations")
    environment = dict(os.environ) | {
        "PYTHONPATH": str(folder / "site"),
        "GIT_CONFIG_COUNT": "3",
        "GIT_CONFIG_KEY_0": f"url.file://{remote}.insteadOf",
        "GIT_CONFIG_VALUE_0": "https://github.com/embeddings-benchmark/results",
        "GIT_CONFIG_KEY_1": "user.name",
        "GIT_CONFIG_VALUE_1": "Ada",
        "GIT_CONFIG_KEY_2": "user.email",
        "GIT_CONFIG_VALUE_2": "ada@example.org",
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", IN_MTEB, "lab/tiny", tiny.revision, str(tiny.prepared)],
        env=environment,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_only_a_commit_on_the_hub_is_submitted(tiny: Tiny, run_cli: Callable[..., Outcome], tmp_path: Path) -> None:
    folder = tmp_path / "results/lab__tiny"
    two, branch, paper, other = (tmp_path / name for name in ("two", "branch", "paper", "other"))
    for revision in ("0" * 40, "1" * 40):
        (two / "results/lab__tiny" / revision).mkdir(parents=True)
    (branch / "results/lab__tiny/main").mkdir(parents=True)
    shutil.copytree(tiny.scores, paper / "results/lab__tiny" / tiny.revision / "experiments/mode_paper")
    shutil.copytree(tiny.scores, other / "results/lab__tiny" / tiny.revision)
    scored = other / "results/lab__tiny" / tiny.revision / "STSBenchmark.json"
    content = json.loads(scored.read_text(encoding="utf-8")) | {"dataset_revision": "1" * 40}
    scored.write_text(json.dumps(content), encoding="utf-8")
    (scored.parent / "SciFact.json").unlink()
    calls: tuple[tuple[tuple[str | Path, ...], str], ...] = (
        (("local/tiny", "--results", folder), "has scores of local/tiny at no commit"),
        ((tmp_path, "--results", folder), "and evaluate it by its name there"),
        (("lab/other", "--results", tiny.results), "has scores of lab/other at no commit"),
        (("lab/tiny", "--results", two), "a submission is of one commit"),
        (("lab/tiny", "--results", branch), "has scores of lab/tiny at main"),
        (("lab/tiny", "--results", paper), "--prompts mteb"),
        (("lab/tiny", "--results", other), f"scored on dataset revision {'1' * 40}"),
        (("lab/tiny", "--results", tiny.results, "--trained-on", "SciFct"), "SciFact"),
        (
            ("lab/tiny", "--results", tiny.results, "--contamination", tmp_path / "none.json"),
            "is not a contamination analysis",
        ),
        (("lab/tiny", "--results", tiny.results), "HF_HUB_OFFLINE"),
    )
    for arguments, said in calls:
        done = run_cli("submit", *arguments)
        assert done.code == 2
        assert said in done.err, done.err
        assert "Traceback" not in done.err
        assert not done.out
    for folder in (two, branch, paper, other):
        assert not (folder / "submission").exists()
