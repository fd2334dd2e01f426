from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import mteb
import pytest
from conftest import Outcome
from mteb.mocks.mock_tasks import MockMultilingualSTSTask, MockRetrievalTask
from small_tasks import SmallSTS, WithoutData
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from st_llm_embed import InputError, LLMSentenceTransformer
from st_llm_embed.evaluation.mteb import (
    check_padding,
    evaluate,
    preflight,
    resolve_tasks,
    text_count,
    unfinished,
)
from st_llm_embed.evaluation.mteb_models import load_model


@pytest.fixture(scope="module")
def saved(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    LLMSentenceTransformer.from_base(str(tiny_base), max_seq_length=64, device="cpu").save(str(folder))
    return folder


def test_what_a_kill_cut_off_or_prevented_is_made_up_for(saved: Path, tmp_path: Path) -> None:
    model = load_model(str(saved), prompts="mteb")
    evaluate(model, [SmallSTS()], tmp_path)
    [path] = tmp_path.rglob("SmallSTS.json")
    content = path.read_text(encoding="utf-8")
    for torn in (path, path.with_name("run_settings.jsonl")):
        torn.write_text(torn.read_text(encoding="utf-8")[:-20], encoding="utf-8")
    assert [task.metadata.name for task in unfinished(model, [SmallSTS()], tmp_path)] == ["SmallSTS"]
    assert path.with_name("SmallSTS.json.torn").is_file()
    evaluate(model, [SmallSTS()], tmp_path)
    assert json.loads(path.read_text(encoding="utf-8"))["scores"] == json.loads(content)["scores"]

    # A kill between scores and record.
    for path in [tmp_path / "run.json", *tmp_path.glob("runs/*/*/*.json")]:
        path.unlink()
    evaluate(model, [SmallSTS()], tmp_path)
    record = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))["tasks"]["SmallSTS"]
    assert record["query"].startswith("Instruct: ")
    assert record["texts"] is None


@pytest.mark.filterwarnings("ignore:An input array is constant")
def test_what_mteb_does_not_keep_is_recorded(saved: Path, tmp_path: Path) -> None:
    model = load_model(str(saved), prompts="paper", max_seq_length=8)
    shown = []
    evaluate(model, [SmallSTS(), MockRetrievalTask()], tmp_path, after_each=shown.append)
    assert shown == [tmp_path, tmp_path]
    run = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    assert (run["model"], run["revision"], run["mode"]) == ("local/model", model.mteb_model_meta.revision, "paper")
    assert run["experiment"] == "max_seq_length_8__prompts_paper"
    assert run["parameters"] == sum(weight.numel() for weight in model.model.parameters())
    sts = run["tasks"]["SmallSTS"]
    assert sts["texts"] == model.usage["SmallSTS"].texts
    # The instruction alone is longer.
    assert sts["truncation_rate"] == 1.0
    assert sts["tokens"] == 8 * sts["texts"]
    assert run["tasks"]["MockRetrievalTask"]["document"] == ""


def test_a_task_without_data_is_left_out_and_the_others_are_finished(saved: Path, tmp_path: Path) -> None:
    tasks = [WithoutData(), SmallSTS(), MockMultilingualSTSTask()]
    with pytest.raises(InputError, match=r"1 of 3 tasks.*WithoutData: ConnectionError.*the 2 finished tasks are kept"):
        evaluate(load_model(str(saved), prompts="mteb"), tasks, tmp_path)
    kept = {path.stem for path in tmp_path.glob("results/*/*/*STS*.json")}
    assert kept == {"SmallSTS", "MockMultilingualSTSTask"}


def test_tasks_are_found_cheapest_first_and_parts_before_their_aggregate() -> None:
    names = [task.metadata.name for task in resolve_tasks([], "MTEB(eng, v1)")]
    assert len(names) == 68
    assert names[-1] == "CQADupstackRetrieval"
    assert names.index("BIOSSES") < names.index("SciFact") < names.index("HotpotQA")
    [tatoeba] = resolve_tasks(["Tatoeba:fra-eng", "Tatoeba:deu-eng"], None)
    assert sorted(tatoeba.hf_subsets) == ["deu-eng", "fra-eng"]


