from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from pathlib import Path
from statistics import fmean

import mteb
import pytest
import yaml
from evaluation.mteb_run import REVISION, write_run
from huggingface_hub import parse_eval_result_entries
from mteb.cache import ResultCache
from small_tasks import SmallSTS

from st_llm_embed.errors import InputError
from st_llm_embed.evaluation.mteb_report import MEAN, load_references, write_mteb_report

SCORES = {"STSBenchmark": 0.82, "STS12": 0.7, "Banking77Classification": 0.8, "SciFact": 0.5}


def test_scores_stand_beside_the_papers_over_the_same_tasks(tmp_path: Path) -> None:
    report = write_mteb_report(write_run(tmp_path, SCORES))
    sts = report["categories"]["STS"]
    assert (sts["score"], sts["tasks"]) == (76.0, ["STS12", "STSBenchmark"])
    # Table 17: 79.7 and 88.6.
    assert sts["references"]["paper-full"] == {"score": 84.15, "delta": -8.15}
    # Known for all ten tasks only.
    assert "openai-3-large" not in report["categories"]["mean"]["references"]
    assert report["tasks"]["SciFact"]["references"]["paper-synthetic"] == {"score": 71.5, "delta": -21.5}
    assert len(report["categories"]["mean"]["missing"]) == 52
    assert json.loads((tmp_path / "report.json").read_text()) == report
    assert (report["wall_seconds"], report["prompts"], report["parameters"]) == (50.0, "paper", 4_400_000)

    # And for people.
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert f"Revision `{REVISION}`, prompts: paper" in text
    assert "| Classification | 1 of 12 tasks | 80.00 | 88.2 (-8.2) | 87.0 (-7.0) | 86.2 (-6.2) |" in text
    assert "| STSBenchmark | STS | 82.00 | 88.6 (-6.6) | " in text
    assert "| STS12 | `Instruct: Do STS12.\\nQuery: ` | - | task, generic |" in text
    assert "arXiv 2401.00368v3, Table 7" in text


def test_a_whole_benchmark_is_compared_with_means_as_published(tmp_path: Path) -> None:
    paper = next(table.scores for table in load_references().by("task") if table.system == "paper-full")
    report = write_mteb_report(write_run(tmp_path, {name: score / 100 for name, score in paper.items()}))
    for name, category in report["categories"].items():
        assert category["missing"] == []
        assert category["references"]["paper-full"]["delta"] == pytest.approx(0, abs=0.1), name
    assert report["categories"]["mean"]["references"]["openai-3-large"]["score"] == 64.6
    assert report["categories"]["Retrieval"]["references"]["ablation-mean-pool"]["score"] == 52.4


def test_multilingual_tasks_are_compared_by_the_subsets_the_paper_has(tmp_path: Path) -> None:
    scores = {"AmazonCounterfactualClassification": 0.4}
    subsets = {"AmazonCounterfactualClassification": {"en": 0.8}}
    report = write_mteb_report(write_run(tmp_path, scores, benchmark=None, subsets=subsets))
    task = report["tasks"]["AmazonCounterfactualClassification"]
    assert (task["score"], task["comparable_score"]) == (pytest.approx(50.0), pytest.approx(80.0))
    assert task["references"]["paper-full"]["delta"] == pytest.approx(80 - 78.7)


def test_mtebs_own_files_are_left_as_they_are(tmp_path: Path) -> None:
    write_run(tmp_path, SCORES)

    def contents() -> dict[Path, str]:
        files = (path for path in (tmp_path / "results").rglob("*") if path.is_file())
        return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    before = contents()
    write_mteb_report(tmp_path)
    write_mteb_report(tmp_path)
    assert contents() == before
    found = ResultCache(tmp_path).load_results(load_experiments="match_name", include_remote=False)
    assert {one.task_name for model in found for one in model.task_results} == set(SCORES)


def test_results_of_other_prompts_and_models_stay_apart(tmp_path: Path) -> None:
    write_run(tmp_path, {"STSBenchmark": 0.9}, mode="mteb")
    write_run(tmp_path, {"STS12": 0.1}, model="local/other")
    write_run(tmp_path, {"STS13": 0.5}, mode="none")
    assert set(write_mteb_report(tmp_path)["tasks"]) == {"STS13"}


