from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from conftest import Outcome, example_rows, write_rows

from st_llm_embed.recipe import Recipe, shipped_recipes

RunCli = Callable[..., Outcome]

BEST = ["training.eval_strategy=steps", "training.eval_steps=2", "training.load_best_model_at_end=true"]


def refused(outcome: Outcome, *told: str) -> None:
    """One paragraph on stderr, exit code 2, no traceback."""
    assert outcome.code == 2
    assert outcome.err.startswith("Error: ")
    assert len(outcome.err.strip().splitlines()) == 1
    assert "Traceback" not in outcome.err
    for words in told:
        assert words in outcome.err


def test_recipes_are_listed_and_shown_with_their_comments(run_cli: RunCli) -> None:
    listed = run_cli("recipes", "list")
    assert listed.code == 0
    assert [line.split()[0] for line in listed.out.splitlines()] == shipped_recipes()
    shown = run_cli("recipes", "show", "e5-mistral-7b").out
    assert "# not stated in the paper" in shown
    resolved = yaml.safe_load(run_cli("recipes", "show", "demo", "--set", "seed=7").out)
    assert resolved["seed"] == 7
    assert resolved["base"]["random_init"] is False


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_copy_has_its_own_name_and_tells_nothing_that_was_measured(
    name: str, run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_cli("recipes", "copy", name, "--to", "mine.yaml").code == 0
    shipped, mine = (Recipe.load(source).model_dump() for source in (name, "mine.yaml"))
    own = {"name": "mine", "description": "", "publishing": shipped["publishing"] | {"limitations": ()}}
    assert mine == shipped | own
    assert "# " in (tmp_path / "mine.yaml").read_text(encoding="utf-8")


def test_a_copy_never_overwrites(run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_cli("recipes", "copy", "demo").code == 0
    refused(run_cli("recipes", "copy", "demo"), "demo.yaml exists", "--to")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("copy", "demo", "--to", "folder.yaml"), "folder.yaml exists"),
        (("copy", "demo", "--to", "nowhere/mine.yaml"), "nowhere/mine.yaml cannot be written: [Errno 2]"),
        (("copy", "demo", "--to", "file/mine.yaml"), "file/mine.yaml"),
        (("copy", "demo", "--to", "mine.txt"), "ends in .yaml or .yml"),
        (("copy", "demo", "--to", "my own.yaml"), "letters, digits"),
        (("copy", "dmeo"), "did you mean demo"),
        (("show", "binary.yaml"), "binary.yaml' cannot be read"),
        (("show", "folder.yaml"), "There is no recipe"),
        (("show", "x" * 300 + ".yaml"), "cannot be read: [Errno 36]"),
        (("copy", "demo", "--to", "x" * 300 + ".yaml"), "cannot be written: [Errno 36]"),
    ],
)
def test_a_file_that_cannot_be_copied_or_shown_is_named(
    arguments: tuple[str, ...], told: str, run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "file").write_text("", encoding="utf-8")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe")
    before = sorted(tmp_path.iterdir())
    refused(run_cli("recipes", *arguments), told)
    assert sorted(tmp_path.iterdir()) == before


def test_run_without_a_recipe_says_what_to_do(run_cli: RunCli) -> None:
    refused(run_cli("run"), "st-llm-embed run demo", *shipped_recipes())


def test_all_errors_of_all_sections_come_in_one_answer_and_without_large_libraries(
    tiny_recipe: Path, tmp_path: Path
) -> None:
    """In a process of its own, as a user runs it: under three seconds of CPU time."""
    overrides = {
        "loss.temperature=-1": "loss.temperature is -1",
        "data.rows=nowhere.jsonl": "data.rows is 'nowhere.jsonl', and there is no such file",
        "lora.rank=8": "lora.rank is not an argument of LoraConfig",
        "training.learning_rat=1": "training.learning_rat is not an argument",
        "base.name_or_path=./no-model": "'./no-model'",
        "evaluation.batch_size=0": "evaluation.batch_size is 0",
        "data.sources.mine={path: ./none.csv, columns: {anchor: q, positive: p}, license: mit}": "sources.mine",
        "data.mining.model=./no-mining-model": "neither modules.json nor config.json",
    }
    code = (
        "import resource, sys; from st_llm_embed import cli\n"
        "try: cli.main()\n"
        "finally:\n"
        "    usage = resource.getrusage(resource.RUSAGE_SELF)\n"
        "    print(usage.ru_utime + usage.ru_stime, *sys.modules)"
    )
    options = [part for override in overrides for part in ("--set", override)]
    command = [sys.executable, "-c", code, "run", str(tiny_recipe), "--dry-run", *options]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2
    for said in overrides.values():
        assert said in done.stderr
    assert all(line.startswith("Error: ") for line in done.stderr.splitlines())
    assert len(done.stderr.splitlines()) == len(overrides)
    seconds, *modules = done.stdout.split()
    assert not {"torch", "transformers", "datasets", "sentence_transformers", "peft", "mteb"} & set(modules)
    assert float(seconds) < 3


