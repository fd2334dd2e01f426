from __future__ import annotations

import json
import multiprocessing
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import mteb
import numpy as np
import pytest
from datasets import Dataset
from mteb._create_dataloaders import create_dataloader
from mteb.mocks.mock_tasks import MockRetrievalTask
from mteb.types import PromptType
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding, Transformer
from small_tasks import SmallSTS
from tokenizers import Tokenizer

from st_llm_embed import InputError, LLMSentenceTransformer
from st_llm_embed.evaluation.mteb import evaluate, preflight
from st_llm_embed.evaluation.mteb_models import load_model
from st_llm_embed.evaluation.mteb_report import write_mteb_report
from st_llm_embed.modules.layout import model_hash


@pytest.fixture(scope="module")
def saved(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    LLMSentenceTransformer.from_base(str(tiny_base), max_seq_length=64, device="cpu").save(str(folder))
    return folder


@pytest.fixture(scope="module")
def mean_pooled(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that takes no instructions, with prompts of its own."""
    folder = tmp_path_factory.mktemp("saved") / "mean"
    transformer = Transformer(str(tiny_base), model_kwargs={"dtype": "float32"})
    transformer.tokenizer.pad_token = transformer.tokenizer.eos_token
    pooling = Pooling(transformer.get_embedding_dimension(), pooling_mode="mean")
    prompts = {"query": "query: ", "document": "passage: ", "STS": "same: "}
    SentenceTransformer(modules=[transformer, pooling], prompts=prompts, device="cpu").save(str(folder))
    return folder


def test_scores_are_kept_by_what_a_model_is_and_not_by_its_name(saved: Path, tiny_base: Path, tmp_path: Path) -> None:
    random = tmp_path / "other" / saved.name
    LLMSentenceTransformer.from_base(str(tiny_base), max_seq_length=64, random_init=True, device="cpu").save(
        str(random)
    )
    out = tmp_path / "out"

    def pearson(folder: Path, output_dir: Path) -> float:
        [result] = evaluate(load_model(str(folder), prompts="mteb"), [SmallSTS()], output_dir)
        return result.scores["test"][0]["cosine_pearson"]

    trained_score, random_score = pearson(saved, out), pearson(random, out)
    assert abs(random_score - trained_score) > 1e-3
    assert random_score == pytest.approx(pearson(random, tmp_path / "fresh"), abs=1e-6)
    assert len(list((out / "results" / "local__model").iterdir())) == 2

    # The same model elsewhere encodes nothing.
    again = load_model(str(shutil.copytree(saved, tmp_path / "elsewhere" / saved.name)), prompts="mteb")
    [known] = evaluate(again, [SmallSTS()], out)
    assert known.scores["test"][0]["cosine_pearson"] == pytest.approx(trained_score, abs=1e-6)
    assert again.usage == {}
    run = json.loads((out / "run.json").read_text(encoding="utf-8"))
    assert run["tasks"]["SmallSTS"]["texts"] > 0


def test_paper_and_mteb_mode_and_another_length_share_no_scores(saved: Path, tmp_path: Path) -> None:
    for options in ({"prompts": "mteb"}, {"prompts": "paper"}, {"prompts": "none"}):
        evaluate(load_model(str(saved), **options), [SmallSTS()], tmp_path)  # type: ignore[arg-type]
    evaluate(load_model(str(saved), prompts="paper", max_seq_length=48), [SmallSTS()], tmp_path)
    [folder] = (tmp_path / "results" / "local__model").iterdir()
    found = {path.parent.relative_to(folder).as_posix() for path in folder.rglob("SmallSTS.json")}
    assert found == {
        ".",
        "experiments/prompts_paper",
        "experiments/prompts_none",
        "experiments/max_seq_length_48__prompts_paper",
    }
    assert len({json.dumps(json.loads(p.read_text())["scores"]) for p in folder.rglob("SmallSTS.json")}) > 1


@pytest.mark.parametrize(
    "file", ["model.safetensors", "tokenizer.json", "config_sentence_transformers.json", "1_Pooling/config.json"]
)
def test_whatever_changes_vectors_changes_the_revision(file: str, saved: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(saved, tmp_path / "copy")
    (copy / "README.md").write_text("Another card.", encoding="utf-8")
    assert model_hash(copy) == model_hash(saved)
    with (copy / file).open("ab") as changed:
        changed.write(b" ")
    assert model_hash(copy) != model_hash(saved)


def test_the_base_of_an_adapter_is_part_of_its_revision(tmp_path: Path) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    base.mkdir()
    adapter.mkdir()
    (base / "model.safetensors").write_bytes(b"one")
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}), encoding="utf-8")
    before = model_hash(adapter)
    (base / "model.safetensors").write_bytes(b"two")
    assert model_hash(adapter) != before


def test_vectors_are_those_of_the_model_under_the_prompts_that_are_shown(saved: Path, mean_pooled: Path) -> None:
    metadata = MockRetrievalTask().metadata
    texts = ["one question", "and another"]
    loader = create_dataloader(Dataset.from_dict({"text": texts}), task_metadata=metadata)
    for folder, mode in ((saved, "paper"), (saved, "none"), (mean_pooled, "mteb"), (mean_pooled, "none")):
        model = load_model(str(folder), prompts=mode)  # type: ignore[arg-type]
        prompt = model.task_prompt(metadata)
        for side, text in ((PromptType.query, prompt.query), (PromptType.document, prompt.document)):
            got = model.encode(loader, task_metadata=metadata, hf_split="test", hf_subset="default", prompt_type=side)
            plain = SentenceTransformer(str(folder), device="cpu").encode([text + one for one in texts], prompt="")
            np.testing.assert_allclose(got, plain, atol=1e-5)


def test_a_model_without_instructions_keeps_its_own_prompts_or_none(mean_pooled: Path) -> None:
    scifact, sts = mteb.get_task("SciFact").metadata, mteb.get_task("STSBenchmark").metadata
    own = load_model(str(mean_pooled), prompts="mteb")
    assert own.task_prompt(scifact) == ("query: ", "passage: ", "saved", False)
    assert own.task_prompt(sts) == ("same: ", "", "saved", False)
    assert load_model(str(mean_pooled), prompts="none").task_prompt(scifact)[:2] == ("", "")
    with pytest.raises(InputError, match=r"takes no instructions.*--prompts mteb"):
        load_model(str(mean_pooled), prompts="paper")


def test_a_saved_prompt_in_our_template_shows_a_model_to_take_instructions(mean_pooled: Path, tmp_path: Path) -> None:
    model = SentenceTransformer(str(mean_pooled), device="cpu")
    model.prompts = {"query": "Instruct: Find it\nQuery: ", "document": ""}
    model.save(str(tmp_path / "instructed"))
    instructed = load_model(str(tmp_path / "instructed"), prompts="paper")
    assert instructed.task_prompt(mteb.get_task("SciFact").metadata).query.startswith("Instruct: Given a scientific")


def test_several_devices_give_the_vectors_of_one(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("st_llm_embed.evaluation.mteb_models.POOL_FROM", 8)
    metadata = MockRetrievalTask().metadata
    loader = create_dataloader(Dataset.from_dict({"text": [f"text {n}" for n in range(10)]}), task_metadata=metadata)
    asked: Any = {"task_metadata": metadata, "hf_split": "test", "hf_subset": "default", "batch_size": 4}
    one = load_model(str(saved), prompts="none", devices=["cpu"])
    with closing(load_model(str(saved), prompts="none", devices=["cpu", "cpu"])) as two:
        got = two.encode(loader, **asked)
        assert len(multiprocessing.active_children()) == 2
        np.testing.assert_allclose(got, one.encode(loader, **asked), atol=1e-5)
    assert not multiprocessing.active_children()


def test_static_embeddings_have_scores_and_no_length(tiny_base: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(tiny_base / "tokenizer.json"))
    folder, out = tmp_path / "static", tmp_path / "out"
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=8)], device="cpu").save(str(folder))
    with pytest.raises(InputError, match=r"--max-seq-length is 16.*by a Tokenizer.*Omit --max-seq-length"):
        load_model(str(folder), prompts="none", max_seq_length=16)
    model = load_model(str(folder), prompts="none")
    preflight(model, [SmallSTS()])
    evaluate(model, [SmallSTS()], out)
    report = write_mteb_report(out)
    assert report["max_seq_length"] is None
    assert list(report["tasks"]) == ["SmallSTS"]
    for path in out.rglob("*.json"):
        assert json.loads(path.read_text(encoding="utf-8"), parse_constant=pytest.fail)


@pytest.mark.parametrize(
    ("name_or_path", "options", "told"),
    [
        ("runs/no/such/folder", {}, "no model folder 'runs/no/such/folder'"),
        ("org/not-there", {}, "'org/not-there' cannot be loaded"),
        ("FOLDER", {"revision": "main"}, "has no revision 'main'"),
        ("FOLDER", {"max_seq_length": 2}, "need at least 3 tokens"),
        ("FOLDER", {"max_seq_length": 4096}, "room for 512"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(
    name_or_path: str, options: dict[str, str | int], told: str, saved: Path
) -> None:
    given = str(saved) if name_or_path == "FOLDER" else name_or_path
    with pytest.raises(InputError, match=told):
        load_model(given, prompts="mteb", **options)  # type: ignore[arg-type]