def test_a_subset_that_is_named_besides_takes_none_from_a_benchmark() -> None:
    tasks = resolve_tasks(["MassiveIntentClassification:da", "Tatoeba:fra-eng"], "MTEB(Scandinavian, v1)")
    subsets = {task.metadata.name: task.hf_subsets for task in tasks}
    assert subsets["MassiveIntentClassification"] == ["da", "nb", "sv"]
    assert subsets["Tatoeba"] == ["fra-eng"]
    assert len(tasks) == len(mteb.get_benchmark("MTEB(Scandinavian, v1)").tasks) + 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--tasks", "STSBenchmrk"), ("no task 'STSBenchmrk'", "STSBenchmark")),
        (("--tasks", "Tatoeba:fra-english"), ("no subset 'fra-english'", "fra-eng")),
        (("--benchmark", "MTEB(eng,v1)"), ("no benchmark 'MTEB(eng,v1)'", "MTEB(eng, v1)")),
        ((), ("No tasks are given", "--benchmark")),
        (("--tasks", "CIFAR10"), ("Only tasks about texts", "CIFAR10")),
        (("--tasks", "STSBenchmark", "--prompts", "papers"), ("--prompts is 'papers'", "paper, mteb, none")),
    ],
)
def test_what_is_not_there_is_told_with_what_is_near(
    arguments: tuple[str, ...], told: tuple[str, ...], saved: Path, tmp_path: Path, run_cli: Callable[..., Outcome]
) -> None:
    outcome = run_cli("evaluate", saved, *arguments, "--output-dir", tmp_path / "out")
    assert outcome.code == 2
    assert outcome.err.startswith("Error: ")
    assert len(outcome.err.strip().splitlines()) == 1
    for words in told:
        assert words in outcome.err
    assert not (tmp_path / "out").exists()


def test_a_dry_run_shows_the_prompts_and_writes_nothing(
    saved: Path, tmp_path: Path, run_cli: Callable[..., Outcome]
) -> None:
    arguments = ("--tasks", "STSBenchmark,Banking77Classification", "--prompts", "paper", "--dry-run")
    outcome = run_cli("evaluate", saved, *arguments, "--output-dir", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    assert "2 of 2 tasks to do" in outcome.out
    assert "semantically" in outcome.out
    assert "GENERIC" not in outcome.out
    assert not (tmp_path / "out").exists()


def test_a_sound_model_passes_and_every_tasks_prompt_and_size_are_told(saved: Path) -> None:
    tasks = [mteb.get_task("STSBenchmark"), mteb.get_task("FEVERHardNegatives"), mteb.get_task("SciFact")]
    sts, fever, scifact = preflight(load_model(str(saved), prompts="mteb"), tasks)
    assert (sts.prompt.source, sts.prompt.generic) == ("type", False)
    assert (fever.prompt.source, fever.prompt.generic) == ("type", True)
    assert scifact.prompt.query.startswith("Instruct: Given a scientific claim")
    assert sts.texts == 2758
    assert sts.characters == 147886 + 2758 * len(sts.prompt.query)


def test_only_the_subsets_asked_for_are_counted() -> None:
    whole, part = text_count(mteb.get_task("Tatoeba")), text_count(mteb.get_task("Tatoeba", hf_subsets=["fra-eng"]))
    assert part[0] == 2000
    assert whole[0] > 50 * part[0]


def test_texts_that_do_not_end_in_eos_are_refused(saved: Path) -> None:
    loaded = load_model(str(saved), prompts="mteb")
    tokenizer = loaded.model.tokenizer.backend_tokenizer
    tokenizer.post_processor = TemplateProcessing("<s> $A", "<s> $A <s> $B", [("<s>", 1)])
    with pytest.raises(InputError, match="has to end in one '</s>'"):
        preflight(loaded, [SmallSTS()])


def test_a_model_whose_vectors_depend_on_padding_is_refused(tiny_base: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    tokenizer.save_pretrained(tmp_path / "base")
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=128, bos_token_id=1)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    model = LLMSentenceTransformer.from_base(str(tmp_path / "base"), max_seq_length=96, device="cpu")
    check_padding(model)
    # Its positions are counted from the left, padding included.
    model.tokenizer.padding_side = "left"
    with pytest.raises(InputError, match=r"alone and in a batch.*'left'"):
        check_padding(model)