def test_the_version_is_printed(run_cli: RunCli) -> None:
    assert run_cli("--version").out == f"st_llm_embed {version('st_llm_embed')}\n"


def test_a_dry_run_checks_and_prints_and_writes_nothing(run_cli: RunCli, tiny_recipe: Path, tmp_path: Path) -> None:
    outcome = run_cli("run", tiny_recipe, "--dry-run", "--output-dir", tmp_path / "out")
    assert outcome.code == 0
    assert yaml.safe_load(outcome.out)["name"] == "tiny"
    assert not (tmp_path / "out").exists()
    refused(run_cli("run", tiny_recipe, "--dry-run", "--set", "data.rows=nowhere.jsonl"), "nowhere.jsonl")


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["loss.temprature=1"], ["loss: unknown key temprature", "did you mean temperature"]),
        (["base.name_or_path=no/such-model"], ["no/such-model", "embedded"]),
        (["data.rows=" + "x" * 300], ["data.rows", "cannot be read"]),
        (["data.validation_fraction=0.0000001"], ["validation_fraction", "another share"]),
        (["lora.r=0"], ["lora section", "`r` should be a positive integer"]),
        (
            ["lora.target_modules=[nothing]"],
            ["lora.target_modules has 'nothing', which matches no module of the base"],
        ),
        (["training.learning_rate=-1"], ["training.learning_rate is -1, and nothing is learnt"]),
        (["training.learning_rate=0"], ["training.learning_rate is 0, and nothing is learnt"]),
        (["training.num_train_epochs=0", "training.max_steps=-5"], ["num_train_epochs is 0. Give more than 0"]),
        (
            ["training.per_device_train_batch_size=0"],
            ["per_device_train_batch_size is 0; the least is 1"],
        ),
        (
            ["training.per_device_train_batch_size=1", "training.gradient_accumulation_steps=8"],
            ["per_device_train_batch_size is 1, and the rows of short-short have no negatives", "its loss is 0"],
        ),
        (
            ["training.per_device_train_batch_size=64", "training.dataloader_drop_last=true", "batches=null"],
            ["dataloader_drop_last drops what does not fill a batch", "training rows of bitext"],
        ),
        (
            ["training={per_device_train_batch_size: 64, dataloader_drop_last: true}", "batches={}"],
            ["dataloader_drop_last drops what does not fill a batch", "training rows of all configurations"],
        ),
        (["lora.target_modules=[q_proj, v_porj]"], ["'v_porj'", "did you mean v_proj?", "Its modules are"]),
        (["lora={target_modules: [q_proj], modules_to_save: [head]}"], ["modules_to_save has 'head'"]),
        (["lora={target_modules: [q_proj], rank_pattern: {k_proj2: 4}}"], ["rank_pattern has 'k_proj2'"]),
        (["lora={target_modules: [q_proj], layers_to_transform: [0, 2]}"], ["layers_to_transform has 2", "0 to 1"]),
        (["training.bf16=true"], ["training.bf16 is true, and there is no GPU", "--set training.bf16=false"]),
        (["base.adapter=./no-adapter"], ["adapter_config.json", "'./no-adapter'"]),
        (["training.eval_strategy=often"], ["training section", "often"]),
        (["training.save_strategy=best"], ["eval_strategy is no", "steps or epoch"]),
        ([*BEST, "training.eval_steps=1"], ["eval_steps is 1", "save_steps 2", "the same number"]),
        ([*BEST, "training.metric_for_best_model=eval_loss"], ["'eval_loss'", "sts_triplet_accuracy"]),
        ([*BEST, "training.greater_is_better=false"], ["greater_is_better is false", "Remove the key"]),
        ([*BEST, "training.metric_for_best_model=bitext_accuracy", "data.rows=no-bitext.jsonl"], ["no bitext row"]),
        (
            [*BEST, "training.metric_for_best_model=eval_sts_triplet_accuracy", "data.rows=no-sts.jsonl"],
            ["no sts row"],
        ),
        (["data.mining.model=./no-model"], ["neither modules.json nor config.json"]),
        (
            ["evaluation.tasks=[STSBenchmark, CQADupstackRetrieval]"],
            ["CQADupstackRetrieval, which is the mean of 12", "Name a single one, such as CQADupstack"],
        ),
        (["training.report_to=nowhere"], ["training section", "nowhere is not supported"]),
        pytest.param(
            ["training.report_to=wandb"],
            ["wandb, which is not installed", "pip install wandb"],
            marks=pytest.mark.skipif(find_spec("wandb") is not None, reason="wandb is installed"),
        ),
        pytest.param(
            ["training.report_to=[tensorboard]"],
            ["tensorboard, which is not installed", "pip install tensorboard"],
            marks=pytest.mark.skipif(find_spec("tensorboard") is not None, reason="tensorboard is installed"),
        ),
    ],
)
def test_a_wrong_choice_ends_with_one_message_and_nothing_written(
    *,
    overrides: list[str],
    told: list[str],
    run_cli: RunCli,
    tiny_recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "no-model").mkdir()
    for task_type in ("bitext", "sts"):
        rows = [row for row in example_rows() if row["task_type"] != task_type]
        write_rows(tmp_path / f"no-{task_type}.jsonl", rows)
    options = [part for override in overrides for part in ("--set", override)]
    refused(run_cli("run", tiny_recipe, *options, "--output-dir", tmp_path / "out"), *told)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("spoilt", "told"), [(None, "holds no rows"), ("positive", "line 6 is not a row")])
