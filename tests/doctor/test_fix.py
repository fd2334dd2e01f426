"""--fix: a repaired copy is healthy, has the vectors of what was repaired, and the original stays as it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from break_repository import edit, edit_list, eos_by_flag, no_probe, prompts, template, tokenizer_config
from conftest import Outcome
from sentence_transformers import SentenceTransformer

from st_llm_embed import InputError, diagnose
from st_llm_embed.doctor.fix import repair


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def as_stock_saves_it(folder: Path) -> None:
    no_probe(folder)
    SentenceTransformer(str(folder), device="cpu").save_pretrained(str(folder), create_model_card=False)


def everything(folder: Path) -> None:
    template(folder, "<s>", "<s>", "A", "</s>", "</s>")
    tokenizer_config(folder, truncation_side="left", model_input_names=["input_ids"], extra_special_tokens=["<x>"])
    edit(folder / "1_Pooling" / "config.json", pooling_mode_mean_tokens=None)
    edit(folder / "sentence_bert_config.json", max_seq_length=None)
    edit_list(folder / "modules.json", lambda modules: modules[:2])
    edit(folder / "config.json", rope_theta=None, rope_parameters={"rope_theta": 5e5, "rope_type": "default"})
    edit(folder / "config_sentence_transformers.json", default_prompt_name="query")
    no_probe(folder)


def query_prompt_on_documents(folder: Path) -> None:
    prompts(folder, document=json.loads((folder / "probe.json").read_text(encoding="utf-8"))["prompts"]["query"])


@pytest.mark.parametrize("damage", [as_stock_saves_it, eos_by_flag, everything, query_prompt_on_documents])
def test_a_repaired_copy_is_healthy(damage: Callable[[Path], None], broken: Path, tmp_path: Path) -> None:
    damage(broken)
    assert diagnose(str(broken), live=False).findings
    before = contents(broken)
    repair(str(broken), tmp_path / "fixed")
    assert diagnose(str(tmp_path / "fixed"), live=True).findings == []
    assert contents(broken) == before
    weights = "model.safetensors"
    assert (tmp_path / "fixed" / weights).stat().st_ino == (broken / weights).stat().st_ino


def test_a_good_repository_is_copied_unchanged(good: Callable[[str], Path], tmp_path: Path) -> None:
    assert repair(str(good("mistral")), tmp_path / "copy").changed == []
    assert contents(tmp_path / "copy") == contents(good("mistral"))


def test_what_stock_saved_gives_the_same_vectors_after_the_repair(broken: Path, tmp_path: Path) -> None:
    as_stock_saves_it(broken)
    repair(str(broken), tmp_path / "fixed")
    texts = ["", "a", " edges ", "answer about thing " * 40]
    one, other = (SentenceTransformer(str(folder), device="cpu") for folder in (broken, tmp_path / "fixed"))
    np.testing.assert_array_equal(one.encode(texts), other.encode(texts))
    np.testing.assert_array_equal(one.encode_query(texts), other.encode_query(texts))


def test_a_length_of_null_becomes_the_one_that_is_read(broken: Path, tmp_path: Path) -> None:
    content = {"max_seq_length": None, "do_lower_case": False}
    content |= {"processing_kwargs": {"text": {"truncation": False, "padding": "longest"}, "image": {"size": 8}}}
    (broken / "sentence_bert_config.json").write_text(json.dumps(content), encoding="utf-8")
    assert SentenceTransformer(str(broken), device="cpu").max_seq_length == 48
    repair(str(broken), tmp_path / "fixed")
    assert json.loads((tmp_path / "fixed" / "sentence_bert_config.json").read_text(encoding="utf-8")) == {
        "max_seq_length": 48,
        "do_lower_case": False,
        "processing_kwargs": {"text": {"padding": "longest"}, "image": {"size": 8}},
    }


def test_a_copy_goes_neither_into_what_is_copied_nor_into_a_folder_that_exists(broken: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is inside"):
        repair(str(broken), broken / "fixed")
    assert not (broken / "fixed").exists()
    (tmp_path / "mine").mkdir()
    with pytest.raises(InputError, match="exists already"):
        repair(str(broken), tmp_path / "mine")
    assert list((tmp_path / "mine").iterdir()) == []


POOLING = "1_Pooling/config.json"


@pytest.mark.parametrize("has_probe", [True, False])
def test_a_pooling_that_is_gone_is_taken_from_the_probe_and_is_not_guessed(
    has_probe: bool, broken: Path, tmp_path: Path
) -> None:
    if not has_probe:
        no_probe(broken)
    (broken / POOLING).unlink()
    repaired = repair(str(broken), tmp_path / "fixed")
    assert (tmp_path / "fixed" / POOLING).exists() == has_probe
    assert (repaired.after.findings == []) == has_probe


DAMAGES: dict[str, tuple[Callable[[Path], object], bool]] = {
    "two poolings": (lambda folder: edit(folder / POOLING, pooling_mode_mean_tokens=True), True),
    "mean pooling": (
        lambda folder: edit(folder / POOLING, pooling_mode_mean_tokens=True, pooling_mode_lasttoken=False),
        True,
    ),
    "1 for true": (lambda folder: edit(folder / POOLING, pooling_mode_lasttoken=1), True),
    "another length": (lambda folder: edit(folder / "sentence_bert_config.json", max_seq_length=32), True),
    "another prompt": (lambda folder: prompts(folder, query="Find: "), True),
    "no prompts": (lambda folder: (folder / "config_sentence_transformers.json").write_text("{}"), True),
    "no EOS": (lambda folder: template(folder, "<s>", "A"), True),
    "no BOS": (lambda folder: template(folder, "A", "</s>"), True),
    "another end": (lambda folder: template(folder, "<s>", "A", "<s>"), True),
    "no pad token": (lambda folder: tokenizer_config(folder, pad_token=None), True),
    "module order": (lambda folder: edit_list(folder / "modules.json", lambda modules: modules[::-1]), False),
    "no modules": (lambda folder: (folder / "modules.json").write_text("[]"), False),
    "layers": (lambda folder: edit(folder / "config.json", num_hidden_layers=5), False),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), False),
    "own code": (lambda folder: edit(folder / "config.json", auto_map={"AutoModel": "my.Model"}), False),
    "another tokenizer": (lambda folder: edit(folder / "tokenizer.json", pre_tokenizer=None), False),
}
"""By what was done: how, and whether probe.json is enough to bring back what was there."""


@pytest.mark.parametrize("done", DAMAGES)
def test_a_repair_brings_back_the_vectors_of_the_probe_or_changes_nothing_for_the_worse(
    done: str, broken: Path, tmp_path: Path
) -> None:
    damage, is_repaired = DAMAGES[done]
    damage(broken)
    repaired = repair(str(broken), tmp_path / "fixed")
    before, after = ({finding.trap for finding in one.findings} for one in (repaired.before, repaired.after))
    assert before
    assert (after == set()) == is_repaired
    assert after <= before
    if not is_repaired:
        assert (tmp_path / "fixed" / "modules.json").read_bytes() == (broken / "modules.json").read_bytes()


def test_the_command_tells_healthy_from_ill_from_bad_input(
    run_cli: Callable[..., Outcome], good: Callable[[str], Path], broken: Path, tmp_path: Path
) -> None:
    healthy = run_cli("doctor", good("mistral"), "--no-live")
    assert healthy.code == 0
    assert "0 findings" in healthy.out
    eos_by_flag(broken)
    ill = run_cli("doctor", broken, "--no-live")
    assert ill.code == 1
    assert "ERROR: missing EOS (tokenizer.json)" in ill.out
    missing = run_cli("doctor", tmp_path / "nothing")
    assert (missing.code, missing.out) == (2, "")
    fixed = run_cli("doctor", broken, "--no-live", "--fix", tmp_path / "fixed")
    assert fixed.code == 0
    assert "- tokenizer.json: a post-processor that ends texts in one EOS token" in fixed.out
    outcome = run_cli("doctor", broken, "--live", "--json", "--fix", tmp_path / "with json", "--device", "cpu")
    output = json.loads(outcome.out)
    assert outcome.code == 0
    assert not output["before"]["healthy"]
    assert output["after"]["healthy"]
    assert {check["done"] for check in output["after"]["checks"]} == {True, False}
    assert {finding["trap"] for finding in output["before"]["findings"]} >= {"missing EOS", "tokenizer"}
    assert output["after"]["readers"][0]["reader"] == "sentence-transformers 6"


def test_what_no_program_can_repair_is_said(run_cli: Callable[..., Outcome], broken: Path, tmp_path: Path) -> None:
    edit(broken / "config.json", vocab_size=100)
    outcome = run_cli("doctor", broken, "--no-live", "--fix", tmp_path / "fixed")
    assert outcome.code == 1
    assert "This cannot be repaired by a program:" in outcome.out
    assert "too few embeddings" in outcome.out.split("This cannot be repaired")[1]