def test_a_folder_without_a_run_and_a_damaged_result_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no evaluation: there is no run\.json"):
        write_mteb_report(tmp_path)
    write_run(tmp_path, {"STSBenchmark": 0.5})
    [path] = (tmp_path / "results").rglob("STSBenchmark.json")
    path.write_text('{"torn', encoding="utf-8")
    with pytest.raises(InputError, match=r"STSBenchmark\.json is not a result of mteb"):
        write_mteb_report(tmp_path)


def test_the_hub_can_read_the_eval_results(tmp_path: Path) -> None:
    write_mteb_report(write_run(tmp_path, {"STSBenchmark": 0.8203247, "Tatoeba": 0.5}, benchmark=None))
    assert sorted(path.name for path in (tmp_path / ".eval_results").iterdir()) == [
        "STSBenchmark.yaml",
        "Tatoeba.yaml",
    ]
    content = yaml.safe_load((tmp_path / ".eval_results" / "STSBenchmark.yaml").read_text(encoding="utf-8"))
    split, whole = parse_eval_result_entries(content)
    metadata = mteb.get_task("STSBenchmark").metadata
    assert (split.dataset_id, split.dataset_revision) == (metadata.dataset["path"], metadata.dataset["revision"])
    assert (split.task_id, whole.task_id) == ("STSBenchmark_default_test", "STSBenchmark")
    assert split.value == whole.value == 82.0325  # mteb keeps six digits
    assert (split.date, split.source_url) == ("2026-11-01", "https://github.com/embeddings-benchmark/mteb/")
    assert split.notes == f"mteb {mteb.__version__}, prompts: paper"


def test_an_incomplete_task_has_no_mean_and_an_own_task_no_file(tmp_path: Path) -> None:
    write_run(tmp_path, {"STS12": 0.5, "AmazonCounterfactualClassification": 0.5})
    [path] = (tmp_path / "results").rglob("STS12.json")
    own = json.loads(path.read_text(encoding="utf-8")) | {"task_name": SmallSTS.metadata.name}
    path.with_name("SmallSTS.json").write_text(json.dumps(own), encoding="utf-8")
    write_mteb_report(tmp_path)
    files = {file.stem: file for file in (tmp_path / ".eval_results").iterdir()}
    assert set(files) == {"STS12", "AmazonCounterfactualClassification"}
    english_only = yaml.safe_load(files["AmazonCounterfactualClassification"].read_text())
    assert [one["dataset"]["task_id"] for one in english_only] == ["AmazonCounterfactualClassification_en_test"]


ENGLISH = mteb.get_benchmark("MTEB(eng, v1)")
CATEGORY = {task.metadata.name: task.metadata.type for task in ENGLISH.tasks}
PAPER = ("paper-full", "paper-synthetic", "paper-synthetic-msmarco")


def scores(system: str, by: str) -> dict[str, float]:
    tables = load_references().tables
    return next(table.scores for table in tables if (table.system, table.by) == (system, by) and table.benchmark)


@pytest.mark.parametrize("system", PAPER)
def test_the_papers_scores_by_task_have_the_means_of_its_first_table(system: str) -> None:
    tasks, categories = scores(system, "task"), scores(system, "category")
    assert set(tasks) == set(CATEGORY)
    groups = defaultdict(list)
    for name, value in tasks.items():
        groups[CATEGORY[name]].append(value)
    groups[MEAN] = list(tasks.values())
    # Each of them was rounded to 0.1 before its mean was taken.
    assert {name: pytest.approx(fmean(values), abs=0.1) for name, values in groups.items()} == categories


def test_every_mean_is_that_of_its_categories() -> None:
    sizes = {category: list(CATEGORY.values()).count(category) for category in CATEGORY.values()}
    complete = [table for table in load_references().by("category") if len(table.scores) == 8]
    assert len(complete) == 15
    for table in complete:
        total = sum(table.scores[category] * size for category, size in sizes.items())
        assert table.scores[MEAN] == pytest.approx(total / 56, abs=0.1), table.system


def test_every_table_names_a_known_system_and_its_source() -> None:
    references = load_references()
    assert {table.system for table in references.tables} == set(references.systems)
    assert all("arXiv" in table.source or "github.com" in table.source for table in references.tables)