def test_bad_rows_are_refused_before_anything_is_written(
    spoilt: str | None, told: str, run_cli: RunCli, tiny_recipe: Path, tmp_path: Path
) -> None:
    rows = [] if spoilt is None else [row | ({spoilt: ""} if n == 5 else {}) for n, row in enumerate(example_rows())]
    path = write_rows(tmp_path / "bad.jsonl", rows)
    outcome = run_cli("run", tiny_recipe, "--set", f"data.rows={path}", "--output-dir", tmp_path / "out")
    refused(outcome, "bad.jsonl", told)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("tokenizer.json", None, "has no tokenizer"),
        ("tokenizer.json", "{", "cannot be loaded"),
        ("config.json", None, "cannot be loaded"),
        ("model.safetensors", None, "no file named model.safetensors"),
        ("model.safetensors", "not tensors", "cannot be loaded"),
        ("model.safetensors", 1000, "incomplete metadata"),
        ("config.json", ('"num_hidden_layers": 2', '"num_hidden_layers": 3'), "The weights of"),
        ("tokenizer_config.json", ('"eos_token": "</s>"', '"eos_token": "<over>"'), "outside the model's vocabulary"),
    ],
)
def test_a_base_that_cannot_be_used_is_refused_before_anything_is_written(
    *,
    name: str,
    content: str | int | tuple[str, str] | None,
    told: str,
    run_cli: RunCli,
    tiny_recipe: Path,
    tiny_base: Path,
    tmp_path: Path,
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_base, base)
    whole = (base / name).read_bytes()
    (base / name).unlink()
    match content:
        case str():
            (base / name).write_text(content, encoding="utf-8")
        case int():
            (base / name).write_bytes(whole[:-content])
        case (old, new):
            assert old.encode() in whole
            (base / name).write_bytes(whole.replace(old.encode(), new.encode()))
    override = f"base.name_or_path={base}"
    refused(run_cli("run", tiny_recipe, "--set", override, "--output-dir", tmp_path / "out"), told)
    assert not (tmp_path / "out").exists()


def test_an_output_folder_that_cannot_be_written_is_refused(
    run_cli: RunCli, tiny_recipe: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    outcome = run_cli("run", tiny_recipe, "--output-dir", tmp_path / "file" / "out")
    refused(outcome, "cannot be written to", "--output-dir")


def made(folder: Path) -> dict[str, int]:
    """When each stage last ended, in nanoseconds."""
    return {path.stem: path.stat().st_mtime_ns for path in (folder / "manifests").glob("*.json")}


def test_a_run_in_steps_continues_where_the_step_before_ended_and_prints_the_scores(
    run_cli: RunCli, tiny_recipe: Path, tmp_path: Path
) -> None:
    out = ("--output-dir", tmp_path / "out")
    outcome = run_cli("build-data", tiny_recipe, *out)
    assert outcome.code == 0, outcome.err
    assert [line.split()[0] for line in outcome.out.splitlines()] == [
        str(tmp_path / "out" / name) for name in ("dataset", "recipe.yaml")
    ]
    built = made(tmp_path / "out")
    assert built.keys() == {"dataset"}

    outcome = run_cli("train", tiny_recipe, *out)
    assert outcome.code == 0, outcome.err
    assert str(tmp_path / "out" / "training" / "model") in outcome.out
    trained = made(tmp_path / "out")
    assert trained == built | {"training": trained["training"]}
    assert not any((tmp_path / "out" / name).exists() for name in ("evaluation", "release"))

    outcome = run_cli("run", tiny_recipe, *out)
    assert outcome.code == 0, outcome.err
    report = json.loads((tmp_path / "out" / "evaluation" / "report.json").read_text(encoding="utf-8"))
    for key in ("retrieval_ndcg_at_10", "sts_triplet_accuracy", "bitext_accuracy"):
        assert f"{report['after'][key]:.3f}" in outcome.out
    for name in ("release", "evaluation/report.md", "training", "dataset", "recipe.yaml"):
        assert str(tmp_path / "out" / name) in outcome.out.replace("\n", "")
    finished = made(tmp_path / "out")
    assert finished.keys() == {"dataset", "training", "evaluation", "release"}
    assert finished == finished | trained


def test_train_builds_the_data_that_is_not_there_and_scores_go_into_the_report(
    run_cli: RunCli, tiny_recipe: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    best = [part for override in BEST for part in ("--set", override)]
    outcome = run_cli("train", tiny_recipe, *best, "--output-dir", out)
    assert outcome.code == 0, outcome.err
    assert made(out).keys() == {"dataset", "training"}
    log = json.loads((out / "training" / "log.json").read_text(encoding="utf-8"))
    scores = {entry["step"]: entry["eval_retrieval_ndcg_at_10"] for entry in log if "eval_bitext_accuracy" in entry}
    assert list(scores) == [2, 4, 6]
    assert run_cli("run", tiny_recipe, *best, "--output-dir", out).code == 0
    step, score = max(scores.items(), key=lambda item: item[1])
    text = (out / "evaluation" / "report.md").read_text(encoding="utf-8")
    told = f"Retrieval nDCG@10 was best at step {step} ({score:.3f}); the model has the weights of step {step}."
    assert told in text
    assert (out / "evaluation" / "scores.png").read_bytes().startswith(b"\x89PNG")
    report = json.loads((out / "evaluation" / "report.json").read_text(encoding="utf-8"))
    assert report["after"]["retrieval_ndcg_at_10"] == pytest.approx(score, abs=1e-6)


@pytest.mark.parametrize("command", ["build-data", "train"])
def test_the_steps_of_a_run_refuse_and_rehearse_as_run_does(
    command: str, run_cli: RunCli, tiny_recipe: Path, tmp_path: Path
) -> None:
    refused(run_cli(command), f"st-llm-embed {command} demo")
    outcome = run_cli(command, tiny_recipe, "--dry-run", "--output-dir", tmp_path / "out")
    assert outcome.code == 0
    assert yaml.safe_load(outcome.out)["name"] == "tiny"
    missing = ("--set", "data.rows=nowhere.jsonl", "--output-dir", tmp_path / "out")
    refused(run_cli(command, tiny_recipe, *missing), "nowhere.jsonl")
    refused(run_cli(command, tiny_recipe, "--dry-run", *missing), "nowhere.jsonl")
    assert not (tmp_path / "out").exists()


def test_data_is_built_where_the_training_cannot_run(run_cli: RunCli, tiny_recipe: Path, tmp_path: Path) -> None:
    elsewhere = ("--set", "base.name_or_path=org/on-another-machine", "--output-dir", tmp_path / "out")
    assert run_cli("build-data", tiny_recipe, *elsewhere).code == 0
    refused(run_cli("train", tiny_recipe, *elsewhere), "org/on-another-machine")
